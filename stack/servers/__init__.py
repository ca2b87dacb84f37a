"""The servers of a stack: PostgreSQL, Valkey, NATS and DHT nodes."""
