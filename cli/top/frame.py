"""One frame of `aicli top`: what is shown of the mesh at a moment; also the object that --json prints. Pure."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import msgspec

from cli.top.readings import MeshReadings, NodeLoad, Numbers, SourceAnswer
from shared.api.alerts import Alert
from shared.api.gateway import NodeRow
from shared.api.metrics import ComponentHealth
from shared.telemetry import instruments

#: Of those that fire; `aicli alerts list` shows all.
MOST_ALERTS = 5
#: Of what is not healthy, and of the queues.
MOST_WRONG, MOST_QUEUES = 5, 20


class Wrong(msgspec.Struct, frozen=True):
    """A part that is not healthy."""

    name: str
    kind: str
    status: str
    seconds: float
    detail: str


class FiringAlert(msgspec.Struct, frozen=True):
    name: str
    severity: str
    seconds: float
    summary: str
    seen_by: str
    silenced: bool
    #: The labels that tell it from others of its name, where the summary does not name them.
    labels: dict[str, str] = {}


class NodeLoadLine(msgspec.Struct, frozen=True, kw_only=True):
    """Null is what is not known. Shares are from 0 to 1."""

    id: str
    kind: str
    #: used, not used, not admitted, or gone.
    state: str
    why_not: str
    path: str
    round_trip_ms: float | None
    cpu: float | None
    gpu: float | None
    memory: float | None
    gpu_memory: float | None
    running: int
    queued: int
    slots: int
    tokens_per_second: float | None
    models: tuple[str, ...]


class Silent(msgspec.Struct, frozen=True):
    """A source that does not answer; what is shown of it is old."""

    source: str
    problem: str
    #: Of its last answer; null where there was none.
    age_seconds: float | None


class TopFrame(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    #: healthy, degraded or down; null while nobody says.
    health: str | None
    #: What is down first, at most five of them.
    wrong: tuple[Wrong, ...]
    #: How many parts are not healthy.
    parts_wrong: int | None
    #: The gravest first, at most five of them.
    alerts: tuple[FiringAlert, ...]
    #: How many fire.
    alerts_firing: int | None
    requests_per_second: float | None
    errors_per_second: float | None
    input_tokens_per_second: float | None
    output_tokens_per_second: float | None
    #: Answers that workers give just now.
    streams_running: int | None
    #: Model -> requests that wait, the longest queue first.
    queues: dict[str, float]
    nodes: tuple[NodeLoadLine, ...]
    silent: tuple[Silent, ...]


def make(readings: MeshReadings, now: float, at: datetime) -> TopFrame:
    """``now`` is of the clock of the readings, ``at`` is the time of day."""
    health, nodes = readings.health.answer, readings.nodes.answer
    wrong = _wrong(health.components if health is not None else (), at)
    numbers = readings.numbers.answer or Numbers()
    firing = _firing(readings, at)
    return TopFrame(
        at=at,
        health=health.status if health is not None else None,
        wrong=wrong[:MOST_WRONG],
        parts_wrong=len(wrong) if health is not None else None,
        alerts=firing[:MOST_ALERTS],
        alerts_firing=len(firing) if readings.alerts.answer is not None else None,
        requests_per_second=numbers.requests,
        errors_per_second=numbers.errors,
        input_tokens_per_second=numbers.input_tokens,
        output_tokens_per_second=numbers.output_tokens,
        streams_running=sum(node.running for node in nodes.nodes if node.alive) if nodes is not None else None,
        queues=dict(list(numbers.queues.items())[:MOST_QUEUES]),
        nodes=tuple(_node(node, numbers.loads) for node in nodes.nodes) if nodes is not None else (),
        silent=tuple(_silent(readings, now)),
    )


def _firing(readings: MeshReadings, at: datetime) -> tuple[FiringAlert, ...]:
    """In the order in which they came: the gravest first."""
    found: tuple[Alert, ...] = readings.alerts.answer.alerts if readings.alerts.answer is not None else ()
    return tuple(
        FiringAlert(
            name=alert.name,
            severity=alert.severity,
            seconds=_seconds(at - alert.since),
            summary=alert.summary,
            seen_by=alert.seen_by,
            silenced=alert.silenced,
            labels={label: value for label, value in alert.labels.items() if value not in alert.summary},
        )
        for alert in found
        if alert.state == "firing"
    )


def _wrong(components: Iterable[ComponentHealth], at: datetime) -> tuple[Wrong, ...]:
    ill = [component for component in components if component.status != "healthy"]
    ill.sort(key=lambda component: component.status != "down")
    return tuple(Wrong(one.name, one.kind, one.status, _seconds(at - one.since), one.detail) for one in ill)


def _node(node: NodeRow, loads: Mapping[str, NodeLoad]) -> NodeLoadLine:
    load = loads.get(instruments.node_label(node.id), NodeLoad()) if node.alive else NodeLoad()
    return NodeLoadLine(
        id=node.id,
        kind=node.service,
        state=_state(node),
        why_not=node.why_not,
        path=node.path,
        round_trip_ms=node.round_trip_ms,
        cpu=load.cpu,
        gpu=load.gpu,
        memory=load.memory,
        gpu_memory=load.gpu_memory,
        running=node.running,
        queued=node.queued,
        slots=node.slots,
        tokens_per_second=load.tokens_per_second,
        models=tuple(node.models),
    )


def _state(node: NodeRow) -> str:
    if node.usable:
        return "used"
    return "not used" if node.alive else "not admitted" if node.refused else "gone"


def _silent(readings: MeshReadings, now: float) -> Iterable[Silent]:
    sources: tuple[tuple[str, SourceAnswer[object]], ...] = (
        ("health", readings.health),
        ("alerts", readings.alerts),
        ("nodes", readings.nodes),
        ("numbers", readings.numbers),
    )
    for name, told in sources:
        if told.problem is not None:
            yield Silent(name, told.problem.message, max(0.0, now - told.at) if told.answer is not None else None)


def _seconds(value: timedelta) -> float:
    return max(0.0, value.total_seconds())
