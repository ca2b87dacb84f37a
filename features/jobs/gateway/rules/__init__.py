"""What decides about lines of jobs, without I/O."""
