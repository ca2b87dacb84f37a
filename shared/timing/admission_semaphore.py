"""Limits how many pieces of work run at once. The others wait, and their owners take turns: one owner can neither fill all places nor
put a whole queue before somebody else's first request."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared import errors


class AdmissionSemaphore:
    """`async with turns.take(owner): …`"""

    def __init__(self, at_once: int, *, of_one: int, seconds: float, refusal: str) -> None:
        self._free = at_once
        #: How many of the places one owner may hold.
        self._of_one = of_one
        self._seconds = seconds
        self._refusal = refusal
        self._held: Counter[str] = Counter()
        #: The owner whose turn it is comes first. Each waiter holds a connection of its port, and the port has a bound.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def take(self, owner: str) -> AsyncIterator[None]:
        """Raises Limited for a caller that has waited ``seconds``: crowds are no failure of the service."""
        await self._wait(owner)
        try:
            yield
        finally:
            self._release(owner)

    async def _wait(self, owner: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        self._grant()
        try:
            async with asyncio.timeout(self._seconds):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            self._withdraw(owner, turn)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise errors.Limited(self._refusal, hint="try again in a few seconds", retry_after_seconds=5) from None

    def _withdraw(self, owner: str, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self._release(owner)
            return
        queue = self._waiting.get(owner)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[owner]

    def _release(self, owner: str) -> None:
        self._free += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._grant()

    def _grant(self) -> None:
        while self._free:
            owner = next((one for one in self._waiting if self._held[one] < self._of_one), None)
            if owner is None:
                return
            queue = self._waiting.pop(owner)
            turn = queue.popleft()
            if queue:
                # Behind all others.
                self._waiting[owner] = queue
            if not turn.cancelled():
                turn.set_result(None)
                self._free -= 1
                self._held[owner] += 1
