"""Backup and restore of a stack: what is in the store, the agent that fills it, and the commands that read it."""
