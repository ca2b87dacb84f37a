"""A small NATS client: core messages, headers, several ways to log in, reconnect. Decision 0003 (docs/decisions/0003-own-nats-client.md)
explains why it is ours. ``nats_protocol`` is the wire without I/O, ``server_connection`` one TCP connection, ``client`` what the mesh
uses."""
