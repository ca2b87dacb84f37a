"""Replicas of the metrics service that share one PostgreSQL and see the same mesh. A test runs each round."""

import math
from collections.abc import Sequence, Set
from contextlib import AsyncExitStack
from typing import cast

import asyncpg

from services.metrics.alerting.alerting_module import AlertingModule
from services.metrics.alerting.notices import Notice
from services.metrics.leader import Leader, LeaderDuty
from services.metrics.leader_state import Database, Leadership
from shared.api import alerts as api
from shared.background.deferred_memory import DeferredMemory
from shared.background.items import BackgroundItems
from shared.rpc import RpcCall
from shared.telemetry import Metrics
from shared.types import NodeId

CALL = cast("RpcCall", type("OfAnOperator", (), {"found": None})())
ONE, TWO = NodeId("UONE"), NodeId("UTWO")
WELL = "\n".join(
    f'ai_platform_node_up{{service="{service}",node="UAAA"}} 1' for service in ("auth", "gateway", "inference", "metrics", "web")
)
DRIFTING = 'ai_platform_ledger_drift_micro{service="gateway",node="UAAA"} 5\n' + WELL
#: Fires an alert after a minute.
LONG_QUEUE = 'ai_platform_queue_depth{service="gateway",node="UAAA",model="llama3"} 150\n' + WELL


class Mesh:
    """What all replicas see."""

    def __init__(self) -> None:
        self.text = WELL
        self.now = 1_800_000_000.25
        #: The live replicas that may lead, in their order.
        self.replicas: list[NodeId] = [ONE, TWO]

    async def read(self, _families: Set[str]) -> str:
        return self.text


class FakeChannel:
    def __init__(self, name: str) -> None:
        self.name = name
        self.sent: list[Notice] = []
        self.trouble = ""

    def due_at(self, owed: Sequence[Notice]) -> float:
        return 0.0

    async def send(self, owed: Sequence[Notice], now: float) -> str:
        if not self.trouble:
            self.sent += owed
        return self.trouble


class Replica:
    """One process lifetime of a replica."""

    def __init__(self, mesh: Mesh, database: Database | None, node: NodeId = ONE, *duties: LeaderDuty) -> None:
        self.mesh = mesh
        self.chat, self.mail = FakeChannel("chat"), FakeChannel("mail")
        self.alerts = AlertingModule((self.chat, self.mail), mesh.read, lambda: mesh.now, has_database=database is not None)
        url = None if database is None else "postgresql:///"
        self.leader = Leader(
            node,
            lambda: mesh.replicas,
            [self.alerts, *duties],
            items=BackgroundItems(DeferredMemory(), Metrics("metrics")),
            url=url,
            clock=lambda: mesh.now,
        )
        self.leader.database = database
        self.leader._session_at = -math.inf  # connected to PostgreSQL for a long time
        self.node_id = node
        self.session: Leadership | None = None

    async def round(self) -> None:
        await self.leader.round(self.session)

    async def look(self, times: int = 1) -> None:
        """Look, send what is owed, and store that it was sent."""
        for _ in range(times):
            self.mesh.now += 15
            self.alerts._due_at = 0.0
            await self.round()
            for channel in (self.chat, self.mail):
                await self.alerts.deliver(channel.name)
            self.alerts._due_at = math.inf
            await self.round()

    @property
    def sent(self) -> list[str]:
        return [f"{one.name} {'fires' if one.ended is None else 'ended'}" for one in self.chat.sent]

    async def shown(self) -> list[tuple[str, str]]:
        return [(alert.name, alert.state) for alert in (await self.listed()).alerts]

    async def listed(self) -> api.Alerts:
        return await self.alerts.list_alerts(api.ListAlerts(), CALL)

    async def silences(self) -> list[str]:
        return [one.id for one in (await self.listed()).silences]


class Replicas:
    """Starts replicas, and kills them."""

    def __init__(self, mesh: Mesh, url: str, database: Database, stack: AsyncExitStack) -> None:
        self.mesh = mesh
        self._url = url
        self._database = database
        self._stack = stack

    async def start(self, node: NodeId = ONE) -> Replica:
        replica = Replica(self.mesh, self._database, node)
        replica.session = await self._stack.enter_async_context(self._database.leadership("alerts"))
        replica.alerts._due_at = math.inf
        await replica.round()
        return replica

    async def cut(self, replica: Replica) -> None:
        """End the replica's PostgreSQL session, as when its process or host dies. The replica notices at the next use."""
        assert replica.session is not None
        process = replica.session._connection.get_server_pid()
        admin = await asyncpg.connect(self._url)
        await admin.fetchval("SELECT pg_terminate_backend($1, 5000)", process)
        await admin.close()

    async def reconnect(self, replica: Replica) -> None:
        replica.session = await self._stack.enter_async_context(self._database.leadership("alerts"))
        await replica.round()

    async def restart(self, replica: Replica) -> Replica:
        await self.cut(replica)
        return await self.start(replica.node_id)
