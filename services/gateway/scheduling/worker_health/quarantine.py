"""Makes quarantine the same at all gateways: strikes go to PostgreSQL, which adds them up, and what it says of each worker comes back.

Each gateway also counts its own strikes in memory (``strikes``), so that a worker is put away at once, also while PostgreSQL is away.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from prometheus_client import Counter

from services.gateway.scheduling.worker_health.quarantine_store import QuarantineStore
from services.gateway.scheduling.worker_health.worker_records import DishonestWorkers
from shared import errors
from shared.node import lifecycle
from shared.telemetry import logs
from shared.types import NodeId

#: How long a gateway may not know what another one decided.
REFRESH_SECONDS = 2.0
#: Strikes that PostgreSQL has not heard of. More say nothing new: three are enough for each worker.
_MOST_UNSAVED = 1000

_log = logs.get(part="quarantine")


class Quarantine:
    """One for the gateway. Use ``active_prompt``."""

    def __init__(self, store: QuarantineStore, wrong_counts: Counter, clock: Callable[[], float] = time.monotonic) -> None:
        self.strikes = DishonestWorkers()
        self._store = store
        self._wrong_counts = wrong_counts
        self._clock = clock
        self._unsaved: deque[NodeId] = deque(maxlen=_MOST_UNSAVED)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Quarantine"]:
        """Raises Unavailable where PostgreSQL is away at the start: a worker in quarantine must not get a request."""
        await self.refresh()
        async with lifecycle.background() as tasks:
            tasks.create_task(lifecycle.every(REFRESH_SECONDS, self.refresh))
            yield self

    def strike(self, node: NodeId) -> None:
        """This worker wanted to be paid for what it did not do."""
        self.report(node)
        if self.strikes.strike(node, self._clock()):
            _log.warning("worker in quarantine", worker=node)

    def report(self, node: NodeId) -> None:
        """A strike that ``strikes`` has counted already."""
        self._wrong_counts.labels(node=node).inc()
        self._unsaved.append(node)

    async def refresh(self) -> None:
        """Tell PostgreSQL what is new here, and learn what holds at all gateways. Raises Unavailable."""
        async with self._turn:
            while self._unsaved:
                await self._store.strike(self._unsaved[0])
                self._unsaved.popleft()
            left = await self._store.list_quarantined()
            # What was struck meanwhile is not in the answer.
            self.strikes.learn(left, self._clock(), unless=frozenset(self._unsaved))

    async def pardon(self, beginning: str) -> NodeId:
        """Forget the strikes of the worker whose id begins so, at all gateways. Raises NotFound, BadRequest and Unavailable."""
        await self.refresh()
        found = await self._store.find_struck(beginning)
        if not found:
            raise errors.NotFound(
                f"no worker whose id begins with {beginning[:60]!r} is in quarantine or has strikes", hint="`aicli nodes` shows who is"
            )
        if len(found) > 1:
            raise errors.BadRequest(f"{len(found)} workers have ids that begin with {beginning[:60]!r}", hint="give more of the id")
        await self._store.pardon(found[0])
        await self.refresh()
        return found[0]
