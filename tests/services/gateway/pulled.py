"""Reads answers step by step, for tests that look at a run between its pieces. Who gives a piece waits until the next one is wanted."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from services.gateway.facts.reader import Reader
from services.gateway.facts.tally import Tally
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.requests.generation import Work
from services.gateway.requests.runs import Runs
from services.gateway.requests.workers import Workers
from shared import context, errors
from shared.api.auth import Principal
from shared.api.inference import Conversion

Start = Callable[[Reader[Any, Any]], Awaitable[Any]]


class PulledAnswer(Reader[Any, Any]):
    """Iterate it for the numbered pieces; read ``result`` after the block of ``pulled``."""

    head: Any = None
    is_repeat = False

    def __init__(self, start: Start, *, shows_heads: bool = False) -> None:
        self._shows_heads = shows_heads
        self._given: deque[tuple[int, Any]] = deque()
        self._taken: asyncio.Future[None] | None = None
        self._has_left = False
        self._changed = asyncio.Event()
        self.task = asyncio.ensure_future(start(self))
        self.task.add_done_callback(lambda _: self._changed.set())

    # --- as a reader --------------------------------------------------------------------------------------------------

    def begin(self, head: Any) -> None:
        self.head = head
        now = context.current.get()
        self.is_repeat = not self._shows_heads and now is not None and head.request_id != now.request_id
        if self._shows_heads:
            self._given.append((0, head))
        self._changed.set()

    async def take(self, number: int, piece: Any, at: Tally) -> bool:
        self._given.append((number, piece))
        self._taken = asyncio.get_running_loop().create_future()
        self._changed.set()
        await self._taken
        return not self._has_left

    # --- for the test -------------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        return getattr(self.head, name)

    @property
    def result(self) -> Any:
        return self.task.result()

    async def wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def wait_for_head(self) -> None:
        while self.head is None and not self.task.done():
            await self.wait()
        if self.head is None:
            await self.task

    async def read(self) -> Any:
        async for _ in self:
            pass
        return self.result

    def __aiter__(self) -> "PulledAnswer":
        return self

    async def __anext__(self) -> tuple[int, Any]:
        if not self._given:
            self._release(None)
        while not self._given:
            if self.task.done():
                self.task.result()
                raise StopAsyncIteration
            await self.wait()
        return self._given.popleft()

    def _release(self, error: errors.AimeshError | None) -> None:
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None) if error is None else self._taken.set_exception(error)

    async def close(self, error: BaseException | None) -> None:
        """Leave: with an error of the caller, as a reader that can take no more, or as one that wants no more."""
        if (error is None or isinstance(error, errors.AimeshError)) and self._taken is not None and not self._taken.done():
            self._has_left = True
            self._release(error)
        elif not self.task.done():
            self.task.cancel()
        await asyncio.wait([self.task])
        if not self.task.cancelled():
            self.task.exception()


@asynccontextmanager
async def pulled(start: Start) -> AsyncIterator[PulledAnswer]:
    """Run it in the block. Leaving early ends it."""
    answer, problem = PulledAnswer(start), None
    try:
        await answer.wait_for_head()
        yield answer
    except BaseException as error:
        problem = error
        raise
    finally:
        await answer.close(problem)


async def generated(workers: Workers, work: Work, requirements: WorkerRequirements, seconds: float, **more: Any) -> AsyncGenerator[Any]:
    """Yield what workers accept, their pieces, and the end."""
    answer = PulledAnswer(lambda reader: workers.generate(work, requirements, seconds, reader, **more), shows_heads=True)
    problem: BaseException | None = None
    try:
        async for _, item in answer:
            yield item
        yield answer.result
    except BaseException as error:
        problem = error
        raise
    finally:
        await answer.close(problem)


class PulledRuns:
    """The methods of ``Runs``, each as a block with its answer."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def answer(self, principal: Principal, request: Any, *, seconds: float, **more: Any) -> Any:
        return pulled(lambda reader: self.runs.answer(principal, request, reader, seconds=seconds, **more))

    def run(self, principal: Principal, request: Any, *, seconds: float, **more: Any) -> Any:
        return pulled(lambda reader: self.runs.run(principal, request, reader, seconds=seconds, **more))

    def embed(self, principal: Principal, request: Any, *, seconds: float, key: str | None = None) -> Any:
        return pulled(lambda reader: self.runs.embed(principal, request, reader, seconds=seconds, key=key))

    def rank(self, principal: Principal, request: Any, *, seconds: float) -> Any:
        return pulled(lambda reader: self.runs.rank(principal, request, reader, seconds=seconds))

    def moderate(self, principal: Principal, request: Any, *, seconds: float) -> Any:
        return pulled(lambda reader: self.runs.moderate(principal, request, reader, seconds=seconds))

    def convert(self, principal: Principal, request: Conversion, *, seconds: float, forbids_external: bool) -> Any:
        async def convert(reader: Reader[Any, Any]) -> bytes:
            found = await self.runs.convert(principal, request, reader, seconds=seconds, forbids_external=forbids_external)
            return found[0]

        return pulled(convert)
