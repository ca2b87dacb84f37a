"""Derive health signals from collected metrics: certificates, queues, and workers that report wrong token counts. Pure.

Some signals need two collections: whether a queue moves, and how often a worker was caught within the last hour.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from services.metrics.history.samples import Sample
from shared.telemetry.answer_instruments import AnswerInstruments
from shared.telemetry.instrument import node_label
from shared.telemetry.instruments import Instruments
from shared.types import NodeId

_BEGUN: Final = f"{AnswerInstruments.queue_wait_seconds.name}_count"
FAMILIES: Final = frozenset(
    one.name
    for one in (
        Instruments.build_info,
        Instruments.certificate_seconds_left,
        Instruments.revocation_list_age,
        AnswerInstruments.queue_depth,
        AnswerInstruments.queue_wait_seconds,
        Instruments.wrong_counts,
    )
)
SERIES: Final = (FAMILIES - {AnswerInstruments.queue_wait_seconds.name}) | {_BEGUN}
#: Less than the third of its lifetime at which a certificate is renewed.
CERTIFICATE_ENDS_SECONDS: Final = 6 * 3600
#: Auth confirms the list of revoked nodes every two minutes.
_LIST_OLD_SECONDS: Final = 600
#: The period that gateways use for quarantine.
CAUGHT_WITHIN: Final = timedelta(hours=1)
#: The longest queues are shown; more of them have a common cause that shows elsewhere.
MAX_QUEUES: Final = 50
_MAX_CATCHES: Final = 100
_MAX_KNOWN: Final = 4096


@dataclass(frozen=True, slots=True)
class CertificateSignal:
    """The certificate of one node."""

    #: Its service and the start of its id.
    holder: str
    #: Negative after it expired.
    seconds_left: float
    list_seconds: float = 0.0

    @property
    def ends_soon(self) -> bool:
        return self.seconds_left < CERTIFICATE_ENDS_SECONDS

    @property
    def has_old_list(self) -> bool:
        return self.list_seconds > _LIST_OLD_SECONDS


@dataclass(frozen=True, slots=True)
class QueueSignal:
    """The requests that wait for one model at all gateways."""

    model: str
    waiting: int
    #: When one of them last started, or when they were first seen.
    moved_at: datetime


@dataclass(frozen=True, slots=True)
class HealthSignals:
    certificates: tuple[CertificateSignal, ...] = ()
    queues: tuple[QueueSignal, ...] = ()
    #: Worker label -> how often gateways detected wrong counts within ``CAUGHT_WITHIN``.
    catches: Mapping[str, int] = field(default_factory=dict)


class HealthSignalReader:
    def __init__(self) -> None:
        self._certificates: tuple[CertificateSignal, ...] = ()
        self._queues: tuple[QueueSignal, ...] = ()
        self._begun: dict[str, float] = {}
        self._catches = _Catches()

    def take(self, samples: Iterable[Sample], now: datetime) -> None:
        """Process one collection; ``samples`` has all SERIES."""
        of: dict[str, list[Sample]] = {name: [] for name in SERIES}
        for sample in samples:
            if sample.name in of:
                of[sample.name].append(sample)
        self._certificates = _certificates(of[Instruments.certificate_seconds_left.name], of[Instruments.revocation_list_age.name])
        begun = _by_model(of[_BEGUN])
        self._queues = self._follow(_by_model(of[AnswerInstruments.queue_depth.name]), begun, now)
        self._begun = begun
        gateways = {dict(one.labels).get("node", "") for one in of[Instruments.build_info.name] if _is_of_gateway(one)}
        self._catches.take(of[Instruments.wrong_counts.name], gateways, now)

    def signals(self, now: datetime) -> HealthSignals:
        return HealthSignals(self._certificates, self._queues, self._catches.within(now))

    def _follow(self, waiting: Mapping[str, float], begun: Mapping[str, float], now: datetime) -> tuple[QueueSignal, ...]:
        before = {queue.model: queue.moved_at for queue in self._queues}
        longest = sorted(waiting, key=lambda model: (-waiting[model], model))[:MAX_QUEUES]
        return tuple(
            QueueSignal(model, int(waiting[model]), before.get(model, now) if begun.get(model) == self._begun.get(model) else now)
            for model in longest
            if waiting[model] >= 1
        )


class _Catches:
    """Increases of the wrong-count counters. Ignores what a gateway counted before its first collection: its time is unknown."""

    def __init__(self) -> None:
        self._gateways: set[str] = set()
        self._totals: dict[tuple[str, str], float] = {}
        self._at: dict[str, deque[datetime]] = {}

    def take(self, samples: Iterable[Sample], gateways: set[str], now: datetime) -> None:
        if len(self._totals) + len(self._gateways) > _MAX_KNOWN:
            self._totals.clear()
            self._gateways.clear()
        for sample in samples:
            labels = dict(sample.labels)
            gateway, worker = labels.get("node", ""), labels.get("exported_node", "")
            if not _is_of_gateway(sample) or not worker:
                continue
            last = self._totals.get((gateway, worker), 0.0 if gateway in self._gateways else sample.value)
            more = sample.value - last if sample.value >= last else sample.value
            self._totals[gateway, worker] = sample.value
            if more >= 1:
                caught = self._at.setdefault(node_label(NodeId(worker)), deque(maxlen=_MAX_CATCHES))
                caught.extend([now] * min(int(more), _MAX_CATCHES))
        self._gateways |= gateways

    def within(self, now: datetime) -> Mapping[str, int]:
        for worker, at in list(self._at.items()):
            while at and now - at[0] > CAUGHT_WITHIN:
                at.popleft()
            if not at:
                del self._at[worker]
        return {worker: len(at) for worker, at in self._at.items()}


def _certificates(left: Iterable[Sample], ages: Iterable[Sample]) -> tuple[CertificateSignal, ...]:
    old = {sample.labels: sample.value for sample in ages}
    return tuple(CertificateSignal(_holder(one), one.value, old.get(one.labels, 0.0)) for one in left)


def _holder(sample: Sample) -> str:
    labels = dict(sample.labels)
    return f"{labels.get('service', '')} {labels.get('node', '')}".strip()


def _by_model(samples: Iterable[Sample]) -> dict[str, float]:
    """Sum over all gateways. Workers count the same requests again."""
    found: dict[str, float] = {}
    for sample in samples:
        model = dict(sample.labels).get("model", "")
        if model and _is_of_gateway(sample):
            found[model] = found.get(model, 0.0) + sample.value
    return found


def _is_of_gateway(sample: Sample) -> bool:
    return dict(sample.labels).get("service") == "gateway"
