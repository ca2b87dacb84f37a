"""Export metrics, spans and logs: Prometheus, OpenMetrics and OTLP."""
