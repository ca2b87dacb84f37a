"""Channels of alerts in the metrics service."""
