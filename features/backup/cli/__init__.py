"""Backups in `aicli`."""
