"""Owning background tasks: a TaskGroup that cancels its tasks when its block ends, instead of waiting for them; and work in rounds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from shared import errors
from shared.telemetry import logs

_log = logs.get(part="rounds")


class _OverError(Exception):
    """Ends a group from within; never seen outside this file."""


@asynccontextmanager
async def background() -> AsyncIterator[asyncio.TaskGroup]:
    """Tasks that run beside the block and end with it. A task that fails cancels the block and the others, as in any group.

    What the block itself raises comes out as it is, not wrapped into an ExceptionGroup: callers catch it by its class.
    """
    raised: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            try:
                yield group
            except Exception as error:  # handed on below, outside the group that would wrap it
                raised = error
            raise _OverError
    except* _OverError:
        pass
    if raised is not None:
        raise raised


#: After which a program that has just started does what comes once in many minutes, so that one that is often started does it, too.
SOON_SECONDS = 5.0


async def every(seconds: float, work: Callable[[], Awaitable[None]], *, first: float | None = None) -> None:
    """For ever, the first time after ``first``. Where what the work needs is away, a later round does what this one could not."""
    pause = seconds if first is None else first
    while True:
        await asyncio.sleep(pause)
        pause = seconds
        try:
            await work()
        except errors.Unavailable as error:
            _log.info("not done now, done again soon", reason=error.message)
