"""Compare gauges, and the growth of counters within some minutes, with the thresholds of the most important alert rules. Pure."""

import operator
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from services.metrics.alerting.readings import WINDOW_SECONDS, Counter, Readings, Threshold, Vector, fold, grouped
from services.metrics.collection import health, health_signals
from services.metrics.history.chart_lines import quantile_of
from services.metrics.history.samples import Labels, Sample
from shared import errors, features
from shared.telemetry.answer_instruments import AnswerInstruments
from shared.telemetry.host_instruments import HostInstruments
from shared.telemetry.instruments import Instruments

#: With fewer calls in the window, a single slow or failed one would fire an alert.
_MIN_CALLS: Final = 20
#: Error codes that are not the caller's fault. Web uses the code for each HTTP status.
OUR_FAULT: Final = tuple(sorted(code for code, kind in errors.BY_CODE.items() if kind.fault is not errors.Fault.CALLER))

#: Callers see what the gateway measures.
_FIRST_TEXTS, _CALLS, _REQUESTS = (
    Counter(f"{AnswerInstruments.ttft_seconds.name}_bucket", frozenset({"le", "model"}), lambda has: has.get("service") == "gateway"),
    Counter(
        f"{Instruments.request_duration.name}_bucket",
        frozenset({"le", "service"}),
        lambda has: "model" not in has and has.get("method") != "passthrough" and has.get("service") != "inference",
    ),
    Counter(Instruments.requests.name, frozenset({"service", "status"}), lambda _: True),
)


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
        self._seen = {key: known for key, known in self._seen.items() if now - known[1] <= WINDOW_SECONDS}
        self._kept.append((now, dict(self._totals)))
        while len(self._kept) > 1 and now - self._kept[1][0] >= _MAX_SECONDS:
            del self._kept[0]
        return Readings(gauges, self._growth(now))

    def _count(self, sample: Sample, now: float) -> None:
        counter = _COUNTERS[sample.name]
        if counter.is_counted(dict(sample.labels)):
            key = (sample.name, sample.labels)
            before, _ = self._seen.get(key, (sample.value, now))
            group = tuple(pair for pair in sample.labels if pair[0] in counter.by)
            self._totals[sample.name, group] += sample.value - before if sample.value >= before else sample.value
            self._seen[key] = (sample.value, now)

    def _growth(self, now: float) -> Mapping[str, Vector]:
        before = {name: totals for at, totals in self._kept for name, counter in _COUNTERS.items() if now - at >= counter.seconds}
        growth: dict[str, dict[Labels, float]] = {name: {} for name in before}
        for (name, labels), total in self._totals.items():
            if name in before:
                growth[name][labels] = total - before[name].get((name, labels), 0.0)
        return growth


# --- values -------------------------------------------------------------------------------------------------------------


def _living(readings: Readings) -> Vector:
    """Return the live nodes of each service, also of one that is forgotten; nothing while no node is known."""
    living = fold(sum, Instruments.node_up, "service")(readings)
    return {_service(name): living.get(_service(name), 0.0) for name in ("auth", "gateway", "web")} if living else {}


def _workers(readings: Readings) -> Vector:
    living = fold(sum, Instruments.node_up, "service")(readings)
    return {(): living.get(_service("inference"), 0.0)} if living else {}


def _service(name: str) -> Labels:
    return (("service", name),)


def _disk_free(readings: Readings) -> Vector:
    total = fold(min, HostInstruments.host_disk_total, "machine", "disk")(readings)
    free = fold(min, HostInstruments.host_disk_free, "machine", "disk")(readings)
    return {labels: value / total[labels] for labels, value in free.items() if total.get(labels)}


def _p95(buckets: Vector) -> Vector:
    groups: defaultdict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, count in buckets.items():
        groups[tuple(pair for pair in labels if pair[0] != "le")].append((float(dict(labels)["le"]), count))
    return {labels: quantile_of(0.95, sorted(counts)) for labels, counts in groups.items()}


def _first_texts(readings: Readings) -> Vector:
    return _p95(readings.growth.get(_FIRST_TEXTS.name, {}))


def _latency(readings: Readings) -> Vector:
    calls = readings.growth.get(_CALLS.name, {})
    counts = grouped(max, calls, ("service",))
    return {labels: value for labels, value in _p95(calls).items() if counts[labels] > _MIN_CALLS}


def _failing(readings: Readings) -> Vector:
    requests = readings.growth.get(_REQUESTS.name, {})
    ours = grouped(sum, {labels: count for labels, count in requests.items() if dict(labels).get("status") in OUR_FAULT}, ("service",))
    calls = grouped(sum, requests, ("service",))
    return {labels: count / calls[labels] for labels, count in ours.items() if calls[labels] > _MIN_CALLS}


def _failing_payments(readings: Readings) -> Vector:
    """Usage that was not billed for 50 minutes, in seconds, and payments that wait for an administrator."""
    unbilled = {labels: age for labels, age in fold(max, Instruments.unbilled_usage)(readings).items() if age > 3000}
    return {**unbilled, **fold(max, Instruments.deferred_items, "kind", kind="payment")(readings)}


# --- the thresholds -----------------------------------------------------------------------------------------------------

_certificates = fold(min, Instruments.certificate_seconds_left, "service", "node")
_OVER, _UNDER = operator.gt, operator.lt
THRESHOLDS: Final[tuple[Threshold, ...]] = (
    Threshold("service_down", _living, _UNDER, 1),
    Threshold("no_worker", _workers, _UNDER, 1),
    Threshold("server_down", fold(max, Instruments.server_up, "server"), _UNDER, 1),
    Threshold("worker_gone", fold(max, Instruments.node_up, "node", service="inference"), _UNDER, 1),
    Threshold("model_not_served", fold(max, Instruments.model_workers, "model", service="gateway"), _UNDER, 1),
    Threshold("disk_full", _disk_free, _UNDER, 0.01, "{:.1%}"),
    Threshold("disk_low", _disk_free, _UNDER, 0.1, "{:.1%}"),
    Threshold("ledger_drift", fold(max, Instruments.ledger_drift, "node"), operator.ne, 0, "{:,.0f} micro-credits"),
    Threshold("database_restored", fold(max, Instruments.database_restored, "service", "node"), _OVER, 0),
    Threshold("payments_failing", _failing_payments, _OVER, 0, "{:,.0f}"),
    Threshold("webhooks_late", fold(max, Instruments.webhook_backlog), _OVER, 900, "{:,.0f} s"),
    Threshold("certificate_expiring", _certificates, _UNDER, health_signals.CERTIFICATE_ENDS_SECONDS, "{:,.0f} s"),
    Threshold("cpu_high", fold(max, HostInstruments.host_cpu, "machine"), _OVER, 0.8, "{:.1%}"),
    Threshold("gpu_saturation", fold(max, HostInstruments.gpu_usage, "machine", "gpu"), _OVER, 0.9, "{:.1%}"),
    Threshold(
        "queue_depth_high", fold(sum, AnswerInstruments.queue_depth, "model", service="gateway"), _OVER, health.QUEUE_IS_LONG, "{:,.0f}"
    ),
    Threshold("response_slow", _first_texts, _OVER, 5, "{:.3g} s", _FIRST_TEXTS),
    Threshold("high_latency", _latency, _OVER, 1, "{:.3g} s", _CALLS),
    Threshold("error_rate_spike", _failing, _OVER, 0.05, "{:.1%}", _REQUESTS),
    Threshold("cost_anomaly", fold(max, Instruments.cost_of_usual), _OVER, 1.5, "{:.3g} times as much"),
    Threshold("upstream_monthly", fold(max, Instruments.upstream_of_month), _OVER, 1, "{:.0%} of UPSTREAM_MONTHLY"),
    *(each for module in features.modules("metrics.thresholds") for each in module.THRESHOLDS),
)
_COUNTERS: Final[Mapping[str, Counter]] = {each.counter.name: each.counter for each in THRESHOLDS if each.counter is not None}
_MAX_SECONDS: Final = max(counter.seconds for counter in _COUNTERS.values())
FORMATS: Final = {threshold.name: threshold.shown for threshold in THRESHOLDS}
#: What a collection needs for them.
SERIES: Final = frozenset(_COUNTERS) | {
    one.name
    for one in (
        Instruments.node_up, Instruments.server_up, Instruments.model_workers, Instruments.ledger_drift,
        Instruments.certificate_seconds_left, AnswerInstruments.queue_depth, Instruments.cost_of_usual, Instruments.upstream_of_month,
        Instruments.database_restored, Instruments.unbilled_usage, Instruments.deferred_items, Instruments.webhook_backlog,
        HostInstruments.host_disk_free, HostInstruments.host_disk_total, HostInstruments.host_cpu, HostInstruments.gpu_usage,
        *(gauge for threshold in THRESHOLDS for gauge in threshold.gauges),
    )
}  # fmt: skip
FAMILIES: Final = frozenset(name.removesuffix("_bucket") for name in SERIES)
