"""Decides who may read /metrics on a public port. Pure.

The metrics service collects every node's metrics over the mesh, so a public port serves only scrapers that an operator has configured.
"""

import hmac
from collections.abc import MutableMapping
from typing import Any

from shared import addresses
from shared.node import http_connection_limits
from shared.node.settings import PublicNodeSettings

#: A request with one of these came through a proxy, so the connection's address is not the client's.
_FORWARDING = frozenset(
    {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"}
    | {b"cf-connecting-ip", b"true-client-ip"}
)


def is_allowed(scope: MutableMapping[str, Any], settings: PublicNodeSettings) -> bool:
    """``scope`` is ASGI's, with the client address that trusted proxies reported."""
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
    # uvicorn uses port 0 for an address reported by a trusted proxy. Otherwise a forwarded address is the proxy's own.
    is_known = not is_forwarded or port == 0
    return is_known and any(address in http_connection_limits.network(each) for each in settings.metrics_networks)
