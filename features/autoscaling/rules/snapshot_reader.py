"""Turns what the nodes of the mesh announce and measure into snapshots for the demand of pools. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Protocol

from features.autoscaling.rules.demand import ModelReading, ScalingSnapshot, WorkerReading
from shared.protocol.directory import Announcement
from shared.telemetry.answer_instruments import AnswerInstruments
from shared.telemetry.gen_ai_instruments import GenAiInstruments
from shared.telemetry.host_instruments import HostInstruments
from shared.telemetry.instrument import node_label
from shared.telemetry.instruments import Instruments
from shared.types import NodeId

_QUEUE, _OLDEST, _REQUESTS = (
    AnswerInstruments.queue_depth.name,
    AnswerInstruments.oldest_wait.name,
    AnswerInstruments.model_requests.name,
)
_ANSWERED, _SECONDS = f"{AnswerInstruments.ttft_seconds.name}_count", f"{AnswerInstruments.ttft_seconds.name}_sum"
_COUNTERS = (_REQUESTS, _ANSWERED, _SECONDS)
#: What is read from the text of each gateway.
GATEWAY_SERIES = frozenset({_QUEUE, _OLDEST, *_COUNTERS})

_COMPLETED = f"{GenAiInstruments.server_request_duration.name}_count"
_TOKENS, _CPU, _GPU = Instruments.engine_tokens_per_second.name, HostInstruments.host_cpu.name, HostInstruments.gpu_usage.name
#: What is read about the workers from the text of the mesh.
WORKER_FAMILIES = frozenset({GenAiInstruments.server_request_duration.name, _TOKENS, _CPU, _GPU})
WORKER_SERIES = frozenset({_COMPLETED, _TOKENS, _CPU, _GPU})

#: Gateways whose counters are remembered, also while they are disconnected.
_MAX_GATEWAYS = 1000
#: Name of a counter, model, and the label ``result``.
_Counter = tuple[str, str, str]


class Sample(Protocol):
    """A line of a text of metrics, as the metrics service reads it."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Iterable[tuple[str, str]]: ...
    @property
    def value(self) -> float: ...


class SnapshotReader:
    """Adds the counters of all gateways up. What a gateway had counted before it was first seen is old, and left out."""

    def __init__(self) -> None:
        self._before: dict[NodeId, dict[_Counter, float]] = {}
        self._totals: defaultdict[_Counter, float] = defaultdict(float)

    def take(
        self, now: float, gateways: Mapping[NodeId, Iterable[Sample]], workers: Iterable[Announcement], measured: Iterable[Sample],
        *, has_lost_gateway: bool = False,
    ) -> ScalingSnapshot:  # fmt: skip
        """``measured`` are the samples of WORKER_SERIES of all nodes; it may be some seconds old."""
        waiting: defaultdict[str, float] = defaultdict(float)
        oldest: defaultdict[str, float] = defaultdict(float)
        for gateway, samples in gateways.items():
            counters: dict[_Counter, float] = {}
            for sample in samples:
                labels = dict(sample.labels)
                model = labels.get("model", "")
                if sample.name == _QUEUE:
                    waiting[model] += sample.value
                elif sample.name == _OLDEST:
                    oldest[model] = max(oldest[model], sample.value)
                else:
                    counters[sample.name, model, labels.get("result", "")] = sample.value
            self._count(gateway, counters)
        models = {model for _, model, _ in self._totals} | waiting.keys()
        readings = {model: self._reading(model, round(waiting[model]), oldest[model]) for model in models}
        return ScalingSnapshot(now, _workers(workers, measured), readings, has_lost_gateway)

    def _count(self, gateway: NodeId, counters: dict[_Counter, float]) -> None:
        before = self._before.get(gateway)
        if before is not None:
            for key, value in counters.items():
                known = before.get(key, 0.0)
                # A counter that fell has restarted.
                self._totals[key] += value - known if value >= known else value
        elif len(self._before) >= _MAX_GATEWAYS:
            self._before.clear()
        self._before[gateway] = counters

    def _reading(self, model: str, waiting: int, oldest_seconds: float) -> ModelReading:
        refused = self._totals.get((_REQUESTS, model, "refused"), 0.0)
        return ModelReading(
            arrived=round(self._totals.get((_REQUESTS, model, "arrived"), 0.0) + refused), refused=round(refused),
            answered=round(self._totals.get((_ANSWERED, model, ""), 0.0)),
            first_text_seconds=self._totals.get((_SECONDS, model, ""), 0.0), waiting=waiting, oldest_seconds=oldest_seconds,
        )  # fmt: skip


def _workers(workers: Iterable[Announcement], measured: Iterable[Sample]) -> tuple[WorkerReading, ...]:
    """Leave out machines that are stopping, and lent ones, which may leave at any time and must not be stopped."""
    of_node: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in measured:
        labels = dict(sample.labels)
        if not labels.get("error_type"):
            of_node[labels.get("node", "")][sample.name].append(sample.value)
    return tuple(_worker(worker, of_node[node_label(worker.node)]) for worker in workers if not worker.owner and not worker.draining)


def _worker(worker: Announcement, values: Mapping[str, Sequence[float]]) -> WorkerReading:
    cpu, gpu = values.get(_CPU, ()), values.get(_GPU, ())
    return WorkerReading(
        worker.node, tuple(offer.name for offer in worker.models), worker.labels,
        ready=() if worker.not_ready else tuple(offer.name for offer in worker.models if offer.ready),
        slots=worker.load.slots, slots_used=worker.load.running, completed=round(sum(values.get(_COMPLETED, ()))),
        tokens_per_second=sum(values.get(_TOKENS, ())), cpu=max(cpu, default=None), gpu=fmean(gpu) if gpu else None, on_cpu=not gpu,
    )  # fmt: skip
