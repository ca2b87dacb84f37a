"""Bounds how close together large bodies are read, and lines of batches. ``body_values`` bounds how much each has.

They are read in a thread. msgspec holds the interpreter's lock while it decodes, but other steps let the loop run.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared import errors
from shared.types import TenantId

#: Up to here, a body can't have more values than are read in a few milliseconds.
SMALL_BYTES = 64 * 1024
#: Pauses after a large body, as multiples of the time that it took: one tenant's bodies take at most a quarter of the loop's time, and all
#: together half.
TENANT_PAUSE, ALL_PAUSE = 3.0, 1.0
#: No body takes longer; the rest of a longer time is a process that was suspended.
_MAX_SECONDS = 1.0
#: ``RequestMemory`` bounds how many wait.
TURN_SECONDS = 20.0


class BodyTurns:
    """Spaces out large bodies by the time that they take, which a slow machine makes longer."""

    def __init__(self) -> None:
        self._all = asyncio.Lock()
        self._tenants: dict[TenantId, asyncio.Lock] = {}
        #: How many bodies use the lock of a tenant.
        self._users: Counter[TenantId] = Counter()

    @asynccontextmanager
    async def turn(self, tenant: TenantId) -> AsyncIterator[None]:
        """Wait until a body may be read. Its turn ends when the caller next waits after the block. Raises Limited after TURN_SECONDS."""
        await self._take(tenant)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            loop.call_soon(self._pause, tenant, began)

    async def _take(self, tenant: TenantId) -> None:
        lock = self._tenants.setdefault(tenant, asyncio.Lock())
        self._users[tenant] += 1
        is_first = is_next = False
        try:
            async with asyncio.timeout(TURN_SECONDS):
                is_first = await lock.acquire()
                # A tenant waits here with one body only, so tenants take turns.
                is_next = await self._all.acquire()
        except TimeoutError:
            message = "too many of your large requests wait to be read"
            raise errors.Limited(message, hint="send fewer at the same time", retry_after_seconds=2) from None
        finally:
            if is_first and not is_next:
                lock.release()
            if not is_next:
                self._leave(tenant)

    def _pause(self, tenant: TenantId, began: float) -> None:
        loop = asyncio.get_running_loop()
        took = min(loop.time() - began, _MAX_SECONDS)
        loop.call_later(ALL_PAUSE * took, self._all.release)
        loop.call_later(TENANT_PAUSE * took, self._end, tenant)

    def _end(self, tenant: TenantId) -> None:
        self._tenants[tenant].release()
        self._leave(tenant)

    def _leave(self, tenant: TenantId) -> None:
        self._users[tenant] -= 1
        if not self._users[tenant]:
            del self._users[tenant], self._tenants[tenant]
