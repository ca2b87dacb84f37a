"""Restores a home from the store, and tests that it can be restored."""
