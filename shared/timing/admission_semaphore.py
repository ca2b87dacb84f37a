"""Limits how many pieces of work run at once. Others wait, and owners take turns, so one owner can neither fill all places nor queue all
its work before another owner's first request."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared import errors
from shared.timing.concurrency_limit import ConcurrencyLimit


class AdmissionSemaphore:
    """`async with turns.take(owner): …`"""

    def __init__(self, at_once: int, *, of_one: int, seconds: float, refusal: str) -> None:
        self._limit = ConcurrencyLimit(at_once, of_one)
        self._seconds = seconds
        self._refusal = refusal
        #: The next owner comes first. Each waiter holds a connection, and the port limits those.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def take(self, owner: str) -> AsyncIterator[None]:
        """Raises Limited after ``seconds`` in the queue: too many callers at once are no failure of the service."""
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
        self._limit.leave(owner)
        self._grant()

    def _grant(self) -> None:
        while not self._limit.is_full:
            owner = next((waiting for waiting in self._waiting if self._limit.has_share(waiting)), None)
            if owner is None:
                return
            queue = self._waiting.pop(owner)
            turn = queue.popleft()
            if queue:
                # The owner goes to the end of the line.
                self._waiting[owner] = queue
            if not turn.cancelled():
                turn.set_result(None)
                self._limit.enter(owner)
