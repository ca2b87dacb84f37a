"""Which sessions came by the provider: their ID tokens, in Valkey under the hash of the session's token, for logging out there."""

import hashlib

from shared.cache import Cache


class ProviderSessions:
    """Every method may raise Unavailable."""

    def __init__(self, cache: Cache, *, longest_seconds: float) -> None:
        self._cache = cache
        self._longest_seconds = longest_seconds

    async def keep(self, session_token: str, id_token: str) -> None:
        await self._cache.set(_key(session_token), id_token, ttl_seconds=self._longest_seconds)

    async def take(self, session_token: str) -> str | None:
        """None if it came otherwise, or has been taken."""
        taken = await self._cache.take(_key(session_token))
        return None if taken is None else taken.decode()


def _key(session_token: str) -> str:
    return f"auth:oidc:session:{hashlib.sha256(session_token.encode()).hexdigest()}"
