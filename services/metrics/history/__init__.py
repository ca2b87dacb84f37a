"""Store the metrics history in PostgreSQL and answer queries for charts."""
