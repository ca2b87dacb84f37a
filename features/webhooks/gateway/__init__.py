"""Webhooks in gateway."""
