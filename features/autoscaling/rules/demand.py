"""Turns snapshots of the mesh into the demand for one pool. Pure."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean

import msgspec

from shared.worker_pools import WorkerPool


class WorkerReading(msgspec.Struct, frozen=True):
    node: str
    models: tuple[str, ...]
    labels: Mapping[str, str]
    #: Those of its models that it can answer for. It may still load the others.
    ready: tuple[str, ...]
    slots: int
    slots_used: int
    #: Answers since it started.
    completed: int = 0
    tokens_per_second: float = 0.0
    #: Shares from 0 to 1; None if unknown.
    cpu: float | None = None
    gpu: float | None = None
    #: Whether its engine runs on the CPU, so that even one answer uses all of it.
    on_cpu: bool = False


class ModelReading(msgspec.Struct, frozen=True):
    """Counters of one model over all gateways, and its queue. A request counts once, however often it was retried."""

    arrived: int = 0
    refused: int = 0
    answered: int = 0
    #: To the first token of streams, and to the end of other answers.
    first_text_seconds: float = 0.0
    #: A request waits at one gateway; the copies that the others know of do not count.
    waiting: int = 0
    oldest_seconds: float = 0.0


_NOTHING = ModelReading()


class ScalingSnapshot(msgspec.Struct, frozen=True):
    at: float
    workers: tuple[WorkerReading, ...] = ()
    #: Counters begin at 0 with the first snapshot.
    models: Mapping[str, ModelReading] = {}
    #: A gateway was lost a moment ago. Workers have the receipts of its requests.
    has_lost_gateway: bool = False


class PoolDemand(msgspec.Struct, frozen=True):
    as_of: float
    ready: int = 0
    #: Workers that load a model.
    starting: int = 0
    #: Requests per second over 30 and 240 s.
    rate_30: float = 0.0
    rate_240: float = 0.0
    waiting: int = 0
    oldest_seconds: float = 0.0
    tokens_per_second: float = 0.0
    slots: int = 0
    slots_used: int = 0
    #: Requests per second that one ready replica can answer; None if not measured.
    per_replica: float | None = None
    #: Means of 5 minutes: requests that wait, plus those refused in the last minute; the others None if unknown.
    queue: float = 0.0
    first_text_seconds: float | None = None
    cpu: float | None = None
    gpu: float | None = None
    #: Its workers have receipts that are not read yet.
    has_receipts: bool = False


def members_of(snapshot: ScalingSnapshot, pool: WorkerPool) -> list[WorkerReading]:
    named, labels = set(pool.models), pool.labels.items()
    return [one for one in snapshot.workers if (named & {*one.models} if named else labels <= one.labels.items())]


def choose_idle(snapshot: ScalingSnapshot, pool: WorkerPool, number: int) -> tuple[str, ...]:
    """Return the nodes to stop: those that load a model first, then those with the fewest answers."""
    workers = sorted(members_of(snapshot, pool), key=lambda worker: (bool(worker.ready), worker.slots_used, worker.node))
    return tuple(worker.node for worker in workers[:number])


def read_demand(snapshots: Sequence[ScalingSnapshot], pool: WorkerPool) -> PoolDemand | None:
    """``snapshots`` are ordered by time and cover 5 minutes or more. None without a snapshot."""
    if not snapshots:
        return None
    last = snapshots[-1]
    recent = [one for one in snapshots if one.at >= last.at - 300.0]
    named = set(pool.models)
    members = [members_of(each, pool) for each in recent]
    ready = [[worker for worker in workers if (named & {*worker.ready} if named else worker.ready)] for workers in members]
    models = named or {model for workers in members for worker in workers for model in worker.models}
    waits = [[reading for model, reading in snapshot.models.items() if model in models] for snapshot in recent]
    waiting = [sum(one.waiting for one in readings) for readings in waits]
    rise = partial(_increase, recent, models)
    answered = rise(lambda model: model.answered, 300.0)
    seen = [worker for workers in ready for worker in workers]
    cpus = [one.cpu for one in seen if one.cpu is not None and not (one.on_cpu and one.slots_used < one.slots)]
    gpus = [one.gpu for one in seen if one.gpu is not None]
    return PoolDemand(
        last.at, len(ready[-1]), len(members[-1]) - len(ready[-1]),
        rate_30=_arrivals(recent, models, 30.0), rate_240=_arrivals(recent, models, 240.0),
        waiting=waiting[-1], oldest_seconds=max((one.oldest_seconds for one in waits[-1] if one.waiting), default=0.0),
        tokens_per_second=sum(worker.tokens_per_second for worker in ready[-1]),
        slots=sum(worker.slots for worker in ready[-1]), slots_used=sum(worker.slots_used for worker in ready[-1]),
        per_replica=_per_replica(recent, ready),
        queue=fmean(waiting) + rise(lambda model: model.refused, 60.0),
        first_text_seconds=rise(lambda model: model.first_text_seconds, 300.0) / answered if answered else None,
        cpu=fmean(cpus) if cpus else None, gpu=fmean(gpus) if gpus else None,
        has_receipts=last.has_lost_gateway and bool(ready[-1]),
    )  # fmt: skip


def _arrivals(snapshots: Sequence[ScalingSnapshot], models: set[str], seconds: float) -> float:
    """Return the requests per second since the last snapshot that is so old, or else since the first one."""
    last = snapshots[-1].at
    # Clocks jitter, and the file of pools can be new.
    first = max((place for place, one in enumerate(snapshots) if one.at <= last - seconds + 0.5), default=0)
    covered = last - snapshots[first].at
    return _increase(snapshots[first:], models, lambda model: model.arrived, covered) / covered if covered else 0.0


def _increase(snapshots: Sequence[ScalingSnapshot], models: set[str], count: Callable[[ModelReading], float], seconds: float) -> float:
    """Return by how much the counters of the models rose within the last seconds. A counter that fell has restarted."""
    pairs = [(a.models, b.models) for a, b in pairwise(snapshots) if a.at >= snapshots[-1].at - seconds]
    return sum(max(0.0, count(b[model]) - count(a.get(model, _NOTHING))) for a, b in pairs for model in models & b.keys())


def _per_replica(snapshots: Sequence[ScalingSnapshot], ready: Sequence[Sequence[WorkerReading]]) -> float | None:
    """Return the answers per second of a busy slot, times the slots of a replica, so that an idle pool measures the same speed."""
    answers, busy = 0, 0.0
    for (before, after), (old, new) in zip(pairwise(snapshots), pairwise(ready), strict=True):
        counts = {worker.node: worker.completed for worker in old}
        known = [worker for worker in new if worker.node in counts]
        answers += sum(max(0, worker.completed - counts[worker.node]) for worker in known)
        busy += sum(worker.slots_used for worker in known) * (after.at - before.at)
    # Fewer answers say nothing about the speed.
    return fmean(worker.slots for worker in ready[-1]) * answers / busy if ready[-1] and busy and answers >= 20 else None
