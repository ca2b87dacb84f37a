"""What the gateway keeps in PostgreSQL, Valkey and folders."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from services.gateway import store
from services.gateway.billing.checkpoint_store import CheckpointStore
from services.gateway.billing.checkpoints import CheckpointSigner
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.models.hub import Hub
from services.gateway.models.model_origin import ModelOrigin
from services.gateway.payments import payment_provider
from services.gateway.payments.payment_provider import PaymentProvider
from services.gateway.recovery.gateway_recovery import GatewayRecovery
from services.gateway.rollouts.rollout_store import RolloutStore
from services.gateway.settings import GatewaySettings
from services.gateway.store import GatewayStore
from shared.background.deferred_rows import DeferredRows
from shared.background.items import BackgroundItems
from shared.node import Node
from shared.recovery.recovery_store import RecoveryStore
from shared.stores.cache import Cache
from shared.stores.database import Database
from shared.stores.recent_writes import RecentWrites
from shared.stores.replica_reads import DatabaseOptions, ReplicaPlan
from shared.telemetry.database_metrics import DatabaseMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    cache: Cache
    database: Database
    deferred: DeferredRows
    #: Of background work.
    items: BackgroundItems
    recovery: GatewayRecovery
    checkpoints: CheckpointStore
    requests: GatewayStore
    ledger: LedgerStore
    config: ConfigStore
    rollouts: RolloutStore
    provider: PaymentProvider | None
    #: None if the settings forbid to ask it.
    hub: Hub | None
    #: None without MODEL_ORIGIN.
    origin: ModelOrigin | None


@asynccontextmanager
async def opened(settings: GatewaySettings, node: Node, *, exports_usage: bool) -> AsyncIterator[Stores]:
    """``exports_usage``: rows for a feature are written to the outbox of usage."""
    async with (
        Cache.open(settings.redis_url) as cache,
        _database(settings, node, cache) as database,
        GatewayRecovery.open(settings, node, RecoveryStore(database, "gateway"), cache) as recovery,
        payment_provider.open_provider(settings.provider()) as provider,
        Hub.opened(settings.hub_url) as hub,
    ):
        checkpoints = CheckpointStore(database, CheckpointSigner(settings.prompt_hash_secret, settings.mesh))
        ledger = LedgerStore(database, checkpoints, exports_usage=exports_usage)
        await ledger.ensure_default_price(*settings.default_price())
        origin = None if settings.model_origin is None else await asyncio.to_thread(ModelOrigin.open, settings.model_origin, settings)
        deferred = DeferredRows(database, "gateway")
        yield Stores(
            cache=cache,
            database=database,
            deferred=deferred,
            items=BackgroundItems(deferred, node.metrics),
            recovery=recovery,
            checkpoints=checkpoints,
            requests=GatewayStore(database, exports_usage=exports_usage),
            ledger=ledger,
            config=ConfigStore(database),
            rollouts=RolloutStore(database),
            provider=provider,
            hub=hub if settings.model_hub == "on" else None,
            origin=origin,
        )


def _database(settings: GatewaySettings, node: Node, cache: Cache) -> AbstractAsyncContextManager[Database]:
    read_url, lag_seconds = settings.database_read_url, settings.database_read_lag_seconds
    replica = None if read_url is None else ReplicaPlan(read_url, lag_seconds, RecentWrites(cache, "gateway", lag_seconds))
    options = DatabaseOptions(replica, DatabaseMetrics(node.metrics))
    return store.opened(settings.database_url, pool_size=settings.database_pool, migrate=settings.migrate == "on", options=options)
