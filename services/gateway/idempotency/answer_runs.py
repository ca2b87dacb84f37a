"""Generates answers independently of their readers, so that an answer may have several readers, or none for a while.

runs.start(name, produce, seconds=60)
with run.reader(after=0) as reader:
    await reader.wait_for_head()
    async for number, chunk in reader: …
reader.result
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services.gateway.idempotency.answer_buffer import AnswerBuffer, Piece, ReaderId
from shared import errors
from shared.node import lifecycle
from shared.telemetry import logs
from shared.types import TenantId

Head = TypeVar("Head")
End = TypeVar("End")

#: Over all answers: the gateway should use at most 600 MB with a thousand streams. Above it, the oldest finished answers are dropped, and
#: running ones keep only what their readers need.
MOST_BYTES = 256 * 1024 * 1024
#: How long a finished answer stays for clients that reconnect; the store keeps it longer.
KEPT_SECONDS = 600.0
_LOOK_SECONDS = 30.0

_log = logs.get(part="answer_runs")


@dataclass(frozen=True, slots=True)
class AnswerRunId:
    """Identifies an answer, by its tenant and a key."""

    owner: TenantId
    key: bytes


class AnswerRun(Generic[Head, Piece, End]):
    """One answer being generated. The producer calls ``set_head`` once and ``add`` for each chunk; others open a reader."""

    def __init__(self, name: AnswerRunId, buffer: AnswerBuffer[Piece], ends_at: float, owner: "AnswerRuns") -> None:
        self.name = name
        #: Its deadline, by the owner's clock.
        self.ends_at = ends_at
        self.is_over = False
        self.buffer = buffer
        #: What those who join it need of the one that started it.
        self.shared: Any = None
        #: What is known before the first chunk.
        self.head: Head | None = None
        #: The error; None while it runs and after success.
        self.failure: BaseException | None = None
        self._owner = owner
        self._end: End | None = None
        self._why_stopped: errors.AimeshError | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._cancel: Callable[[], object] = lambda: None

    @property
    def was_stopped(self) -> bool:
        """Return whether it was stopped on purpose; otherwise a cancellation means that this gateway stops."""
        return self._why_stopped is not None

    def reader(self, after: int = 0) -> "AnswerRunReader[Head, Piece, End]":
        """Read everything after the chunk ``after``. Raises AnswerGone if that was dropped. Enter the reader before the next await: an
        answer without readers is canceled unless it is kept."""
        return AnswerRunReader(self, self.buffer.join(after))

    # --- for the producer -------------------------------------------------------------------------------------------

    def set_head(self, head: Head) -> None:
        self.head = head
        self._changed.set()

    async def add(self, chunk: Piece) -> None:
        """Add a chunk; wait while the answer is too far ahead of its readers, up to the run's deadline."""
        self.buffer.add(chunk)
        self._changed.set()
        has_room = self.buffer.make_room(crowded=self._owner.crowded)
        self._owner.update_size(self)
        while not has_room:
            self._room.clear()
            await self._room.wait()
            has_room = self.buffer.make_room(crowded=self._owner.crowded)

    # --- for readers and the owner ----------------------------------------------------------------------------------

    def next(self, reader: ReaderId) -> tuple[int, Piece] | None:
        found = self.buffer.next(reader)
        if found is not None:
            self._room.set()
        return found

    def leave(self, reader: ReaderId) -> None:
        self.buffer.leave(reader)
        self._room.set()
        if not self.buffer.wanted and not self.is_over:
            self._owner.forget(self)
            self._cancel()

    async def wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def stop(self, why: errors.AimeshError) -> None:
        """Cancel the run; its readers get the error after the chunks so far."""
        self._why_stopped = why
        self._owner.forget(self)
        self._cancel()

    @property
    def end(self) -> End:
        """Return the result, or raise what the run raised."""
        if self.failure is not None:
            raise self.failure
        assert self._end is not None  # the run succeeded
        return self._end

    def set_task(self, task: asyncio.Task[End | BaseException]) -> None:
        self._cancel = task.cancel

    def finish(self, task: asyncio.Task[End | BaseException]) -> None:
        outcome = self._why_stopped or _cancelled() if task.cancelled() else task.result()
        if isinstance(outcome, BaseException):
            self.failure = outcome
        else:
            self._end = outcome
        if not (self.failure is None or self.buffer.is_read or isinstance(self.failure, errors.AimeshError)):
            _log.error("answer failed unexpectedly without a reader", exc_info=self.failure)
        self.is_over = True
        self._changed.set()


class AnswerRunReader(Generic[Head, Piece, End]):
    """Yields every chunk once and in order, including earlier ones; number 0 is a waiting notice. Read ``result`` after them."""

    def __init__(self, run: AnswerRun[Head, Piece, End], reader: ReaderId) -> None:
        self.run = run
        #: Another call started this answer.
        self.is_repeat = False
        self._reader = reader

    def __enter__(self) -> "AnswerRunReader[Head, Piece, End]":
        return self

    def __exit__(self, *_: object) -> None:
        self.run.leave(self._reader)

    @property
    def head(self) -> Head:
        """Return what is known before the first chunk, after ``wait_for_head``."""
        assert self.run.head is not None
        return self.run.head

    async def wait_for_head(self) -> Head:
        """Raises what the run raised before it."""
        while self.run.head is None:
            if self.run.is_over:
                raise self.run.failure or errors.Internal("an answer ended before it began")
            await self.run.wait()
        return self.run.head

    def __aiter__(self) -> "AnswerRunReader[Head, Piece, End]":
        return self

    async def __anext__(self) -> tuple[int, Piece]:
        """Raise what the run raised, after the chunks before it."""
        while True:
            found = self.run.next(self._reader)
            if found is not None:
                return found
            if self.run.is_over:
                raise self.run.failure or StopAsyncIteration
            await self.run.wait()

    @property
    def result(self) -> End:
        return self.run.end


Produce = Callable[[AnswerRun[Head, Piece, End]], Awaitable[End]]


class AnswerRuns:
    """All answers of this gateway that may have several readers. Use ``running``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, most_bytes: int = MOST_BYTES) -> None:
        self._clock = clock
        self._most_bytes = most_bytes
        self._runs: dict[AnswerRunId, AnswerRun[Any, Any, Any]] = {}
        #: Finished answers that are kept, with their expiry; oldest first.
        self._finished: OrderedDict[AnswerRunId, float] = OrderedDict()
        #: Size in bytes of each answer, and their sum.
        self._sizes: dict[AnswerRunId, int] = {}
        self._bytes = 0
        self._tasks: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator["AnswerRuns"]:
        """Cancel all runs at the end of the block, and wait for them."""
        async with lifecycle.background() as tasks:
            self._tasks = tasks
            tasks.create_task(self._forget_periodically())
            yield self

    @property
    def crowded(self) -> bool:
        return self._bytes > self._most_bytes

    def find(self, name: AnswerRunId) -> AnswerRun[Any, Any, Any] | None:
        """Return a running or kept answer."""
        self._forget_old()
        return self._runs.get(name)

    def start(
        self, name: AnswerRunId, produce: Produce[Head, Piece, End], *, seconds: float, kept: bool = False
    ) -> AnswerRun[Head, Piece, End]:
        """Start an answer that takes at most ``seconds``, replacing any other of this name. Unless it is ``kept``, open its first reader
        before the next await."""
        assert self._tasks is not None  # `running` is entered
        self._forget_old()
        if (other := self._runs.get(name)) is not None:
            self.forget(other)
        run: AnswerRun[Head, Piece, End] = AnswerRun(name, AnswerBuffer(kept=kept), self._clock() + seconds, self)
        self._runs[name] = run
        outcome = self._produce_outcome(run, produce, seconds)
        task = self._tasks.create_task(outcome)
        run.set_task(task)
        task.add_done_callback(lambda task: self._ended(run, task))
        return run

    def forget(self, run: AnswerRun[Any, Any, Any]) -> None:
        """Remove the answer; its readers continue. Safe to call twice."""
        if self._runs.get(run.name) is run:
            del self._runs[run.name]
            self._finished.pop(run.name, None)
            self._bytes -= self._sizes.pop(run.name, 0)

    def update_size(self, run: AnswerRun[Any, Any, Any]) -> None:
        if self._runs.get(run.name) is run:
            self._bytes += run.buffer.size - self._sizes.get(run.name, 0)
            self._sizes[run.name] = run.buffer.size
        if self.crowded:
            self._forget_old()

    async def _produce_outcome(
        self, run: AnswerRun[Head, Piece, End], produce: Produce[Head, Piece, End], seconds: float
    ) -> End | BaseException:
        async def within() -> End:
            try:
                async with asyncio.timeout(seconds):
                    return await produce(run)
            except TimeoutError:
                raise errors.DeadlineExceeded(
                    f"the answer was not ready after {seconds:g} s", hint="ask for fewer tokens, or retry"
                ) from None

        # Readers raise a failure; raised here, it would end all other answers.
        (outcome,) = await asyncio.gather(within(), return_exceptions=True)
        # Raised as CancelledError, it would cancel the reader's task.
        return _cancelled() if isinstance(outcome, asyncio.CancelledError) else outcome

    def _ended(self, run: AnswerRun[Head, Piece, End], task: asyncio.Task[End | BaseException]) -> None:
        run.finish(task)
        if self._runs.get(run.name) is not run:
            return
        if run.buffer.kept:
            self._finished[run.name] = self._clock() + KEPT_SECONDS
        else:
            self.forget(run)

    def _forget_old(self) -> None:
        now = self._clock()
        while self._finished:
            name, until = next(iter(self._finished.items()))
            if now < until and not self.crowded:
                return
            self.forget(self._runs[name])

    async def _forget_periodically(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._forget_old()


def _cancelled() -> errors.Cancelled:
    return errors.Cancelled("the answer was not completed")
