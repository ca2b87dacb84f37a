"""Replicas of the alerting module that share one PostgreSQL and see the same mesh."""

import asyncio
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import cast

import asyncpg

from services.metrics.alerting.alert_store import AlertStore, Leadership
from services.metrics.alerting.delivery import Delivery
from services.metrics.alerting.persistence import AlertPersistence
from services.metrics.alerting.rule_watch import RuleWatch
from shared.api import alerts as api
from shared.rpc import RpcCall
from shared.types import NodeId
from tests.services.metrics.alerting.test_delivery import FakeChannel

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

    async def read(self) -> str:
        return self.text


class Replica:
    """One process lifetime of a replica. A test runs each round, so nothing happens in between."""

    def __init__(self, mesh: Mesh, store: AlertStore, node: NodeId = ONE) -> None:
        self.mesh = mesh
        self.chat, self.mail = FakeChannel("chat"), FakeChannel("mail")
        self.watch = RuleWatch(mesh.read, lambda: mesh.now)
        self.keeper = AlertPersistence(self.watch, node, lambda: mesh.replicas, lambda: mesh.now)
        self.keeper.delivery = Delivery([self.chat, self.mail])
        self.keeper.store = store
        self.keeper._session_at = -math.inf  # connected to PostgreSQL for a long time
        self.session: Leadership | None = None

    async def round(self, *, looks: bool = False) -> None:
        await self.keeper.round(self.session, looks=looks)

    async def look(self, times: int = 1) -> None:
        """Run a round that evaluates the rules, and a round that settles what the channels took."""
        for _ in range(times):
            self.mesh.now += 15
            await self.round(looks=True)
            await self.round()

    @property
    def sent_counts(self) -> tuple[int, int]:
        """Return how many alerts and how many resolutions were sent."""
        return sum(len(notice.began) for notice in self.chat.got), sum(len(notice.ended) for notice in self.chat.got)

    async def alerts(self) -> api.Alerts:
        return await self.watch.list_alerts(api.ListAlerts(), CALL)

    async def shown(self) -> list[tuple[str, str, str]]:
        return [(alert.name, alert.state, alert.seen_by) for alert in (await self.alerts()).alerts]

    async def silences(self) -> set[str]:
        return {one.id for one in (await self.alerts()).silences}


Start = Callable[..., "asyncio.Future[Replica]"]


class Replicas:
    """Starts replicas, and kills them."""

    def __init__(self, mesh: Mesh, url: str, store: AlertStore, stack: AsyncExitStack) -> None:
        self.mesh = mesh
        self._url = url
        self._store = store
        self._stack = stack

    async def start(self, node: NodeId = ONE) -> Replica:
        replica = Replica(self.mesh, self._store, node)
        replica.session = await self._stack.enter_async_context(self._store.leadership())
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
        replica.keeper.forget_session()
        replica.session = await self._stack.enter_async_context(self._store.leadership())
        await replica.round()

    async def restart(self, replica: Replica) -> Replica:
        await self.cut(replica)
        return await self.start(NodeId(replica.keeper._node))
