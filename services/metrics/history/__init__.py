"""Short history: what the charts and the alerts look back on, kept in PostgreSQL where there is one."""
