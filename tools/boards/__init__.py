"""Grafana dashboards from data: each board is a list of panels, from which Grafana's JSON is generated."""
