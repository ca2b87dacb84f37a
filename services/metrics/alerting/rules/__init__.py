"""When somebody has to be told: the alert rules as data, for Prometheus and for the metrics service itself. Pure."""
