"""Which sessions came by the provider: their ID tokens, sealed, in Valkey under the hash of the session's token, for logging out there.

A copy of Valkey names nobody, and what was moved under another session's hash does not open there.
"""

import hashlib
from dataclasses import dataclass, field

from services.auth.sealing import DataSealer
from shared import errors
from shared.stores.cache import Cache
from shared.telemetry import logs

_PURPOSE = "id token"

_log = logs.get(part="auth")


@dataclass(frozen=True, slots=True)
class ProviderSession:
    """A session that came by the provider."""

    #: None where it does not open any more: the provider then asks the person whom it means.
    id_token: str | None = field(repr=False)


class ProviderSessions:
    """Every method may raise Unavailable."""

    def __init__(self, cache: Cache, sealer: DataSealer, *, longest_seconds: float) -> None:
        self._cache = cache
        self._sealer = sealer
        self._longest_seconds = longest_seconds

    async def keep(self, session_token: str, id_token: str) -> None:
        key = _key(session_token)
        await self._cache.set(key, self._sealer.seal(_PURPOSE, key, id_token.encode()), ttl_seconds=self._longest_seconds)

    async def take(self, session_token: str) -> ProviderSession | None:
        """None if it came otherwise, or has been taken."""
        key = _key(session_token)
        sealed = await self._cache.take(key)
        return None if sealed is None else ProviderSession(self._open(key, sealed))

    def _open(self, key: str, sealed: bytes) -> str | None:
        try:
            return self._sealer.open(_PURPOSE, key, sealed).decode()
        except (errors.Unavailable, errors.Internal) as error:
            # Sealed with a key that is gone, changed, or kept in the open by an older auth: nobody stays logged in for that.
            _log.warning("an ID token that was kept does not open; the provider is asked without it", reason=error.message)
            return None


def _key(session_token: str) -> str:
    return f"auth:oidc:session:{hashlib.sha256(session_token.encode()).hexdigest()}"
