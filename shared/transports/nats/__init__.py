"""A small NATS client: core messages, headers, several kinds of login, reconnect. See docs/decisions/0003-own-nats-client.md."""
