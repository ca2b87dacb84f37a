"""The page Backups."""
