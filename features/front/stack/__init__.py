"""What a stack does for servers of its machine."""
