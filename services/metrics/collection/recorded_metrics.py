"""Validate and store metrics that other nodes record, and remember what was rejected. Pure.

A metric is one of the platform's own, with exactly its labels, or its name starts with a namespace that the operator registered. Each
node's series get the labels of that node and count against its own limit.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Final

from services.metrics.export import prometheus_merge, series
from shared import errors
from shared.api.metrics import RecordedMetrics, RecordMetric
from shared.telemetry import instruments
from shared.telemetry.instrument import Instrument, InstrumentKind

#: In total: they take memory, and every scrape has them.
MAX_SERIES: Final = 1_000
MAX_SERIES_OF_ONE: Final = 500
MAX_LABELS: Final = 10
MAX_NAME: Final = 200
MAX_LABEL_VALUE: Final = 200
MAX_PROBLEMS: Final = 10
#: How long the health shows rejections.
REMEMBERED: Final = timedelta(minutes=10)
#: Callers have certificates, so there are few.
_MAX_NODES: Final = 1000
#: Truncates errors, because they can quote what was sent.
_MAX_PROBLEM: Final = 200
#: The maximum age of a sample, and how far it may be in the future.
_OLDEST, _YOUNGEST = timedelta(minutes=5), timedelta(minutes=1)

_NAME: Final = re.compile(series.NAME)
_LABEL_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
#: Prometheus gives these a special meaning.
_RESERVED_LABELS: Final = frozenset({"le", "quantile"})
_LIST: Final[Mapping[str, Instrument]] = {one.name: one for one in instruments.ALL}
_PARTS: Final = frozenset(
    one.name + suffix for one in instruments.ALL if one.kind is InstrumentKind.HISTOGRAM for suffix in series.HISTOGRAM_PARTS
)

_Labels = tuple[tuple[str, str], ...]
#: The labels service and node of the caller.
MetricReporter = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _RejectedRecord:
    samples: int
    problem: str
    at: datetime


class RejectedRecords:
    """Rejections by node label."""

    def __init__(self) -> None:
        self._of: dict[str, _RejectedRecord] = {}

    def note(self, node: str, samples: int, problem: str, now: datetime) -> bool:
        """Note rejected ``samples`` of one call and the first error. Returns whether to log it."""
        last = self._of.pop(node, None)
        is_news = last is None or now - last.at > REMEMBERED
        before = 0 if last is None or is_news else last.samples
        if len(self._of) >= _MAX_NODES:
            del self._of[next(iter(self._of))]
        self._of[node] = _RejectedRecord(before + samples, problem[:_MAX_PROBLEM], now)
        return is_news

    def complaints(self, now: datetime) -> Mapping[str, str]:
        """Return a complaint per node."""
        return {
            node: f"{_numbers(found.samples)} rejected, the last one because: {found.problem}"
            for node, found in self._of.items()
            if now - found.at <= REMEMBERED
        }


def _numbers(count: int) -> str:
    return "1 recorded sample was" if count == 1 else f"{count:,} recorded samples were"


class RecordedMetricSet:
    """The series created by recordMetric. A name that ends in ``_total`` is a counter, any other a gauge."""

    def __init__(self, namespaces: Sequence[str] = ("custom",)) -> None:
        self._namespaces = tuple(f"{namespace}_" for namespace in namespaces)
        self._families: dict[MetricReporter, dict[str, dict[_Labels, float]]] = {}
        self._counts: dict[MetricReporter, int] = {}
        self._count = 0
        #: How many series were rejected for lack of room, and the first of them.
        self.refused = 0
        self.first_refused = ""
        self.refusals = RejectedRecords()

    def __len__(self) -> int:
        return self._count

    def record_all(self, samples: Iterable[RecordMetric], reporter: MetricReporter, now: datetime) -> RecordedMetrics:
        """Record each valid sample of a batch."""
        accepted, refused, problems = 0, 0, list[str]()
        for sample in samples:
            try:
                self.record(sample, reporter, now)
                accepted += 1
            except errors.BadRequest as error:
                refused += 1
                if len(problems) < MAX_PROBLEMS:
                    problems.append(error.message)
        return RecordedMetrics(accepted, refused, tuple(problems))

    def record(self, sample: RecordMetric, reporter: MetricReporter, now: datetime) -> None:
        """Add to a counter or set a gauge. Raises BadRequest for an invalid sample, and changes nothing then."""
        name, value = sample.metric_name, sample.value
        _check_time(sample.at, now)
        _check_value(name, value)
        families = self._families.get(reporter)
        key = tuple(sorted((label, text) for label, text in sample.labels.items() if text))
        known = None if families is None else families.get(name)
        if known is None or key not in known:
            # Only new series need these checks.
            self._check_room(name, reporter)
            self._check_name(name, sample.labels)
            _check_labels(sample.labels)
            known = self._families.setdefault(reporter, {}).setdefault(name, {})
            self._count += 1
            self._counts[reporter] = self._counts.get(reporter, 0) + 1
            known[key] = 0.0
        new = known[key] + value if is_counter(name) else value
        if not isfinite(new):
            raise errors.BadRequest(f"value: {name} would exceed the range of numbers")
        known[key] = new

    def sources(self) -> list[prometheus_merge.MetricSource]:
        """Return one source per node that recorded something."""
        return [prometheus_merge.MetricSource(self._render(one), {"service": one[0], "node": one[1]}) for one in self._families]

    def _render(self, reporter: MetricReporter) -> str:
        return "".join(
            prometheus_merge.render_family(
                name,
                "counter" if is_counter(name) else "gauge",
                _LIST[name].help if name in _LIST else "Recorded by recordMetric",
                ((dict(labels), value) for labels, value in found.items()),
            )
            for name, found in self._families[reporter].items()
        )

    def _check_name(self, name: str, labels: Mapping[str, str]) -> None:
        if len(name) > MAX_NAME or not _NAME.fullmatch(name):
            raise errors.BadRequest(
                f"metricName: use letters, digits, _ and :, no digit at the start, and at most {MAX_NAME} characters",
                hint=f"for example {self._namespaces[0] if self._namespaces else 'my_'}jobs_total",
            )
        instrument = _LIST.get(name)
        if instrument is not None:
            _check_instrument(instrument, labels)
        elif name in _PARTS:
            raise errors.BadRequest(
                f"metricName: {name} is part of a histogram, which cannot be recorded", hint="record a counter or a gauge"
            )
        elif not name.startswith(self._namespaces):
            known = ", ".join(f"{namespace}…" for namespace in self._namespaces) or "none"
            raise errors.BadRequest(
                f"metricName: {name} is neither a platform metric nor in a registered namespace ({known})",
                hint="see docs/reference/metrics.md, or register a namespace with METRICS_NAMESPACES of the metrics service",
            )

    def _check_room(self, name: str, reporter: MetricReporter) -> None:
        if self._count < MAX_SERIES and self._counts.get(reporter, 0) < MAX_SERIES_OF_ONE:
            return
        self.refused += 1
        self.first_refused = self.first_refused or f"{name[:MAX_NAME]} of {' '.join(reporter)}"
        raise errors.BadRequest(
            f"metricName: the limit of {MAX_SERIES} recorded series, or {MAX_SERIES_OF_ONE} per node, is reached",
            hint="use fewer label values; a restart of the metrics service clears recorded series",
        )


def is_counter(name: str) -> bool:
    return name.endswith("_total")


def _check_time(at: datetime | None, now: datetime) -> None:
    if at is None:
        return
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    if not now - _OLDEST <= at <= now + _YOUNGEST:
        raise errors.BadRequest(
            f"at: {at.isoformat()[:40]} is more than 5 minutes old or in the future",
            hint="check the clock, or omit `at` to use the current time",
        )


def _check_value(name: str, value: float) -> None:
    if not isfinite(value):
        raise errors.BadRequest("value: must be a finite number, not NaN or infinity")
    if value < 0 and is_counter(name):
        raise errors.BadRequest(
            f"value: {name[:MAX_NAME]} ends in _total, so it is a counter, which cannot decrease", hint="choose a name without _total"
        )


def _check_instrument(instrument: Instrument, labels: Mapping[str, str]) -> None:
    if instrument.kind is InstrumentKind.HISTOGRAM:
        raise errors.BadRequest(
            f"metricName: {instrument.name} is a histogram, which cannot be recorded", hint="record a counter or a gauge"
        )
    if labels.keys() != set(instrument.labels):
        wanted = ", ".join(instrument.labels) or "none"
        raise errors.BadRequest(f"labels: {instrument.name} requires exactly these: {wanted}", hint="see docs/reference/metrics.md")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        raise errors.BadRequest(f"labels: at most {MAX_LABELS}, not {len(labels)}")
    for label, text in labels.items():
        _check_label(label, text)


def _check_label(label: str, text: str) -> None:
    if not _LABEL_NAME.fullmatch(label) or len(label) > MAX_NAME:
        raise errors.BadRequest("labels: use letters, digits and _ in label names, and no digit at the start")
    if label.startswith("__") or label in _RESERVED_LABELS:
        raise errors.BadRequest(f"labels: {label} is reserved by Prometheus", hint="choose another label name")
    if len(text) > MAX_LABEL_VALUE:
        raise errors.BadRequest(
            f"labels: the value of {label} has {len(text)} characters; the limit is {MAX_LABEL_VALUE}",
            hint="use labels for a few short values",
        )
