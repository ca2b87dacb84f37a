"""A node's metrics: one registry per node, because several nodes may live in one process."""

import platform
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from typing import Generic, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector

from shared.api.metrics import MetricsTextFormat
from shared.api.node import Exemplar, NodeMetrics
from shared.telemetry import gen_ai_instruments, host_instruments, instruments
from shared.telemetry.instrument import Instrument, InstrumentKind

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
    """What one node counts, for the event loop of that node (not for threads).

    ``metrics.requests.labels(service=…, method=…, status=…).inc()``. Where a call is hot, keep what ``labels`` returned:
    looking it up costs more than counting.
    """

    requests = _Measured(Counter, instruments.REQUESTS)
    request_duration = _Measured(Histogram, instruments.REQUEST_DURATION)
    inflight_requests = _Measured(Gauge, instruments.INFLIGHT_REQUESTS)
    links = _Measured(Gauge, instruments.LINKS)
    links_by_path = _Measured(Gauge, instruments.LINKS_BY_PATH)
    peer_rtt = _Measured(Gauge, instruments.PEER_RTT)
    round_trip = _Measured(Gauge, instruments.ROUND_TRIP)
    log_lines_lost = _Measured(Counter, instruments.LOG_LINES_LOST)
    spans_lost = _Measured(Counter, instruments.SPANS_LOST)
    host_cpu = _Measured(Gauge, host_instruments.HOST_CPU)
    host_memory_used = _Measured(Gauge, host_instruments.HOST_MEMORY_USED)
    host_memory_total = _Measured(Gauge, host_instruments.HOST_MEMORY_TOTAL)
    host_disk_free = _Measured(Gauge, host_instruments.HOST_DISK_FREE)
    host_disk_total = _Measured(Gauge, host_instruments.HOST_DISK_TOTAL)
    host_disk_read = _Measured(Counter, host_instruments.HOST_DISK_READ)
    host_disk_written = _Measured(Counter, host_instruments.HOST_DISK_WRITTEN)
    host_network_received = _Measured(Counter, host_instruments.HOST_NETWORK_RECEIVED)
    host_network_sent = _Measured(Counter, host_instruments.HOST_NETWORK_SENT)
    gpu_usage = _Measured(Gauge, host_instruments.GPU_USAGE)
    gpu_memory_used = _Measured(Gauge, host_instruments.GPU_MEMORY_USED)
    gpu_memory_total = _Measured(Gauge, host_instruments.GPU_MEMORY_TOTAL)
    gpu_power = _Measured(Gauge, host_instruments.GPU_POWER)
    gpu_temperature = _Measured(Gauge, host_instruments.GPU_TEMPERATURE)
    audit_chain_valid = _Measured(Gauge, instruments.AUDIT_CHAIN_VALID)
    ratelimit_decisions = _Measured(Counter, instruments.RATE_LIMIT_DECISIONS)
    streams_aborted = _Measured(Counter, instruments.STREAMS_ABORTED)
    inter_token_seconds = _Measured(Histogram, instruments.INTER_TOKEN_SECONDS)
    cost = _Measured(Counter, instruments.COST)
    ledger_reserve_seconds = _Measured(Histogram, instruments.LEDGER_RESERVE_SECONDS)
    ledger_open_reservations = _Measured(Gauge, instruments.LEDGER_OPEN_RESERVATIONS)
    ledger_oldest_reservation = _Measured(Gauge, instruments.LEDGER_OLDEST_RESERVATION)
    settle_journal_rows = _Measured(Gauge, instruments.SETTLE_JOURNAL_ROWS)
    sidecar_restarts = _Measured(Counter, instruments.SIDECAR_RESTARTS)
    strangers_refused = _Measured(Counter, instruments.STRANGERS_REFUSED)
    contested_keys = _Measured(Counter, instruments.CONTESTED_KEYS)
    certificate_seconds_left = _Measured(Gauge, instruments.CERTIFICATE_SECONDS_LEFT)
    revocation_list_age = _Measured(Gauge, instruments.REVOCATION_LIST_AGE)
    nats_reconnects = _Measured(Counter, instruments.NATS_RECONNECTS)
    nats_callback_errors = _Measured(Counter, instruments.NATS_CALLBACK_ERRORS)
    events_dropped = _Measured(Counter, instruments.EVENTS_DROPPED)
    build_info = _Measured(Gauge, instruments.BUILD_INFO)
    registrations = _Measured(Counter, instruments.REGISTRATIONS)
    keys_created = _Measured(Counter, instruments.KEYS_CREATED)
    auth_failures = _Measured(Counter, instruments.AUTH_FAILURES)
    rate_limit_violations = _Measured(Counter, instruments.RATE_LIMIT_VIOLATIONS)
    rate_limit_degraded = _Measured(Gauge, instruments.RATE_LIMIT_DEGRADED)
    usage_queue_rows = _Measured(Gauge, instruments.USAGE_QUEUE_ROWS)
    settle_failures = _Measured(Counter, instruments.SETTLE_FAILURES)
    retries = _Measured(Counter, instruments.RETRIES)
    wrong_counts = _Measured(Counter, instruments.WRONG_COUNTS)
    ledger_drift = _Measured(Gauge, instruments.LEDGER_DRIFT)
    upkeep_last_success = _Measured(Gauge, instruments.UPKEEP_LAST_SUCCESS)
    upkeep_age = _Measured(Gauge, instruments.UPKEEP_AGE)
    partitions_ahead = _Measured(Gauge, instruments.PARTITIONS_AHEAD)
    model_workers = _Measured(Gauge, instruments.MODEL_WORKERS)
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
    server_up = _Measured(Gauge, instruments.SERVER_UP)
    scrape_failures = _Measured(Counter, instruments.SCRAPE_FAILURES)
    scrape_dropped_series = _Measured(Gauge, instruments.SCRAPE_DROPPED_SERIES)
    custom_series = _Measured(Gauge, instruments.CUSTOM_SERIES)
    server_request_duration = _Measured(Histogram, gen_ai_instruments.SERVER_REQUEST_DURATION)
    server_time_to_first_token = _Measured(Histogram, gen_ai_instruments.SERVER_TIME_TO_FIRST_TOKEN)
    server_time_per_output_token = _Measured(Histogram, gen_ai_instruments.SERVER_TIME_PER_OUTPUT_TOKEN)
    client_operation_duration = _Measured(Histogram, gen_ai_instruments.CLIENT_OPERATION_DURATION)
    client_token_usage = _Measured(Histogram, gen_ai_instruments.CLIENT_TOKEN_USAGE)
    client_time_to_first_chunk = _Measured(Histogram, gen_ai_instruments.CLIENT_TIME_TO_FIRST_CHUNK)
    client_time_per_output_chunk = _Measured(Histogram, gen_ai_instruments.CLIENT_TIME_PER_OUTPUT_CHUNK)

    def __init__(self, service: str) -> None:
        """``service`` is the word of the `service` label: auth, gateway, inference, metrics or web."""
        self.service = service
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="ai_platform", registry=self.registry)
        self.build_info.labels(service=service, version=version(), python=platform.python_version()).set(1)
        # The four that the seed documents name are there from the start, on every service.
        for _ in (self.requests, self.request_duration, self.active_users, self.rate_limit_violations):
            pass

    def render(self, form: MetricsTextFormat = MetricsTextFormat.PROMETHEUS) -> str:
        """The text of /metrics."""
        collected = _CollectedSamples(self.registry)
        match form:
            case MetricsTextFormat.PROMETHEUS:
                return generate_latest(collected).decode()
            case MetricsTextFormat.OPENMETRICS:
                return bytes(exposition.generate_latest(collected)).decode()  # type: ignore[no-untyped-call]  # it has no types

    def read(self) -> NodeMetrics:
        """The same for the metrics service, with the exemplars that the text has no place for."""
        collected = _CollectedSamples(self.registry)
        return NodeMetrics(generate_latest(collected).decode(), dict(_exemplars(collected.collect())))


class _CollectedSamples(Collector):
    """What a registry holds at one moment, without the ``_created`` series, which double the text and which nothing here asks for.

    prometheus_client can only switch them off for the whole process.
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


@cache
def version() -> str:
    """The version of aimesh that runs; a checkout that was never installed has none."""
    try:
        return metadata.version("aimesh")
    except metadata.PackageNotFoundError:
        return "unknown"
