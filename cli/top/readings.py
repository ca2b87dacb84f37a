"""The answers behind `aicli top`: kept when a source goes silent, with the latest numbers of the history. Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Generic, Self, TypeVar

from shared import errors
from shared.api.alerts import Alerts
from shared.api.gateway import NodeRows
from shared.api.metrics import History, HistoryGrouping, HistoryLine, SystemHealth
from shared.telemetry.answer_instruments import AnswerInstruments, DraftResult
from shared.telemetry.host_instruments import HostInstruments
from shared.types import SERVICE_NAMES, Role

T_co = TypeVar("T_co", covariant=True)

#: Numbers this much older than the newest belong to nodes that are gone: three polls of the metrics service.
_LATEST = timedelta(seconds=45)
_GATEWAY, _WORKER = SERVICE_NAMES[Role.GATEWAY], SERVICE_NAMES[Role.WORKER]
#: Outcomes that an operator has to look at; limits and canceled requests are not among them.
_FAILED = frozenset({"error", "timeout"})


@dataclass(frozen=True, slots=True)
class SourceAnswer(Generic[T_co]):
    """The last answer of one source."""

    answer: T_co | None = None
    #: When it arrived, in seconds of a monotonic clock.
    at: float = 0.0
    #: Why there is no newer one; None if there is no problem.
    problem: errors.AimeshError | None = None

    def missed(self, problem: errors.AimeshError) -> Self:
        return replace(self, problem=problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLoad:
    """The load of one node; None means unknown. Shares are from 0 to 1."""

    cpu: float | None = None
    memory: float | None = None
    gpu: float | None = None
    gpu_memory: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Rates over the last 15 seconds, per second."""

    requests: float | None = None
    errors: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    #: Guessed by the engines, and how many of them were right.
    drafted_tokens: float | None = None
    accepted_tokens: float | None = None
    #: Model -> queued requests, the longest queue first; models without any are left out.
    queues: Mapping[str, float] = field(default_factory=dict)
    #: By the label that `node_label` makes of a node's id.
    loads: Mapping[str, NodeLoad] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshReadings:
    health: SourceAnswer[SystemHealth] = field(default_factory=SourceAnswer)
    alerts: SourceAnswer[Alerts] = field(default_factory=SourceAnswer)
    nodes: SourceAnswer[NodeRows] = field(default_factory=SourceAnswer)
    numbers: SourceAnswer[Numbers] = field(default_factory=SourceAnswer)


def why_nothing(readings: MeshReadings) -> errors.AimeshError | None:
    """Return why no source has ever answered; None if one has."""
    sources: tuple[SourceAnswer[object], ...] = (readings.health, readings.alerts, readings.nodes, readings.numbers)
    if any(answer.answer is not None for answer in sources):
        return None
    return next((answer.problem for answer in sources if answer.problem is not None), None)


def numbers(answers: Sequence[History]) -> Numbers:
    """Combine the answers to ``QUESTIONS``, in any order."""
    latest = list(_latest(answers))
    if not latest:
        return Numbers()
    completed = _named(latest, AnswerInstruments.completed_requests.name)
    # Gateways and workers both count tokens; users got those of the gateways.
    tokens = [
        (line, value)
        for line, value in _named(latest, AnswerInstruments.tokens.name)
        if line.labels.get(HistoryGrouping.SERVICE) == _GATEWAY
    ]
    drafted = _named(latest, AnswerInstruments.drafted_tokens.name)
    return Numbers(
        requests=sum(value for _, value in completed),
        errors=sum(value for line, value in completed if line.labels.get("status") in _FAILED),
        input_tokens=sum(value for line, value in tokens if line.labels.get("type") == "input"),
        output_tokens=sum(value for line, value in tokens if line.labels.get("type") == "output"),
        drafted_tokens=sum(value for _, value in drafted),
        accepted_tokens=sum(value for line, value in drafted if line.labels.get("result") == DraftResult.ACCEPTED),
        queues=_queues(latest),
        loads=_loads(latest),
    )


#: The history queries: names and grouping. A metric of every node is a separate query, because an answer has at most 200
#: lines.
QUESTIONS: tuple[tuple[tuple[str, ...], tuple[HistoryGrouping, ...]], ...] = (
    (
        (AnswerInstruments.completed_requests.name, AnswerInstruments.tokens.name, AnswerInstruments.drafted_tokens.name),
        (HistoryGrouping.SERVICE,),
    ),
    ((AnswerInstruments.queue_depth.name,), (HistoryGrouping.SERVICE, HistoryGrouping.MODEL)),
    ((AnswerInstruments.tokens.name,), (HistoryGrouping.SERVICE, HistoryGrouping.NODE)),
    ((HostInstruments.host_cpu.name,), (HistoryGrouping.NODE,)),
    ((HostInstruments.host_memory_used.name,), (HistoryGrouping.NODE,)),
    ((HostInstruments.host_memory_total.name,), (HistoryGrouping.NODE,)),
    ((HostInstruments.gpu_usage.name,), (HistoryGrouping.NODE,)),
    ((HostInstruments.gpu_memory_used.name,), (HistoryGrouping.NODE,)),
    ((HostInstruments.gpu_memory_total.name,), (HistoryGrouping.NODE,)),
)

_Value = tuple[HistoryLine, float]


def _latest(answers: Sequence[History]) -> Iterator[_Value]:
    found = [(line, *last) for answer in answers for line in answer.lines if (last := _last(answer, line)) is not None]
    newest = max((at for _, at, _ in found), default=None)
    for line, at, value in found:
        if newest is not None and newest - at <= _LATEST:
            yield line, value


def _last(answer: History, line: HistoryLine) -> tuple[datetime, float] | None:
    for step in range(len(line.values) - 1, -1, -1):
        value = line.values[step]
        if value is not None and math.isfinite(value):
            # None of the numbers here can be negative.
            return answer.since + timedelta(seconds=step * answer.step_seconds), max(0.0, value)
    return None


def _named(latest: Iterable[_Value], name: str, *, by_node: bool = False) -> list[_Value]:
    return [(line, value) for line, value in latest if line.name == name and (HistoryGrouping.NODE.value in line.labels) == by_node]


def _queues(latest: Sequence[_Value]) -> dict[str, float]:
    waiting: dict[str, float] = {}
    for line, value in _named(latest, AnswerInstruments.queue_depth.name):
        if value > 0:
            model = line.labels.get(HistoryGrouping.MODEL.value, "")
            waiting[model] = waiting.get(model, 0.0) + value
    return dict(sorted(waiting.items(), key=lambda pair: (-pair[1], pair[0])))


def _loads(latest: Sequence[_Value]) -> dict[str, NodeLoad]:
    """Combine several GPUs of a node: the mean of their load, and the share of their total memory."""
    values: dict[str, dict[str, list[float]]] = {}
    for line, value in latest:
        node = line.labels.get(HistoryGrouping.NODE.value)
        is_input = line.labels.get("type") == "input"
        is_ours = HistoryGrouping.SERVICE.value not in line.labels or line.labels[HistoryGrouping.SERVICE.value] == _WORKER
        if node is not None and is_ours and not is_input:
            values.setdefault(node, {}).setdefault(line.name, []).append(value)
    return {node: _load(of_node) for node, of_node in values.items()}


def _load(values: Mapping[str, Sequence[float]]) -> NodeLoad:
    def mean(name: str) -> float | None:
        found = values.get(name)
        return sum(found) / len(found) if found else None

    def share(used: str, of_all: str) -> float | None:
        whole = sum(values.get(of_all, ()))
        return sum(values[used]) / whole if used in values and whole > 0 else None

    tokens = values.get(AnswerInstruments.tokens.name)
    return NodeLoad(
        cpu=mean(HostInstruments.host_cpu.name),
        memory=share(HostInstruments.host_memory_used.name, HostInstruments.host_memory_total.name),
        gpu=mean(HostInstruments.gpu_usage.name),
        gpu_memory=share(HostInstruments.gpu_memory_used.name, HostInstruments.gpu_memory_total.name),
        tokens_per_second=sum(tokens) if tokens else None,
    )
