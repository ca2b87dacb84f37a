"""Limits callers per hour, per minute and in concurrency."""
