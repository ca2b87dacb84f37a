"""The address of this machine at which others in its network reach it."""

import socket

#: TEST-NET-1 (RFC 5737): no machine, reached over the default route.
_ELSEWHERE = ("192.0.2.1", 9)


def find() -> str | None:
    """Return None for a machine without a default route. Sends nothing."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            return None
        return str(probe.getsockname()[0])
