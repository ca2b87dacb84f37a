"""The command of the usage export."""
