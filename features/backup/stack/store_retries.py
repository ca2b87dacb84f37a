"""How a failing store or database is retried: with growing pauses, until a deadline or without end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared import errors
from shared.timing.backoff import Backoff

T = TypeVar("T")

_BACKOFF = Backoff(1.0, 30.0, jitter=0.5)
#: For what people wait for. The store's client has retried for a minute by then.
PATIENCE_SECONDS = 120.0


async def retry(
    act: Callable[[], Awaitable[T]],
    seconds: float | None = PATIENCE_SECONDS,
    report: Callable[[errors.Unavailable], None] | None = None,
    backoff: Backoff = _BACKOFF,
) -> T:
    """Repeat ``act``, which must be safe to repeat, while it raises Unavailable. ``seconds`` None: no end. Raises the last one."""
    loop = asyncio.get_running_loop()
    give_up_at = None if seconds is None else loop.time() + seconds
    failures = 0
    while True:
        try:
            return await act()
        except errors.Unavailable as error:
            failures += 1
            pause = backoff.pause(failures)
            if report is not None:
                report(error)
            if give_up_at is not None and loop.time() + pause > give_up_at:
                raise
        await asyncio.sleep(pause)
