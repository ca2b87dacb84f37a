"""Logins that have begun, in Valkey under the hash of their state, for ten minutes: a copy of Valkey finishes none of them."""

import hashlib

import msgspec

from services.auth.oidc.flow import PENDING_SECONDS, PendingLogin
from shared.stores.cache import Cache

#: Ours have 43; what is longer is not looked for.
_LONGEST_STATE = 128


class PendingLogins:
    """Every method may raise Unavailable."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    async def keep(self, state: str, pending: PendingLogin) -> None:
        await self._cache.set(_key(state), msgspec.json.encode(pending), ttl_seconds=PENDING_SECONDS)

    async def take(self, state: str) -> PendingLogin | None:
        """None if it is unknown, used or too old. Of several takers one gets it."""
        if not 0 < len(state) <= _LONGEST_STATE:
            return None
        stored = await self._cache.take(_key(state))
        if stored is None:
            return None
        try:
            return msgspec.json.decode(stored, type=PendingLogin)
        except msgspec.ValidationError:
            # Of another version of auth, before an upgrade: the person begins anew.
            return None


def _key(state: str) -> str:
    return f"auth:oidc:{hashlib.sha256(state.encode()).hexdigest()}"
