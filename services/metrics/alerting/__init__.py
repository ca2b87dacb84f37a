"""Evaluate the alert rules, keep the state of alerts, and notify people."""
