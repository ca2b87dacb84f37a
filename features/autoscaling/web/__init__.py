"""Autoscaling in web."""
