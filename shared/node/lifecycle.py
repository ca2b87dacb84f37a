"""Background tasks: a TaskGroup that cancels its tasks at the end of its block, and work that runs periodically."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from shared import errors
from shared.telemetry import logs

_log = logs.get(part="rounds")

DRAIN_SECONDS = 30.0


class _OverError(Exception):
    """Ends a group from within."""


@asynccontextmanager
async def background() -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks beside the block and cancel them at its end. A task that fails cancels the block and the other tasks.

    An error of the block itself is raised as it is, not in an ExceptionGroup, so that callers can catch it by its class.
    """
    raised: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
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


async def every(seconds: float, work: Callable[[], Awaitable[None]], *, first: float | None = None) -> None:
    """Run ``work`` periodically, the first time after ``first`` seconds. If it is unavailable, the next round tries again."""
    pause = seconds if first is None else first
    while True:
        await asyncio.sleep(pause)
        pause = seconds
        try:
            await work()
        except errors.Unavailable as error:
            _log.info("periodic work failed; it will be retried", reason=error.message)
