"""What the numbers of the mesh say of its health: certificates, queues, and workers that were caught lying. Pure.

It is read out of the last collection, which is made every 15 s for the alerts anyway. Some of it shows only between two collections:
whether a queue moves, and how often a worker was caught within the last hour.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from services.metrics.alerting.rules import trust_rules
from services.metrics.alerting.sample_window import Sample
from shared.telemetry import instruments
from shared.types import NodeId

_BEGUN: Final = f"{instruments.QUEUE_WAIT_SECONDS.name}_count"
#: The families that are read.
FAMILIES: Final = frozenset(
    one.name
    for one in (
        instruments.BUILD_INFO,
        instruments.CERTIFICATE_SECONDS_LEFT,
        instruments.REVOCATION_LIST_AGE,
        instruments.QUEUE_DEPTH,
        instruments.QUEUE_WAIT_SECONDS,
        instruments.WRONG_COUNTS,
    )
)
#: The series in them that are.
SERIES: Final = (FAMILIES - {instruments.QUEUE_WAIT_SECONDS.name}) | {_BEGUN}
#: As gateways reckon strikes.
CAUGHT_WITHIN: Final = timedelta(hours=1)
#: The longest queues; a mesh with more models that are waited for has a cause that shows elsewhere.
MAX_QUEUES: Final = 50
#: Of one worker; more of them say nothing new.
_MAX_CATCHES: Final = 100
#: Pairs of a gateway and a worker that it caught, and gateways.
_MAX_KNOWN: Final = 4096


@dataclass(frozen=True, slots=True)
class CertificateSignal:
    """What one node says of its own."""

    #: Its service and the beginning of its id.
    holder: str
    #: Negative when it has ended.
    seconds_left: float
    #: Since auth confirmed the list of revoked nodes that it holds.
    list_seconds: float = 0.0

    @property
    def ends_soon(self) -> bool:
        return self.seconds_left < trust_rules.CERTIFICATE_ENDS_SECONDS

    @property
    def has_old_list(self) -> bool:
        return self.list_seconds > trust_rules.LIST_OLD_SECONDS


@dataclass(frozen=True, slots=True)
class QueueSignal:
    """Those who wait for one model, at all gateways."""

    model: str
    waiting: int
    #: When one of them was last seen to begin, or when they were first seen to wait.
    moved_at: datetime


@dataclass(frozen=True, slots=True)
class HealthSignals:
    """As of the last collection."""

    certificates: tuple[CertificateSignal, ...] = ()
    #: The longest first.
    queues: tuple[QueueSignal, ...] = ()
    #: The label of a worker -> how often gateways caught it telling wrong counts, within ``CAUGHT_WITHIN``.
    catches: Mapping[str, int] = field(default_factory=dict)


class HealthSignalReader:
    """Follows the collections of one metrics service."""

    def __init__(self) -> None:
        self._certificates: tuple[CertificateSignal, ...] = ()
        self._queues: tuple[QueueSignal, ...] = ()
        #: model -> how many had begun.
        self._begun: dict[str, float] = {}
        self._catches = _Catches()

    def take(self, samples: Iterable[Sample], now: datetime) -> None:
        """The samples of one collection, of all SERIES."""
        of: dict[str, list[Sample]] = {name: [] for name in SERIES}
        for sample in samples:
            if sample.name in of:
                of[sample.name].append(sample)
        self._certificates = _certificates(of[instruments.CERTIFICATE_SECONDS_LEFT.name], of[instruments.REVOCATION_LIST_AGE.name])
        begun = _by_model(of[_BEGUN])
        self._queues = self._follow(_by_model(of[instruments.QUEUE_DEPTH.name]), begun, now)
        self._begun = begun
        gateways = {dict(one.labels).get("node", "") for one in of[instruments.BUILD_INFO.name] if _is_of_gateway(one)}
        self._catches.take(of[instruments.WRONG_COUNTS.name], gateways, now)

    def signs(self, now: datetime) -> HealthSignals:
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
    """How counters of wrong counts grew. What a gateway had counted before we first heard it is of no known time, and left out."""

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
            # One that began again counts from nothing.
            more = sample.value - last if sample.value >= last else sample.value
            self._totals[gateway, worker] = sample.value
            if more >= 1:
                caught = self._at.setdefault(instruments.node_label(NodeId(worker)), deque(maxlen=_MAX_CATCHES))
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
    """Over all gateways: what waits at a worker is counted by its gateway already."""
    found: dict[str, float] = {}
    for sample in samples:
        model = dict(sample.labels).get("model", "")
        if model and _is_of_gateway(sample):
            found[model] = found.get(model, 0.0) + sample.value
    return found


def _is_of_gateway(sample: Sample) -> bool:
    return dict(sample.labels).get("service") == "gateway"
