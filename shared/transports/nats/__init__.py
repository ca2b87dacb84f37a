"""NATS by nats-py: core messages, headers, several kinds of login, a new connection after each loss. See docs/decisions/0003-nats-py.md."""
