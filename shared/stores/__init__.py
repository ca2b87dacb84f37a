"""PostgreSQL, Valkey and locked files: what outlives a process."""
