"""The displayed reason for an unreachable node, and which announcements are accepted."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from shared.node.announcements import Announcer
from shared.protocol import directory
from shared.protocol.directory import Announcement, Directory
from shared.types import NodeId, Peer, Role

WORKER = NodeId("UWORKER")


def announcer(role: Role, nodes: Directory, revoked: frozenset[NodeId] = frozenset()) -> Announcer:
    me: Any = SimpleNamespace(role=role, node=NodeId("UME"), mesh="test", instance="me")
    node_transports: Any = SimpleNamespace(
        swarm=SimpleNamespace(),
        nats=None,
        on_link=None,
        is_revoked=lambda node: node in revoked,
        record_list_number=lambda node, number: None,
    )
    return Announcer(me, node_transports, nodes, None)


@pytest.mark.parametrize(
    ("role", "revoked", "shown"),
    [
        pytest.param(Role.GATEWAY, frozenset(), "no path: not allowed", id="a gateway shows why"),
        pytest.param(Role.WORKER, frozenset(), None, id="a worker shows nobody"),
        pytest.param(Role.GATEWAY, frozenset({WORKER}), None, id="for a revoked node, unreachability is a consequence, not the reason"),
    ],
)
def test_the_reason_why_a_node_is_unreachable(role: Role, revoked: frozenset[NodeId], shown: str | None) -> None:
    nodes = Directory(lambda: 0.0)
    announcer(role, nodes, revoked)._unreachable(WORKER, "no path: not allowed")
    entry = nodes.find(WORKER)
    assert (None if entry is None else entry.why_gone) == shown


def test_owner_and_labels_come_from_the_certificate_over_hyperswarm() -> None:
    """Owner and labels decide whose prompts a worker gets."""
    nodes = Directory(lambda: 0.0)
    lies = Announcement(Role.WORKER, WORKER, "1", datetime(2026, 1, 1, tzinfo=UTC), labels={"trusted": "yes"}, owner="")
    peer = Peer(Role.WORKER, WORKER, WORKER, "ada", (("gpu", "4090"),))
    link: Any = SimpleNamespace(peer=peer, path="direct")
    announcer(Role.GATEWAY, nodes)._on_swarm_announcement(link, directory.encode(lies))
    entry = nodes.find(WORKER)
    assert entry is not None
    assert (entry.announcement.owner, entry.announcement.labels) == ("ada", {"gpu": "4090"})


def test_a_new_announcement_time_alone_is_not_a_change() -> None:
    nodes = Directory(lambda: 0.0)
    told: list[object] = []
    nodes.watch(told.append)
    link: Any = SimpleNamespace(peer=Peer(Role.WORKER, WORKER, WORKER), path="direct")
    here = announcer(Role.GATEWAY, nodes)
    for second in range(3):
        at = datetime(2026, 1, 1, second=second, tzinfo=UTC)
        said = Announcement(Role.WORKER, WORKER, "1", datetime(2026, 1, 1, tzinfo=UTC), made_at=at)
        here._on_swarm_announcement(link, directory.encode(said))
    assert len(told) == 1
