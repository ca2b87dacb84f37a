"""Passes the browser's address from web to the gateway. A shared secret proves that web sent it; an address alone would prove nothing,
because any program on the machine can connect from loopback."""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Annotated, Any

from msgspec import Meta

from shared import addresses
from shared.config import Variable

Header = tuple[bytes, bytes]

Secret = Annotated[
    # Shorter than 32 random characters in base64 or hex means typed by hand.
    Annotated[str, Meta(min_length=32)] | None,
    Variable(
        "WEB_HOP_SECRET",
        "authenticates web to the gateway, which then limits by the browser's address; at least 32 random characters, the same in both",
        secret=True,
        on_all_replicas=True,
    ),
]
SECRET = b"x-aimesh-web-secret"
_FOR, _PROTO = b"x-forwarded-for", b"x-forwarded-proto"


class ClientAddress:
    """ASGI middleware that restores the client's address and scheme on requests from web."""

    def __init__(self, app: Callable[..., Awaitable[None]], secret: str | None) -> None:
        self._app = app
        self._secret = secret

    def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> Awaitable[None]:
        return self._app(resolve(scope, self._secret) if scope["type"] == "http" else scope, receive, send)


def headers(secret: str | None, address: str | None, scheme: str) -> list[Header]:
    """Return the headers that web adds to a request: the client's address and scheme, and the proof if there is a secret."""
    forwarded = [] if address is None else [(_FOR, address.encode())]
    proof = [] if secret is None else [(SECRET, secret.encode())]
    return [*forwarded, (_PROTO, scheme.encode()), *proof]


def resolve(scope: MutableMapping[str, Any], secret: str | None) -> MutableMapping[str, Any]:
    """Return the scope with the client's address if the proof is right, and without the proof in any case."""
    found: Sequence[Header] = scope["headers"]
    proofs = [value for name, value in found if name == SECRET]
    if not proofs:
        return scope
    resolved = {**scope, "headers": [header for header in found if header[0] != SECRET]}
    forwarded = [value.decode("latin-1") for name, value in found if name == _FOR]
    if secret is None or len(proofs) > 1 or not hmac.compare_digest(proofs[0], secret.encode()):
        return resolved
    if len(forwarded) == 1 and addresses.parse(forwarded[0]) is not None:
        resolved["client"] = (forwarded[0], 0)
    if (_PROTO, b"https") in found:
        resolved["scheme"] = "https"
    return resolved
