"""Sessions and one-time login links, in Valkey under the hash of their token: a copy of Valkey opens nothing.

A session's id is the SHA-256 of its token. Access tokens name it, so closing the session ends them at once.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from services.auth import api_keys
from shared.cache import Cache
from shared.types import UserId

#: Long enough for a command to open a browser.
LINK_SECONDS = 60

_SESSION_PREFIX = "aip_rt_"
_LINK_PREFIX = "aip_link_"


@dataclass(frozen=True, slots=True)
class Session:
    id: str
    user_id: UserId


class _Stored(msgspec.Struct, frozen=True):
    user_id: UserId
    #: Seconds since 1970; the longest life counts from here.
    opened_at: float


class Sessions:
    """Every method may raise Unavailable."""

    def __init__(self, cache: Cache, *, idle_seconds: float, longest_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._cache = cache
        self._idle_seconds = idle_seconds
        self._longest_seconds = longest_seconds
        self._clock = clock

    async def open(self, user_id: UserId) -> tuple[str, Session]:
        """The token, which only its bearer will know, and the session."""
        token = _SESSION_PREFIX + api_keys.random_text()
        session = Session(_hash(token), user_id)
        stored = msgspec.json.encode(_Stored(user_id, self._clock()))
        await self._cache.set(_session_key(session.id), stored, ttl_seconds=self._idle_seconds)
        return token, session

    async def prolong(self, token: str) -> Session | None:
        """The session of this token, good for another idle time; None if it has ended."""
        session_id = _hash(token)
        stored = await self._cache.prolong(_session_key(session_id), ttl_seconds=self._idle_seconds)
        if stored is None:
            return None
        found = msgspec.json.decode(stored, type=_Stored)
        if self._clock() >= found.opened_at + self._longest_seconds:
            await self._cache.delete(_session_key(session_id))
            return None
        return Session(session_id, found.user_id)

    async def find(self, session_id: str) -> Session | None:
        """The session of this id if it is open; being looked at does not prolong it."""
        stored = await self._cache.get(_session_key(session_id))
        if stored is None:
            return None
        found = msgspec.json.decode(stored, type=_Stored)
        over = self._clock() >= found.opened_at + self._longest_seconds
        return None if over else Session(session_id, found.user_id)

    async def close(self, token: str) -> Session | None:
        """What was closed; None if there was nothing."""
        session_id = _hash(token)
        stored = await self._cache.take(_session_key(session_id))
        return None if stored is None else Session(session_id, msgspec.json.decode(stored, type=_Stored).user_id)

    async def offer_link(self, user_id: UserId) -> str:
        """A token that opens one session for this user within a minute."""
        token = _LINK_PREFIX + api_keys.random_text()
        await self._cache.set(_link_key(token), str(user_id), ttl_seconds=LINK_SECONDS)
        return token

    async def take_link(self, token: str) -> UserId | None:
        """Whom the link was for; None if it is unknown, used or too old."""
        taken = await self._cache.take(_link_key(token))
        return None if taken is None else msgspec.convert(taken.decode(), UserId)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _session_key(session_id: str) -> str:
    return f"auth:session:{session_id}"


def _link_key(token: str) -> str:
    return f"auth:link:{_hash(token)}"
