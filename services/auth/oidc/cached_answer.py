"""One answer of the provider, kept for a while: however many ask for it at once, the provider is asked once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from shared import errors

T = TypeVar("T")

#: For so long an answer is taken as it was.
KEPT_SECONDS = 3600.0
#: Who finds the answer too old may have a newer one, at most so often.
RENEW_SECONDS = 10.0
#: Those who wait for an answer that does not come do not each wait for another one: the failure is theirs, too.
FAILED_SECONDS = 1.0


class CachedAnswer(Generic[T]):
    """Every method raises what ``fetch`` raises: Unavailable."""

    def __init__(self, fetch: Callable[[], Awaitable[T]], clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._asking = asyncio.Lock()
        self._answer: T | None = None
        self._asked_at = float("-inf")
        self._kept_until = float("-inf")
        self._failure: errors.Unavailable | None = None
        self._failed_until = float("-inf")

    async def get(self) -> T:
        async with self._asking:
            if self._answer is not None and self._clock() < self._kept_until:
                return self._answer
            return await self._ask()

    async def renew(self, seen: T) -> T:
        """An answer that is newer than ``seen``; ``seen`` itself where the provider was asked a moment ago."""
        async with self._asking:
            if self._answer is not None and self._answer is not seen:
                return self._answer
            if self._clock() < self._asked_at + RENEW_SECONDS:
                return seen
            return await self._ask()

    async def _ask(self) -> T:
        if self._failure is not None and self._clock() < self._failed_until:
            raise errors.Unavailable(self._failure.message, hint=self._failure.hint) from self._failure
        self._asked_at = self._clock()
        try:
            answer = await self._fetch()
        except errors.Unavailable as failure:
            self._failure = failure
            self._failed_until = self._clock() + FAILED_SECONDS
            raise
        self._answer, self._failure = answer, None
        self._kept_until = self._clock() + KEPT_SECONDS
        return answer
