"""The alert rules as data, for Prometheus and for the metrics service itself. Pure."""
