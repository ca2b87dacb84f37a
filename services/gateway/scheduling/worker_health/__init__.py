"""Tracks which workers are new, unreliable or dishonest."""
