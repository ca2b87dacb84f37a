"""What of a node that cannot be reached is shown to people."""

from types import SimpleNamespace
from typing import Any

import pytest

from shared.directory import Directory
from shared.node.announcing import Announcer
from shared.types import NodeId, Role

WORKER = NodeId("UWORKER")


def announcer(role: Role, nodes: Directory, revoked: frozenset[NodeId] = frozenset()) -> Announcer:
    me: Any = SimpleNamespace(role=role, node=NodeId("UME"), mesh="test")
    roads: Any = SimpleNamespace(swarm=SimpleNamespace(), nats=None, on_link=None, is_revoked=lambda node: node in revoked)
    return Announcer(me, roads, nodes, None)


@pytest.mark.parametrize(
    ("role", "revoked", "shown"),
    [
        pytest.param(Role.GATEWAY, frozenset(), "no path: not allowed", id="a gateway shows why"),
        pytest.param(Role.WORKER, frozenset(), None, id="a worker shows nobody"),
        pytest.param(Role.GATEWAY, frozenset({WORKER}), None, id="of a revoked one that is the consequence and not the reason"),
    ],
)
def test_why_a_node_cannot_be_reached(role: Role, revoked: frozenset[NodeId], shown: str | None) -> None:
    nodes = Directory(lambda: 0.0)
    announcer(role, nodes, revoked)._unreachable(WORKER, "no path: not allowed")
    entry = nodes.find(WORKER)
    assert (None if entry is None else entry.why_gone) == shown
