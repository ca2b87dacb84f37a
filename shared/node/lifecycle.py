"""Owning background tasks: a TaskGroup that cancels its tasks when its block ends, instead of waiting for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


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
