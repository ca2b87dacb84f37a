"""Records answers independently of their readers, so that an answer may have several readers, or none for a while.

recorder = recorders.start(name, produce, seconds=60)
end = await recorder.play(reader, recorder.join(after=0))
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services.gateway.facts.reader import Reader
from services.gateway.facts.tally import Tally
from services.gateway.idempotency.recording import Piece, ReaderId, Recording
from shared import errors
from shared.background import tasks as background_tasks
from shared.node import lifecycle
from shared.telemetry import logs
from shared.types import TenantId

Head = TypeVar("Head")
End = TypeVar("End")

#: Over all answers: the gateway should use at most 600 MB with a thousand streams. Above it, the oldest finished answers are dropped, and
#: running ones keep only what their readers need.
MAX_BYTES = 256 * 1024 * 1024
#: How long a finished answer stays for clients that reconnect; the store keeps it longer.
KEPT_SECONDS = 600.0
_LOOK_SECONDS = 30.0

_log = logs.get(part="recorder")


@dataclass(frozen=True, slots=True)
class RecordingId:
    """Identifies an answer, by its tenant and a key."""

    owner: TenantId
    key: bytes


class Recorder(Reader[Head, Piece], Generic[Head, Piece, End]):
    """Reads one answer that is being generated, and plays it to others."""

    def __init__(self, name: RecordingId, recording: Recording[Piece], ends_at: float, owner: "Recorders") -> None:
        self.name = name
        #: Its deadline, by the owner's clock.
        self.ends_at = ends_at
        self.is_over = False
        self.recording = recording
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

    # --- reading the answer -------------------------------------------------------------------------------------------

    def begin(self, head: Head) -> None:
        self.head = head
        self._changed.set()

    async def take(self, number: int, piece: Piece, at: Tally) -> bool:
        """Record the chunk; wait while the answer is too far ahead of its readers, up to its deadline."""
        recording, owner = self.recording, self._owner
        recording.add(piece, at)
        self._changed.set()
        has_room = recording.make_room(crowded=owner.crowded)
        owner.update_size(self)
        while not has_room:
            self._room.clear()
            await self._room.wait()
            has_room = recording.make_room(crowded=owner.crowded)
        return True

    # --- playing it ---------------------------------------------------------------------------------------------------

    def join(self, after: int = 0) -> ReaderId:
        """Return the place of a reader of everything after the chunk ``after``. Raises AnswerGone if that was dropped. Play it before the
        next await: an answer without readers is canceled unless it is kept."""
        return self.recording.join(after)

    async def play(self, reader: Reader[Head, Piece], place: ReaderId) -> End | None:
        """Return the end; None if the reader wants no more. Raises what the run raised, after the chunks before it."""
        head: Head | None = None
        try:
            while True:
                if self.head is not head:
                    head = self.head
                    assert head is not None
                    reader.begin(head)
                elif (found := self.recording.next(place)) is not None:
                    self._room.set()
                    if not await reader.take(*found):
                        return None
                elif self.is_over:
                    return self.end
                elif not await self._has_changed(reader.cut_at):
                    return None
        finally:
            self._leave(place)

    async def _has_changed(self, until: float | None) -> bool:
        """Wait; return False if time is up."""
        self._changed.clear()
        try:
            async with nullcontext() if until is None else asyncio.timeout_at(until):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _leave(self, place: ReaderId) -> None:
        self.recording.leave(place)
        self._room.set()
        if not self.recording.wanted and not self.is_over:
            self._owner.forget(self)
            self._cancel()

    # --- its end ------------------------------------------------------------------------------------------------------

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
        if not (self.failure is None or self.recording.is_read or isinstance(self.failure, errors.AimeshError)):
            _log.error("answer failed unexpectedly without a reader", exc_info=self.failure)
        self.is_over = True
        self._changed.set()


#: Generates the answer: gives a recorder its head and pieces.
Produce = Callable[[Recorder[Head, Piece, End]], Awaitable[End]]


class Recorders:
    """All answers of this gateway that may have several readers. Use ``running``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, most_bytes: int = MAX_BYTES) -> None:
        self._clock = clock
        self._most_bytes = most_bytes
        self._recorders: dict[RecordingId, Recorder[Any, Any, Any]] = {}
        #: Finished answers that are kept, with their expiry; oldest first.
        self._finished: OrderedDict[RecordingId, float] = OrderedDict()
        #: Size in bytes of each answer, and their sum.
        self._sizes: dict[RecordingId, int] = {}
        self._bytes = 0
        self._tasks: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Recorders"]:
        """Cancel all runs at the end of the block, and wait for them."""
        async with lifecycle.background() as tasks:
            self._tasks = tasks
            tasks.create_task(background_tasks.keep("old answers", self._forget_periodically))
            yield self

    @property
    def crowded(self) -> bool:
        return self._bytes > self._most_bytes

    def find(self, name: RecordingId) -> Recorder[Any, Any, Any] | None:
        """Return a running or kept answer."""
        self._forget_old()
        return self._recorders.get(name)

    def start(
        self, name: RecordingId, produce: Produce[Head, Piece, End], *, seconds: float, kept: bool = False
    ) -> Recorder[Head, Piece, End]:
        """Start an answer that takes at most ``seconds``, replacing any other of this name. Unless it is ``kept``, open its first reader
        before the next await."""
        assert self._tasks is not None  # `running` is entered
        self._forget_old()
        if (other := self._recorders.get(name)) is not None:
            self.forget(other)
        recorder: Recorder[Head, Piece, End] = Recorder(name, Recording(kept=kept), self._clock() + seconds, self)
        self._recorders[name] = recorder
        outcome = self._produce_outcome(recorder, produce, seconds)
        task = self._tasks.create_task(outcome)
        recorder.set_task(task)
        task.add_done_callback(lambda task: self._ended(recorder, task))
        return recorder

    def forget(self, recorder: Recorder[Any, Any, Any]) -> None:
        """Remove the answer; its readers continue. Safe to call twice."""
        if self._recorders.get(recorder.name) is recorder:
            del self._recorders[recorder.name]
            self._finished.pop(recorder.name, None)
            self._bytes -= self._sizes.pop(recorder.name, 0)

    def update_size(self, recorder: Recorder[Any, Any, Any]) -> None:
        if self._recorders.get(recorder.name) is recorder:
            self._bytes += recorder.recording.size - self._sizes.get(recorder.name, 0)
            self._sizes[recorder.name] = recorder.recording.size
        if self.crowded:
            self._forget_old()

    async def _produce_outcome(
        self, recorder: Recorder[Head, Piece, End], produce: Produce[Head, Piece, End], seconds: float
    ) -> End | BaseException:
        async def within() -> End:
            try:
                async with asyncio.timeout(seconds):
                    return await produce(recorder)
            except TimeoutError:
                raise errors.DeadlineExceeded(
                    f"the answer was not ready after {seconds:g} s", hint="ask for fewer tokens, or retry"
                ) from None

        # Readers raise a failure; raised here, it would end all other answers.
        (outcome,) = await asyncio.gather(within(), return_exceptions=True)
        # Raised as CancelledError, it would cancel the reader's task.
        return _cancelled() if isinstance(outcome, asyncio.CancelledError) else outcome

    def _ended(self, recorder: Recorder[Head, Piece, End], task: asyncio.Task[End | BaseException]) -> None:
        recorder.finish(task)
        if self._recorders.get(recorder.name) is not recorder:
            return
        if recorder.recording.kept:
            self._finished[recorder.name] = self._clock() + KEPT_SECONDS
        else:
            self.forget(recorder)

    def _forget_old(self) -> None:
        now = self._clock()
        while self._finished:
            name, until = next(iter(self._finished.items()))
            if now < until and not self.crowded:
                return
            self.forget(self._recorders[name])

    async def _forget_periodically(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._forget_old()


def _cancelled() -> errors.Cancelled:
    return errors.Cancelled("the answer was not completed")
