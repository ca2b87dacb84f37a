"""Decide how many workers each pool needs."""
