"""The numbers that others give us: what may be recorded, and what has been. Pure.

A name is one of the platform's own list, with exactly its labels, or begins with a namespace that the operator has registered. Each
node's numbers are its own: they get its labels as those of a scrape do, and it can fill its own room and nobody else's.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Final

from services.metrics.collection.rejected_records import RejectedRecords
from services.metrics.export import prometheus_merge, series
from shared import errors
from shared.api.metrics import RecordMetric
from shared.telemetry import instruments
from shared.telemetry.instrument import Instrument, InstrumentKind

#: All of them together live in memory and in every scrape.
MAX_SERIES: Final = 1_000
#: Of one node.
MAX_SERIES_OF_ONE: Final = 500
MAX_LABELS: Final = 10
MAX_NAME: Final = 200
MAX_LABEL_VALUE: Final = 200
#: Of a batch, those whose words are sent back.
MAX_PROBLEMS: Final = 10
#: A sample that says when it was taken is not older or younger than this.
_OLDEST, _YOUNGEST = timedelta(minutes=5), timedelta(minutes=1)

_NAME: Final = re.compile(series.NAME)
_LABEL_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
#: Prometheus gives these a meaning of their own.
_RESERVED_LABELS: Final = frozenset({"le", "quantile"})
_LIST: Final[Mapping[str, Instrument]] = {one.name: one for one in instruments.ALL}
_PARTS: Final = frozenset(
    one.name + suffix for one in instruments.ALL if one.kind is InstrumentKind.HISTOGRAM for suffix in ("_bucket", "_sum", "_count")
)

_Labels = tuple[tuple[str, str], ...]
#: What the mesh knows of who recorded: the labels service and node.
Who = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """What became of many."""

    taken: int
    refused: int
    #: Why, of the first ``MAX_PROBLEMS``.
    problems: tuple[str, ...]


class RecordedMetricSet:
    """The series made by recordMetric. A name that ends in ``_total`` is a counter, any other a gauge."""

    def __init__(self, namespaces: Sequence[str] = ("custom",)) -> None:
        self._namespaces = tuple(f"{namespace}_" for namespace in namespaces)
        self._of: dict[Who, dict[str, dict[_Labels, float]]] = {}
        self._counts: dict[Who, int] = {}
        self._count = 0
        #: Series that found no room, and the first name that did not.
        self.refused = 0
        self.first_refused = ""
        #: Samples that were refused, for whatever reason, and whose they were.
        self.refusals = RejectedRecords()

    def __len__(self) -> int:
        return self._count

    def record_all(self, samples: Iterable[RecordMetric], who: Who, now: datetime) -> "RecordBatch":
        """A batch is not undone for a sample that is wrong."""
        taken, refused, problems = 0, 0, list[str]()
        for sample in samples:
            try:
                self.record(sample, who, now)
                taken += 1
            except errors.BadRequest as error:
                refused += 1
                if len(problems) < MAX_PROBLEMS:
                    problems.append(error.message)
        return RecordBatch(taken, refused, tuple(problems))

    def record(self, sample: RecordMetric, who: Who, now: datetime) -> None:
        """Add to a counter or set a gauge; raises BadRequest, which says the rule that was broken, and changes nothing then."""
        name, value = sample.metric_name, sample.value
        _check_time(sample.at, now)
        _check_value(name, value)
        families = self._of.get(who)
        key = tuple(sorted((label, text) for label, text in sample.labels.items() if text))
        known = None if families is None else families.get(name)
        if known is None or key not in known:
            # What is known was checked when it was new.
            self._check_room(name, who)
            self._check_name(name, sample.labels)
            _check_labels(sample.labels)
            known = self._of.setdefault(who, {}).setdefault(name, {})
            self._count += 1
            self._counts[who] = self._counts.get(who, 0) + 1
            known[key] = 0.0
        new = known[key] + value if is_counter(name) else value
        if not isfinite(new):
            raise errors.BadRequest(f"value: {name} would leave the range of numbers")
        known[key] = new

    def sources(self) -> list[prometheus_merge.MetricSource]:
        """As the text of each node that recorded something."""
        return [prometheus_merge.MetricSource(self._render(who), {"service": who[0], "node": who[1]}) for who in self._of]

    def _render(self, who: Who) -> str:
        return "".join(
            prometheus_merge.render_family(name, "counter" if is_counter(name) else "gauge", _help(name), _dicts(found))
            for name, found in self._of[who].items()
        )

    def _check_name(self, name: str, labels: Mapping[str, str]) -> None:
        if len(name) > MAX_NAME or not _NAME.fullmatch(name):
            raise errors.BadRequest(
                f"metricName: a name has letters, digits, _ and :, begins with no digit and has at most {MAX_NAME} characters",
                hint=f"for example {self._namespaces[0] if self._namespaces else 'my_'}jobs_total",
            )
        instrument = _LIST.get(name)
        if instrument is not None:
            _check_instrument(instrument, labels)
        elif name in _PARTS:
            raise errors.BadRequest(
                f"metricName: {name} is a part of a histogram, which cannot be recorded", hint="record a counter or a gauge"
            )
        elif not name.startswith(self._namespaces):
            known = ", ".join(f"{namespace}…" for namespace in self._namespaces) or "none"
            raise errors.BadRequest(
                f"metricName: {name} is none of the platform's metrics, and in no namespace that is registered ({known})",
                hint="docs/reference/metrics.md lists the first; METRICS_NAMESPACES of the metrics service registers the second",
            )

    def _check_room(self, name: str, who: Who) -> None:
        if self._count < MAX_SERIES and self._counts.get(who, 0) < MAX_SERIES_OF_ONE:
            return
        self.refused += 1
        self.first_refused = self.first_refused or f"{name[:MAX_NAME]} of {' '.join(who)}"
        raise errors.BadRequest(
            f"metricName: there are {MAX_SERIES} recorded series already, or {MAX_SERIES_OF_ONE} of this node, and this would be one more",
            hint="use fewer label values; recorded series are forgotten when the metrics service restarts",
        )


def is_counter(name: str) -> bool:
    return name.endswith("_total")


def _help(name: str) -> str:
    return _LIST[name].help if name in _LIST else "Recorded by recordMetric"


def _check_time(at: datetime | None, now: datetime) -> None:
    if at is None:
        return
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    if not now - _OLDEST <= at <= now + _YOUNGEST:
        raise errors.BadRequest(
            f"at: {at.isoformat()[:40]} is not now: samples are at most 5 minutes old, and not of the future",
            hint="is the clock right? leave `at` out to record it as of now",
        )


def _check_value(name: str, value: float) -> None:
    if not isfinite(value):
        raise errors.BadRequest("value: only finite numbers can be recorded, not NaN or infinity")
    if value < 0 and is_counter(name):
        raise errors.BadRequest(
            f"value: {name[:MAX_NAME]} ends in _total, so it is a counter, and a counter only grows", hint="choose a name without _total"
        )


def _check_instrument(instrument: Instrument, labels: Mapping[str, str]) -> None:
    if instrument.kind is InstrumentKind.HISTOGRAM:
        raise errors.BadRequest(
            f"metricName: {instrument.name} is a histogram, which cannot be recorded", hint="record a counter or a gauge"
        )
    if labels.keys() != set(instrument.labels):
        wanted = ", ".join(instrument.labels) or "none"
        raise errors.BadRequest(f"labels: {instrument.name} has these: {wanted}", hint="docs/reference/metrics.md lists them")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        raise errors.BadRequest(f"labels: at most {MAX_LABELS}, not {len(labels)}")
    for label, text in labels.items():
        _check_label(label, text)


def _check_label(label: str, text: str) -> None:
    if not _LABEL_NAME.fullmatch(label) or len(label) > MAX_NAME:
        raise errors.BadRequest("labels: a label's name has letters, digits and _ and begins with no digit")
    if label.startswith("__") or label in _RESERVED_LABELS:
        raise errors.BadRequest(f"labels: {label} has a meaning of its own in Prometheus", hint="choose another name for the label")
    if len(text) > MAX_LABEL_VALUE:
        raise errors.BadRequest(
            f"labels: the value of {label} has {len(text)} characters, at most {MAX_LABEL_VALUE} are allowed",
            hint="labels are for few, short values",
        )


def _dicts(found: Mapping[_Labels, float]) -> Iterator[tuple[Mapping[str, str], float]]:
    return ((dict(labels), value) for labels, value in found.items())
