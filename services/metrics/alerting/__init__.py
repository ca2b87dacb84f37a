"""Built-in notices: compare a few metrics with thresholds, and notify people without Prometheus and Alertmanager."""
