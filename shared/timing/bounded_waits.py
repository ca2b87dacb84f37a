"""Deadlines for waits that are many and mostly short. They cost a fraction of ``asyncio.timeout``."""

import asyncio
from types import TracebackType


class BoundedWaits:
    """`with waits: await …` raises TimeoutError if the block takes longer than ``seconds``.

    One timer serves all waits, one wait at a time. Call ``close`` after the last one. Where a block costs too much, call ``begin``, set
    ``task`` to None after the wait, and ask ``has_ended`` when it was canceled.
    """

    __slots__ = ("_is_up", "_loop", "_seconds", "expired", "since", "task", "timer")

    def __init__(self, seconds: float, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._seconds = seconds
        self._loop = loop or asyncio.get_running_loop()
        self.since = 0.0
        #: The task that waits now.
        self.task: asyncio.Task[object] | None = None
        self._is_up = False
        self.timer: asyncio.TimerHandle | None = None
        #: The last wait ended with this object's TimeoutError, not with an error of the awaited code.
        self.expired = False

    def __enter__(self) -> None:
        self.expired = False
        self.begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, asyncio.CancelledError) and self.has_ended():
            self.task, self.expired = None, True
            raise TimeoutError from error
        self.task = None

    def begin(self) -> None:
        # Without the loop, `current_task` asks the system for the process's id (Python 3.11).
        self.since, self.task = self._loop.time(), asyncio.current_task(self._loop)
        if self.timer is None:
            self.timer = self._loop.call_later(self._left(), self._check)

    def has_ended(self) -> bool:
        """Return whether it was this object that canceled the wait. If another caller did, too, the task must stay canceled."""
        if not self._is_up or self.task is None or self.task.uncancel() > 0:
            return False
        self._is_up = False
        return True

    def close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _left(self) -> float:
        return self._seconds if self.task is None else self.since + self._seconds - self._loop.time()

    def _check(self) -> None:
        self.timer = None
        left = self._left()
        if left > 0:
            self.timer = self._loop.call_later(left, self._check)
        elif self.task is not None:
            self._is_up = True
            self.task.cancel()


class BoundedWait(BoundedWaits):
    """A single wait, which needs no ``close``."""

    __slots__ = ()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if error is None:
            self.task = None
        else:
            super().__exit__(kind, error, trace)


async def wait_until_set(event: asyncio.Event, seconds: float) -> bool:
    """Return whether the event is set within ``seconds``."""
    try:
        with BoundedWait(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
