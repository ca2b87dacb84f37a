"""Sign the JWTs of a NATS auth callout: a user's rights, and the answer to the server. PyJWT has no ``ed25519-nkey``. Pure."""

import secrets
from typing import Any

import msgspec

from shared.identity import base64url, node_keys
from shared.protocol.topics import Permissions
from shared.types import NodeId

_encode = msgspec.json.Encoder().encode
_UNLIMITED = -1


_HEADER = base64url.encode(_encode({"typ": "JWT", "alg": "ed25519-nkey"}))


class NatsIssuer:
    """The account key that the server's configuration names as the issuer."""

    def __init__(self, key: node_keys.Authority) -> None:
        self._key = key

    def grant(self, user: str, node: NodeId, account: str, rights: Permissions, *, now: int, until: int | None) -> str:
        """Return the JWT with which the server admits one connection. ``user`` is the server's name for it. Without ``until``, it lasts."""
        assert rights.publish
        assert rights.subscribe  # an empty list would allow everything
        limits = {"subs": rights.max_subscriptions, "data": _UNLIMITED, "payload": _UNLIMITED}
        allowed = {"pub": {"allow": rights.publish}, "sub": {"allow": rights.subscribe}}
        claims = {"sub": user, "aud": account, "name": node, "nats": {**allowed, **limits, "type": "user", "version": 2}}
        return self._sign(claims if until is None else {**claims, "exp": until}, now)

    def answer(self, user: str, server: str, *, now: int, jwt: str = "", error: str = "") -> bytes:
        """Return the answer to a callout: the user's JWT, or why the login is refused, which only the server's log shows."""
        body = {"jwt": jwt} if jwt else {"error": error}
        claims = {"sub": user, "aud": server, "nats": {**body, "type": "authorization_response", "version": 2}}
        return self._sign(claims, now).encode()

    def _sign(self, claims: dict[str, Any], now: int) -> str:
        body = base64url.encode(_encode({**claims, "iss": self._key.id, "iat": now, "jti": secrets.token_hex(16)}))
        text = f"{_HEADER}.{body}"
        return f"{text}.{base64url.encode(self._key.sign_bare(text.encode()))}"
