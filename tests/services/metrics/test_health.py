from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from services.metrics import health
from services.metrics.health import NodeFact
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
        role=role, label=label or f"U{role}", alive=alive, since=since, why_not="" if alive else "silent for 6 s", checks=CHECKS[role]
    )


ALL = tuple(_node(role) for role in SERVICE_ROLES)


def _with(role: Role, **changes: object) -> tuple[NodeFact, ...]:
    """All well, but for what is said of one role's node."""
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


def test_all_well_shows_services_servers_and_workers() -> None:
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
        pytest.param(_with(Role.AUTH, no_answer="deadline exceeded"), "degraded", "auth", "degraded", "did not say", id="alive but silent"),
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
            "web says: no answer",
            id="one of three says so",
        ),
        pytest.param(
            (*_without(Role.WORKER), _node(Role.WORKER, "U1", alive=False, since=WENT), _node(Role.WORKER, "U2")),
            "healthy",
            "U1",
            "down",
            "silent",
            id="one worker went, another serves",
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


def test_a_server_that_nobody_reaches_is_down_and_its_users_are_degraded() -> None:
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


def test_a_clock_that_runs_ahead_on_another_machine_is_not_believed() -> None:
    decided = _decide(_with(Role.AUTH, since=NOW + timedelta(days=1)))
    assert _of(decided, "auth").since == NOW


def test_it_travels() -> None:
    decided = _decide(ALL)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(decided), type=SystemHealth) == decided
