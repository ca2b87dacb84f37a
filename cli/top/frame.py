"""One frame of `aicli top`: the state of the mesh at one moment, which --json prints. Pure."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import msgspec

from cli.top.readings import MeshReadings, NodeLoad, Numbers, SourceAnswer
from shared.api.alerts import Alert
from shared.api.gateway import NodeRow
from shared.api.metrics import ComponentHealth
from shared.lists import nodes as lists
from shared.telemetry.instrument import node_label
from shared.types import Moment

#: Firing alerts shown here; `aicli alerts list` shows all.
MAX_ALERTS = 5
#: The number of unhealthy components, and of queues, shown here.
MAX_WRONG, MAX_QUEUES = 5, 20


class UnhealthyComponent(msgspec.Struct, frozen=True):
    """A component that is not healthy."""

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
    silenced: bool
    #: Labels that distinguish it from others of its name, unless the summary has them.
    labels: dict[str, str] = {}


class NodeLoadLine(msgspec.Struct, frozen=True, kw_only=True):
    """Null means unknown. Shares are from 0 to 1."""

    id: str
    kind: str
    #: A key of ``lists.STATES``.
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


class SilentSource(msgspec.Struct, frozen=True):
    """A source that does not answer; its data is old."""

    source: str
    problem: str
    #: Age of its last answer; null if there was none.
    age_seconds: float | None


class TopFrame(msgspec.Struct, frozen=True, kw_only=True):
    at: Moment
    #: healthy, degraded or down; null if unknown.
    health: str | None
    #: The worst first, at most five.
    wrong: tuple[UnhealthyComponent, ...]
    parts_wrong: int | None
    #: The most severe first, at most five.
    alerts: tuple[FiringAlert, ...]
    alerts_firing: int | None
    requests_per_second: float | None
    errors_per_second: float | None
    input_tokens_per_second: float | None
    output_tokens_per_second: float | None
    #: Guessed by the engines, and how many of them were right.
    drafted_tokens_per_second: float | None
    accepted_tokens_per_second: float | None
    #: Answers that workers are generating.
    streams_running: int | None
    #: Model -> queued requests, the longest queue first.
    queues: dict[str, float]
    nodes: tuple[NodeLoadLine, ...]
    silent: tuple[SilentSource, ...]


def make(readings: MeshReadings, now: float, at: datetime) -> TopFrame:
    """Return the frame. ``now`` is by the readings' clock, ``at`` is the time of day."""
    health, nodes = readings.health.answer, readings.nodes.answer
    wrong = _wrong(health.components if health is not None else (), at)
    numbers = readings.numbers.answer or Numbers()
    firing = _firing(readings, at)
    return TopFrame(
        at=at,
        health=health.status if health is not None else None,
        wrong=wrong[:MAX_WRONG],
        parts_wrong=len(wrong) if health is not None else None,
        alerts=firing[:MAX_ALERTS],
        alerts_firing=len(firing) if readings.alerts.answer is not None else None,
        requests_per_second=numbers.requests,
        errors_per_second=numbers.errors,
        input_tokens_per_second=numbers.input_tokens,
        output_tokens_per_second=numbers.output_tokens,
        drafted_tokens_per_second=numbers.drafted_tokens,
        accepted_tokens_per_second=numbers.accepted_tokens,
        streams_running=sum(node.running for node in nodes.nodes if node.alive) if nodes is not None else None,
        queues=dict(list(numbers.queues.items())[:MAX_QUEUES]),
        nodes=tuple(_node(node, numbers.loads) for node in nodes.nodes) if nodes is not None else (),
        silent=tuple(_silent(readings, now)),
    )


def _firing(readings: MeshReadings, at: datetime) -> tuple[FiringAlert, ...]:
    """Keep their order: the most severe first."""
    found: tuple[Alert, ...] = readings.alerts.answer.alerts if readings.alerts.answer is not None else ()
    return tuple(
        FiringAlert(
            name=alert.name,
            severity=alert.severity,
            seconds=_seconds(at - alert.since),
            summary=alert.summary,
            silenced=alert.silenced,
            labels={label: value for label, value in alert.labels.items() if value not in alert.summary},
        )
        for alert in found
        if alert.state == "firing"
    )


def _wrong(components: Iterable[ComponentHealth], at: datetime) -> tuple[UnhealthyComponent, ...]:
    unhealthy = [component for component in components if component.status != "healthy"]
    unhealthy.sort(key=lambda component: component.status != "down")
    return tuple(UnhealthyComponent(part.name, part.kind, part.status, _seconds(at - part.since), part.detail) for part in unhealthy)


def _node(node: NodeRow, loads: Mapping[str, NodeLoad]) -> NodeLoadLine:
    load = loads.get(node_label(node.id), NodeLoad()) if node.alive else NodeLoad()
    return NodeLoadLine(
        id=node.id,
        kind=node.service,
        state=lists.state_of(node),
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


def _silent(readings: MeshReadings, now: float) -> Iterable[SilentSource]:
    sources: tuple[tuple[str, SourceAnswer[object]], ...] = (
        ("health", readings.health),
        ("alerts", readings.alerts),
        ("nodes", readings.nodes),
        ("numbers", readings.numbers),
    )
    for name, answer in sources:
        if answer.problem is not None:
            yield SilentSource(name, answer.problem.message, max(0.0, now - answer.at) if answer.answer is not None else None)


def _seconds(value: timedelta) -> float:
    return max(0.0, value.total_seconds())
