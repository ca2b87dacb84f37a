"""Cache PostgreSQL's answers about administrators, for when it is down: they must be able to see what is wrong.

While PostgreSQL is down for all replicas nobody can be revoked or closed, because that is stored there. Earlier changes were announced and
removed by ``forget``. So a cached answer is still right, and it is used only if there is no newer one.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar, cast

from shared import errors
from shared.telemetry import logs
from shared.types import UserId

#: Another replica may still reach PostgreSQL and revoke there, without this one noticing.
MAX_AGE_SECONDS = 3600.0
#: How long to wait for PostgreSQL if there is a cached answer; auth's callers wait 2 s in all.
WAIT_SECONDS = 0.4
MAX_ANSWERS = 1_000

T = TypeVar("T")
_log = logs.get(part="last_known")


@dataclass(frozen=True, slots=True)
class _CachedPrincipal:
    user_id: UserId
    value: object
    at: float


class PrincipalCache:
    """Keys are digests of credentials and ids; no credential is stored."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: OrderedDict[Hashable, _CachedPrincipal] = OrderedDict()
        #: Grows with every ``forget``: an answer that was requested before one is not cached after it.
        self._changes = 0
        self._is_healthy = True

    async def ask(self, key: Hashable, question: Callable[[], Awaitable[T]], administrator: Callable[[T], UserId | None]) -> T:
        """Return the answer of PostgreSQL, or else the cached one. ``administrator`` returns whose answer it is, or None if it must not be
        cached.

        Raises Unavailable if there is neither.
        """
        last = self._answers.get(key)
        usable = last is not None and self._clock() - last.at < MAX_AGE_SECONDS
        changes_before = self._changes
        try:
            async with asyncio.timeout(WAIT_SECONDS if usable else None):
                value = await question()
        except (errors.Unavailable, TimeoutError) as error:
            if last is None or not usable or changes_before != self._changes:
                raise
            if self._is_healthy:
                _log.warning("PostgreSQL does not answer: using its last answers for administrators", reason=str(error))
            self._is_healthy = False
            return cast("T", last.value)
        self._is_healthy = True
        self._answers.pop(key, None)
        user_id = administrator(value)
        if user_id is not None and changes_before == self._changes:
            self._answers[key] = _CachedPrincipal(user_id, value, self._clock())
            if len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
        return value

    def forget(self, user_id: UserId | None) -> None:
        """Drop what is known about this user, or about everyone for None."""
        self._changes += 1
        if user_id is None:
            self._answers.clear()
        for key in [key for key, answer in self._answers.items() if answer.user_id == user_id]:
            del self._answers[key]
