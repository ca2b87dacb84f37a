"""Background tasks: a TaskGroup that cancels its tasks at the end of its block, and work that runs periodically."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from shared.background import tasks


class _OverError(Exception):
    """Ends a group from within."""


class _WatchedGroup(asyncio.TaskGroup):
    """A TaskGroup that adds the names of tasks that died to ``dead``. A CancelledError that was not requested is a death, too."""

    def __init__(self, dead: list[str]) -> None:
        super().__init__()
        self._dead = dead

    def create_task(self, *args: Any, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(*args, **options)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        is_dead = not task.cancelling() if task.cancelled() else task.exception() is not None
        if is_dead and len(self._dead) < 16:  # enough names to find the cause
            self._dead.append(task.get_name())


@asynccontextmanager
async def background(dead: list[str] | None = None) -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks beside the block and cancel them at its end. A task that fails cancels the block and the other tasks. ``dead`` gets the
    names of tasks that died.

    An error of the block itself is raised as it is, not in an ExceptionGroup, so that callers can catch it by its class.
    """
    raised: Exception | None = None
    try:
        async with asyncio.TaskGroup() if dead is None else _WatchedGroup(dead) as group:
            try:
                yield group
            except Exception as error:  # raised below, outside the group that would wrap it
                raised = error
            raise _OverError
    except* _OverError:
        pass
    if raised is not None:
        raise raised


#: The first pause of rare work, so that a program that is restarted often does it too.
SOON_SECONDS = 5.0


async def every(seconds: float, work: Callable[[], Awaitable[object]], *, first: float | None = None, task: str = "") -> None:
    """Run ``work`` periodically, the first time after ``first`` seconds. A round that fails ends nothing: the next one tries again.
    ``task`` names it in the log; by default, ``work`` does."""
    name = task or getattr(work, "__qualname__", "periodic work")
    pause = seconds if first is None else first
    while True:
        await asyncio.sleep(pause)
        pause = seconds
        await tasks.attempt(name, work, seconds)
