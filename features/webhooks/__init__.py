"""Signed events for servers that accounts and organizations name."""
