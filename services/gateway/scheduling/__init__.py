"""Which worker runs a request, and who waits for one."""
