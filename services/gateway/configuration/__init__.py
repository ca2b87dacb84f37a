"""The configuration as versioned documents in PostgreSQL."""
