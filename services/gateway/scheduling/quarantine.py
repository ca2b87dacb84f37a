"""Shares quarantine between gateways: PostgreSQL sums up their strikes, and every gateway reads the result.

Each gateway also counts its own strikes in memory (``dishonest_workers``), so quarantine works immediately, and without PostgreSQL.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from prometheus_client import Counter

from services.gateway.scheduling.worker_records import QUARANTINE_SECONDS, STRIKES, WITHIN_SECONDS, DishonestWorkers
from shared import errors
from shared.node import lifecycle
from shared.stores import database
from shared.telemetry import logs
from shared.types import NodeId

#: How late a gateway may learn of another one's decision.
REFRESH_SECONDS = 2.0
#: Unsaved strikes kept while PostgreSQL is down. Three per worker are enough.
_MAX_UNSAVED = 1000

_log = logs.get(part="quarantine")


class QuarantineStore:
    """Access to worker_strikes. Every method may raise Unavailable."""

    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    async def strike(self, node: NodeId) -> None:
        """Add a strike; enough of them start a quarantine."""
        await self._database.run("strike_worker", node, STRIKES, WITHIN_SECONDS, QUARANTINE_SECONDS)

    async def list_quarantined(self) -> dict[NodeId, float]:
        """Return the seconds left for each quarantined worker."""
        return {NodeId(row["node"]): row["seconds"] for row in await self._database.rows("list_quarantined")}

    async def find_struck(self, beginning: str) -> list[NodeId]:
        """Return a few workers with strikes or in quarantine whose id starts like this."""
        return [NodeId(row["node"]) for row in await self._database.rows("find_struck", beginning)]

    async def pardon(self, node: NodeId) -> None:
        await self._database.run("pardon_worker", node)


class Quarantine:
    """The quarantine of all gateways. Use ``running``."""

    def __init__(self, store: QuarantineStore, wrong_counts: Counter, clock: Callable[[], float] = time.monotonic) -> None:
        self.dishonest_workers = DishonestWorkers()
        self._store = store
        self._wrong_counts = wrong_counts
        self._clock = clock
        self._unsaved: deque[NodeId] = deque(maxlen=_MAX_UNSAVED)
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Quarantine"]:
        """Raise Unavailable if PostgreSQL is down at start: a quarantined worker must not get a request."""
        await self.refresh()
        async with lifecycle.background() as tasks:
            tasks.create_task(lifecycle.every(REFRESH_SECONDS, self.refresh))
            yield self

    def strike(self, node: NodeId) -> None:
        """Strike a worker that claimed payment for work it did not do."""
        self.report(node)
        if self.dishonest_workers.strike(node, self._clock()):
            _log.warning("worker quarantined", worker=node)

    def report(self, node: NodeId) -> None:
        """Save a strike that ``dishonest_workers`` already counted."""
        self._wrong_counts.labels(node=node).inc()
        self._unsaved.append(node)

    async def refresh(self) -> None:
        """Save new strikes, and read the quarantines of all gateways. Raises Unavailable."""
        async with self._lock:
            while self._unsaved:
                await self._store.strike(self._unsaved[0])
                self._unsaved.popleft()
            seconds_left = await self._store.list_quarantined()
            # The query doesn't include strikes added since it ran.
            self.dishonest_workers.learn(seconds_left, self._clock(), unless=frozenset(self._unsaved))

    async def pardon(self, beginning: str) -> NodeId:
        """Clear the strikes of the worker whose id starts with ``beginning``, at all gateways. Raises NotFound, BadRequest, Unavailable."""
        await self.refresh()
        found = await self._store.find_struck(beginning)
        if not found:
            raise errors.NotFound(
                f"no worker with an id starting with {beginning[:60]!r} has strikes or is in quarantine", hint="see `aicli nodes`"
            )
        if len(found) > 1:
            raise errors.BadRequest(f"{len(found)} workers have ids that start with {beginning[:60]!r}", hint="give more of the id")
        await self._store.pardon(found[0])
        await self.refresh()
        return found[0]
