from dataclasses import asdict
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest

from services.web.pages.admin import node_view
from shared.api.auth import LoginSession, User
from shared.api.gateway import ModelPullRow, NodeRow
from shared.api.membership import Member, MemberState
from shared.types import Credential, ModelName, NodeId, Role, Tier, UserId, UserRole

NOW = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)
ONE, TWO, THREE = (NodeId(f"U{letter}" + "A" * 54) for letter in "ABC")


def member(node: NodeId, state: MemberState = MemberState.ACTIVE, role: Role = Role.WORKER) -> Member:
    reason = "stolen" if state is MemberState.REVOKED else ""
    return Member(node, role, state, f"name of {node[1]}", "alice", {"b": "2", "a": "1"}, NOW, NOW, NOW, None, reason)


def row(node: NodeId, *, alive: bool = True, why_not: str = "", refused: bool = False) -> NodeRow:
    return NodeRow(
        node, Role.WORKER, "inference", "direct", alive, alive and not why_not, why_not, (ModelName("m"),), NOW, "1", 2, 1, 4,
        round_trip_ms=1.26, refused=refused,
    )  # fmt: skip


def joined(members: tuple[Member, ...] = (), rows: tuple[NodeRow, ...] | None = (), root: str = "/admin/nodes") -> node_view.NodeList:
    role = UserRole.ADMIN if root.startswith("/admin") else UserRole.NODE_OWNER
    return node_view.join(members, rows, person("root" if role is UserRole.ADMIN else "alice", role))


def person(name: str, role: UserRole) -> LoginSession:
    user = User(UserId(UUID(int=1)), name, f"{name}@example.org", role, Tier.FREE, is_active=True, created_at=NOW)
    return LoginSession(Credential("t"), 60, "s", user)


FREE = msgspec.structs.replace(row(ONE, why_not="it has no model"), models=(), free_bytes=12 * 10**9, accepts_models=False)


@pytest.mark.parametrize(
    ("name", "role", "seen", "path", "text"),
    [
        pytest.param("alice", UserRole.NODE_OWNER, FREE, f"/nodes/{ONE}/models", "Accept models", id="its owner"),
        pytest.param("alice", UserRole.NODE_OWNER, row(ONE), f"/nodes/{ONE}/models", "Models", id="its owner, later"),
        pytest.param("alice", UserRole.ADMIN, FREE, f"/admin/nodes/{ONE}/models", "Accept models", id="an administrator's own"),
        pytest.param("alice", UserRole.NODE_OWNER, row(ONE, alive=False), "", "", id="gone"),
        pytest.param("root", UserRole.ADMIN, FREE, f"/admin/nodes/{ONE}/models", "Models", id="an administrator"),
    ],
)
def test_the_owner_has_the_button_for_models(name: str, role: UserRole, seen: NodeRow, path: str, text: str) -> None:
    line = node_view.join((member(ONE),), (seen,), person(name, role)).lines[0]
    assert line.manage == path
    assert not path or line.manage_text == text
    assert ("Only alice can let it accept models" in line.why) is (name == "root")


@pytest.mark.parametrize(
    ("owner", "name", "role", "decides"),
    [
        ("alice", "alice", UserRole.NODE_OWNER, True),
        ("alice", "root", UserRole.ADMIN, False),
        ("", "root", UserRole.ADMIN, True),
        ("", "alice", UserRole.NODE_OWNER, False),
    ],
)
def test_administrators_decide_about_machines_without_an_owner(owner: str, name: str, role: UserRole, *, decides: bool) -> None:
    assert node_view.may_consent(msgspec.structs.replace(member(ONE), owner=owner), row(ONE), person(name, role)) is decides


def test_models_of_a_node() -> None:
    coming, here = ModelName("coming"), ModelName("m")
    pull = ModelPullRow("pulled", 2**30, 4 * 2**30, 2**20)
    found = node_view.models_of(msgspec.structs.replace(row(ONE), assigned=(coming, here), pulls=(pull,)))
    assert [(each.name, each.state, each.is_assigned) for each in found] == [
        ("coming", "coming", True),
        ("m", "served", True),
        ("pulled", "coming, 1.0 GiB of 4.0 GiB, 25 %, 1.0 MiB/s", False),
    ]


@pytest.mark.parametrize(
    ("known", "seen", "state", "tone", "why"),
    [
        pytest.param(member(ONE), row(ONE), "OK", "good", "", id="used"),
        pytest.param(member(ONE), msgspec.structs.replace(row(ONE), warning="hot"), "OK", "warn", "hot", id="used, but"),
        pytest.param(member(ONE), row(ONE, why_not="overheats"), "Degraded", "warn", "overheats", id="alive and not used"),
        pytest.param(member(ONE), row(ONE, alive=False, why_not="silent"), "Down", "bad", "silent", id="gone"),
        pytest.param(member(ONE), row(ONE, alive=False, why_not="old", refused=True), "Rejected", "bad", "old", id="refused"),
        pytest.param(member(ONE), None, "Not seen", "off", "the gateway has never seen this node", id="auth alone knows it"),
        pytest.param(None, row(ONE), "OK", "good", "", id="the gateway alone knows it"),
        pytest.param(member(ONE, MemberState.PENDING), row(ONE), "Pending approval", "warn", "", id="waits"),
        pytest.param(member(ONE, MemberState.REVOKED), row(ONE), "Revoked", "off", "stolen", id="revoked though still there"),
    ],
)
def test_state_shows_the_most_important_fact(known: Member | None, seen: NodeRow | None, state: str, tone: str, why: str) -> None:
    line = joined((known,) if known else (), (seen,) if seen else ()).lines[0]
    assert (line.state, line.tone, line.why) == (state, tone, why)


def test_row_combines_both_services() -> None:
    line = joined((member(ONE),), (row(ONE),)).lines[0]
    assert (line.name, line.about, line.path, line.round_trip) == ("name of A", "alice · a=1, b=2", "Direct", "1.3 ms")
    assert (line.load, line.models, line.until) == ("2 of 4 busy, 1 queued", "m", "20 Nov, 14:05 UTC")


@pytest.mark.parametrize(
    ("path", "shown"),
    [("nats", "NATS"), ("relayed", "Relay"), ("self", "Local"), ("direct", "Direct"), ("by mail", "by mail"), ("", "–")],
)
def test_path_is_described(path: str, shown: str) -> None:
    assert joined((), (msgspec.structs.replace(row(ONE), path=path),)).lines[0].path == shown


def test_node_without_a_name_is_labeled_by_its_role() -> None:
    line = joined((), (row(ONE),)).lines[0]
    assert (line.name, line.short) == ("worker", ONE[:9])


def test_without_the_gateway_no_node_is_shown_as_gone() -> None:
    line = joined((member(ONE),), None).lines[0]
    assert (line.state, line.path, line.load) == ("Unknown", "–", "–")


def test_pending_nodes_come_first_and_revoked_ones_last() -> None:
    members = (member(ONE, MemberState.REVOKED), member(TWO), member(THREE, MemberState.PENDING))
    found = joined(members, ())
    assert [line.id for line in found.lines] == [THREE, TWO, ONE]
    assert found.summary == "2 nodes, 0 OK, 1 pending approval"


def test_a_client_that_is_away_does_not_make_a_mesh_look_broken() -> None:
    away, waiting = member(TWO, role=Role.CLIENT), member(THREE, MemberState.PENDING, Role.CLIENT)
    left = msgspec.structs.replace(row(TWO, alive=False), role=Role.CLIENT)
    here = msgspec.structs.replace(row(TWO), role=Role.CLIENT)
    assert joined((member(ONE), away), (row(ONE),)).summary == "1 node, 1 OK"
    assert joined((member(ONE), away), (row(ONE), left)).summary == "1 node, 1 OK"
    assert joined((member(ONE), away), (row(ONE), here)).summary == "2 nodes, 2 OK"
    assert joined((waiting,)).summary == "1 node, 0 OK, 1 pending approval"


@pytest.mark.parametrize(
    ("known", "root", "actions"),
    [
        pytest.param(member(ONE, MemberState.PENDING), "/admin/nodes", ("approve", "revoke"), id="an administrator lets in"),
        pytest.param(member(ONE, MemberState.PENDING), "/nodes", ("revoke",), id="an owner cannot approve"),
        pytest.param(member(ONE), "/admin/nodes", ("revoke",), id="active"),
        pytest.param(member(ONE, MemberState.REVOKED), "/admin/nodes", (), id="revoked is for good"),
        pytest.param(member(ONE, role=Role.AUTH), "/admin/nodes", (), id="auth cannot revoke itself"),
    ],
)
def test_only_possible_actions_are_offered(known: Member, root: str, actions: tuple[str, ...]) -> None:
    line = joined((known,), (), root).lines[0]
    assert (line.approve, line.revoke) == tuple(f"{root}/{ONE}/{word}" if word in actions else "" for word in ("approve", "revoke"))


def test_owner_sees_only_their_own_machines() -> None:
    found = joined((member(ONE),), (row(ONE), row(TWO)), "/nodes")
    assert [line.id for line in found.lines] == [ONE]


def test_too_many_nodes_are_counted_and_omitted() -> None:
    many = tuple(msgspec.structs.replace(member(ONE), id=NodeId(f"U{number:055}")) for number in range(node_view.MAX_LINES + 7))
    found = joined(many)
    assert (len(found.lines), found.left_out) == (node_view.MAX_LINES, 7)
    assert found.summary.startswith("507 nodes")


def test_row_has_only_strings() -> None:
    plain = asdict(joined((member(ONE),), (row(ONE),)).lines[0])
    assert plain["id"] == ONE
    assert all(isinstance(value, str) for value in plain.values())
