"""Keeps background tasks running: one that fails starts again after a pause that grows, and the process says so.

This is the only place that catches what a background task raises unexpectedly. Tasks without which the process answers nothing, such as its
connection, are not run here: they end it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

from shared import errors
from shared.background import failure_texts
from shared.telemetry import logs
from shared.timing.backoff import Backoff

#: Between the end of a task and its next start.
RESTART = Backoff(first_seconds=1.0, longest_seconds=60.0)
#: A task that ran for so long has recovered.
SOUND_SECONDS = 120.0

_log = logs.get(part="tasks")


class FailingTasks:
    """Which background tasks of a process fail now."""

    def __init__(self, count: Callable[[str], object] = lambda _task: None, clock: Callable[[], float] = time.monotonic) -> None:
        """``count`` is called with the task's name at each failure."""
        self._count = count
        self._clock = clock
        #: Until when each is shown.
        self._shown_until: dict[str, float] = {}

    def note(self, task: str, pause_seconds: float) -> None:
        self._count(task)
        self._shown_until[task] = self._clock() + pause_seconds + SOUND_SECONDS

    def note_success(self, task: str) -> None:
        self._shown_until.pop(task, None)

    def names(self) -> list[str]:
        now = self._clock()
        return sorted(task for task, until in self._shown_until.items() if until > now)


#: Those of the node that the current task belongs to. A process has one node; tests may have more.
failing: ContextVar[FailingTasks] = ContextVar("failing", default=FailingTasks())  # noqa: B039 - of programs that are no node


async def keep(task: str, work: Callable[[], Awaitable[object]]) -> None:
    """Run ``work`` until it returns, and start it again if it fails. Raises BadSettings and NodeRevoked, which end the process."""
    shown = failing.get()
    if (current := asyncio.current_task()) is not None:
        # If its cancellation gets lost, the process ends with this name.
        current.set_name(task)
    failures = 0
    while True:
        began = time.monotonic()
        try:
            await work()
        except Exception as error:
            if _ends_the_process(error):
                raise
            failures = 1 if time.monotonic() - began >= SOUND_SECONDS else failures + 1
            pause = RESTART.pause(failures)
            shown.note(task, pause)
            _log.error("a background task failed; it starts again", task=task, reason=failure_texts.describe(error), pause_seconds=pause)
        else:
            return
        await asyncio.sleep(pause)


async def attempt(task: str, work: Callable[[], Awaitable[object]], pause_seconds: float = 0.0) -> bool:
    """Return whether a round of a task succeeded. Only an unexpected failure is shown; what says that a peer is away is logged. Raises
    BadSettings and NodeRevoked, which end the process."""
    shown = failing.get()
    try:
        await work()
    except Exception as error:
        if _ends_the_process(error):
            raise
        if isinstance(error, errors.AimeshError) and error.retryable:
            _log.warning("background work failed", task=task, reason=error.message)
        else:
            shown.note(task, pause_seconds)
            _log.error("background work failed", task=task, reason=failure_texts.describe(error))
        return False
    shown.note_success(task)
    return True


def _ends_the_process(error: Exception) -> bool:
    return any(isinstance(one, errors.BadSettings | errors.NodeRevoked) for one in failure_texts.leaves(error))
