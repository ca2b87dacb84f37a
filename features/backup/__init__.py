"""Encrypted backups that an agent makes, and restores to any second."""
