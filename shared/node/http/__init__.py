"""The HTTP port of a service: its server, its limits, and who may read /metrics."""
