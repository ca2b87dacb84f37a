"""A small NATS client: core messages, headers, several ways to log in, reconnect. Decision 0003 (docs/decisions/0003-own-nats-client.md)
explains why it is ours. ``protocol`` is the wire without I/O, ``session`` one TCP connection, ``client`` what the mesh uses."""
