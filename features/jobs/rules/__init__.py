"""What decides about jobs, without I/O."""
