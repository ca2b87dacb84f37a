"""The ways out for numbers, spans and logs: Prometheus, OpenMetrics and OTLP."""
