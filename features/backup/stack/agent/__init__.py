"""The backup agent: copies the database, its changes and the recovery logs to the store."""
