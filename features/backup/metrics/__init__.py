"""Backups in metrics."""
