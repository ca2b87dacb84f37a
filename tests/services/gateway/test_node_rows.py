"""The rows of `aicli nodes`."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from services.gateway import node_rows
from shared.protocol.directory import Directory
from tests.services.gateway import fakes
from tests.services.gateway.fakes import announcement, node_id

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
