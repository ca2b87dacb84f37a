"""How often a password may be guessed: 10 attempts for an account in 15 minutes, counted in Valkey for all replicas.

An attempt is charged before its hash is compared and given back by a success, so that many at once get no further.
"""

import hashlib
from pathlib import Path

from shared import errors
from shared.cache import Cache
from shared.types import UserId

_ATTEMPTS = 10
_WINDOW_SECONDS = 900
_SCRIPT = "failed_logins"


class FailedLogins:
    """Without Valkey nobody logs in with a password; keys go on working."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        cache.script(_SCRIPT, Path(__file__).with_name("failed_logins.lua").read_text(encoding="utf-8"))

    async def charge(self, account: str) -> None:
        """Raises Limited when the account has had its attempts, and Unavailable."""
        wait_ms = await self._cache.run(_SCRIPT, [_key(account)], [_ATTEMPTS, _WINDOW_SECONDS * 1000])
        if wait_ms:
            raise errors.Limited(
                "too many failed logins for this account",
                hint=f"wait, or use an API key; {_ATTEMPTS} attempts in {_WINDOW_SECONDS // 60} minutes are allowed",
                retry_after_seconds=int(wait_ms) / 1000,
            )

    async def forgive(self, account: str) -> None:
        """The password was right."""
        await self._cache.delete(_key(account))


def account_of(user_id: UserId | None, typed: str) -> str:
    """What to count under. One that does not exist is counted too, under what was typed: the answers must not differ."""
    return str(user_id or typed.lower())


def _key(account: str) -> str:
    # Hashed, because what people type into the field for their name is now and then their password.
    return f"auth:failed_logins:{hashlib.sha256(account.encode()).hexdigest()}"
