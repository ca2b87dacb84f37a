"""The instrument list: every metric of aimesh, declared once.

Rules (prometheus.io/docs/practices/naming): prefix ``ai_platform_`` (``gen_ai_`` for OpenTelemetry's names), base units, ``_total`` for
counters, and labels with few, known values. Never use a user, key, request or prompt as a label.
"""

from itertools import product
from typing import Literal, get_args

from shared import errors, features
from shared.telemetry.answer_instruments import AnswerInstruments
from shared.telemetry.gen_ai_instruments import GenAiInstruments
from shared.telemetry.host_instruments import HostInstruments
from shared.telemetry.instrument import CALL_SECONDS, FIRST_TOKEN_SECONDS, OUTPUT_TOKEN_SECONDS, Instrument, counter, gauge, histogram
from shared.types import Role

_LOST_FOR = (("overwritten",), ("not_taken",), ("rejected",))
AuthFailure = Literal[
    "bad_ticket", "bad_token", "closed_account", "expired_key", "link_over", "malformed", "missing", "oidc", "reset_over", "revoked_key",
    "rotated_key", "session_over", "session_reused", "too_many_logins", "unknown_key", "wrong_code", "wrong_password",
]  # fmt: skip


class Instruments(AnswerInstruments, HostInstruments, GenAiInstruments):
    """All of the core."""

    # --- every service -------------------------------------------------------------------------------------------------

    requests = counter(
        "ai_platform_requests_total",
        "Completed calls and HTTP requests, by status: success or the error code",
        ("service", "method", "status"),
    )
    request_duration = histogram(
        "ai_platform_request_duration_seconds",
        "Duration of a call; model is empty if the call involves no model",
        ("service", "method", "model"),
        unit="seconds",
        buckets=CALL_SECONDS,
    )
    inflight_requests = gauge("ai_platform_inflight_requests", "Calls that are currently running", ("service",))
    links = gauge("ai_platform_links", "Links to other nodes, by state: opening, open or draining", ("state",))
    nats_reconnects = counter("ai_platform_nats_reconnects_total", "How often the connection to NATS was lost and restored")
    nats_callback_errors = counter(
        "ai_platform_nats_callback_errors_total",
        "Messages from NATS that were lost because this node's own code raised an error: alert on any",
    )
    links_by_path = gauge("ai_platform_links_by_path", "Open links to other nodes, by path: nats, direct, punched or relayed", ("path",))
    peer_rtt = gauge(
        "ai_platform_peer_rtt_seconds", "Last measured round trip on the link to another node", ("peer", "path"), unit="seconds"
    )
    round_trip = gauge(
        "ai_platform_round_trip_seconds",
        "Mean of the last measured round trips over the open links, by path: nats, direct, punched or relayed",
        ("path",),
        unit="seconds",
    )
    spans_lost = counter(
        "ai_platform_spans_lost_total",
        "Lost spans of sampled traces, by reason: overwritten before they were read, not_taken by the OTLP endpoint, or rejected by it",
        ("reason",),
        known=_LOST_FOR,
    )
    sidecar_restarts = counter("ai_platform_sidecar_restarts_total", "How often the Hyperswarm sidecar died and was restarted")
    strangers_refused = counter(
        "ai_platform_strangers_refused_total",
        "Rejected connections over Hyperswarm: no certificate of this mesh, revoked, or too many at once",
    )
    contested_keys = counter(
        "ai_platform_contested_keys_total",
        "How often two processes used the same node key, or links were replaced so often that they probably did: alert on any",
    )
    certificate_seconds_left = gauge(
        "ai_platform_certificate_seconds_left",
        "Time until this node's certificate expires; negative after that. It is renewed when a third of its lifetime is left",
        unit="seconds",
    )
    revocation_list_age = gauge(
        "ai_platform_revocation_list_age_seconds",
        "Time since auth last confirmed this node's revocation list; over 600 the node is degraded",
        unit="seconds",
    )
    log_lines_lost = counter(
        "ai_platform_log_lines_lost_total",
        "Log lines that never reach the OTLP endpoint, by reason: overwritten before they were read, not_taken by it, or rejected by it",
        ("reason",),
        known=_LOST_FOR,
    )
    build_info = gauge("ai_platform_build_info", "Always 1; the labels show the running version", ("service", "version", "python"))

    # --- auth, gateway and metrics ------------------------------------------------------------------------------------------

    database_query_seconds = histogram(
        "ai_platform_database_query_seconds", "Duration of a statement in PostgreSQL, from sending it", unit="seconds", buckets=CALL_SECONDS
    )
    database_connections = gauge(
        "ai_platform_database_connections", "Connections to PostgreSQL: used now, open, and the most (DATABASE_POOL)", ("state",)
    )
    database_bytes = gauge(
        "ai_platform_database_bytes",
        "Disk space of the tables and indexes in this service's schema, read every 5 minutes; NaN while PostgreSQL does not tell. Each"
        " replica reports it: take the maximum by schema",
        ("schema",),
        unit="bytes",
    )
    database_reads = counter(
        "ai_platform_database_reads_total",
        "Queries marked for a replica, by who answered: replica, or primary with the reason, such as primary_behind or primary_own_write",
        ("server",),
    )
    database_replica_lag = gauge(
        "ai_platform_database_replica_lag_seconds",
        "How far the replica of DATABASE_READ_URL is behind the primary at most; it grows while the replica is away",
        unit="seconds",
    )

    # --- auth ------------------------------------------------------------------------------------------------------------

    registrations = counter("ai_platform_registrations_total", "Users registered")
    keys_created = counter("ai_platform_keys_created_total", "API keys created")
    auth_failures = counter(
        "ai_platform_auth_failures_total",
        "Rejected credentials, by reason, such as wrong_password, unknown_key, revoked_key or malformed",
        ("reason",),
        known=tuple((reason,) for reason in get_args(AuthFailure)),
    )

    nats_logins = counter(
        "ai_platform_nats_logins_total",
        "Logins at the NATS servers that auth has decided, by the node's role and the result: ok or refused; refused ones have no role",
        ("role", "result"),
        known=(*((role, "ok") for role in Role), ("", "refused")),
    )

    ticket_new_networks = counter(
        "ai_platform_ticket_new_networks_total", "Uses of tickets that are bound to networks, from where they were never used before"
    )

    audit_chain_valid = gauge(
        "ai_platform_audit_chain_valid",
        "1 if the last verification of the audit log's chain and anchors succeeded, 0 if a row was tampered with",
    )

    recovery_log_behind = gauge(
        "ai_platform_recovery_log_behind_seconds",
        "How long the recovery log's file has lacked lines that the database has; 0 if it has all",
        unit="seconds",
    )
    database_restored = gauge(
        "ai_platform_database_restored",
        "1 for seven days after auth found that its database was replaced by an older one",
    )

    # --- gateway ---------------------------------------------------------------------------------------------------------

    rate_limit_violations = counter(
        "ai_platform_rate_limit_violations_total",
        "Requests rejected by a rate limit; scope is user, key or model: the one with the longest wait",
        ("scope", "tier", "model"),
    )
    rate_limit_degraded = gauge(
        "ai_platform_ratelimit_degraded",
        "1 while Valkey is unavailable for rate limits, whatever LIMITER_WITHOUT_VALKEY says: alert after a minute",
    )
    ratelimit_decisions = counter(
        "ai_platform_ratelimit_decisions_total",
        "Requests by rate limit decision: admitted, refused, or uncounted while Valkey was unavailable",
        ("decision",),
    )
    refused_requests = counter(
        "ai_platform_refused_requests_total",
        "HTTP requests of known callers that were refused, by error code (reason): invalid, not allowed, or over a limit",
        ("method", "reason"),
    )
    ignored_fields = counter(
        "ai_platform_fields_ignored_total",
        "Requests of vendors' APIs with a field that has no effect, by API and field: other for those that this version does not know",
        ("dialect", "field"),
    )
    streams_aborted = counter(
        "ai_platform_streams_aborted_total",
        "Answers that ended early after their first token, by reason: cancelled by the client, or the error code",
        ("reason",),
        known=tuple((reason,) for reason in (*sorted(errors.BY_CODE), "other")),
    )
    inter_token_seconds = histogram(
        "ai_platform_inter_token_seconds",
        "Mean time between two tokens of each answer",
        ("model",),
        unit="seconds",
        buckets=OUTPUT_TOKEN_SECONDS,
    )
    cost = counter("ai_platform_cost_micro_total", "Cost of completed requests in micro-credits: a million is one credit", ("model",))
    revenue = counter(
        "ai_platform_revenue_minor_total", "Paid invoices and orders, without tax, in minor units such as cents", ("currency",)
    )
    revenue_reversed = counter(
        "ai_platform_revenue_reversed_minor_total",
        "Refunds and disputes of orders at payment providers, without tax; take them off `ai_platform_revenue_minor_total`",
        ("currency",),
    )
    cost_of_usual = gauge(
        "ai_platform_cost_of_usual_ratio",
        "Cost of this or the last UTC day, if that was higher, as a multiple of the mean of the seven days before it; 0 until it is known",
    )
    upstream_of_month = gauge(
        "ai_platform_upstream_of_month_ratio",
        "Cost of providers in this UTC month, as a multiple of UPSTREAM_MONTHLY; 0 without this limit",
    )
    ledger_reserve_seconds = histogram(
        "ai_platform_ledger_reserve_seconds",
        "Time that PostgreSQL took to reserve the maximum cost of a request",
        unit="seconds",
        buckets=CALL_SECONDS,
    )
    ledger_open_reservations = gauge("ai_platform_ledger_open_reservations", "Open credit reservations of this gateway's requests")
    ledger_oldest_reservation = gauge(
        "ai_platform_ledger_oldest_reservation_seconds", "Age of the oldest open reservation; 0 without any", unit="seconds"
    )
    settle_journal_rows = gauge("ai_platform_settle_journal_rows", "Rows in the journal on disk that are not in PostgreSQL yet")
    usage_queue_rows = gauge("ai_platform_usage_queue_rows", "Usage rows queued for PostgreSQL")
    settle_failures = counter(
        "ai_platform_settle_failures_total",
        "Failed attempts to write usage rows, by reason: PostgreSQL was down, full or read-only (unavailable), or rejected the rows"
        " (refused). The rows wait in the journal",
        ("reason",),
    )

    retries = counter(
        "ai_platform_retries_total",
        "Requests moved to another worker, by kind: retry (before the first token) or resumption (mid-answer); and by outcome: answered,"
        " failed, left (the caller disconnected), preempted, or over_budget (not sent)",
        ("kind", "outcome"),
        known=tuple(product(("retry", "resumption"), ("answered", "failed", "left", "preempted", "over_budget"))),
    )

    preemptions = counter(
        "ai_platform_preemptions_total",
        "Answers that gave up their slot because their tenant held more than its share while another tenant's request waited. They resume",
        ("model",),
    )

    wrong_counts = counter(
        "ai_platform_wrong_counts_total",
        "Answers for which a worker reported wrong token counts. They are not billed, and the third within an hour quarantines the worker"
        " for an hour",
        ("node",),
    )

    ledger_drift = gauge(
        "ai_platform_ledger_drift_micro",
        "Difference between accounts, entries and reservations in micro-credits; any value but 0 is an error",
    )

    background_failures = counter(
        "ai_platform_background_failures_total", "Unexpected failures of background tasks, which start again after a pause", ("task",)
    )
    item_failures = counter(
        "ai_platform_item_failures_total",
        "Unexpected failures of single items of background work, such as a payment or a line",
        ("kind",),
    )
    deferred_items = gauge(
        "ai_platform_deferred_items",
        "Items of background work that failed and need an administrator: those of money after one failure, others after ten",
        ("kind",),
    )

    upkeep_last_success = gauge(
        "ai_platform_upkeep_last_success_timestamp_seconds",
        "Unix time of the last success of a gateway's background job on PostgreSQL: verify, checkpoint, roll, retention or partitions",
        ("job",),
    )
    upkeep_age = gauge(
        "ai_platform_upkeep_age_seconds",
        "Seconds since the last success of the gateway's background job; before the first success, since the gateway started",
        ("job",),
    )
    webhooks = counter(
        "ai_platform_webhooks_total",
        "Webhooks of the payment provider: kept, ignored because they are known or about something else, or refused for their signature",
        ("provider", "result"),
    )
    webhook_backlog = gauge(
        "ai_platform_webhook_backlog_seconds", "Age of the oldest event of the payment provider that has not been handled", unit="seconds"
    )
    unbilled_usage = gauge(
        "ai_platform_unbilled_usage_seconds",
        "Age of the oldest usage beyond a plan whose period has ended and which has not been billed",
        unit="seconds",
    )
    partitions_ahead = gauge(
        "ai_platform_partitions_ahead_seconds",
        "How far into the future the gateway's tables have partitions; later rows go to the default partitions",
        unit="seconds",
    )

    model_workers = gauge(
        "ai_platform_model_workers",
        "Workers that can serve the model now, by each of its names; a model that lost its last worker stays at 0 for a day",
        ("model",),
    )

    response_cache = counter(
        "ai_platform_response_cache_total",
        "Requests that may use the response cache, by result: hit (cached), joined (shared with an identical running request) or miss",
        ("result",),
        known=(("hit",), ("joined",), ("miss",)),
    )

    route_requests = counter(
        "ai_platform_route_requests_total",
        "Completed requests of routes, by the target that was drawn (variant), the target that served or was tried last, and status",
        ("route", "variant", "target", "status"),
    )
    route_fallbacks = counter(
        "ai_platform_route_fallbacks_total",
        "Requests that went on from this target to the next one, by the error code of the target",
        ("route", "target", "reason"),
    )
    route_first_token = histogram(
        "ai_platform_route_first_token_seconds",
        "Time from the start of a route's request to its first text, including queueing and failed targets",
        ("route", "target"),
        unit="seconds",
        buckets=FIRST_TOKEN_SECONDS,
    )
    route_targets = gauge("ai_platform_route_targets", "Targets of the route whose model some worker serves", ("route",))
    upstream_spending = counter(
        "ai_platform_upstream_micro_total",
        "What providers ask for the requests, in micro-credits; without a route, the target is the model",
        ("route", "target", "provider"),
    )
    model_untrusted = gauge(
        "ai_platform_model_untrusted",
        "1 while a model of this worker is refused or loaded with a warning for this reason",
        ("model", "reason"),
    )
    upstream_ceiling_share = gauge(
        "ai_platform_upstream_ceiling_ratio",
        "Share of a target's daily ceiling that is spent or held by running requests, from 0 to 1",
        ("route", "target"),
    )
    guard_matches = counter("ai_platform_guard_matches_total", "What guardrails found in prompts and answers", ("kind", "action", "place"))
    guard_seconds = counter("ai_platform_guard_seconds_total", "Time that guardrails took for prompts and answers", unit="seconds")
    rollout_state = gauge(
        "ai_platform_rollout_state", "1 for the state of a route's last rollout, if it is open or ended within an hour", ("route", "state")
    )
    config_revision = gauge("ai_platform_config_revision", "Revision of the configuration that this gateway uses")
    config_unreadable = gauge(
        "ai_platform_config_unreadable",
        "Current documents of the configuration that this gateway can't read; it refuses the callers of those that restrict",
    )
    config_age = gauge("ai_platform_config_age_seconds", "Seconds since this gateway last read the configuration")

    # --- gateway and inference -------------------------------------------------------------------------------------------

    missing_copies = gauge(
        "ai_platform_missing_copies", "Machines that a deployment needs and that are not there, or can't have the model", ("model",)
    )
    copy_failures = counter("ai_platform_copy_failures_total", "Orders to put a model on a machine that the machine refused", ("model",))
    excluded_peers = counter(
        "ai_platform_excluded_peers_total", "How often two workers said that another one sends wrong blocks of a model's file, or nothing"
    )

    # --- inference -------------------------------------------------------------------------------------------------------

    worker_up = gauge(
        "ai_platform_worker_up", "1 while the engine of this model is running, 0 while it is loading, failed or restarting", ("model",)
    )
    worker_slots = gauge(
        "ai_platform_worker_slots", "Sequences that the engine can run concurrently, by state: busy or free", ("model", "state")
    )
    answer_parse_failures = counter(
        "ai_platform_answer_parse_failures_total", "Answers that the model's chat template doesn't describe, delivered as text", ("model",)
    )
    image_seconds = counter(
        "ai_platform_image_seconds_total", "Time in which the engine turned images into embeddings", ("model",), unit="seconds"
    )
    model_swaps = counter(
        "ai_platform_model_swaps_total", "How often a model was unloaded because another one needed its memory", ("model",)
    )
    model_quarantines = counter(
        "ai_platform_model_quarantines_total", "How often the file of a model was damaged, so that the worker fetched it again", ("model",)
    )
    model_store_used_ratio = gauge(
        "ai_platform_model_store_used_ratio", "Share of MODEL_STORE_QUOTA that models use, from 0 to 1; only where it is set"
    )
    engine_restarts = counter("ai_platform_engine_restarts_total", "How often the engine process died and was restarted", ("model",))
    engine_overhead = gauge(
        "ai_platform_engine_overhead_ratio",
        "Share of the engine's busy time in the last 10 s that was not llama.cpp computing, from 0 to 1; 0 when idle",
        ("model",),
    )
    engine_step_seconds = gauge(
        "ai_platform_engine_step_seconds",
        "Mean duration of an engine step in the last 10 s: the time between two tokens of an answer",
        ("model",),
        unit="seconds",
    )
    engine_tokens_per_second = gauge(
        "ai_platform_engine_tokens_per_second",
        "Tokens per second of busy time that the engine generated for all answers in the last 10 s",
        ("model",),
        unit="tokens",
    )
    model_cpu_seconds = gauge(
        "ai_platform_model_cpu_seconds",
        "Processor time that the running engines of a model have used; it falls when one is restarted",
        ("model",),
        unit="seconds",
    )
    model_memory = gauge(
        "ai_platform_model_memory_bytes",
        "RAM that the running engines of a model use",
        ("model",),
        unit="bytes",
    )
    model_vram = gauge(
        "ai_platform_model_vram_bytes",
        "GPU memory of a loaded model: weights, context and buffers as the worker planned them, not as measured; 0 on a processor",
        ("model",),
        unit="bytes",
    )
    prompt_cache_bytes = gauge(
        "ai_platform_prompt_cache_bytes", "RAM of prompts that have lost their slots in the engines of a model", ("model",), unit="bytes"
    )
    prompt_cache_hits = gauge(
        "ai_platform_prompt_cache_hits", "Prompts that the running engines of a model have taken back from RAM", ("model",)
    )

    # --- metrics ---------------------------------------------------------------------------------------------------------

    active_users = gauge(
        "ai_platform_active_users",
        "Users with a completed request in the last 1h, 24h or 7d, counted while the metrics service was up",
        ("time_window",),
    )
    events = counter("ai_platform_events_total", "Domain events, by name, such as user.registered or key.created", ("event",))
    events_dropped = counter(
        "ai_platform_events_dropped_total", "Domain events that were dropped because they arrived faster than they were read"
    )

    node_up = gauge(
        "ai_platform_node_up",
        "1 for a live node, 0 for a node that disappeared without shutting down cleanly; removed after an hour",
        ("service", "node"),
    )
    server_up = gauge(
        "ai_platform_server_up",
        "1 while any service reaches the server (postgresql, valkey, nats, hyperswarm), 0 while none of them does",
        ("server",),
    )
    scrape_failures = counter(
        "ai_platform_scrape_failures_total", "Failed attempts to read a live node's metrics, by error code", ("service", "reason")
    )
    scrape_dropped_series = gauge(
        "ai_platform_scrape_dropped_series",
        "Series dropped from the last collection: malformed, over a node's limit, or of a different type than elsewhere",
    )
    custom_series = gauge("ai_platform_custom_series", "Series created by recordMetric; at most 1000")


OWN: tuple[Instrument, ...] = tuple(found for kind in Instruments.__mro__ for found in vars(kind).values() if isinstance(found, Instrument))
ALL = OWN + tuple(found for part in features.modules("instruments") for found in vars(part).values() if isinstance(found, Instrument))
