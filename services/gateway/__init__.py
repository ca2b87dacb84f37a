"""The gateway: public API, limits, scheduling, failover, and billing."""
