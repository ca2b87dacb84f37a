"""Deadlines for waits that are many and mostly short. They cost a fraction of ``asyncio.timeout``."""

import asyncio
from collections.abc import Callable
from types import TracebackType


class BoundedWaits:
    """`with waits: await …` raises TimeoutError if the block takes longer than ``seconds``.

    One timer serves all waits, one wait at a time. Call ``close`` after the last one.
    """

    __slots__ = ("_is_up", "_loop", "_seconds", "_since", "_task", "_timer", "expired")

    def __init__(self, seconds: float, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._seconds = seconds
        self._loop = loop or asyncio.get_running_loop()
        self._since = 0.0
        #: The task that waits now.
        self._task: asyncio.Task[object] | None = None
        self._is_up = False
        self._timer: asyncio.TimerHandle | None = None
        #: The last wait ended with this object's TimeoutError, not with an error of the awaited code.
        self.expired = False

    def __enter__(self) -> None:
        self._since, self._task = self._loop.time(), asyncio.current_task(self._loop)
        self.expired = False
        if self._timer is None:
            self._timer = self._loop.call_later(self._left(), self._check)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        task, self._task = self._task, None
        # If another caller canceled the task too, it must stay canceled.
        if self._is_up and isinstance(error, asyncio.CancelledError) and task is not None and task.uncancel() == 0:
            self._is_up = False
            self.expired = True
            raise TimeoutError from error

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _left(self) -> float:
        return self._seconds if self._task is None else self._since + self._seconds - self._loop.time()

    def _check(self) -> None:
        self._timer = None
        left = self._left()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check)
        elif self._task is not None:
            self._is_up = True
            self._task.cancel()


class BoundedWait(BoundedWaits):
    """A single wait, which needs no ``close``."""

    __slots__ = ()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        if error is None:
            self._task = None
        else:
            super().__exit__(kind, error, trace)


class DeadlineWaits(BoundedWaits):
    """Waits that share one deadline, which may move. ``seconds_left`` returns the time until then."""

    __slots__ = ("_seconds_left",)

    def __init__(self, seconds_left: Callable[[], float]) -> None:
        super().__init__(0.0)
        self._seconds_left = seconds_left

    def __enter__(self) -> None:
        if self._timer is None and self._seconds_left() <= 0:
            raise TimeoutError
        super().__enter__()

    def _left(self) -> float:
        return self._seconds_left()


async def wait_until_set(event: asyncio.Event, seconds: float) -> bool:
    """Return whether the event is set within ``seconds``."""
    try:
        with BoundedWait(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
