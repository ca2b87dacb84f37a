"""What decides about files, without I/O."""
