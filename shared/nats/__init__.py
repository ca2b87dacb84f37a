"""A small NATS client for one kind of node: nkey login, core messages, headers, reconnect. Why it is ours is told in
docs/decisions/0003-own-nats-client.md; ``protocol`` is the wire without I/O, ``client`` the connection."""
