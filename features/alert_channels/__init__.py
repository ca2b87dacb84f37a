"""A webhook, email and Alertmanager for alerts."""
