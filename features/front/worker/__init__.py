"""What a machine's worker does for servers that run there."""
