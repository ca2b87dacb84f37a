"""Plan the queries to the metrics service for the admin charts. Pure.

All queries of a page use the same steps. A query per machine may exceed the line limit of a response; `instead` names the queries that
replace it, so a page sends each query at most once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from shared.api.history import MOST_LINES, GetHistory, HistoryGrouping


class Span(StrEnum):
    """The period that the charts show."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Steps:
    whole: timedelta
    #: The whole has 120 to 180 steps.
    step: timedelta
    #: The width of a table column.
    period: timedelta
    #: Omit the running step: its average would jump while it has one sample instead of two.
    only_whole: bool = False


STEPS: Mapping[Span, Steps] = {
    Span.HOUR: Steps(timedelta(hours=1), timedelta(seconds=30), timedelta(minutes=10), only_whole=True),
    Span.DAY: Steps(timedelta(days=1), timedelta(minutes=10), timedelta(hours=4)),
    Span.WEEK: Steps(timedelta(days=7), timedelta(hours=1), timedelta(days=1)),
    Span.MONTH: Steps(timedelta(days=30), timedelta(hours=4), timedelta(days=5)),
}


class Question(StrEnum):
    """One query to the metrics service."""

    WHOLE = "whole"
    SERVICES = "services"
    MODELS = "models"
    ROUND_TRIPS = "round trips"
    #: All metrics per machine in one query; below, one query per metric.
    MACHINES = "machines"
    CPU = "cpu"
    MEMORY = "memory"
    MEMORY_SIZE = "memory size"
    DISK = "disk"
    GPU = "gpu"
    GPU_MEMORY = "gpu memory"
    GPU_MEMORY_SIZE = "gpu memory size"
    GPU_HEAT = "gpu heat"
    #: All metrics summed over the machines of a service.
    TOGETHER = "together"


#: Only the metrics service and the gateway export these, always. Without a value, nothing was collected from the mesh or the gateway.
MESH_SEEN, GATEWAY_SEEN = "ai_platform_active_users", "ai_platform_ratelimit_degraded"
COMPLETED = "ai_platform_completed_requests_total"
TOKENS = "ai_platform_tokens_total"
HALF_FIRST, MOST_FIRST = "p50:ai_platform_ttft_seconds", "p95:ai_platform_ttft_seconds"
QUEUE, SLOTS = "ai_platform_queue_depth", "ai_platform_worker_slots"
ROUND_TRIPS = "ai_platform_round_trip_seconds"
#: Query per machine -> its metric.
OF_MACHINE: Mapping[Question, str] = {
    Question.CPU: "ai_platform_host_cpu_usage_ratio",
    Question.MEMORY: "ai_platform_host_memory_used_bytes",
    Question.MEMORY_SIZE: "ai_platform_host_memory_total_bytes",
    Question.DISK: "ai_platform_host_disk_free_bytes",
    Question.GPU: "ai_platform_gpu_usage_ratio",
    Question.GPU_MEMORY: "ai_platform_gpu_memory_used_bytes",
    Question.GPU_MEMORY_SIZE: "ai_platform_gpu_memory_total_bytes",
    Question.GPU_HEAT: "ai_platform_gpu_temperature_celsius",
}
_NAMES: Mapping[Question, tuple[str, ...]] = {
    Question.WHOLE: (MESH_SEEN, COMPLETED),
    Question.SERVICES: (GATEWAY_SEEN, TOKENS, HALF_FIRST, MOST_FIRST),
    Question.MODELS: (QUEUE, SLOTS),
    Question.ROUND_TRIPS: (ROUND_TRIPS,),
    Question.MACHINES: tuple(OF_MACHINE.values()),
    Question.TOGETHER: tuple(OF_MACHINE.values()),
    **{question: (name,) for question, name in OF_MACHINE.items()},
}
_BY: Mapping[Question, tuple[HistoryGrouping, ...]] = {
    Question.SERVICES: (HistoryGrouping.SERVICE,),
    Question.MODELS: (HistoryGrouping.MODEL,),
    Question.MACHINES: (HistoryGrouping.SERVICE, HistoryGrouping.NODE),
    Question.TOGETHER: (HistoryGrouping.SERVICE,),
    **dict.fromkeys(OF_MACHINE, (HistoryGrouping.SERVICE, HistoryGrouping.NODE)),
}
#: Queries restricted to one node on the page of a node.
_OF_ONE = frozenset({Question.ROUND_TRIPS, Question.MACHINES, *OF_MACHINE})
_OF_GPU = (Question.GPU, Question.GPU_MEMORY, Question.GPU_MEMORY_SIZE, Question.GPU_HEAT)
#: Query with too many lines -> its replacements.
_INSTEAD: Mapping[Question, tuple[Question, ...]] = {
    Question.MACHINES: tuple(OF_MACHINE),
    **dict.fromkeys(OF_MACHINE, (Question.TOGETHER,)),
}


def read_span(text: str) -> Span:
    """Return the span for a query parameter; unknown values mean the last hour."""
    return Span(text) if text in set(Span) else Span.HOUR


def plan(machines: int, *, of_one: bool) -> tuple[Question, ...]:
    """Return the first queries to send, chosen so that the responses probably fit the line limit.

    A machine has one line per metric, but one per GPU for GPU metrics, and removed machines may still be in the history.
    """
    if of_one:
        return Question.WHOLE, Question.ROUND_TRIPS, Question.MACHINES
    whole = (Question.WHOLE, Question.SERVICES, Question.MODELS, Question.ROUND_TRIPS)
    if machines * len(OF_MACHINE) <= MOST_LINES:
        return (*whole, Question.MACHINES)
    if machines <= MOST_LINES:
        return (*whole, *OF_MACHINE)
    # Not every machine has a GPU.
    return (*whole, Question.TOGETHER, *_OF_GPU)


def instead(question: Question, *, of_one: bool) -> tuple[Question, ...]:
    """Return the queries that replace one with too many lines. Totals don't help on the page of one node."""
    return tuple(other for other in _INSTEAD.get(question, ()) if not of_one or other is not Question.TOGETHER)


def ask(question: Question, span: Span, now: datetime, node: str = "") -> GetHistory:
    """Return the request for a query, up to now. ``node`` restricts it to one node; empty means all."""
    steps = STEPS[span]
    seconds = int(steps.step.total_seconds())
    begun = datetime.fromtimestamp(now.timestamp() // seconds * seconds, UTC)
    end = begun if steps.only_whole else begun + steps.step
    # The page of one node needs only the collection times from this query.
    names = (MESH_SEEN,) if node and question is Question.WHOLE else _NAMES[question]
    return GetHistory(names, end - steps.whole, end, seconds, _BY.get(question, ()), node if node and question in _OF_ONE else None)
