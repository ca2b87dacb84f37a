"""The instrument list: every metric of aimesh, declared once.

Rules (prometheus.io/docs/practices/naming): prefix ``ai_platform_`` (``gen_ai_`` for OpenTelemetry's names), base units, ``_total`` for
counters, and labels with few, known values. Never use a user, key, request or prompt as a label.
"""

from itertools import product
from typing import Literal, get_args

from shared import errors
from shared.telemetry import gen_ai_instruments, host_instruments
from shared.telemetry.instrument import CALL_SECONDS, FIRST_TOKEN_SECONDS, OUTPUT_TOKEN_SECONDS, Instrument, InstrumentKind
from shared.types import NodeId

# --- every service -------------------------------------------------------------------------------------------------

REQUESTS = Instrument(
    name="ai_platform_requests_total",
    kind=InstrumentKind.COUNTER,
    labels=("service", "method", "status"),
    help="Completed calls and HTTP requests, by status: success or the error code",
)
REQUEST_DURATION = Instrument(
    name="ai_platform_request_duration_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=("service", "method", "model"),
    buckets=CALL_SECONDS,
    help="Duration of a call; model is empty if the call involves no model",
)
INFLIGHT_REQUESTS = Instrument(
    name="ai_platform_inflight_requests",
    kind=InstrumentKind.GAUGE,
    labels=("service",),
    help="Calls that are currently running",
)
LINKS = Instrument(
    name="ai_platform_links",
    kind=InstrumentKind.GAUGE,
    labels=("state",),
    help="Links to other nodes, by state: opening, open or draining",
)
NATS_RECONNECTS = Instrument(
    name="ai_platform_nats_reconnects_total",
    kind=InstrumentKind.COUNTER,
    help="How often the connection to NATS was lost and restored",
)
NATS_CALLBACK_ERRORS = Instrument(
    name="ai_platform_nats_callback_errors_total",
    kind=InstrumentKind.COUNTER,
    help="Messages from NATS that were lost because this node's own code raised an error: alert on any",
)
LINKS_BY_PATH = Instrument(
    name="ai_platform_links_by_path",
    kind=InstrumentKind.GAUGE,
    labels=("path",),
    help="Open links to other nodes, by path: nats, direct, punched or relayed",
)
PEER_RTT = Instrument(
    name="ai_platform_peer_rtt_seconds",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    labels=("peer", "path"),
    help="Last measured round trip on the link to another node",
)
ROUND_TRIP = Instrument(
    name="ai_platform_round_trip_seconds",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    labels=("path",),
    help="Mean of the last measured round trips over the open links, by path: nats, direct, punched or relayed",
)
_LOST_FOR = (("overwritten",), ("not_taken",), ("rejected",))
SPANS_LOST = Instrument(
    name="ai_platform_spans_lost_total",
    kind=InstrumentKind.COUNTER,
    labels=("reason",),
    known=_LOST_FOR,
    help="Lost spans of sampled traces, by reason: overwritten before they were read, not_taken by the OTLP endpoint, or rejected by it",
)
SIDECAR_RESTARTS = Instrument(
    name="ai_platform_sidecar_restarts_total",
    kind=InstrumentKind.COUNTER,
    help="How often the Hyperswarm sidecar died and was restarted",
)
STRANGERS_REFUSED = Instrument(
    name="ai_platform_strangers_refused_total",
    kind=InstrumentKind.COUNTER,
    help="Rejected connections over Hyperswarm: no certificate of this mesh, revoked, or too many at once",
)
CONTESTED_KEYS = Instrument(
    name="ai_platform_contested_keys_total",
    kind=InstrumentKind.COUNTER,
    help="How often two processes used the same node key, or links were replaced so often that they probably did: alert on any",
)
CERTIFICATE_SECONDS_LEFT = Instrument(
    name="ai_platform_certificate_seconds_left",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    help="Time until this node's certificate expires; negative after that. It is renewed when a third of its lifetime is left",
)
REVOCATION_LIST_AGE = Instrument(
    name="ai_platform_revocation_list_age_seconds",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    help="Time since auth last confirmed this node's revocation list; over 600 the node is degraded",
)
LOG_LINES_LOST = Instrument(
    name="ai_platform_log_lines_lost_total",
    kind=InstrumentKind.COUNTER,
    labels=("reason",),
    known=_LOST_FOR,
    help="Log lines that never reach the OTLP endpoint, by reason: overwritten before they were read, not_taken by it, or rejected by it",
)
BUILD_INFO = Instrument(
    name="ai_platform_build_info",
    kind=InstrumentKind.GAUGE,
    labels=("service", "version", "python"),
    help="Always 1; the labels show the running version",
)

# --- auth ------------------------------------------------------------------------------------------------------------

REGISTRATIONS = Instrument(name="ai_platform_registrations_total", kind=InstrumentKind.COUNTER, help="Users registered")
KEYS_CREATED = Instrument(name="ai_platform_keys_created_total", kind=InstrumentKind.COUNTER, help="API keys created")
AuthFailure = Literal[
    "bad_ticket", "bad_token", "closed_account", "expired_key", "link_over", "malformed", "missing", "oidc", "reset_over", "revoked_key",
    "rotated_key", "session_over", "session_reused", "too_many_logins", "unknown_key", "wrong_code", "wrong_password",
]  # fmt: skip
AUTH_FAILURES = Instrument(
    name="ai_platform_auth_failures_total",
    kind=InstrumentKind.COUNTER,
    labels=("reason",),
    known=tuple((reason,) for reason in get_args(AuthFailure)),
    help="Rejected credentials, by reason, such as wrong_password, unknown_key, revoked_key or malformed",
)

AUDIT_CHAIN_VALID = Instrument(
    name="ai_platform_audit_chain_valid",
    kind=InstrumentKind.GAUGE,
    help="1 if the last verification of the audit log's chain and anchors succeeded, 0 if a row was tampered with",
)

# --- gateway ---------------------------------------------------------------------------------------------------------

RATE_LIMIT_VIOLATIONS = Instrument(
    name="ai_platform_rate_limit_violations_total",
    kind=InstrumentKind.COUNTER,
    labels=("scope", "tier", "model"),
    help="Requests rejected by a rate limit; scope is user, key or model: the one with the longest wait",
)
RATE_LIMIT_DEGRADED = Instrument(
    name="ai_platform_ratelimit_degraded",
    kind=InstrumentKind.GAUGE,
    help="1 while Valkey is unavailable for rate limits, whatever LIMITER_WITHOUT_VALKEY says: alert after a minute",
)
RATE_LIMIT_DECISIONS = Instrument(
    name="ai_platform_ratelimit_decisions_total",
    kind=InstrumentKind.COUNTER,
    labels=("decision",),
    help="Requests by rate limit decision: admitted, refused, or uncounted while Valkey was unavailable",
)
STREAMS_ABORTED = Instrument(
    name="ai_platform_streams_aborted_total",
    kind=InstrumentKind.COUNTER,
    labels=("reason",),
    known=tuple((reason,) for reason in (*sorted(errors.BY_CODE), "other")),
    help="Answers that ended early after their first token, by reason: cancelled by the client, or the error code",
)
INTER_TOKEN_SECONDS = Instrument(
    name="ai_platform_inter_token_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=("model",),
    buckets=OUTPUT_TOKEN_SECONDS,
    help="Mean time between two tokens of each answer",
)
COST = Instrument(
    name="ai_platform_cost_micro_total",
    kind=InstrumentKind.COUNTER,
    labels=("model",),
    help="Cost of completed requests in micro-credits: a million is one credit",
)
LEDGER_RESERVE_SECONDS = Instrument(
    name="ai_platform_ledger_reserve_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    buckets=CALL_SECONDS,
    help="Time that PostgreSQL took to reserve the maximum cost of a request",
)
LEDGER_OPEN_RESERVATIONS = Instrument(
    name="ai_platform_ledger_open_reservations",
    kind=InstrumentKind.GAUGE,
    help="Open credit reservations of this gateway's requests",
)
LEDGER_OLDEST_RESERVATION = Instrument(
    name="ai_platform_ledger_oldest_reservation_seconds",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    help="Age of the oldest open reservation; 0 without any",
)
SETTLE_JOURNAL_ROWS = Instrument(
    name="ai_platform_settle_journal_rows",
    kind=InstrumentKind.GAUGE,
    help="Rows in the journal on disk that are not in PostgreSQL yet",
)
USAGE_QUEUE_ROWS = Instrument(
    name="ai_platform_usage_queue_rows",
    kind=InstrumentKind.GAUGE,
    help="Usage rows queued for PostgreSQL",
)
SETTLE_FAILURES = Instrument(
    name="ai_platform_settle_failures_total",
    kind=InstrumentKind.COUNTER,
    labels=("reason",),
    help="Failed attempts to write usage rows, by reason: PostgreSQL was down, full or read-only (unavailable), or rejected the rows"
    " (refused). The rows wait in the journal",
)

RETRIES = Instrument(
    name="ai_platform_retries_total",
    kind=InstrumentKind.COUNTER,
    labels=("kind", "outcome"),
    known=tuple(product(("retry", "resumption"), ("answered", "failed", "left", "over_budget"))),
    help="Requests moved to another worker, by kind: retry (before the first token) or resumption (mid-answer); and by outcome: answered,"
    " failed, left (the caller disconnected), or over_budget (not sent)",
)

WRONG_COUNTS = Instrument(
    name="ai_platform_wrong_counts_total",
    kind=InstrumentKind.COUNTER,
    labels=("node",),
    help="Answers for which a worker reported wrong token counts. They are not billed, and the third within an hour quarantines the worker"
    " for an hour",
)

LEDGER_DRIFT = Instrument(
    name="ai_platform_ledger_drift_micro",
    kind=InstrumentKind.GAUGE,
    help="Difference between accounts, entries and reservations in micro-credits; any value but 0 is an error",
)

UPKEEP_LAST_SUCCESS = Instrument(
    name="ai_platform_upkeep_last_success_timestamp_seconds",
    kind=InstrumentKind.GAUGE,
    labels=("job",),
    help="Unix time of the last success of a gateway's background job on PostgreSQL: verify, checkpoint, roll, retention or partitions",
)
UPKEEP_AGE = Instrument(
    name="ai_platform_upkeep_age_seconds",
    kind=InstrumentKind.GAUGE,
    labels=("job",),
    help="Seconds since the last success of the gateway's background job; before the first success, since the gateway started",
)
PARTITIONS_AHEAD = Instrument(
    name="ai_platform_partitions_ahead_seconds",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    help="How far into the future the gateway's tables have partitions; later rows go to the default partitions",
)

MODEL_WORKERS = Instrument(
    name="ai_platform_model_workers",
    kind=InstrumentKind.GAUGE,
    labels=("model",),
    help="Workers that can serve the model now, by each of its names; a model that lost its last worker stays at 0 for a day",
)

RESPONSE_CACHE = Instrument(
    name="ai_platform_response_cache_total",
    kind=InstrumentKind.COUNTER,
    labels=("result",),
    known=(("hit",), ("joined",), ("miss",)),
    help="Deterministic requests by result: hit (cached), joined (shared with an identical running request) or miss",
)

# --- gateway and inference -------------------------------------------------------------------------------------------

TOKENS = Instrument(
    name="ai_platform_tokens_total",
    kind=InstrumentKind.COUNTER,
    unit="tokens",
    labels=("type", "model"),
    help="Tokens by type: input (prompt) or output (generated). Gateway and inference both count them, so filter by service",
)
TTFT_SECONDS = Instrument(
    name="ai_platform_ttft_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=("model",),
    buckets=FIRST_TOKEN_SECONDS,
    help="Time from the start of a request to its first text, including queueing",
)
QUEUE_DEPTH = Instrument(
    name="ai_platform_queue_depth",
    kind=InstrumentKind.GAUGE,
    labels=("model",),
    help="Requests that are waiting for a free slot",
)

QUEUE_WAIT_SECONDS = Instrument(
    name="ai_platform_queue_wait_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=("model",),
    buckets=FIRST_TOKEN_SECONDS,
    help="Time that a request waited at the gateway for a worker; excludes rejected and canceled requests",
)

# --- inference -------------------------------------------------------------------------------------------------------

WORKER_UP = Instrument(
    name="ai_platform_worker_up",
    kind=InstrumentKind.GAUGE,
    labels=("model",),
    help="1 while the engine of this model is running, 0 while it is loading, failed or restarting",
)
WORKER_SLOTS = Instrument(
    name="ai_platform_worker_slots",
    kind=InstrumentKind.GAUGE,
    labels=("model", "state"),
    help="Sequences that the engine can run concurrently, by state: busy or free",
)
ENGINE_RESTARTS = Instrument(
    name="ai_platform_engine_restarts_total",
    kind=InstrumentKind.COUNTER,
    labels=("model",),
    help="How often the engine process died and was restarted",
)
ENGINE_OVERHEAD = Instrument(
    name="ai_platform_engine_overhead_ratio",
    kind=InstrumentKind.GAUGE,
    labels=("model",),
    help="Share of the engine's busy time in the last 10 s that was not llama.cpp computing, from 0 to 1; 0 when idle",
)
ENGINE_STEP_SECONDS = Instrument(
    name="ai_platform_engine_step_seconds",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    labels=("model",),
    help="Mean duration of an engine step in the last 10 s: the time between two tokens of an answer",
)
ENGINE_TOKENS_PER_SECOND = Instrument(
    name="ai_platform_engine_tokens_per_second",
    kind=InstrumentKind.GAUGE,
    unit="tokens",
    labels=("model",),
    help="Tokens per second of busy time that the engine generated for all answers in the last 10 s",
)

# --- metrics ---------------------------------------------------------------------------------------------------------

ACTIVE_USERS = Instrument(
    name="ai_platform_active_users",
    kind=InstrumentKind.GAUGE,
    labels=("time_window",),
    help="Users with a completed request in the last 1h, 24h or 7d, counted while the metrics service was up",
)
EVENTS = Instrument(
    name="ai_platform_events_total",
    kind=InstrumentKind.COUNTER,
    labels=("event",),
    help="Domain events, by name, such as user.registered or key.created",
)
EVENTS_DROPPED = Instrument(
    name="ai_platform_events_dropped_total",
    kind=InstrumentKind.COUNTER,
    help="Domain events that were dropped because they arrived faster than they were read",
)
COMPLETED_REQUESTS = Instrument(
    name="ai_platform_completed_requests_total",
    kind=InstrumentKind.COUNTER,
    labels=("status", "model"),
    help="Completed inference requests over all gateways, by status: success, error, timeout, cancelled, limited or rejected (invalid)",
)
COMPLETED_TOKENS = Instrument(
    name="ai_platform_completed_tokens_total",
    kind=InstrumentKind.COUNTER,
    unit="tokens",
    labels=("model",),
    help="Tokens of completed inference requests over all gateways, prompt and answer together",
)
NODE_UP = Instrument(
    name="ai_platform_node_up",
    kind=InstrumentKind.GAUGE,
    labels=("service", "node"),
    help="1 for a live node, 0 for one that disappeared without shutting down cleanly; removed after an hour",
)
SERVER_UP = Instrument(
    name="ai_platform_server_up",
    kind=InstrumentKind.GAUGE,
    labels=("server",),
    help="1 while any service reaches the server (postgresql, valkey, nats, hyperswarm), 0 while none of them does",
)
SCRAPE_FAILURES = Instrument(
    name="ai_platform_scrape_failures_total",
    kind=InstrumentKind.COUNTER,
    labels=("service", "reason"),
    help="Failed attempts to read a live node's metrics, by error code",
)
SCRAPE_DROPPED_SERIES = Instrument(
    name="ai_platform_scrape_dropped_series",
    kind=InstrumentKind.GAUGE,
    help="Series dropped from the last collection: malformed, over a node's limit, or of a different type than elsewhere",
)
CUSTOM_SERIES = Instrument(
    name="ai_platform_custom_series",
    kind=InstrumentKind.GAUGE,
    help="Series created by recordMetric; at most 1000",
)

ALL: tuple[Instrument, ...] = (
    *(found for found in list(globals().values()) if isinstance(found, Instrument)),
    *host_instruments.ALL,
    *gen_ai_instruments.ALL,
)


def node_label(node: NodeId) -> str:
    """Shorten a node id for labels and log lines; `aicli nodes` finds it."""
    return node[:12]


def reference() -> str:
    """Return docs/reference/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Generated from `shared/telemetry/instruments.py`; do not edit.",
        "",
        "Every service exports its own metrics at `/metrics` on its port. The metrics service exports those of the whole mesh, on",
        "`METRICS_SERVICE_PORT` and on `PROMETHEUS_PORT`, and adds the labels `service` and `node` (the first 12 characters of the node",
        "id) to each series. If a series already has one of these labels with another value, that one becomes `exported_service` or",
        "`exported_node`. Process metrics (`ai_platform_process_resident_memory_bytes`, `…_virtual_memory_bytes`,",
        "`…_cpu_seconds_total`, `…_open_fds`, `…_max_fds`, `…_start_time_seconds`) exist on every service.",
        "",
        "| metric | kind | unit | labels | meaning |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{one.name}` | {one.kind} | {one.unit or '–'} | {', '.join(f'`{label}`' for label in one.labels) or '–'} | {one.help} |"
        for one in ALL
    ]
    lines += ["", "## Buckets", ""]
    lines += [f"- `{one.name}`: {', '.join(f'{bound:g}' for bound in one.buckets)}" for one in ALL if one.buckets]
    return "\n".join(lines) + "\n"
