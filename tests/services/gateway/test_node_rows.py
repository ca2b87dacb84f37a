"""The rows of `aicli nodes`, and what workers lack in `aicli models`."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from services.gateway import node_rows
from shared.api import gateway
from shared.protocol.directory import Directory
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, announcement, node_id
from tests.services.gateway.test_service import GatewayMesh, mesh

__all__ = ["mesh"]

NOW = datetime(2026, 11, 1, tzinfo=UTC)


async def test_a_node_with_a_wrong_clock_says_so() -> None:
    nodes = Directory(lambda: 0.0, lambda: NOW)
    transports = SimpleNamespace(faults=lambda: "", round_trip_seconds=lambda _node: None)
    me: Any = SimpleNamespace(id=node_id(1), started_at=NOW, directory=nodes, node_transports=transports)
    for number, ahead in {2: timedelta(), 3: timedelta(hours=1), 4: timedelta(seconds=1)}.items():
        for _ in range(3):
            nodes.apply_announcement(announcement(number, made_at=NOW + ahead, trouble="NATS: away" if number == 3 else ""), "nats")
    async with fakes.running_service() as service:
        rows = node_rows.of_mesh(me, service.dispatch)
    assert {row.id: row.trouble for row in rows if row.trouble} == {
        node_id(3): "NATS: away; its clock is 3,600 s ahead of the mesh's: set it, for example with NTP"
    }


async def test_what_workers_lack_is_told_to_users(mesh: GatewayMesh) -> None:
    directory = mesh.nodes["gateway"].node.directory
    limited = announcement(50, "qwen", warning="a library is missing")
    others = announcement(51, "bobs", owner=f"{UUID(int=77)}", labels={"shared": "no"}, warning="a secret is missing")
    for each in (limited, others):
        directory.apply_announcement(each, "nats")
    known, unknown = [
        await mesh.client.rpc.call(gateway.list_models, gateway.ListModels(), credential=credential) for credential in (KEY, None)
    ]
    assert (known.warning, unknown.warning) == (f"{limited.node[:8]}… a library is missing", "")
    rows = (await mesh.client.rpc.call(gateway.list_nodes, gateway.ListNodes(), credential=KEY)).nodes
    assert [row.warning for row in rows if row.id == limited.node] == ["a library is missing"]
