"""Webhooks in cli."""
