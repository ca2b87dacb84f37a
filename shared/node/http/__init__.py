"""The HTTP port of a service: its server, its limits, and access to /metrics."""
