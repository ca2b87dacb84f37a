"""Other servers' models in workers."""
