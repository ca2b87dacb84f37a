"""What the metrics service is asked for the charts of administrators: which series, of which time, in which steps. Pure.

All questions of a page have the same steps. One about each machine can have more lines than an answer holds; then others are asked in
its place, as `instead` says: so a page asks each question once at most.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from shared.api.history import MOST_LINES, By, GetHistory


class Span(StrEnum):
    """How far back the charts go."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Steps:
    whole: timedelta
    #: From 120 to 180 of them are the whole.
    step: timedelta
    #: A column of the table below a chart.
    period: timedelta
    #: Short steps are shown when they are over: of one with one look instead of two the mean would jump.
    only_whole: bool = False


STEPS: Mapping[Span, Steps] = {
    Span.HOUR: Steps(timedelta(hours=1), timedelta(seconds=30), timedelta(minutes=10), only_whole=True),
    Span.DAY: Steps(timedelta(days=1), timedelta(minutes=10), timedelta(hours=4)),
    Span.WEEK: Steps(timedelta(days=7), timedelta(hours=1), timedelta(days=1)),
    Span.MONTH: Steps(timedelta(days=30), timedelta(hours=4), timedelta(days=5)),
}


class Question(StrEnum):
    """One call to the metrics service."""

    WHOLE = "whole"
    SERVICES = "services"
    MODELS = "models"
    ROUND_TRIPS = "round trips"
    #: Everything about each machine at once; then the same one by one.
    MACHINES = "machines"
    CPU = "cpu"
    MEMORY = "memory"
    MEMORY_SIZE = "memory size"
    DISK = "disk"
    GPU = "gpu"
    GPU_MEMORY = "gpu memory"
    GPU_MEMORY_SIZE = "gpu memory size"
    GPU_HEAT = "gpu heat"
    #: The same of all machines of a service together.
    TOGETHER = "together"


#: The metrics service and the gateway always have it: without a number of it, nobody looked at the mesh, or at the gateway. No other node
#: has it, so that it is read from few rows.
MESH_SEEN, GATEWAY_SEEN = "ai_platform_active_users", "ai_platform_ratelimit_degraded"
COMPLETED = "ai_platform_completed_requests_total"
TOKENS = "ai_platform_tokens_total"
HALF_FIRST, MOST_FIRST = "p50:ai_platform_ttft_seconds", "p95:ai_platform_ttft_seconds"
QUEUE, SLOTS = "ai_platform_queue_depth", "ai_platform_worker_slots"
ROUND_TRIPS = "ai_platform_round_trip_seconds"
#: Question about each machine -> the one name that it has.
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
_BY: Mapping[Question, tuple[By, ...]] = {
    Question.SERVICES: (By.SERVICE,),
    Question.MODELS: (By.MODEL,),
    Question.MACHINES: (By.SERVICE, By.NODE),
    Question.TOGETHER: (By.SERVICE,),
    **dict.fromkeys(OF_MACHINE, (By.SERVICE, By.NODE)),
}
#: What is asked of one machine alone where a page is about one.
_OF_ONE = frozenset({Question.ROUND_TRIPS, Question.MACHINES, *OF_MACHINE})
_OF_GPU = (Question.GPU, Question.GPU_MEMORY, Question.GPU_MEMORY_SIZE, Question.GPU_HEAT)
#: A question that would have too many lines -> what is asked in its place.
_INSTEAD: Mapping[Question, tuple[Question, ...]] = {
    Question.MACHINES: tuple(OF_MACHINE),
    **dict.fromkeys(OF_MACHINE, (Question.TOGETHER,)),
}


def read_span(text: str) -> Span:
    """A word that is none is the first one: it came by an address that somebody changed."""
    return Span(text) if text in set(Span) else Span.HOUR


def plan(machines: int, *, of_one: bool) -> tuple[Question, ...]:
    """What to ask first, all at once: what probably fits into the answers, because one that is too long is work in vain. A machine has a
    line for each question, but with several GPUs it has more, and machines that have gone may be there still."""
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
    """What is asked in its place when it has too many lines. Who asks of one machine is not helped by what all are together."""
    return tuple(other for other in _INSTEAD.get(question, ()) if not of_one or other is not Question.TOGETHER)


def ask(question: Question, span: Span, now: datetime, node: str = "") -> GetHistory:
    """Up to now: its step is the last one, or the one before it. ``node`` is that of the only machine that matters; empty for all."""
    steps = STEPS[span]
    seconds = int(steps.step.total_seconds())
    begun = datetime.fromtimestamp(now.timestamp() // seconds * seconds, UTC)
    end = begun if steps.only_whole else begun + steps.step
    # Of the whole, one machine's page needs to know when anybody looked, and nothing else.
    names = (MESH_SEEN,) if node and question is Question.WHOLE else _NAMES[question]
    return GetHistory(names, end - steps.whole, end, seconds, _BY.get(question, ()), node if node and question in _OF_ONE else None)
