"""The instrument list: every metric of aimesh, declared once.

Rules (prometheus.io/docs/practices/naming): prefix ``ai_platform_`` (``gen_ai_`` for what OpenTelemetry names), base units,
``_total`` for counters, and labels whose values come from a short list that the operator knows. A user, key, request or prompt is
never a label.
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
    help="Calls and HTTP requests that ended, by how they ended: success, or the code of the error",
)
REQUEST_DURATION = Instrument(
    name="ai_platform_request_duration_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=("service", "method", "model"),
    buckets=CALL_SECONDS,
    help="From the start of a call to its end; model is empty where no model is involved",
)
INFLIGHT_REQUESTS = Instrument(
    name="ai_platform_inflight_requests",
    kind=InstrumentKind.GAUGE,
    labels=("service",),
    help="Calls that are running now",
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
    help="Times that the connection to NATS was lost and made again",
)
NATS_CALLBACK_ERRORS = Instrument(
    name="ai_platform_nats_callback_errors_total",
    kind=InstrumentKind.COUNTER,
    help="Messages from NATS that were lost because this node's own code raised an error while handling them: alert on any",
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
    help="Round trip of the last measurement on the link to another node",
)
ROUND_TRIP = Instrument(
    name="ai_platform_round_trip_seconds",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    labels=("path",),
    help="Round trip of the last measurement, the mean over the open links of a path: nats, direct, punched or relayed",
)
_LOST_FOR = (("overwritten",), ("not_taken",), ("rejected",))
SPANS_LOST = Instrument(
    name="ai_platform_spans_lost_total",
    kind=InstrumentKind.COUNTER,
    labels=("reason",),
    known=_LOST_FOR,
    help="Spans of traces to be kept that nobody will see: overwritten before they were read, not taken by the OTLP endpoint, or rejected",
)
SIDECAR_RESTARTS = Instrument(
    name="ai_platform_sidecar_restarts_total",
    kind=InstrumentKind.COUNTER,
    help="Times that Hyperswarm's sidecar died and was started again",
)
STRANGERS_REFUSED = Instrument(
    name="ai_platform_strangers_refused_total",
    kind=InstrumentKind.COUNTER,
    help="Connections over Hyperswarm that were not let in: no certificate of this mesh, revoked, or too many at once",
)
CONTESTED_KEYS = Instrument(
    name="ai_platform_contested_keys_total",
    kind=InstrumentKind.COUNTER,
    help="Times that two processes used a node's key, or its links were made anew so often that they may: alert on any",
)
CERTIFICATE_SECONDS_LEFT = Instrument(
    name="ai_platform_certificate_seconds_left",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    help="Until this node's certificate ends; it is renewed when a third of its life is left. Negative when it has ended",
)
REVOCATION_LIST_AGE = Instrument(
    name="ai_platform_revocation_list_age_seconds",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    help="Since auth last confirmed the revocation list that this node holds; over 600 it is degraded",
)
LOG_LINES_LOST = Instrument(
    name="ai_platform_log_lines_lost_total",
    kind=InstrumentKind.COUNTER,
    labels=("reason",),
    known=_LOST_FOR,
    help="Lines of logs that the OTLP endpoint will not have: overwritten before they were read, not taken by it, or rejected",
)
BUILD_INFO = Instrument(
    name="ai_platform_build_info",
    kind=InstrumentKind.GAUGE,
    labels=("service", "version", "python"),
    help="Always 1; the labels say what runs",
)

# --- auth ------------------------------------------------------------------------------------------------------------

REGISTRATIONS = Instrument(name="ai_platform_registrations_total", kind=InstrumentKind.COUNTER, help="Users registered")
KEYS_CREATED = Instrument(name="ai_platform_keys_created_total", kind=InstrumentKind.COUNTER, help="API keys created")
#: Why a credential is refused.
AuthFailure = Literal[
    "bad_ticket", "bad_token", "closed_account", "expired_key", "link_over", "malformed", "missing", "oidc", "reset_over", "revoked_key",
    "rotated_key", "session_over", "session_reused", "too_many_logins", "unknown_key", "wrong_code", "wrong_password",
]  # fmt: skip
AUTH_FAILURES = Instrument(
    name="ai_platform_auth_failures_total",
    kind=InstrumentKind.COUNTER,
    labels=("reason",),
    known=tuple((reason,) for reason in get_args(AuthFailure)),
    help="Credentials refused, by reason, such as wrong_password, unknown_key, revoked_key or malformed",
)

AUDIT_CHAIN_VALID = Instrument(
    name="ai_platform_audit_chain_valid",
    kind=InstrumentKind.GAUGE,
    help="1 while the audit log's chain and anchors hold as far as they were last verified, 0 when a row was tampered with",
)

# --- gateway ---------------------------------------------------------------------------------------------------------

RATE_LIMIT_VIOLATIONS = Instrument(
    name="ai_platform_rate_limit_violations_total",
    kind=InstrumentKind.COUNTER,
    labels=("scope", "tier", "model"),
    help="Requests refused by a limit; scope is user, key or model, whichever has the longest wait",
)
RATE_LIMIT_DEGRADED = Instrument(
    name="ai_platform_ratelimit_degraded",
    kind=InstrumentKind.GAUGE,
    help="1 while Valkey does not count requests against the limits, whatever"
    " LIMITER_WITHOUT_VALKEY has this gateway do then: alert after a minute",
)
RATE_LIMIT_DECISIONS = Instrument(
    name="ai_platform_ratelimit_decisions_total",
    kind=InstrumentKind.COUNTER,
    labels=("decision",),
    help="Requests by what the limits said of them: admitted, refused, or uncounted while Valkey was away",
)
STREAMS_ABORTED = Instrument(
    name="ai_platform_streams_aborted_total",
    kind=InstrumentKind.COUNTER,
    labels=("reason",),
    known=tuple((reason,) for reason in (*sorted(errors.BY_CODE), "other")),
    help="Answers that ended early after their first token, by reason: cancelled by its reader, or the code of the error",
)
INTER_TOKEN_SECONDS = Instrument(
    name="ai_platform_inter_token_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=("model",),
    buckets=OUTPUT_TOKEN_SECONDS,
    help="Of each answer, the mean time between two of its tokens",
)
COST = Instrument(
    name="ai_platform_cost_micro_total",
    kind=InstrumentKind.COUNTER,
    labels=("model",),
    help="Paid for requests that ended, in micro-credits: a million is one credit",
)
LEDGER_RESERVE_SECONDS = Instrument(
    name="ai_platform_ledger_reserve_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    buckets=CALL_SECONDS,
    help="How long PostgreSQL took to hold what a request may cost",
)
LEDGER_OPEN_RESERVATIONS = Instrument(
    name="ai_platform_ledger_open_reservations",
    kind=InstrumentKind.GAUGE,
    help="Requests of this gateway that hold credits and have not ended",
)
LEDGER_OLDEST_RESERVATION = Instrument(
    name="ai_platform_ledger_oldest_reservation_seconds",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    help="Age of the oldest of them; 0 where there is none",
)
SETTLE_JOURNAL_ROWS = Instrument(
    name="ai_platform_settle_journal_rows",
    kind=InstrumentKind.GAUGE,
    help="Rows in the journal on disk that PostgreSQL has not taken yet",
)
USAGE_QUEUE_ROWS = Instrument(
    name="ai_platform_usage_queue_rows",
    kind=InstrumentKind.GAUGE,
    help="Usage rows that wait to be written to PostgreSQL",
)
SETTLE_FAILURES = Instrument(
    name="ai_platform_settle_failures_total",
    kind=InstrumentKind.COUNTER,
    labels=("reason",),
    help="Attempts to write usage rows that PostgreSQL did not take: it was away, full or only read (unavailable), or it answered with an"
    " error of these rows (refused); they wait in the journal",
)

RETRIES = Instrument(
    name="ai_platform_retries_total",
    kind=InstrumentKind.COUNTER,
    labels=("kind", "outcome"),
    known=tuple(product(("retry", "resumption"), ("answered", "failed", "left", "over_budget"))),
    help="Requests given to another worker, by kind: retry (nothing had come) or resumption (it goes on in mid-answer); and by what "
    "became of it there: answered, failed, left (by its caller), or over_budget for those that were not sent",
)

WRONG_COUNTS = Instrument(
    name="ai_platform_wrong_counts_total",
    kind=InstrumentKind.COUNTER,
    labels=("node",),
    help="Answers whose worker told other counts of tokens than came of it; nobody pays for them, and the third within an hour puts"
    " the worker into quarantine for an hour",
)

LEDGER_DRIFT = Instrument(
    name="ai_platform_ledger_drift_micro",
    kind=InstrumentKind.GAUGE,
    help="How far accounts, entries and reservations are from each other, in micro-credits; anything but 0 is an error",
)

UPKEEP_LAST_SUCCESS = Instrument(
    name="ai_platform_upkeep_last_success_timestamp_seconds",
    kind=InstrumentKind.GAUGE,
    labels=("job",),
    help="When the gateway's background work on PostgreSQL last succeeded, in seconds since 1970: verify, checkpoint, roll, retention or"
    " partitions",
)
UPKEEP_AGE = Instrument(
    name="ai_platform_upkeep_age_seconds",
    kind=InstrumentKind.GAUGE,
    labels=("job",),
    help="How long ago the gateway's background work last succeeded; before its first success, how long ago it was started",
)
PARTITIONS_AHEAD = Instrument(
    name="ai_platform_partitions_ahead_seconds",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    help="How far from now the partitions of the gateway's growing tables reach; rows after that are stored in the default partitions",
)

MODEL_WORKERS = Instrument(
    name="ai_platform_model_workers",
    kind=InstrumentKind.GAUGE,
    labels=("model",),
    help="Workers that could serve the model just now, by each name that it has; one that lost its last worker stays at 0 for a day",
)

RESPONSE_CACHE = Instrument(
    name="ai_platform_response_cache_total",
    kind=InstrumentKind.COUNTER,
    labels=("result",),
    known=(("hit",), ("joined",), ("miss",)),
    help="Deterministic requests by where their answer came from: hit (given before), joined (given to another at once) or miss",
)

# --- gateway and inference -------------------------------------------------------------------------------------------

TOKENS = Instrument(
    name="ai_platform_tokens_total",
    kind=InstrumentKind.COUNTER,
    unit="tokens",
    labels=("type", "model"),
    help="Tokens by type: input (prompt) or output (generated); gateway and inference both count, so choose one service",
)
TTFT_SECONDS = Instrument(
    name="ai_platform_ttft_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=("model",),
    buckets=FIRST_TOKEN_SECONDS,
    help="From the start of a request to its first text, waiting included",
)
QUEUE_DEPTH = Instrument(
    name="ai_platform_queue_depth",
    kind=InstrumentKind.GAUGE,
    labels=("model",),
    help="Requests that wait for a free slot",
)

QUEUE_WAIT_SECONDS = Instrument(
    name="ai_platform_queue_wait_seconds",
    kind=InstrumentKind.HISTOGRAM,
    unit="seconds",
    labels=("model",),
    buckets=FIRST_TOKEN_SECONDS,
    help="How long the gateway kept a request until a worker had room for it; those that were refused or left are not counted",
)

# --- inference -------------------------------------------------------------------------------------------------------

WORKER_UP = Instrument(
    name="ai_platform_worker_up",
    kind=InstrumentKind.GAUGE,
    labels=("model",),
    help="1 while the engine of this model runs, 0 while it is loading, failed or restarting",
)
WORKER_SLOTS = Instrument(
    name="ai_platform_worker_slots",
    kind=InstrumentKind.GAUGE,
    labels=("model", "state"),
    help="Sequences that the engine can run at once, by state: busy or free",
)
ENGINE_RESTARTS = Instrument(
    name="ai_platform_engine_restarts_total",
    kind=InstrumentKind.COUNTER,
    labels=("model",),
    help="Times that the engine process died and was started again",
)
ENGINE_OVERHEAD = Instrument(
    name="ai_platform_engine_overhead_ratio",
    kind=InstrumentKind.GAUGE,
    labels=("model",),
    help="Of the engine's time in the last 10 s, the share that was not llama.cpp computing, from 0 to 1; 0 when it had no work",
)
ENGINE_STEP_SECONDS = Instrument(
    name="ai_platform_engine_step_seconds",
    kind=InstrumentKind.GAUGE,
    unit="seconds",
    labels=("model",),
    help="What one step of the engine took in the last 10 s, on average: the time between two tokens of an answer",
)
ENGINE_TOKENS_PER_SECOND = Instrument(
    name="ai_platform_engine_tokens_per_second",
    kind=InstrumentKind.GAUGE,
    unit="tokens",
    labels=("model",),
    help="Tokens that the engine generates for all its answers in a second of work, in the last 10 s",
)

# --- metrics ---------------------------------------------------------------------------------------------------------

ACTIVE_USERS = Instrument(
    name="ai_platform_active_users",
    kind=InstrumentKind.GAUGE,
    labels=("time_window",),
    help="Different users with a completed request in the last 1h, 24h or 7d, as far as the metrics service was up to see them",
)
EVENTS = Instrument(
    name="ai_platform_events_total",
    kind=InstrumentKind.COUNTER,
    labels=("event",),
    help="Domain events seen, by name, such as user.registered or key.created",
)
EVENTS_DROPPED = Instrument(
    name="ai_platform_events_dropped_total",
    kind=InstrumentKind.COUNTER,
    help="Domain events that were not counted because they came faster than they were read",
)
COMPLETED_REQUESTS = Instrument(
    name="ai_platform_completed_requests_total",
    kind=InstrumentKind.COUNTER,
    labels=("status", "model"),
    help="Inference requests by how they ended, over all gateways: success, error, timeout, cancelled, limited or "
    "rejected (its caller has to change something)",
)
COMPLETED_TOKENS = Instrument(
    name="ai_platform_completed_tokens_total",
    kind=InstrumentKind.COUNTER,
    unit="tokens",
    labels=("model",),
    help="Tokens of completed inference requests, prompt and answer together, over all gateways",
)
NODE_UP = Instrument(
    name="ai_platform_node_up",
    kind=InstrumentKind.GAUGE,
    labels=("service", "node"),
    help="1 for a node that is alive, 0 for one that went without a goodbye; forgotten an hour after it went",
)
SERVER_UP = Instrument(
    name="ai_platform_server_up",
    kind=InstrumentKind.GAUGE,
    labels=("server",),
    help="1 while a service reaches the server (postgresql, valkey, nats, hyperswarm), 0 while none of those that need it does",
)
SCRAPE_FAILURES = Instrument(
    name="ai_platform_scrape_failures_total",
    kind=InstrumentKind.COUNTER,
    labels=("service", "reason"),
    help="Times that a live node did not give its metrics, by the code of the error",
)
SCRAPE_DROPPED_SERIES = Instrument(
    name="ai_platform_scrape_dropped_series",
    kind=InstrumentKind.GAUGE,
    help="Series left out of the last collection: malformed, over a node's limit, or of another type than elsewhere",
)
CUSTOM_SERIES = Instrument(
    name="ai_platform_custom_series",
    kind=InstrumentKind.GAUGE,
    help="Series that recordMetric made; at most 1000",
)

#: In the order of the reference page.
ALL: tuple[Instrument, ...] = (
    *(found for found in list(globals().values()) if isinstance(found, Instrument)),
    *host_instruments.ALL,
    *gen_ai_instruments.ALL,
)


def node_label(node: NodeId) -> str:
    """A node in a label or a log line: enough of its id to tell it from the others and to find it with `aicli nodes`."""
    return node[:12]


def reference() -> str:
    """The reference page of the metrics, in Markdown."""
    lines = [
        "# Metrics",
        "",
        "Generated from `shared/telemetry/instruments.py`; do not edit.",
        "",
        "Every service serves its own metrics at `/metrics` of its port. The metrics service serves those of the whole mesh, on",
        "`METRICS_SERVICE_PORT` and on `PROMETHEUS_PORT`, and adds to each series the labels `service` and `node` (the first 12",
        "characters of the node's id). A series that already had one of these labels with another value has it as `exported_service`",
        "or `exported_node`. Process metrics (`ai_platform_process_resident_memory_bytes`, `…_virtual_memory_bytes`,",
        "`…_cpu_seconds_total`, `…_open_fds`, `…_max_fds`, `…_start_time_seconds`) come with every service.",
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
