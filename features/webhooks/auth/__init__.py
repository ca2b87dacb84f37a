"""Webhooks in auth."""
