"""Decides who may read /metrics on a port that people reach. Pure.

The metrics service has the numbers of every node by the mesh's own way, so a public port serves only scrapers that an
operator has named.
"""

import hmac
from collections.abc import MutableMapping
from typing import Any

from shared import addresses
from shared.node import http_connection_limits
from shared.node.settings import PublicNodeSettings

#: A request that has one of these came through a proxy, and the address of the connection says nothing of who asks.
_FORWARDING = frozenset(
    {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"}
    | {b"cf-connecting-ip", b"true-client-ip"}
)


def is_allowed(scope: MutableMapping[str, Any], settings: PublicNodeSettings) -> bool:
    """``scope`` is ASGI's, with the address as trusted proxies gave it."""
    headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
    sent = [value for name, value in headers if name == b"authorization"]
    if settings.metrics_token is not None and len(sent) == 1:
        wanted = b"Bearer " + settings.metrics_token.encode()
        if hmac.compare_digest(sent[0], wanted):
            return True
    host, port = scope.get("client") or ("", 0)
    address = addresses.parse(host)
    if address is None:
        return False
    is_forwarded = any(name in _FORWARDING for name, _ in headers)
    if address.is_loopback and not is_forwarded:
        return True
    # uvicorn gives port 0 to an address that a trusted proxy said; another forwarded one is the proxy's own.
    is_known = not is_forwarded or port == 0
    return is_known and any(address in http_connection_limits.network(each) for each in settings.metrics_networks)
