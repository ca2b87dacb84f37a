"""Autoscaling in the metrics service."""
