"""Check that a DHT node or relay responds on this UDP port of the container. HEALTHCHECK calls it with the port."""

import socket
import sys

#: The PING of dht-rpc, as in stack/servers/dht_programs.py; every response begins with 0x13.
PING = bytes([0x03, 0x04, 0x34, 0x12, *bytes(6), 0x00])

with socket.socket(type=socket.SOCK_DGRAM) as line:
    line.settimeout(2)
    line.connect(("127.0.0.1", int(sys.argv[1])))
    line.send(PING)
    sys.exit(line.recv(2048)[:1] != b"\x13")
