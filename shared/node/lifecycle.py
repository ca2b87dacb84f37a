"""Owning background tasks: a TaskGroup that cancels its tasks when its block ends, instead of waiting for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class _OverError(Exception):
    """Ends a group from within; never seen outside this file."""


@asynccontextmanager
async def background() -> AsyncIterator[asyncio.TaskGroup]:
    """Tasks that run beside the block and end with it. A task that fails cancels the block and the others, as in any group."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
            raise _OverError
    except* _OverError:
        pass
