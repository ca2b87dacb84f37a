"""Sums up days of usage, and reports on them."""
