"""Plan the queries to the metrics service for the admin charts. Pure.

All queries of a page use the same steps. A query per machine may exceed the line limit of a response; `instead` names the queries that
replace it, so a page sends each query at most once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from shared.api.metrics import MAX_LINES, GetHistory, HistoryGrouping


class HistorySpan(StrEnum):
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


STEPS: Mapping[HistorySpan, Steps] = {
    HistorySpan.HOUR: Steps(timedelta(hours=1), timedelta(seconds=30), timedelta(minutes=10), only_whole=True),
    HistorySpan.DAY: Steps(timedelta(days=1), timedelta(minutes=10), timedelta(hours=4)),
    HistorySpan.WEEK: Steps(timedelta(days=7), timedelta(hours=1), timedelta(days=1)),
    HistorySpan.MONTH: Steps(timedelta(days=30), timedelta(hours=4), timedelta(days=5)),
}


class HistoryQuery(StrEnum):
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
HALF_FIRST, MAX_FIRST = "p50:ai_platform_ttft_seconds", "p95:ai_platform_ttft_seconds"
QUEUE, SLOTS = "ai_platform_queue_depth", "ai_platform_worker_slots"
ROUND_TRIPS = "ai_platform_round_trip_seconds"
#: Query per machine -> its metric.
OF_MACHINE: Mapping[HistoryQuery, str] = {
    HistoryQuery.CPU: "ai_platform_host_cpu_usage_ratio",
    HistoryQuery.MEMORY: "ai_platform_host_memory_used_bytes",
    HistoryQuery.MEMORY_SIZE: "ai_platform_host_memory_total_bytes",
    HistoryQuery.DISK: "ai_platform_host_disk_free_bytes",
    HistoryQuery.GPU: "ai_platform_gpu_usage_ratio",
    HistoryQuery.GPU_MEMORY: "ai_platform_gpu_memory_used_bytes",
    HistoryQuery.GPU_MEMORY_SIZE: "ai_platform_gpu_memory_total_bytes",
    HistoryQuery.GPU_HEAT: "ai_platform_gpu_temperature_celsius",
}
_NAMES: Mapping[HistoryQuery, tuple[str, ...]] = {
    HistoryQuery.WHOLE: (MESH_SEEN, COMPLETED),
    HistoryQuery.SERVICES: (GATEWAY_SEEN, TOKENS, HALF_FIRST, MAX_FIRST),
    HistoryQuery.MODELS: (QUEUE, SLOTS),
    HistoryQuery.ROUND_TRIPS: (ROUND_TRIPS,),
    HistoryQuery.MACHINES: tuple(OF_MACHINE.values()),
    HistoryQuery.TOGETHER: tuple(OF_MACHINE.values()),
    **{question: (name,) for question, name in OF_MACHINE.items()},
}
_BY: Mapping[HistoryQuery, tuple[HistoryGrouping, ...]] = {
    HistoryQuery.SERVICES: (HistoryGrouping.SERVICE,),
    HistoryQuery.MODELS: (HistoryGrouping.MODEL,),
    HistoryQuery.MACHINES: (HistoryGrouping.SERVICE, HistoryGrouping.NODE),
    HistoryQuery.TOGETHER: (HistoryGrouping.SERVICE,),
    **dict.fromkeys(OF_MACHINE, (HistoryGrouping.SERVICE, HistoryGrouping.NODE)),
}
#: Queries restricted to one node on the page of a node.
_OF_ONE = frozenset({HistoryQuery.ROUND_TRIPS, HistoryQuery.MACHINES, *OF_MACHINE})
_OF_GPU = (HistoryQuery.GPU, HistoryQuery.GPU_MEMORY, HistoryQuery.GPU_MEMORY_SIZE, HistoryQuery.GPU_HEAT)
#: Query with too many lines -> its replacements.
_INSTEAD: Mapping[HistoryQuery, tuple[HistoryQuery, ...]] = {
    HistoryQuery.MACHINES: tuple(OF_MACHINE),
    **dict.fromkeys(OF_MACHINE, (HistoryQuery.TOGETHER,)),
}


def read_span(text: str) -> HistorySpan:
    """Return the span for a query parameter; unknown values mean the last hour."""
    return HistorySpan(text) if text in set(HistorySpan) else HistorySpan.HOUR


def plan(machines: int, *, of_one: bool) -> tuple[HistoryQuery, ...]:
    """Return the first queries to send, chosen so that the responses probably fit the line limit.

    A machine has one line per metric, but one per GPU for GPU metrics, and removed machines may still be in the history.
    """
    if of_one:
        return HistoryQuery.WHOLE, HistoryQuery.ROUND_TRIPS, HistoryQuery.MACHINES
    whole = (HistoryQuery.WHOLE, HistoryQuery.SERVICES, HistoryQuery.MODELS, HistoryQuery.ROUND_TRIPS)
    if machines * len(OF_MACHINE) <= MAX_LINES:
        return (*whole, HistoryQuery.MACHINES)
    if machines <= MAX_LINES:
        return (*whole, *OF_MACHINE)
    # Not every machine has a GPU.
    return (*whole, HistoryQuery.TOGETHER, *_OF_GPU)


def instead(question: HistoryQuery, *, of_one: bool) -> tuple[HistoryQuery, ...]:
    """Return the queries that replace one with too many lines. Totals don't help on the page of one node."""
    return tuple(other for other in _INSTEAD.get(question, ()) if not of_one or other is not HistoryQuery.TOGETHER)


def make_request(question: HistoryQuery, span: HistorySpan, now: datetime, node: str = "") -> GetHistory:
    """Return the request for a query, up to now. ``node`` restricts it to one node; empty means all."""
    steps = STEPS[span]
    seconds = int(steps.step.total_seconds())
    begun = datetime.fromtimestamp(now.timestamp() // seconds * seconds, UTC)
    end = begun if steps.only_whole else begun + steps.step
    # The page of one node needs only the collection times from this query.
    names = (MESH_SEEN,) if node and question is HistoryQuery.WHOLE else _NAMES[question]
    return GetHistory(names, end - steps.whole, end, seconds, _BY.get(question, ()), node if node and question in _OF_ONE else None)
