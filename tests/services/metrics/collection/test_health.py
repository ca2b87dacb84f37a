from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from services.metrics.collection import health
from services.metrics.collection.health import NodeFact
from services.metrics.collection.health_signals import CertificateSignal, HealthSignals, QueueSignal
from shared.api.gateway import Check
from shared.api.metrics import ComponentHealth, SystemHealth
from shared.types import SERVICE_ROLES, Role

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(hours=1)
WENT = START + timedelta(minutes=30)


def _check(name: str, detail: str = "") -> Check:
    return Check(name, ok=not detail, detail=detail)


CHECKS = {
    Role.AUTH: (_check("NATS"), _check("postgresql"), _check("valkey")),
    Role.GATEWAY: (_check("NATS"), _check("postgresql"), _check("valkey")),
    Role.WORKER: (_check("NATS"), _check("engine")),
    Role.METRICS: (_check("NATS"),),
    Role.WEB: (_check("NATS"), _check("valkey")),
}


def _node(role: Role, label: str | None = None, *, alive: bool = True, since: datetime = START) -> NodeFact:
    return NodeFact(
        role=role,
        label=label or f"U{role}",
        alive=alive,
        since=since,
        why_not="" if alive else "silent for 6 s",
        checks=CHECKS[role],
        path="self" if role is Role.METRICS else "nats",
    )


ALL = tuple(_node(role) for role in SERVICE_ROLES)


def _with(role: Role, **changes: object) -> tuple[NodeFact, ...]:
    """Return a healthy mesh, with changes to the node of one role."""
    return tuple(NodeFact(**{**_fields(fact), **changes}) if fact.role is role else fact for fact in ALL)  # type: ignore[arg-type]


def _fields(fact: NodeFact) -> dict[str, object]:
    return {name: getattr(fact, name) for name in fact.__slots__}


def _without(*roles: Role) -> tuple[NodeFact, ...]:
    return tuple(fact for fact in ALL if fact.role not in roles)


def _failing(role: Role, name: str) -> tuple[Check, ...]:
    return tuple(_check(check.name, "no answer" if check.name == name else "") for check in CHECKS[role])


def _decide(nodes: tuple[NodeFact, ...], now: datetime = NOW, before: SystemHealth | None = None) -> SystemHealth:
    last = {} if before is None else {health.key(component): component for component in before.components}
    return health.decide(nodes, now, START, last)


def _of(decided: SystemHealth, name: str, kind: str | None = None) -> ComponentHealth:
    (found,) = [component for component in decided.components if component.name == name and kind in (None, component.kind)]
    return found


def test_healthy_mesh_lists_services_servers_and_workers() -> None:
    decided = _decide(ALL)
    assert decided.status == "healthy"
    assert [(component.kind, component.name) for component in decided.components] == [
        ("service", "auth"),
        ("service", "gateway"),
        ("service", "inference"),
        ("service", "metrics"),
        ("service", "web"),
        ("server", "PostgreSQL"),
        ("server", "Valkey"),
        ("server", "NATS"),
        ("path", "paths"),
        ("worker", "Uworker"),
    ]
    assert {component.status for component in decided.components} == {"healthy"}
    assert {component.detail for component in decided.components} == {""}
    assert _of(decided, "auth").since == START


@pytest.mark.parametrize(
    ("nodes", "whole", "name", "status", "detail"),
    [
        pytest.param(_without(Role.AUTH), "down", "auth", "down", "python -m services.auth", id="auth was never seen"),
        pytest.param(_without(Role.WORKER), "down", "inference", "down", "python -m services.inference", id="no worker was ever seen"),
        pytest.param(_without(Role.WEB), "degraded", "web", "down", "not seen", id="without web prompts are still answered"),
        pytest.param(
            _with(Role.GATEWAY, alive=False, why_not="silent for 6 s"), "down", "gateway", "down", "silent for 6 s", id="gateway went"
        ),
        pytest.param(_with(Role.AUTH, why_not="starting"), "degraded", "auth", "degraded", "starting", id="alive but not ready"),
        pytest.param(
            _with(Role.AUTH, no_answer="deadline exceeded"), "degraded", "auth", "degraded", "health check failed", id="alive but silent"
        ),
        pytest.param(
            _with(Role.WORKER, checks=_failing(Role.WORKER, "engine")),
            "degraded",
            "inference",
            "degraded",
            "engine: no answer",
            id="own check",
        ),
        pytest.param(
            _with(Role.WEB, checks=_failing(Role.WEB, "valkey")),
            "degraded",
            "Valkey",
            "degraded",
            "web reports: no answer",
            id="one of three says so",
        ),
        pytest.param(
            (*_without(Role.WORKER), _node(Role.WORKER, "U1", alive=False, since=WENT), _node(Role.WORKER, "U2")),
            "degraded",
            "U1",
            "down",
            "disappeared without shutting down; run `aicli worker status` on its machine: silent for 6 s",
            id="one worker was lost, another serves",
        ),
        pytest.param(
            (*ALL, NodeFact(role=Role.WORKER, label="U1", alive=False, since=WENT, why_not="too old")),
            "healthy",
            "U1",
            "down",
            "too old",
            id="a stranger was not let in",
        ),
        pytest.param(
            _with(Role.WORKER, doubts=("it lied",)), "degraded", "Uworker", "degraded", "it lied", id="others hold something against it"
        ),
        pytest.param(
            (*_without(Role.AUTH), _node(Role.AUTH, "U1", alive=False), _node(Role.AUTH, "U2")),
            "healthy",
            "auth",
            "healthy",
            "",
            id="replicas",
        ),
        pytest.param(_without(Role.AUTH, Role.GATEWAY), "down", "PostgreSQL", "degraded", "unknown", id="nobody left to ask"),
    ],
)
def test_decide(nodes: tuple[NodeFact, ...], whole: str, name: str, status: str, detail: str) -> None:
    decided = _decide(nodes)
    component = _of(decided, name)
    assert (decided.status, component.status) == (whole, status)
    assert detail in component.detail


def test_worker_that_left_cleanly_is_not_down() -> None:
    stopped = NodeFact(role=Role.WORKER, label="U1", alive=False, since=WENT, why_not="stopped", path="nats", left_cleanly=True)
    decided = _decide((*ALL, stopped))
    assert decided.status == "healthy"
    assert "U1" not in {component.name for component in decided.components}


def test_unreachable_server_is_down_and_its_users_are_degraded() -> None:
    nodes = tuple(
        NodeFact(role=fact.role, label=fact.label, alive=True, since=START, checks=_failing(fact.role, "postgresql")) for fact in ALL
    )
    decided = _decide(nodes)
    assert decided.status == "down"
    assert _of(decided, "PostgreSQL").status == "down"
    assert _of(decided, "auth").status == "degraded"
    assert _of(decided, "web").status == "healthy"


@pytest.mark.parametrize(
    ("first", "second", "name", "since"),
    [
        pytest.param(ALL, ALL, "auth", START, id="healthy stays healthy since it started"),
        pytest.param(ALL, ALL, "PostgreSQL", NOW, id="a server is healthy since we first looked"),
        pytest.param(ALL, _with(Role.AUTH, alive=False, since=WENT), "auth", WENT, id="a death is dated by the directory"),
        pytest.param(_without(Role.AUTH), _without(Role.AUTH), "auth", START, id="never seen: missing since we began to look"),
        pytest.param(ALL, _with(Role.AUTH, why_not="starting"), "auth", NOW + timedelta(seconds=5), id="degraded since we noticed"),
        pytest.param(
            _with(Role.AUTH, why_not="starting"), _with(Role.AUTH, why_not="x"), "auth", NOW, id="degraded stays, for another reason"
        ),
        pytest.param(_with(Role.AUTH, why_not="starting"), ALL, "auth", NOW + timedelta(seconds=5), id="well again since we noticed"),
        pytest.param(_without(Role.AUTH), _with(Role.AUTH, since=WENT), "auth", WENT, id="a return is dated by the directory"),
    ],
)
def test_since(first: tuple[NodeFact, ...], second: tuple[NodeFact, ...], name: str, since: datetime) -> None:
    before = _decide(first)
    after = _decide(second, NOW + timedelta(seconds=5), before)
    assert _of(after, name).since == since


def test_future_time_from_another_machine_is_clamped() -> None:
    decided = _decide(_with(Role.AUTH, since=NOW + timedelta(days=1)))
    assert _of(decided, "auth").since == NOW


def test_health_survives_encoding() -> None:
    decided = _decide(ALL)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(decided), type=SystemHealth) == decided


# --- paths ------------------------------------------------------------------------------------------------------------


def test_paths_list_relayed_and_unreachable_nodes() -> None:
    relayed = _with(Role.WORKER, path="relayed")
    paths = _of(_decide(relayed), "paths")
    assert (paths.kind, paths.status) == ("path", "healthy")
    assert "through a relay only, which is slower: inference Uworker" in paths.detail
    missed = tuple(NodeFact(role=Role.WORKER, label=f"U{n}", alive=False, since=WENT, why_not="no way through") for n in range(7))
    decided = _decide((*relayed, *missed))
    paths = _of(decided, "paths")
    # These nodes were never part of the mesh, and a stranger must not be able to change the overall status.
    assert (paths.status, decided.status) == ("degraded", "healthy")
    assert "inference U4 (no way through) and 2 more" in paths.detail
    assert "U5" not in paths.detail
    assert "through a relay only" in paths.detail


def test_a_wrong_clock_is_a_notice_and_does_not_degrade_the_mesh() -> None:
    assert "clock" not in {component.kind for component in _decide(ALL).components}
    decided = _decide(_with(Role.WORKER, wrong_clock="its clock is 3 s behind the mesh's"))
    clocks = _of(decided, "clocks")
    assert (clocks.status, clocks.detail) == ("degraded", "inference Uworker: its clock is 3 s behind the mesh's")
    assert decided.status == "healthy"


def test_single_node_has_no_paths_component() -> None:
    decided = _decide(_without(*(set(SERVICE_ROLES) - {Role.METRICS})))
    assert "path" not in {component.kind for component in decided.components}


# --- certificates -----------------------------------------------------------------------------------------------------


def _with_signs(signals: HealthSignals, before: SystemHealth | None = None, now: datetime = NOW) -> SystemHealth:
    last = {} if before is None else {health.key(component): component for component in before.components}
    return health.decide(ALL, now, START, last, signals)


@pytest.mark.parametrize(
    ("certificates", "status", "detail"),
    [
        pytest.param(
            (CertificateSignal("auth UA", 90_000), CertificateSignal("web UW", 7300)), "degraded", "web UW expires in 2 h", id="ends soon"
        ),
        pytest.param(
            (CertificateSignal("auth UA", 90_000), CertificateSignal("web UW", 50_000)), "healthy", "web UW expires in 14 h", id="the next"
        ),
        pytest.param((CertificateSignal("auth UA", -90),), "degraded", "auth UA expired 90 s ago", id="has ended"),
        pytest.param((CertificateSignal("auth UA", 90_000, 1200),), "degraded", "list outdated: auth UA for 20 min", id="an old list"),
        pytest.param(
            tuple(CertificateSignal(f"inference U{n}", 60) for n in range(200)),
            "degraded",
            "U4 expires in 60 s and 195 more",
            id="all of 200",
        ),
    ],
)
def test_all_certificates_are_one_component(certificates: tuple[CertificateSignal, ...], status: str, detail: str) -> None:
    decided = _with_signs(HealthSignals(certificates))
    found = _of(decided, "certificates", "certificate")
    assert (found.status, decided.status) == (status, status)
    assert detail in found.detail
    assert len(found.detail) < 500


# --- queues -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waiting", "still_seconds", "status", "detail"),
    [
        pytest.param(1, 10, "healthy", "1 request queued", id="one waits"),
        pytest.param(100, 10, "healthy", "100 requests queued", id="many wait"),
        pytest.param(1101, 10, "degraded", "1,101 requests queued: all its workers are busy", id="too many wait"),
        pytest.param(2, 60, "degraded", "2 requests queued, and none started for 60 s", id="nothing moves"),
    ],
)
def test_long_or_stalled_queue_degrades_the_mesh(waiting: int, still_seconds: int, status: str, detail: str) -> None:
    decided = _with_signs(HealthSignals(queues=(QueueSignal("llama3", waiting, NOW - timedelta(seconds=still_seconds)),)))
    found = _of(decided, "llama3", "queue")
    assert (found.status, decided.status) == (status, status)
    assert found.detail.startswith(detail)
    assert found.since == NOW


def test_queue_age_starts_when_it_is_first_seen() -> None:
    later = NOW + timedelta(seconds=30)
    first = _with_signs(HealthSignals(queues=(QueueSignal("llama3", 2, NOW),)))
    assert _of(_with_signs(HealthSignals(queues=(QueueSignal("llama3", 5, later),)), first, later), "llama3").since == NOW


# --- servers, and doubts about nodes ----------------------------------------------------------------------------------


def test_server_is_up_while_any_service_reaches_it() -> None:
    assert health.servers_up(ALL) == {"postgresql": True, "valkey": True, "nats": True}
    assert health.servers_up(_with(Role.AUTH, checks=_failing(Role.AUTH, "postgresql")))["postgresql"]
    unreachable = tuple(NodeFact(**{**_fields(fact), "checks": _failing(fact.role, "valkey")}) for fact in ALL)  # type: ignore[arg-type]
    assert health.servers_up(unreachable) == {"postgresql": True, "valkey": False, "nats": True}
    # Dead nodes report nothing, and a server that no node reports is left out.
    assert health.servers_up(_with(Role.METRICS, alive=False)[:0]) == {}


def test_doubts_about_a_node_are_combined() -> None:
    doubts = health.doubts({"U1": 1, "U2": 3}, {"U2": "5 numbers were refused", "U3": "1 number was refused"})
    assert "1 time within" in doubts["U1"][0]
    assert ("3 times within" in doubts["U2"][0], doubts["U2"][1:]) == (True, ("5 numbers were refused",))
    assert doubts["U3"] == ("1 number was refused",)
