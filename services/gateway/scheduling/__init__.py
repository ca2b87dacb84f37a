"""Chooses workers, and queues requests."""
