"""Webhooks in web."""
