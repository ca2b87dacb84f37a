"""A gateway with a recovery log, and a database that is copied while nothing uses it, and later replaced by that older copy."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import asyncpg

from services.gateway import store
from services.gateway.billing.checkpoint_store import CheckpointStore
from services.gateway.billing.checkpoints import CheckpointSigner
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.recovery.gateway_recovery import GatewayRecovery
from services.gateway.settings import GatewaySettings
from services.gateway.store import GatewayStore
from shared import config
from shared.config_documents import ConfigKind, PolicyDocument
from shared.node import Node
from shared.recovery.recovery_store import RecoveryStore
from shared.stores.cache import Cache
from shared.stores.database import Database
from shared.telemetry import Metrics
from shared.types import MeshName, NodeId, TenantId, UserId
from tests.servers import PostgresServer
from tests.services.gateway.billing.test_ledger_store import Books

SECRET = "a secret of all gateways"


@dataclass
class FakeNode:
    id: NodeId
    metrics: Metrics = field(default_factory=lambda: Metrics("gateway"))
    drain_started: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class RunningGateway:
    database: Database
    recovery: GatewayRecovery
    books: Books
    live: LiveConfiguration
    cache: Cache
    node: FakeNode

    async def set_policy(
        self,
        name: str,
        policy: PolicyDocument | None,
        tenant: TenantId | None = None,
        *,
        origin: str = "applied",
        author: UserId | None = None,
    ) -> None:
        await self.live.change(
            lambda _revision, _documents: {(ConfigKind.POLICY, name): policy}, origin=origin, author=author, note="why", tenant=tenant
        )

    def tenant_of(self, name: str) -> TenantId | None:
        return self.live.documents[ConfigKind.POLICY, name].tenant

    def policy(self, name: str) -> PolicyDocument | None:
        stored = self.live.documents.get((ConfigKind.POLICY, name))
        return None if stored is None else cast("PolicyDocument | None", stored.body)


class RestorableGateway:
    """Each block of ``running`` is one run of the service."""

    def __init__(self, url: str, valkey_url: str, postgres: PostgresServer, folder: Path) -> None:
        self.url = url
        self.log_dir: Path | None = folder / "recovery_log"
        self._valkey_url = valkey_url
        self._postgres = postgres

    @property
    def file(self) -> Path:
        assert self.log_dir is not None
        (file,) = self.log_dir.glob("gateway-*.jsonl")
        return file

    @asynccontextmanager
    async def running(self, number: int = 1) -> AsyncIterator[RunningGateway]:
        """Run a gateway; another ``number`` is another replica."""
        given = {"NODE_KEY_FILE": "/nowhere", "DATABASE_URL": self.url, "REDIS_URL": self._valkey_url, "PROMPT_HASH_SECRET": SECRET}
        settings = config.load(GatewaySettings, given | ({} if self.log_dir is None else {"RECOVERY_LOG_DIR": str(self.log_dir)}))
        node = FakeNode(NodeId(f"U{number}".ljust(56, "A")))
        async with (
            store.opened(self.url) as database,
            Cache.open(self._valkey_url) as cache,
            GatewayRecovery.open(settings, cast("Node", node), RecoveryStore(database, "gateway"), cache) as recovery,
        ):
            ledger = LedgerStore(database, CheckpointStore(database, CheckpointSigner(SECRET, MeshName("test"))))
            await ledger.ensure_default_price(100_000_000, 200_000_000)
            live = LiveConfiguration(ConfigStore(database))
            await live.start(settings)
            yield RunningGateway(database, recovery, Books(GatewayStore(database), ledger, self.url), live, cache, node)

    async def execute(self, statement: str) -> None:
        """Run a statement as an administrator of PostgreSQL."""
        url = self._postgres.url(self.url.rpartition("/")[2].partition("?")[0])
        connection = await asyncpg.connect(url, server_settings={"search_path": "gateway"})
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def restore_point(self) -> str:
        """Return the address of a copy of the database as it is."""
        return await self._postgres.copy(self.url)
