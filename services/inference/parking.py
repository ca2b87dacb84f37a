"""The waits of batch calls, which have a slot and pause while live calls need the machine."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared import errors

Found = TypeVar("Found")

#: A gateway gives up a worker that is silent for longer (`services.gateway.requests.workers`).
NOTICE_SECONDS = 10.0
MAX_NOTICES = 60
NOTICE = "waiting behind live requests"


async def wait(
    find: Callable[[], Awaitable[Found]], say: Callable[[str], Awaitable[object]], notice_seconds: float = NOTICE_SECONDS
) -> Found:
    """Return what ``find`` returns; it is called again after each notice. Raises Preempted after 10 minutes."""
    for _ in range(MAX_NOTICES):
        try:
            async with asyncio.timeout(notice_seconds):
                return await find()
        except TimeoutError:
            await say(NOTICE)
    raise errors.Preempted("live requests have needed the worker for 10 minutes", hint="try again later")
