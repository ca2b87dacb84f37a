"""What decides on which workers requests run: the configuration, the pools, and the queue of each model."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from services.gateway.billing import route_metrics
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.facts.model_routes import Route
from services.gateway.guard import detectors
from services.gateway.scheduling import model_coverage
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.fair_queue import QueueSettings
from services.gateway.scheduling.quarantine import Quarantine, QuarantineStore
from services.gateway.scheduling.queue_sharing import QueueSharing
from services.gateway.scheduling.usable_models import UsableModels
from services.gateway.scheduling.worker_records import WorkerPresence, WorkerStats
from services.gateway.scheduling.worker_starts import WorkerStarts
from services.gateway.settings import GatewaySettings
from services.gateway.wiring.stores import Stores
from shared import config_releases
from shared.background.tasks import keep
from shared.node import Node, lifecycle
from shared.protocol.directory import ConfigReading, DirectoryEntry
from shared.telemetry import logs
from shared.types import Role
from shared.worker_pools import PoolsFile

#: How often POOLS_FILE is looked at.
_POOLS_SECONDS = 5.0

_log = logs.get(part="gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    live: LiveConfiguration
    pools: PoolsFile
    quarantine: Quarantine
    dispatch: Dispatch
    sharing: QueueSharing
    models: UsableModels

    async def reload_pools(self) -> None:
        if await asyncio.to_thread(self.pools.refresh):
            if self.pools.trouble:
                _log.error("POOLS_FILE can't be used; the earlier pools stay", reason=self.pools.trouble)
            else:
                _log.info("pools loaded", pools=[pool.name for pool in self.pools.pools])

    def tasks(self, node: Node, stores: Stores) -> Iterator[Coroutine[Any, Any, Any]]:
        _watch_workers(node)
        live, metrics = self.live, node.metrics
        live.on_models = node.announce_models
        node.announce_models(live.models_revision)
        metrics.config_revision.set_function(lambda: live.config.revision)
        metrics.config_age.set_function(live.age_seconds)
        metrics.config_unreadable.set_function(lambda: len(live.config.unreadable))
        usable = partial(node.directory.usable, Role.WORKER)
        yield lifecycle.every(_POOLS_SECONDS, self.reload_pools)
        yield keep("route targets", partial(route_metrics.measure_targets, metrics, self._list_routes, usable))
        yield keep("route spending", partial(route_metrics.measure_spending, metrics, self._list_routes, stores.requests.read_spending))
        yield keep("configuration", live.watch)
        yield keep("queue sharing", self.sharing.run)
        yield keep("model coverage", partial(model_coverage.measure, node, self.dispatch))

    def _list_routes(self) -> tuple[Route, ...]:
        return tuple(self.live.config.names.routes.values())


@asynccontextmanager
async def opened(settings: GatewaySettings, node: Node, stores: Stores) -> AsyncIterator[Scheduling]:
    live, pools = LiveConfiguration(stores.config), PoolsFile(settings.pools_file)
    live.on_snapshot = lambda config: node.announce_config(ConfigReading(config_releases.READS, config.needs_release, config.revision))
    await asyncio.gather(live.start(settings), asyncio.to_thread(detectors.load))
    quarantine = Quarantine(QuarantineStore(stores.database), node.metrics.wrong_counts)
    name = f"{time.time_ns() // 1_000_000:013d}.{node.id}"
    dispatch = Dispatch(
        node.directory,
        random.Random(),  # noqa: S311 - the choice of a worker needs no cryptographic randomness
        QueueSettings(settings.queue_seconds, settings.queue_most, settings.queue_per_user, settings.start_seconds),
        node.metrics,
        name=name,
        worker_stats=WorkerStats(dishonest_workers=quarantine.dishonest_workers, starts=WorkerStarts(pools)),
        is_revoked=lambda model: model in live.config.names.revoked,
    )
    async with quarantine.running():
        yield Scheduling(
            live=live,
            pools=pools,
            quarantine=quarantine,
            dispatch=dispatch,
            sharing=QueueSharing(stores.cache, dispatch, name),
            models=UsableModels(live, node.directory, dispatch),
        )


def _watch_workers(node: Node) -> None:
    presence = WorkerPresence()

    def publish_change(entry: DirectoryEntry) -> None:
        if event := presence.changed(entry, datetime.now(UTC)):
            node.publish(event)

    node.directory.watch(publish_change)
    for entry in node.directory.entries(Role.WORKER):
        publish_change(entry)
