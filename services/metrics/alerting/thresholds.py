"""Compare gauges, and the growth of counters within some minutes, with the thresholds of the most important alert rules. Pure."""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from services.metrics.collection import health, health_signals
from services.metrics.history.chart_lines import quantile_of
from services.metrics.history.samples import Labels, Sample
from shared import errors
from shared.telemetry import answer_instruments, host_instruments, instruments, job_instruments
from shared.telemetry.instrument import Instrument

Vector: TypeAlias = Mapping[Labels, float]

#: Of growth, if the rule names no other time.
_WINDOW_SECONDS: Final = 300.0
#: With fewer calls in the window, a single slow or failed one would fire an alert.
_LEAST_CALLS: Final = 20
#: Error codes that are not the caller's fault. Web uses the code for each HTTP status.
OUR_FAULT: Final = tuple(sorted(code for code, kind in errors.BY_CODE.items() if kind.fault is not errors.Fault.CALLER))

_FIRST_TEXTS, _CALLS, _REQUESTS, _LINES = (
    f"{answer_instruments.TTFT_SECONDS.name}_bucket",
    f"{instruments.REQUEST_DURATION.name}_bucket",
    instruments.REQUESTS.name,
    job_instruments.JOB_LINES_ENDED.name,
)
#: Counter -> the labels that it is summed by, and which of its series count. Callers see what the gateway measures.
_COUNTERS: Mapping[str, tuple[frozenset[str], Callable[[Mapping[str, str]], bool]]] = {
    _FIRST_TEXTS: (frozenset({"le", "model"}), lambda has: has.get("service") == "gateway"),
    _CALLS: (
        frozenset({"le", "service"}),
        lambda has: "model" not in has and has.get("method") != "passthrough" and has.get("service") != "inference",
    ),
    _REQUESTS: (frozenset({"service", "status"}), lambda _: True),
    _LINES: (frozenset({"model"}), lambda has: has.get("result") in ("done", "failed")),
}
#: Counter -> the time in which its growth counts.
_WINDOWS: Mapping[str, float] = {**dict.fromkeys(_COUNTERS, _WINDOW_SECONDS), _LINES: 900.0}
_LONGEST_SECONDS: Final = max(_WINDOWS.values())


@dataclass(frozen=True, slots=True)
class Readings:
    """Metric -> labels -> value."""

    gauges: Mapping[str, Vector]
    #: The growth of the counters within their windows, of those that were seen for as long.
    growth: Mapping[str, Vector]


class CollectionWindow:
    """Turns collections into readings. A counter that fell has restarted from 0; what it counted before it was first seen is old."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Labels], tuple[float, float]] = {}
        self._totals: defaultdict[tuple[str, Labels], float] = defaultdict(float)
        self._kept: list[tuple[float, dict[tuple[str, Labels], float]]] = []

    def take(self, samples: Iterable[Sample], now: float) -> Readings:
        gauges: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
        for sample in samples:
            if sample.name in _COUNTERS:
                self._count(sample, now)
            else:
                gauges[sample.name][sample.labels] = sample.value
        self._seen = {key: known for key, known in self._seen.items() if now - known[1] <= _WINDOW_SECONDS}
        self._kept.append((now, dict(self._totals)))
        while len(self._kept) > 1 and now - self._kept[1][0] >= _LONGEST_SECONDS:
            del self._kept[0]
        return Readings(gauges, self._growth(now))

    def _count(self, sample: Sample, now: float) -> None:
        by, is_counted = _COUNTERS[sample.name]
        if is_counted(dict(sample.labels)):
            key = (sample.name, sample.labels)
            before, _ = self._seen.get(key, (sample.value, now))
            group = tuple(pair for pair in sample.labels if pair[0] in by)
            self._totals[sample.name, group] += sample.value - before if sample.value >= before else sample.value
            self._seen[key] = (sample.value, now)

    def _growth(self, now: float) -> Mapping[str, Vector]:
        before = {name: totals for at, totals in self._kept for name, seconds in _WINDOWS.items() if now - at >= seconds}
        growth: dict[str, dict[Labels, float]] = {name: {} for name in before}
        for (name, labels), total in self._totals.items():
            if name in before:
                growth[name][labels] = total - before[name].get((name, labels), 0.0)
        return growth


# --- values -------------------------------------------------------------------------------------------------------------

_Find: TypeAlias = Callable[[Readings], Vector]


def _fold(how: Callable[[Iterable[float]], float], instrument: Instrument, *by: str, **where: str) -> _Find:
    def find(readings: Readings) -> Vector:
        return _grouped(how, readings.gauges.get(instrument.name, {}), by, where)

    return find


def _grouped(how: Callable[[Iterable[float]], float], vector: Vector, by: Iterable[str], where: Mapping[str, str] = {}) -> Vector:
    groups: defaultdict[Labels, list[float]] = defaultdict(list)
    for labels, value in vector.items():
        if where.items() <= dict(labels).items():
            groups[tuple(pair for pair in labels if pair[0] in by)].append(value)
    return {labels: how(values) for labels, values in groups.items()}


def _living(readings: Readings) -> Vector:
    """Return the live nodes of each service, also of one that is forgotten; nothing while no node is known."""
    living = _fold(sum, instruments.NODE_UP, "service")(readings)
    return {_service(name): living.get(_service(name), 0.0) for name in ("auth", "gateway", "web")} if living else {}


def _workers(readings: Readings) -> Vector:
    living = _fold(sum, instruments.NODE_UP, "service")(readings)
    return {(): living.get(_service("inference"), 0.0)} if living else {}


def _service(name: str) -> Labels:
    return (("service", name),)


def _disk_free(readings: Readings) -> Vector:
    total = _fold(min, host_instruments.HOST_DISK_TOTAL, "machine", "disk")(readings)
    free = _fold(min, host_instruments.HOST_DISK_FREE, "machine", "disk")(readings)
    return {labels: value / total[labels] for labels, value in free.items() if total.get(labels)}


def _p95(buckets: Vector) -> Vector:
    groups: defaultdict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, count in buckets.items():
        groups[tuple(pair for pair in labels if pair[0] != "le")].append((float(dict(labels)["le"]), count))
    return {labels: quantile_of(0.95, sorted(counts)) for labels, counts in groups.items()}


def _first_texts(readings: Readings) -> Vector:
    return _p95(readings.growth.get(_FIRST_TEXTS, {}))


def _latency(readings: Readings) -> Vector:
    calls = readings.growth.get(_CALLS, {})
    counts = _grouped(max, calls, ("service",))
    return {labels: value for labels, value in _p95(calls).items() if counts[labels] > _LEAST_CALLS}


def _failing(readings: Readings) -> Vector:
    requests = readings.growth.get(_REQUESTS, {})
    ours = _grouped(sum, {labels: count for labels, count in requests.items() if dict(labels).get("status") in OUR_FAULT}, ("service",))
    calls = _grouped(sum, requests, ("service",))
    return {labels: count / calls[labels] for labels, count in ours.items() if calls[labels] > _LEAST_CALLS}


def _stalled(readings: Readings) -> Vector:
    """Jobs that wait for something else, such as credits, have no oldest line."""
    ended = readings.growth.get(_LINES, {})
    oldest = _fold(max, job_instruments.JOB_OLDEST, "model")(readings)
    return {labels: value for labels, value in oldest.items() if not ended.get(labels)}


def _differing(tokens: Instrument, micro: Instrument) -> _Find:
    """Read a difference in tokens, or in micro-credits if that is larger."""

    def find(readings: Readings) -> Vector:
        of_tokens = _fold(max, tokens, "sink")(readings)
        return {**of_tokens, **_above(_fold(max, micro, "sink")(readings), of_tokens)}

    return find


def _failing_payments(readings: Readings) -> Vector:
    """Usage that was not billed for 50 minutes, in seconds, and payments that wait for an administrator."""
    unbilled = {labels: age for labels, age in _fold(max, instruments.UNBILLED_USAGE)(readings).items() if age > 3000}
    return {**unbilled, **_fold(max, instruments.DEFERRED_ITEMS, "kind", kind="payment")(readings)}


def _above(vector: Vector, other: Vector) -> Vector:
    return {labels: value for labels, value in vector.items() if value > other.get(labels, 0.0)}


# --- the thresholds -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Threshold:
    """The condition of the alert rules with this name: each found value for which ``is_reached``."""

    name: str
    find: _Find
    is_reached: Callable[[float, float], bool]
    bound: float
    #: The format of a value for people; empty if it adds nothing.
    shown: str = ""
    #: The counter whose growth it needs; empty for none.
    counter: str = ""

    def reached(self, readings: Readings) -> Vector:
        return {labels: value for labels, value in self.find(readings).items() if self.is_reached(value, self.bound)}


_certificates = _fold(min, instruments.CERTIFICATE_SECONDS_LEFT, "service", "node")
_differences = _differing(instruments.USAGE_EXPORT_DIFFERENCE_TOKENS, instruments.USAGE_EXPORT_DIFFERENCE_MICRO)
_excess = _differing(instruments.USAGE_EXPORT_EXCESS_TOKENS, instruments.USAGE_EXPORT_EXCESS_MICRO)
_OVER, _UNDER = operator.gt, operator.lt
THRESHOLDS: Final = (
    Threshold("service_down", _living, _UNDER, 1),
    Threshold("no_worker", _workers, _UNDER, 1),
    Threshold("server_down", _fold(max, instruments.SERVER_UP, "server"), _UNDER, 1),
    Threshold("worker_gone", _fold(max, instruments.NODE_UP, "node", service="inference"), _UNDER, 1),
    Threshold("model_not_served", _fold(max, instruments.MODEL_WORKERS, "model", service="gateway"), _UNDER, 1),
    Threshold("disk_full", _disk_free, _UNDER, 0.01, "{:.1%}"),
    Threshold("disk_low", _disk_free, _UNDER, 0.1, "{:.1%}"),
    Threshold("ledger_drift", _fold(max, instruments.LEDGER_DRIFT, "node"), operator.ne, 0, "{:,.0f} micro-credits"),
    Threshold("database_restored", _fold(max, instruments.DATABASE_RESTORED, "service", "node"), _OVER, 0),
    Threshold("payments_failing", _failing_payments, _OVER, 0, "{:,.0f}"),
    Threshold("webhooks_late", _fold(max, instruments.WEBHOOK_BACKLOG), _OVER, 900, "{:,.0f} s"),
    Threshold("jobs_stalled", _stalled, _OVER, 900, "{:,.0f} s", _LINES),
    Threshold("usage_export_late", _fold(max, instruments.USAGE_EXPORT_LAG, "sink"), _OVER, 3600, "{:,.0f} s"),
    Threshold("usage_export_difference", _differences, _OVER, 0, "{:,.0f}"),
    Threshold("usage_export_excess", _excess, _OVER, 0, "{:,.0f}"),
    Threshold("backup_old", _fold(max, instruments.BACKUP_AGE), _OVER, 26 * 3600, "{:,.0f} s"),
    Threshold("certificate_expiring", _certificates, _UNDER, health_signals.CERTIFICATE_ENDS_SECONDS, "{:,.0f} s"),
    Threshold("cpu_high", _fold(max, host_instruments.HOST_CPU, "machine"), _OVER, 0.8, "{:.1%}"),
    Threshold("gpu_saturation", _fold(max, host_instruments.GPU_USAGE, "machine", "gpu"), _OVER, 0.9, "{:.1%}"),
    Threshold(
        "queue_depth_high", _fold(sum, answer_instruments.QUEUE_DEPTH, "model", service="gateway"), _OVER, health.QUEUE_IS_LONG, "{:,.0f}"
    ),
    Threshold("response_slow", _first_texts, _OVER, 5, "{:.3g} s", _FIRST_TEXTS),
    Threshold("high_latency", _latency, _OVER, 1, "{:.3g} s", _CALLS),
    Threshold("error_rate_spike", _failing, _OVER, 0.05, "{:.1%}", _REQUESTS),
    Threshold("cost_anomaly", _fold(max, instruments.COST_OF_USUAL), _OVER, 1.5, "{:.3g} times as much"),
    Threshold("upstream_monthly", _fold(max, instruments.UPSTREAM_OF_MONTH), _OVER, 1, "{:.0%} of UPSTREAM_MONTHLY"),
)
FORMATS: Final = {threshold.name: threshold.shown for threshold in THRESHOLDS}
#: What a collection needs for them.
SERIES: Final = frozenset(_COUNTERS) | {
    one.name
    for one in (
        instruments.NODE_UP, instruments.SERVER_UP, instruments.MODEL_WORKERS, instruments.LEDGER_DRIFT, instruments.BACKUP_AGE,
        instruments.CERTIFICATE_SECONDS_LEFT, answer_instruments.QUEUE_DEPTH, instruments.COST_OF_USUAL, instruments.UPSTREAM_OF_MONTH,
        instruments.DATABASE_RESTORED, instruments.UNBILLED_USAGE, instruments.DEFERRED_ITEMS, instruments.WEBHOOK_BACKLOG,
        job_instruments.JOB_OLDEST,
        instruments.USAGE_EXPORT_LAG, instruments.USAGE_EXPORT_DIFFERENCE_TOKENS, instruments.USAGE_EXPORT_DIFFERENCE_MICRO,
        instruments.USAGE_EXPORT_EXCESS_TOKENS, instruments.USAGE_EXPORT_EXCESS_MICRO,
        host_instruments.HOST_DISK_FREE, host_instruments.HOST_DISK_TOTAL, host_instruments.HOST_CPU, host_instruments.GPU_USAGE,
    )
}  # fmt: skip
FAMILIES: Final = frozenset(name.removesuffix("_bucket") for name in SERIES)
