"""Runs the making of answers apart from their reading, so that one answer may have several readers, or none for a while.

takes.start(name, produce, seconds=60)
with take.reader(after=0) as reader:
    await reader.head()
    async for number, chunk in reader: …
reader.end
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

#: Of all answers together: the gateway is to do with 600 MB under a thousand streams. Beyond it the oldest that ended go, and those
#: that are being made keep no more than their readers need.
MOST_BYTES = 256 * 1024 * 1024
#: After its end: as long as a client may take to come back for the rest; what lasts longer is in the store.
KEPT_SECONDS = 600.0
_LOOK_SECONDS = 30.0

_log = logs.get(part="takes")


@dataclass(frozen=True, slots=True)
class AnswerRunId:
    """Whose answer it is, and which: nobody finds another's."""

    owner: TenantId
    key: bytes


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[End]):
    """One of both."""

    end: End | None
    failure: BaseException | None


class AnswerRun(Generic[Head, Piece, End]):
    """One answer that is being made. Its maker calls ``tell`` once and ``add`` for every chunk; everybody else makes a reader."""

    def __init__(self, name: AnswerRunId, tape: AnswerBuffer[Piece], ends_at: float, owner: "AnswerRuns") -> None:
        self.name = name
        #: When its time is over, by the clock of its owner.
        self.ends_at = ends_at
        self.over = False
        self._tape = tape
        self._owner = owner
        self._head: Head | None = None
        self._end: End | None = None
        self._failure: BaseException | None = None
        self._why_stopped: errors.AimeshError | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._cancel: Callable[[], object] = lambda: None

    @property
    def chunks(self) -> tuple[Piece, ...] | None:
        """All that it has so far; None where it is too long to be kept whole."""
        return self._tape.whole

    @property
    def last(self) -> int:
        """The number of its newest chunk; 0 before the first."""
        return self._tape.last

    @property
    def is_read(self) -> bool:
        return self._tape.is_read

    @property
    def was_stopped(self) -> bool:
        """Somebody said why it is not made any further; else a cancel means that this gateway stops."""
        return self._why_stopped is not None

    def reader(self, after: int = 0) -> "AnswerRunReader[Head, Piece, End]":
        """Everything behind the chunk ``after``. Raises AnswerGone where that is no longer here. Use it with ``with`` at once: an
        answer that nobody reads is not made any further, unless it is kept."""
        return AnswerRunReader(self, self._tape.join(after))

    # --- for its maker ----------------------------------------------------------------------------------------------

    def tell(self, head: Head) -> None:
        """What is known before the first chunk."""
        self._head = head
        self._news.set()

    async def add(self, chunk: Piece) -> None:
        """Waits while the answer is as far ahead of its readers as it may be; the deadline of the take ends that."""
        self._tape.add(chunk)
        self._news.set()
        has_room = self._tape.make_room(crowded=self._owner.crowded)
        self._owner.weigh(self)
        while not has_room:
            self._room.clear()
            await self._room.wait()
            has_room = self._tape.make_room(crowded=self._owner.crowded)

    # --- for its readers and its owner ------------------------------------------------------------------------------

    def next(self, reader: ReaderId) -> tuple[int, Piece] | None:
        found = self._tape.next(reader)
        if found is not None:
            self._room.set()
        return found

    def leave(self, reader: ReaderId) -> None:
        self._tape.leave(reader)
        self._room.set()
        if not self._tape.wanted and not self.over:
            self._owner.forget(self)
            self._cancel()

    async def wait(self) -> None:
        """For the next thing that a reader may not have seen."""
        self._news.clear()
        await self._news.wait()

    def stop(self, why: errors.AimeshError) -> None:
        """Its readers get the error, behind what was made."""
        self._why_stopped = why
        self._owner.forget(self)
        self._cancel()

    @property
    def head(self) -> Head | None:
        return self._head

    @property
    def end(self) -> End:
        """Raises what its making raised."""
        if self._failure is not None:
            raise self._failure
        assert self._end is not None  # it is over, and well
        return self._end

    @property
    def failure(self) -> BaseException | None:
        """Why it is over, where that is not by its end."""
        return self._failure

    @property
    def size(self) -> int:
        return self._tape.size

    @property
    def kept(self) -> bool:
        return self._tape.kept

    def runs_as(self, task: "asyncio.Task[_Outcome[End]]") -> None:
        self._cancel = task.cancel

    def ended(self, task: "asyncio.Task[_Outcome[End]]") -> None:
        outcome = _Outcome(None, self._why_stopped or _cancelled()) if task.cancelled() else task.result()
        self._end, self._failure = outcome.end, outcome.failure
        if not (self._failure is None or self._tape.is_read or isinstance(self._failure, errors.AimeshError)):
            _log.error("an answer failed by a bug, and nobody was there to be told", exc_info=self._failure)
        self.over = True
        self._news.set()


class AnswerRunReader(Generic[Head, Piece, End]):
    """Sees every chunk once and in order, also those of before it came; with the number 0 what the answer waits for."""

    def __init__(self, take: AnswerRun[Head, Piece, End], reader: ReaderId) -> None:
        self.take = take
        self._reader = reader

    def __enter__(self) -> "AnswerRunReader[Head, Piece, End]":
        return self

    def __exit__(self, *_: object) -> None:
        self.take.leave(self._reader)

    async def head(self) -> Head:
        """As soon as it is known. Raises what the making of the answer raised before."""
        while self.take.head is None:
            if self.take.over:
                raise self.take.failure or errors.Internal("an answer ended before it began")
            await self.take.wait()
        return self.take.head

    def __aiter__(self) -> "AnswerRunReader[Head, Piece, End]":
        return self

    async def __anext__(self) -> tuple[int, Piece]:
        """Raises what the making of the answer raised, when all that came before it was read."""
        while True:
            found = self.take.next(self._reader)
            if found is not None:
                return found
            if self.take.over:
                raise self.take.failure or StopAsyncIteration
            await self.take.wait()

    @property
    def end(self) -> End:
        """When it was read to its end."""
        return self.take.end


Produce = Callable[[AnswerRun[Head, Piece, End]], Awaitable[End]]


class AnswerRuns:
    """All answers of this gateway that have, or may have, several readers. Use ``active_prompt``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, most_bytes: int = MOST_BYTES) -> None:
        self._clock = clock
        self._most_bytes = most_bytes
        self._found: dict[AnswerRunId, AnswerRun[Any, Any, Any]] = {}
        #: Those that are kept and over, with the moment from which nobody needs them; the oldest first.
        self._over: OrderedDict[AnswerRunId, float] = OrderedDict()
        #: What each of them takes, and all together.
        self._weights: dict[AnswerRunId, int] = {}
        self._bytes = 0
        self._tasks: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator["AnswerRuns"]:
        """At the end of the block whatever is still being made is cancelled, and has ended."""
        async with lifecycle.background() as tasks:
            self._tasks = tasks
            tasks.create_task(self._forget_for_ever())
            yield self

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def crowded(self) -> bool:
        return self._bytes > self._most_bytes

    def find(self, name: AnswerRunId) -> AnswerRun[Any, Any, Any] | None:
        """One that is being made, or is kept."""
        self._forget_old()
        return self._found.get(name)

    def start(
        self, name: AnswerRunId, produce: Produce[Head, Piece, End], *, seconds: float, kept: bool = False
    ) -> AnswerRun[Head, Piece, End]:
        """Make an answer, for at most ``seconds``; from now on it is found under its name, in place of any other. One that is not
        ``kept`` needs its first reader before anything else is awaited."""
        assert self._tasks is not None  # `active_prompt` is entered
        self._forget_old()
        if (other := self._found.get(name)) is not None:
            self.forget(other)
        take: AnswerRun[Head, Piece, End] = AnswerRun(name, AnswerBuffer(kept=kept), self._clock() + seconds, self)
        self._found[name] = take
        task = self._tasks.create_task(self._make(take, produce, seconds))
        take.runs_as(task)
        task.add_done_callback(lambda task: self._ended(take, task))
        return take

    def forget(self, take: AnswerRun[Any, Any, Any]) -> None:
        """Nobody finds it any more; who reads it goes on. Safe to call twice."""
        if self._found.get(take.name) is take:
            del self._found[take.name]
            self._over.pop(take.name, None)
            self._bytes -= self._weights.pop(take.name, 0)

    def weigh(self, take: AnswerRun[Any, Any, Any]) -> None:
        """Its size has changed."""
        if self._found.get(take.name) is take:
            self._bytes += take.size - self._weights.get(take.name, 0)
            self._weights[take.name] = take.size
        if self.crowded:
            self._forget_old()

    async def _make(self, take: AnswerRun[Head, Piece, End], produce: Produce[Head, Piece, End], seconds: float) -> "_Outcome[End]":
        async def within() -> End:
            try:
                async with asyncio.timeout(seconds):
                    return await produce(take)
            except TimeoutError:
                raise errors.DeadlineExceeded(
                    f"the answer was not ready after {seconds:g} s", hint="ask for fewer tokens, or try again"
                ) from None

        # A failure is the readers' to raise, each at its own door; here it would end every other answer.
        (made,) = await asyncio.gather(within(), return_exceptions=True)
        if not isinstance(made, BaseException):
            return _Outcome(made, None)
        # A cancel of its own is not the reader's: there it would end the reader's task.
        return _Outcome(None, _cancelled() if isinstance(made, asyncio.CancelledError) else made)

    def _ended(self, take: AnswerRun[Head, Piece, End], task: "asyncio.Task[_Outcome[End]]") -> None:
        take.ended(task)
        if self._found.get(take.name) is not take:
            return
        if take.kept:
            self._over[take.name] = self._clock() + KEPT_SECONDS
        else:
            self.forget(take)

    def _forget_old(self) -> None:
        now = self._clock()
        while self._over:
            name, until = next(iter(self._over.items()))
            if now < until and not self.crowded:
                return
            self.forget(self._found[name])

    async def _forget_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._forget_old()


def _cancelled() -> errors.Cancelled:
    return errors.Cancelled("the answer was not made to its end")
