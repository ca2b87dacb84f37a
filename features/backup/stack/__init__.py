"""The backup store, its agent, and the commands of backups and restores."""
