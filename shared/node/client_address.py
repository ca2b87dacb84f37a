"""The hop from web to the gateway: web proves with a secret that it speaks, and then the gateway believes where it says a request comes
from. An address proves nothing here: any program on the machine can connect from loopback."""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Annotated, Any

from msgspec import Meta

from shared import addresses
from shared.config import Variable

Header = tuple[bytes, bytes]

#: The setting of both.
Secret = Annotated[
    # Shorter ones than 32 random characters in base64 or hex were typed by hand.
    Annotated[str, Meta(min_length=32)] | None,
    Variable(
        "WEB_HOP_SECRET",
        "proves web to the gateway, which then counts by the browser's address; 32 random characters or more, the same in both",
        secret=True,
    ),
]
SECRET = b"x-aimesh-web-secret"
_FOR, _PROTO = b"x-forwarded-for", b"x-forwarded-proto"


class ClientAddress:
    """An ASGI application that sees requests of web as they came to web."""

    def __init__(self, app: Callable[..., Awaitable[None]], secret: str | None) -> None:
        self._app = app
        self._secret = secret

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        await self._app(resolve(scope, self._secret) if scope["type"] == "http" else scope, receive, send)


def headers(secret: str | None, address: str | None, scheme: str) -> list[Header]:
    """What web adds to a request: who the client is, and the proof where there is a secret."""
    said = [] if address is None else [(_FOR, address.encode())]
    proof = [] if secret is None else [(SECRET, secret.encode())]
    return [*said, (_PROTO, scheme.encode()), *proof]


def resolve(scope: MutableMapping[str, Any], secret: str | None) -> MutableMapping[str, Any]:
    """The request as it came to web, where the proof is right; in any case without the proof. ``scope`` is ASGI's."""
    found: Sequence[Header] = scope["headers"]
    proofs = [value for name, value in found if name == SECRET]
    if not proofs:
        return scope
    resolved = {**scope, "headers": [header for header in found if header[0] != SECRET]}
    said = [value.decode("latin-1") for name, value in found if name == _FOR]
    if secret is None or len(proofs) > 1 or not hmac.compare_digest(proofs[0], secret.encode()):
        return resolved
    if len(said) == 1 and addresses.parse(said[0]) is not None:
        resolved["client"] = (said[0], 0)
    if (_PROTO, b"https") in found:
        resolved["scheme"] = "https"
    return resolved
