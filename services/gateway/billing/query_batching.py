"""Batches small queries to a store: queries that arrive while one batch runs form the next."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from shared import errors
from shared.node import lifecycle

Question = TypeVar("Question")
Answer = TypeVar("Answer")

#: Maximum batch size, so that the first query doesn't wait too long for the last.
MOST = 200
#: Concurrent batches: one is computed while another commits.
WRITERS = 2
#: Limit on waiting for the answer after a cancellation; stores have shorter deadlines.
CANCEL_SECONDS = 5.0


class QueryBatching(Generic[Question, Answer]):
    """Use ``running``. ``ask_all`` answers all questions in order, or raises for all of them."""

    def __init__(self, ask_all: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]]) -> None:
        self._ask_all = ask_all
        self._waiting: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._arrived = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["QueryBatching[Question, Answer]"]:
        async with lifecycle.background() as tasks:
            for _ in range(WRITERS):
                tasks.create_task(self._run_batches())
            yield self

    async def ask(self, question: Question) -> Answer:
        """Return the answer, or raise what ``ask_all`` raised. A cancellation takes effect after the answer, so that a cleanup follows
        whatever the query did."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        self._arrived.set()
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            await asyncio.wait([answer], timeout=CANCEL_SECONDS)
            raise

    async def _run_batches(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            try:
                answers = await self._ask_all([question for question, _ in batch])
            except (errors.AimeshError, asyncio.CancelledError) as error:
                refused = error if isinstance(error, errors.AimeshError) else errors.Draining("this gateway is stopping")
                for _, future in batch:
                    future.set_exception(refused)
                    # Mark it as retrieved: the caller may be gone.
                    future.exception()
                if isinstance(error, asyncio.CancelledError):
                    raise
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)
