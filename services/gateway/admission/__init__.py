"""Identifies callers and validates their requests."""
