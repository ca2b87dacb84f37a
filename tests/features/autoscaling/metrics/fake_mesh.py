"""A mesh for the scaling of one replica: gateways with queues, and workers that announce themselves. Time stands still."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from features.autoscaling.metrics.scaling_module import ScalingModule
from features.autoscaling.settings import ScalingSettings
from services.metrics.leader_state import Database
from services.metrics.settings import MetricsSettings
from shared import errors
from shared.api import gateway
from shared.api import node as node_api
from shared.api.method import Nothing
from shared.protocol.directory import Announcement, Directory, ModelOffer, WorkerLoad
from shared.telemetry import Metrics
from shared.types import ModelName, NodeId, Role
from tests.services.metrics.replicas import Mesh, Replica

GATEWAY = NodeId("UGATEWAY")


def announcement(role: Role, node: str, **more: Any) -> Announcement:
    return Announcement(role, NodeId(node), "1", datetime(2026, 1, 1, tzinfo=UTC), **more)


def worker(node: str, *, ready: bool = True, running: int = 0, **more: Any) -> Announcement:
    offer = ModelOffer(ModelName("m"), 4096, ready=ready)
    return announcement(Role.WORKER, node, models=(offer,), load=WorkerLoad(slots=4, running=running), **more)


class FakeNode:
    """The parts of a node that scaling needs."""

    def __init__(self) -> None:
        self.id = NodeId("UONE")
        self.metrics = Metrics("metrics")
        self.directory = Directory(lambda: 0.0)
        self.rpc = self
        #: The metrics of each gateway, or the error if it does not answer.
        self.gateways: dict[NodeId, str | errors.AimeshError] = {}
        self.given_up: list[gateway.GiveUpPool] = []
        self.set_queue(0)

    def set_queue(self, waiting: int, *, arrived: int = 0, to: NodeId = GATEWAY) -> None:
        self.directory.apply_announcement(announcement(Role.GATEWAY, to), "nats")
        self.gateways[to] = (
            f'ai_platform_queue_depth{{model="m"}} {waiting}\nai_platform_oldest_wait_seconds{{model="m"}} {min(waiting, 1) * 3}\n'
            f'ai_platform_model_requests_total{{model="m",result="arrived"}} {arrived}\n'
        )

    def set_workers(self, *workers: Announcement) -> None:
        for entry in self.directory.entries(Role.WORKER):
            self.directory.mark_gone(entry.node, "stopped")
        for one in workers:
            self.directory.apply_announcement(one, "nats")

    async def call(self, method: object, request: object, *, to: NodeId, deadline_seconds: float) -> node_api.NodeMetrics | Nothing:
        if isinstance(request, gateway.GiveUpPool):
            self.given_up.append(request)
            return Nothing()
        found = self.gateways[to]
        if isinstance(found, errors.AimeshError):
            raise found
        return node_api.NodeMetrics(found)


def module(node: FakeNode, mesh: Mesh, pools: Path, *, secret: str | None = None, **more: Any) -> ScalingModule:
    own = ScalingSettings(pools_file=pools, scale_webhook_secret=secret)
    settings = MetricsSettings(node_key_file=pools, more=(own,), **{"database_url": "postgresql:///", **more})
    return ScalingModule(settings, cast("Any", node), lambda: None, lambda: mesh.now)


class ScalingReplica(Replica):
    """A replica of the metrics service with scaling. A test runs each look and round."""

    def __init__(self, mesh: Mesh, database: Database, node: NodeId, pools: Path, own: FakeNode | None = None) -> None:
        self.node = own or FakeNode()
        self.scaling = module(self.node, mesh, pools)
        super().__init__(mesh, database, node, self.scaling)

    async def step(self, seconds: float = 15.0, times: int = 1) -> None:
        for _ in range(times):
            self.mesh.now += seconds
            await self.scaling.look()
            await self.round()

    def shown(self) -> Sequence[str]:  # type: ignore[override]  # not the alerts
        return [line for line in self.node.metrics.render().splitlines() if 'pool="' in line and not line.startswith("#")]
