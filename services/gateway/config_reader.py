"""Reads a configuration for the gateway: `python -m services.gateway.config_reader` reads a request on standard input."""

import sys

import msgspec

from services.gateway.configuration import config_file
from services.gateway.configuration.config_file import ReadRequest
from services.gateway.guard import guard_checks

if __name__ == "__main__":
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=ReadRequest)
    sys.stdout.buffer.write(msgspec.msgpack.encode(config_file.read_here(request, guard_checks.check)))
