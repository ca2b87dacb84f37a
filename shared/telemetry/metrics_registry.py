"""Hold the metrics of a node, with exemplars. Each node has its own registry, because several nodes can share a process."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, cast

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector

from shared import context
from shared.api.metrics import MetricsTextFormat
from shared.api.node import Exemplar, NodeMetrics
from shared.telemetry.instrument import Instrument, InstrumentKind
from shared.telemetry.instruments import Instruments
from shared.telemetry.metric_families import Counter, Gauge, Histogram
from shared.telemetry.version import version

#: A bucket holds one exemplar and is read every few seconds, so most updates at high rates would be wasted.
PAUSE_SECONDS: Final = 0.02


class Exemplars:
    """Chooses requests with sampled traces, at a limited rate, so that a chart can link a bucket to a trace. One per node."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_at = 0.0

    def of_request(self) -> dict[str, str] | None:
        """Return the exemplar for all observations of the current request, or None for most requests."""
        now = context.current.get()
        trace = None if now is None or now.span is None else now.span.trace
        if trace is None or not trace.sampled:
            return None
        at = self._clock()
        if at < self._next_at:
            return None
        self._next_at = at + PAUSE_SECONDS
        return {"trace_id": trace.id}


def _register(instrument: Instrument, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    match instrument.kind:
        case InstrumentKind.COUNTER:
            counter = Counter(instrument.name, instrument.help, instrument.labels, registry=registry)
            for values in instrument.known:
                counter.labels(*values)
            return counter
        case InstrumentKind.GAUGE:
            return Gauge(instrument.name, instrument.help, instrument.labels, registry=registry)
        case InstrumentKind.HISTOGRAM:
            return Histogram(instrument.name, instrument.help, instrument.labels, buckets=instrument.buckets, registry=registry)


class Metrics(Instruments):
    """The metrics of one node, for its event loop only (not for threads).

    Its attributes are the instruments: ``metrics.requests.labels(service=…, method=…, status=…).inc()``. Code that runs for every request
    passes the values by position.
    """

    def __init__(self, service: str) -> None:
        """``service`` is the value of the `service` label: auth, gateway, inference, metrics or web."""
        self.service = service
        self.registry = CollectorRegistry()
        self._families: dict[str, Counter | Gauge | Histogram] = {}
        ProcessCollector(namespace="ai_platform", registry=self.registry)
        self.build_info.labels(service=service, version=version(), python=platform.python_version()).set(1)
        # The specification requires these four on every service from the start.
        for _ in (self.requests, self.request_duration, self.active_users, self.rate_limit_violations):
            pass

    def counter(self, instrument: Instrument) -> Counter:
        """Return a metric of a feature, which has no attribute here."""
        return cast("Counter", self.family(instrument))

    def gauge(self, instrument: Instrument) -> Gauge:
        return cast("Gauge", self.family(instrument))

    def histogram(self, instrument: Instrument) -> Histogram:
        return cast("Histogram", self.family(instrument))

    def family(self, instrument: Instrument) -> Counter | Gauge | Histogram:
        """Return any metric. It is registered on first use."""
        found = self._families.get(instrument.name)
        if found is None:
            found = self._families[instrument.name] = _register(instrument, self.registry)
        return found

    def render(self, form: MetricsTextFormat = MetricsTextFormat.PROMETHEUS) -> str:
        collected = _CollectedSamples(self.registry)
        match form:
            case MetricsTextFormat.PROMETHEUS:
                return generate_latest(collected).decode()
            case MetricsTextFormat.OPENMETRICS:
                return bytes(exposition.generate_latest(collected)).decode()  # type: ignore[no-untyped-call]  # it has no types

    def read(self) -> NodeMetrics:
        """Return the text for the metrics service, with the exemplars that the format cannot carry."""
        collected = _CollectedSamples(self.registry)
        return NodeMetrics(generate_latest(collected).decode(), dict(_exemplars(collected.collect())))


class _CollectedSamples(Collector):
    """A snapshot of a registry without the unused ``_created`` series, which would double the text.

    prometheus_client can disable them only for the whole process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._families = list(registry.collect())
        for family in self._families:
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]

    def collect(self) -> list[Metric]:
        return self._families


def _exemplars(families: list[Metric]) -> Iterator[tuple[str, Exemplar]]:
    for family in families:
        for sample in family.samples:
            found = sample.exemplar
            if found is not None and found.timestamp is not None:
                head = ",".join(f'{name}="{_escape(value)}"' for name, value in sorted(sample.labels.items()))
                yield f"{sample.name}{{{head}}}", Exemplar(found.labels["trace_id"], found.value, float(found.timestamp))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class LabelledGauge:
    """A gauge whose label values come and go. ``gauge`` is called when there is something to show; until then the gauge does not exist."""

    def __init__(self, gauge: Callable[[], Gauge]) -> None:
        self._gauge = gauge
        self._shown: set[tuple[str, ...]] = set()

    def show(self, values: Mapping[tuple[str, ...], float]) -> None:
        """Export these label values, and no others."""
        for labels in self._shown - values.keys():
            self._gauge().remove(*labels)
        for labels, value in values.items():
            self._gauge().labels(*labels).set(value)
        self._shown = set(values)
