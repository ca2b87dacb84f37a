"""A node's metrics: one registry per node, because several nodes may live in one process."""

import platform
from functools import cache
from importlib import metadata
from typing import Generic, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shared.telemetry import instruments
from shared.telemetry.instruments import Instrument, Kind

#: The format of ``Metrics.render``, for HTTP.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Family = TypeVar("Family", Counter, Gauge, Histogram)


class _Measured(Generic[Family]):
    """An attribute of ``Metrics``, made and registered when it is first used: a node shows only what it measures."""

    def __init__(self, kind: type[Family], instrument: Instrument) -> None:
        if kind is not _CLASSES[instrument.kind]:
            raise TypeError(f"{instrument.name} is declared as a {instrument.kind}")
        self.instrument = instrument

    def __set_name__(self, owner: type["Metrics"], name: str) -> None:
        self._name = name

    def __get__(self, owner: "Metrics", kind: type["Metrics"]) -> Family:
        family = cast("Family", _register(self.instrument, owner.registry))
        # From now on the instance's own attribute is found first; this is not called again.
        owner.__dict__[self._name] = family
        return family


_CLASSES = {Kind.COUNTER: Counter, Kind.GAUGE: Gauge, Kind.HISTOGRAM: Histogram}


def _register(instrument: Instrument, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    match instrument.kind:
        case Kind.COUNTER:
            return Counter(instrument.name, instrument.help, instrument.labels, registry=registry)
        case Kind.GAUGE:
            return Gauge(instrument.name, instrument.help, instrument.labels, registry=registry)
        case Kind.HISTOGRAM:
            return Histogram(instrument.name, instrument.help, instrument.labels, buckets=instrument.buckets, registry=registry)


class Metrics:
    """What one node counts, for the event loop of that node (not for threads).

    ``metrics.requests.labels(service=…, method=…, status=…).inc()``. Where a call is hot, keep what ``labels`` returned:
    looking it up costs more than counting.
    """

    requests = _Measured(Counter, instruments.REQUESTS)
    request_duration = _Measured(Histogram, instruments.REQUEST_DURATION)
    inflight_requests = _Measured(Gauge, instruments.INFLIGHT_REQUESTS)
    links = _Measured(Gauge, instruments.LINKS)
    links_by_path = _Measured(Gauge, instruments.LINKS_BY_PATH)
    sidecar_restarts = _Measured(Counter, instruments.SIDECAR_RESTARTS)
    strangers_refused = _Measured(Counter, instruments.STRANGERS_REFUSED)
    contested_keys = _Measured(Counter, instruments.CONTESTED_KEYS)
    certificate_seconds_left = _Measured(Gauge, instruments.CERTIFICATE_SECONDS_LEFT)
    revocation_list_age = _Measured(Gauge, instruments.REVOCATION_LIST_AGE)
    nats_reconnects = _Measured(Counter, instruments.NATS_RECONNECTS)
    events_dropped = _Measured(Counter, instruments.EVENTS_DROPPED)
    build_info = _Measured(Gauge, instruments.BUILD_INFO)
    registrations = _Measured(Counter, instruments.REGISTRATIONS)
    keys_created = _Measured(Counter, instruments.KEYS_CREATED)
    auth_failures = _Measured(Counter, instruments.AUTH_FAILURES)
    rate_limit_violations = _Measured(Counter, instruments.RATE_LIMIT_VIOLATIONS)
    rate_limit_degraded = _Measured(Gauge, instruments.RATE_LIMIT_DEGRADED)
    usage_queue_rows = _Measured(Gauge, instruments.USAGE_QUEUE_ROWS)
    retries = _Measured(Counter, instruments.RETRIES)
    wrong_counts = _Measured(Counter, instruments.WRONG_COUNTS)
    ledger_drift = _Measured(Gauge, instruments.LEDGER_DRIFT)
    response_cache = _Measured(Counter, instruments.RESPONSE_CACHE)
    tokens = _Measured(Counter, instruments.TOKENS)
    ttft_seconds = _Measured(Histogram, instruments.TTFT_SECONDS)
    queue_depth = _Measured(Gauge, instruments.QUEUE_DEPTH)
    queue_wait_seconds = _Measured(Histogram, instruments.QUEUE_WAIT_SECONDS)
    worker_up = _Measured(Gauge, instruments.WORKER_UP)
    worker_slots = _Measured(Gauge, instruments.WORKER_SLOTS)
    engine_restarts = _Measured(Counter, instruments.ENGINE_RESTARTS)
    engine_overhead = _Measured(Gauge, instruments.ENGINE_OVERHEAD)
    engine_step_seconds = _Measured(Gauge, instruments.ENGINE_STEP_SECONDS)
    engine_tokens_per_second = _Measured(Gauge, instruments.ENGINE_TOKENS_PER_SECOND)
    active_users = _Measured(Gauge, instruments.ACTIVE_USERS)
    events = _Measured(Counter, instruments.EVENTS)
    completed_requests = _Measured(Counter, instruments.COMPLETED_REQUESTS)
    completed_tokens = _Measured(Counter, instruments.COMPLETED_TOKENS)
    node_up = _Measured(Gauge, instruments.NODE_UP)
    scrape_failures = _Measured(Counter, instruments.SCRAPE_FAILURES)
    scrape_dropped_series = _Measured(Gauge, instruments.SCRAPE_DROPPED_SERIES)
    custom_series = _Measured(Gauge, instruments.CUSTOM_SERIES)

    def __init__(self, service: str) -> None:
        """``service`` is the word of the `service` label: auth, gateway, inference, metrics or web."""
        self.service = service
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="ai_platform", registry=self.registry)
        self.build_info.labels(service=service, version=version(), python=platform.python_version()).set(1)
        # The four that the seed documents name are there from the start, on every service.
        for _ in (self.requests, self.request_duration, self.active_users, self.rate_limit_violations):
            pass

    def render(self) -> str:
        """The text of /metrics, in the Prometheus text format 0.0.4."""
        return generate_latest(_WithoutCreated(self.registry)).decode()


class _WithoutCreated(Collector):
    """A registry without the ``_created`` series, which double the text and which nothing here asks for.

    prometheus_client can only switch them off for the whole process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> list[Metric]:
        families = list(self._registry.collect())
        for family in families:
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        return families


@cache
def version() -> str:
    """The version of aimesh that runs; a checkout that was never installed has none."""
    try:
        return metadata.version("aimesh")
    except metadata.PackageNotFoundError:
        return "unknown"
