"""Collect metrics, events, logs and health from every node of the mesh."""
