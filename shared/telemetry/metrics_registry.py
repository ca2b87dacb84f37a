"""Hold the metrics of a node, with exemplars. Each node has its own registry, because several nodes can share a process."""

import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, Self, TypeVar, cast

import prometheus_client
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector

from shared import context
from shared.api.metrics import MetricsTextFormat
from shared.api.node import Exemplar, NodeMetrics
from shared.telemetry import answer_instruments, gen_ai_instruments, host_instruments, instruments
from shared.telemetry.instrument import Instrument, InstrumentKind
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


class _QuickLabels(MetricWrapperBase):
    """Finds a series by its label values, in their order. Prometheus' own way costs more than counting."""

    def labels(self, *values: Any, **named: Any) -> Self:
        found: Self | None = self._metrics.get(values)  # type: ignore[assignment]  # the children are of its class
        return super().labels(*values, **named) if found is None else found


class Counter(_QuickLabels, prometheus_client.Counter):
    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Check nothing, unless there is an exemplar."""
        if exemplar is not None:
            super().inc(amount, exemplar)
            return
        self._value.inc(amount)


class Gauge(_QuickLabels, prometheus_client.Gauge):
    pass


class Histogram(_QuickLabels, prometheus_client.Histogram):
    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Find the bucket by bisection, and check nothing."""
        if exemplar is not None:
            super().observe(amount, exemplar)
            return
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)


Family = TypeVar("Family", Counter, Gauge, Histogram)


class _LazyMetric(Generic[Family]):
    """An attribute of ``Metrics``, registered on first use, so that a node exports only what it measures."""

    def __init__(self, kind: type[Family], instrument: Instrument) -> None:
        if kind is not _CLASSES[instrument.kind]:
            raise TypeError(f"{instrument.name} is declared as a {instrument.kind}")
        self.instrument = instrument

    def __set_name__(self, owner: type["Metrics"], name: str) -> None:
        self._name = name

    def __get__(self, owner: "Metrics", kind: type["Metrics"]) -> Family:
        family = cast("Family", owner.family(self.instrument))
        # The instance attribute shadows this descriptor from now on.
        owner.__dict__[self._name] = family
        return family


_CLASSES = {InstrumentKind.COUNTER: Counter, InstrumentKind.GAUGE: Gauge, InstrumentKind.HISTOGRAM: Histogram}


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


class Metrics:
    """The metrics of one node, for its event loop only (not for threads).

    ``metrics.requests.labels(service=…, method=…, status=…).inc()``. Code that runs for every request passes the values by position.
    """

    requests = _LazyMetric(Counter, instruments.REQUESTS)
    request_duration = _LazyMetric(Histogram, instruments.REQUEST_DURATION)
    inflight_requests = _LazyMetric(Gauge, instruments.INFLIGHT_REQUESTS)
    links = _LazyMetric(Gauge, instruments.LINKS)
    links_by_path = _LazyMetric(Gauge, instruments.LINKS_BY_PATH)
    peer_rtt = _LazyMetric(Gauge, instruments.PEER_RTT)
    round_trip = _LazyMetric(Gauge, instruments.ROUND_TRIP)
    log_lines_lost = _LazyMetric(Counter, instruments.LOG_LINES_LOST)
    spans_lost = _LazyMetric(Counter, instruments.SPANS_LOST)
    host_cpu = _LazyMetric(Gauge, host_instruments.HOST_CPU)
    host_memory_used = _LazyMetric(Gauge, host_instruments.HOST_MEMORY_USED)
    host_memory_total = _LazyMetric(Gauge, host_instruments.HOST_MEMORY_TOTAL)
    host_disk_free = _LazyMetric(Gauge, host_instruments.HOST_DISK_FREE)
    host_disk_total = _LazyMetric(Gauge, host_instruments.HOST_DISK_TOTAL)
    host_disk_read = _LazyMetric(Counter, host_instruments.HOST_DISK_READ)
    host_disk_written = _LazyMetric(Counter, host_instruments.HOST_DISK_WRITTEN)
    host_network_received = _LazyMetric(Counter, host_instruments.HOST_NETWORK_RECEIVED)
    host_network_sent = _LazyMetric(Counter, host_instruments.HOST_NETWORK_SENT)
    gpu_usage = _LazyMetric(Gauge, host_instruments.GPU_USAGE)
    gpu_memory_used = _LazyMetric(Gauge, host_instruments.GPU_MEMORY_USED)
    gpu_memory_total = _LazyMetric(Gauge, host_instruments.GPU_MEMORY_TOTAL)
    gpu_power = _LazyMetric(Gauge, host_instruments.GPU_POWER)
    gpu_temperature = _LazyMetric(Gauge, host_instruments.GPU_TEMPERATURE)
    energy = _LazyMetric(Counter, host_instruments.ENERGY)
    energy_cost = _LazyMetric(Counter, host_instruments.ENERGY_COST)
    database_query_seconds = _LazyMetric(Histogram, instruments.DATABASE_QUERY_SECONDS)
    database_connections = _LazyMetric(Gauge, instruments.DATABASE_CONNECTIONS)
    database_bytes = _LazyMetric(Gauge, instruments.DATABASE_BYTES)
    database_reads = _LazyMetric(Counter, instruments.DATABASE_READS)
    database_replica_lag = _LazyMetric(Gauge, instruments.DATABASE_REPLICA_LAG)
    audit_chain_valid = _LazyMetric(Gauge, instruments.AUDIT_CHAIN_VALID)
    recovery_log_behind = _LazyMetric(Gauge, instruments.RECOVERY_LOG_BEHIND)
    database_restored = _LazyMetric(Gauge, instruments.DATABASE_RESTORED)
    ratelimit_decisions = _LazyMetric(Counter, instruments.RATE_LIMIT_DECISIONS)
    refused_requests = _LazyMetric(Counter, instruments.REFUSED_REQUESTS)
    ignored_fields = _LazyMetric(Counter, instruments.IGNORED_FIELDS)
    streams_aborted = _LazyMetric(Counter, instruments.STREAMS_ABORTED)
    inter_token_seconds = _LazyMetric(Histogram, instruments.INTER_TOKEN_SECONDS)
    cost = _LazyMetric(Counter, instruments.COST)
    revenue = _LazyMetric(Counter, instruments.REVENUE)
    revenue_reversed = _LazyMetric(Counter, instruments.REVENUE_REVERSED)
    cost_of_usual = _LazyMetric(Gauge, instruments.COST_OF_USUAL)
    upstream_of_month = _LazyMetric(Gauge, instruments.UPSTREAM_OF_MONTH)
    ledger_reserve_seconds = _LazyMetric(Histogram, instruments.LEDGER_RESERVE_SECONDS)
    ledger_open_reservations = _LazyMetric(Gauge, instruments.LEDGER_OPEN_RESERVATIONS)
    ledger_oldest_reservation = _LazyMetric(Gauge, instruments.LEDGER_OLDEST_RESERVATION)
    settle_journal_rows = _LazyMetric(Gauge, instruments.SETTLE_JOURNAL_ROWS)
    sidecar_restarts = _LazyMetric(Counter, instruments.SIDECAR_RESTARTS)
    strangers_refused = _LazyMetric(Counter, instruments.STRANGERS_REFUSED)
    contested_keys = _LazyMetric(Counter, instruments.CONTESTED_KEYS)
    certificate_seconds_left = _LazyMetric(Gauge, instruments.CERTIFICATE_SECONDS_LEFT)
    revocation_list_age = _LazyMetric(Gauge, instruments.REVOCATION_LIST_AGE)
    nats_reconnects = _LazyMetric(Counter, instruments.NATS_RECONNECTS)
    nats_callback_errors = _LazyMetric(Counter, instruments.NATS_CALLBACK_ERRORS)
    events_dropped = _LazyMetric(Counter, instruments.EVENTS_DROPPED)
    build_info = _LazyMetric(Gauge, instruments.BUILD_INFO)
    registrations = _LazyMetric(Counter, instruments.REGISTRATIONS)
    keys_created = _LazyMetric(Counter, instruments.KEYS_CREATED)
    auth_failures = _LazyMetric(Counter, instruments.AUTH_FAILURES)
    ticket_new_networks = _LazyMetric(Counter, instruments.TICKET_NEW_NETWORKS)
    nats_logins = _LazyMetric(Counter, instruments.NATS_LOGINS)
    rate_limit_violations = _LazyMetric(Counter, instruments.RATE_LIMIT_VIOLATIONS)
    rate_limit_degraded = _LazyMetric(Gauge, instruments.RATE_LIMIT_DEGRADED)
    usage_queue_rows = _LazyMetric(Gauge, instruments.USAGE_QUEUE_ROWS)
    settle_failures = _LazyMetric(Counter, instruments.SETTLE_FAILURES)
    retries = _LazyMetric(Counter, instruments.RETRIES)
    preemptions = _LazyMetric(Counter, instruments.PREEMPTIONS)
    wrong_counts = _LazyMetric(Counter, instruments.WRONG_COUNTS)
    ledger_drift = _LazyMetric(Gauge, instruments.LEDGER_DRIFT)
    webhooks = _LazyMetric(Counter, instruments.WEBHOOKS)
    webhook_backlog = _LazyMetric(Gauge, instruments.WEBHOOK_BACKLOG)
    batch_preempted = _LazyMetric(Counter, answer_instruments.BATCH_PREEMPTED)
    batch_step_share = _LazyMetric(Gauge, answer_instruments.BATCH_STEP_SHARE)
    unbilled_usage = _LazyMetric(Gauge, instruments.UNBILLED_USAGE)
    background_failures = _LazyMetric(Counter, instruments.BACKGROUND_FAILURES)
    item_failures = _LazyMetric(Counter, instruments.ITEM_FAILURES)
    deferred_items = _LazyMetric(Gauge, instruments.DEFERRED_ITEMS)
    upkeep_last_success = _LazyMetric(Gauge, instruments.UPKEEP_LAST_SUCCESS)
    upkeep_age = _LazyMetric(Gauge, instruments.UPKEEP_AGE)
    partitions_ahead = _LazyMetric(Gauge, instruments.PARTITIONS_AHEAD)
    model_workers = _LazyMetric(Gauge, instruments.MODEL_WORKERS)
    response_cache = _LazyMetric(Counter, instruments.RESPONSE_CACHE)
    route_requests = _LazyMetric(Counter, instruments.ROUTE_REQUESTS)
    route_fallbacks = _LazyMetric(Counter, instruments.ROUTE_FALLBACKS)
    route_first_token = _LazyMetric(Histogram, instruments.ROUTE_FIRST_TOKEN)
    route_targets = _LazyMetric(Gauge, instruments.ROUTE_TARGETS)
    upstream_spending = _LazyMetric(Counter, instruments.UPSTREAM_SPENDING)
    model_untrusted = _LazyMetric(Gauge, instruments.MODEL_UNTRUSTED)
    upstream_ceiling_share = _LazyMetric(Gauge, instruments.UPSTREAM_CEILING_SHARE)
    guard_matches = _LazyMetric(Counter, instruments.GUARD_MATCHES)
    guard_seconds = _LazyMetric(Counter, instruments.GUARD_SECONDS)
    rollout_state = _LazyMetric(Gauge, instruments.ROLLOUT_STATE)
    config_revision = _LazyMetric(Gauge, instruments.CONFIG_REVISION)
    config_unreadable = _LazyMetric(Gauge, instruments.CONFIG_UNREADABLE)
    config_age = _LazyMetric(Gauge, instruments.CONFIG_AGE)
    tokens = _LazyMetric(Counter, answer_instruments.TOKENS)
    reasoning_tokens = _LazyMetric(Counter, answer_instruments.REASONING_TOKENS)
    ttft_seconds = _LazyMetric(Histogram, answer_instruments.TTFT_SECONDS)
    queue_depth = _LazyMetric(Gauge, answer_instruments.QUEUE_DEPTH)
    oldest_wait = _LazyMetric(Gauge, answer_instruments.OLDEST_WAIT)
    model_requests = _LazyMetric(Counter, answer_instruments.MODEL_REQUESTS)
    queue_wait_seconds = _LazyMetric(Histogram, answer_instruments.QUEUE_WAIT_SECONDS)
    missing_copies = _LazyMetric(Gauge, instruments.MISSING_COPIES)
    copy_failures = _LazyMetric(Counter, instruments.COPY_FAILURES)
    excluded_peers = _LazyMetric(Counter, instruments.EXCLUDED_PEERS)
    worker_up = _LazyMetric(Gauge, instruments.WORKER_UP)
    worker_slots = _LazyMetric(Gauge, instruments.WORKER_SLOTS)
    engine_restarts = _LazyMetric(Counter, instruments.ENGINE_RESTARTS)
    model_swaps = _LazyMetric(Counter, instruments.MODEL_SWAPS)
    model_quarantines = _LazyMetric(Counter, instruments.MODEL_QUARANTINES)
    model_store_used_ratio = _LazyMetric(Gauge, instruments.MODEL_STORE_USED_RATIO)
    answer_parse_failures = _LazyMetric(Counter, instruments.ANSWER_PARSE_FAILURES)
    drafted_tokens = _LazyMetric(Counter, answer_instruments.DRAFTED_TOKENS)
    image_seconds = _LazyMetric(Counter, instruments.IMAGE_SECONDS)
    engine_overhead = _LazyMetric(Gauge, instruments.ENGINE_OVERHEAD)
    engine_step_seconds = _LazyMetric(Gauge, instruments.ENGINE_STEP_SECONDS)
    engine_tokens_per_second = _LazyMetric(Gauge, instruments.ENGINE_TOKENS_PER_SECOND)
    model_cpu_seconds = _LazyMetric(Gauge, instruments.MODEL_CPU_SECONDS)
    model_memory = _LazyMetric(Gauge, instruments.MODEL_MEMORY)
    model_vram = _LazyMetric(Gauge, instruments.MODEL_VRAM)
    prompt_cache_bytes = _LazyMetric(Gauge, instruments.PROMPT_CACHE_BYTES)
    prompt_cache_hits = _LazyMetric(Gauge, instruments.PROMPT_CACHE_HITS)
    active_users = _LazyMetric(Gauge, instruments.ACTIVE_USERS)
    events = _LazyMetric(Counter, instruments.EVENTS)
    completed_requests = _LazyMetric(Counter, answer_instruments.COMPLETED_REQUESTS)
    completed_tokens = _LazyMetric(Counter, answer_instruments.COMPLETED_TOKENS)
    node_up = _LazyMetric(Gauge, instruments.NODE_UP)
    server_up = _LazyMetric(Gauge, instruments.SERVER_UP)
    scrape_failures = _LazyMetric(Counter, instruments.SCRAPE_FAILURES)
    scrape_dropped_series = _LazyMetric(Gauge, instruments.SCRAPE_DROPPED_SERIES)
    custom_series = _LazyMetric(Gauge, instruments.CUSTOM_SERIES)
    server_request_duration = _LazyMetric(Histogram, gen_ai_instruments.SERVER_REQUEST_DURATION)
    server_time_to_first_token = _LazyMetric(Histogram, gen_ai_instruments.SERVER_TIME_TO_FIRST_TOKEN)
    server_time_per_output_token = _LazyMetric(Histogram, gen_ai_instruments.SERVER_TIME_PER_OUTPUT_TOKEN)
    client_operation_duration = _LazyMetric(Histogram, gen_ai_instruments.CLIENT_OPERATION_DURATION)
    client_token_usage = _LazyMetric(Histogram, gen_ai_instruments.CLIENT_TOKEN_USAGE)
    client_time_to_first_chunk = _LazyMetric(Histogram, gen_ai_instruments.CLIENT_TIME_TO_FIRST_CHUNK)
    client_time_per_output_chunk = _LazyMetric(Histogram, gen_ai_instruments.CLIENT_TIME_PER_OUTPUT_CHUNK)

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
