"""Runs many small questions to a store as few large ones: what arrives while one batch is on its way makes the next."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from shared import errors
from shared.node import lifecycle

Question = TypeVar("Question")
Answer = TypeVar("Answer")

#: Questions in one batch: more would keep the first of them waiting for the last.
MOST = 200
#: Batches on their way at once: while one commits, the next is computed.
WRITERS = 2
#: Stores have shorter deadlines; this is for one that has none, or for batches that do not run.
CANCEL_SECONDS = 5.0


class QueryBatching(Generic[Question, Answer]):
    """Use ``active_prompt``. ``ask_all`` answers every question, in order, or raises for all of them."""

    def __init__(self, ask_all: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]]) -> None:
        self._ask_all = ask_all
        self._waiting: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._arrived = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["QueryBatching[Question, Answer]"]:
        async with lifecycle.background() as tasks:
            for _ in range(WRITERS):
                tasks.create_task(self._write_for_ever())
            yield self

    async def ask(self, question: Question) -> Answer:
        """A cancel is felt when the answer is there: what was asked may have happened, and whoever ends it must come after it. Raises
        what ``ask_all`` raised."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        self._arrived.set()
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            await asyncio.wait([answer], timeout=CANCEL_SECONDS)
            raise

    async def _write_for_ever(self) -> None:
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
                    # Whoever waited may be gone.
                    future.exception()
                if isinstance(error, asyncio.CancelledError):
                    raise
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)
