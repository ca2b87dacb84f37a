"""Grafana's dashboards, from data: each board is a list of panels, and the JSON of Grafana is made of it."""
