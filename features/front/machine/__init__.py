"""What `aicli worker` and `make up` do for servers of their machine."""
