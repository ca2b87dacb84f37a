"""Alert rules for requests: latency, errors, queues and cost."""

from dataclasses import replace
from functools import partial

from services.metrics.alerting.rules.alert_rule import AlertRule, AlertUnit, DashboardName, Severity
from services.metrics.alerting.rules.expressions import (
    COUNT,
    DAY,
    HOUR,
    MINUTE,
    Both,
    Ratio,
    Selector,
    TimeWindow,
    above,
    at_least,
    below,
    grown,
    highest,
    quantile,
    series,
    total,
)
from shared import errors
from shared.telemetry import instruments
from shared.types import SERVICE_NAMES, Role

#: With fewer calls within five minutes, a single slow or failed call would fire an alert.
_LEAST_CALLS = 20
QUEUE_IS_LONG = 100
#: Gateways ask for changes every 5 s.
CONFIG_STALE_SECONDS = 10
#: Error codes that are not the caller's fault. Web uses the code for each HTTP status.
OUR_FAULT = tuple(sorted(code for code, kind in errors.BY_CODE.items() if kind.fault is not errors.Fault.CALLER))

#: Calls without a model. The gateway measures what web forwards, and users don't wait for other calls to workers.
_PLAIN_CALLS = Selector(
    instruments.REQUEST_DURATION, (("model", ("",)),), (("method", ("passthrough",)), ("service", (SERVICE_NAMES[Role.WORKER],)))
)
_PLAIN_CALLS_COUNT = replace(_PLAIN_CALLS, suffix=COUNT)

_gateway = partial(AlertRule, board=DashboardName.GATEWAY)
_workers = partial(AlertRule, board=DashboardName.WORKERS)
_ledger = partial(AlertRule, board=DashboardName.LEDGER)

RULES = (
    _gateway(
        name="high_latency",
        severity=Severity.WARNING,
        when=Both(
            above(quantile(0.95, _PLAIN_CALLS, 5 * MINUTE, "service"), 1),
            above(grown(_PLAIN_CALLS_COUNT, 5 * MINUTE, "service"), _LEAST_CALLS),
        ),
        hold_seconds=5 * MINUTE,
        summary="{service} is slow: p95 latency is over 1 s",
        description="Affects calls without a model, such as logins, keys and usage. Pages are slow, and answers may start later.",
        unit=AlertUnit.SECONDS,
    ),
    _workers(
        name="response_slow",
        severity=Severity.CRITICAL,
        when=above(quantile(0.95, series(instruments.TTFT_SECONDS, service="gateway"), 5 * MINUTE, "model"), 5),
        hold_seconds=5 * MINUTE,
        summary="{model} is slow: p95 time to first text is over 5 s",
        description="Measured from the request to its first text, with queueing. The board Service level has the time of whole answers.",
        unit=AlertUnit.SECONDS,
    ),
    _gateway(
        name="error_rate_spike",
        severity=Severity.CRITICAL,
        when=Both(
            above(
                Ratio(
                    grown(series(instruments.REQUESTS, status=OUR_FAULT), 5 * MINUTE, "service"),
                    grown(Selector(instruments.REQUESTS), 5 * MINUTE, "service"),
                ),
                0.05,
            ),
            above(grown(Selector(instruments.REQUESTS), 5 * MINUTE, "service"), _LEAST_CALLS),
        ),
        hold_seconds=MINUTE,
        summary="Over 5 % of calls to {service} are failing",
        description="Over the last five minutes, without errors that callers caused.",
        unit=AlertUnit.SHARE,
    ),
    _workers(
        name="queue_depth_high",
        severity=Severity.WARNING,
        when=above(total(series(instruments.QUEUE_DEPTH, service="gateway"), "model"), QUEUE_IS_LONG),
        hold_seconds=MINUTE,
        summary="Over 100 requests are queued for {model}",
        description="All workers that serve it are busy. Requests that wait too long are rejected.",
        unit=AlertUnit.COUNT,
    ),
    _gateway(
        name="limiter_degraded",
        severity=Severity.CRITICAL,
        when=above(highest(Selector(instruments.RATE_LIMIT_DEGRADED), "node"), 0),
        hold_seconds=MINUTE,
        summary="Gateway {node} applies rate limits without Valkey",
        description="Until Valkey is back, limits apply per gateway or not at all, depending on LIMITER_WITHOUT_VALKEY.",
    ),
    _workers(
        name="wrong_counts",
        severity=Severity.CRITICAL,
        # The gateway reports it, so the worker is in exported_node.
        when=at_least(grown(Selector(instruments.WRONG_COUNTS), HOUR, "exported_node"), 2),
        summary="Worker {exported_node} reports wrong token counts",
        description="These answers are not billed. The third within an hour quarantines the worker for an hour.",
        unit=AlertUnit.COUNT,
    ),
    _ledger(
        name="cost_anomaly",
        severity=Severity.WARNING,
        when=Both(
            above(
                Ratio(
                    grown(Selector(instruments.COST), DAY),
                    Ratio(grown(Selector(instruments.COST), TimeWindow(7 * DAY, ago_seconds=DAY)), 7),
                ),
                1.5,
            ),
            # Require a cost on the first of the seven days, so that the mean covers all of them.
            above(grown(Selector(instruments.COST), TimeWindow(DAY, ago_seconds=7 * DAY)), 0),
        ),
        hold_seconds=10 * MINUTE,
        summary="The cost of the last 24 hours is over 1.5 times the usual",
        description="Usual is the mean of the previous seven days. Possible causes: a new customer, a runaway script or a stolen key.",
        unit=AlertUnit.TIMES,
    ),
    _workers(
        name="route_without_target",
        severity=Severity.CRITICAL,
        when=below(highest(Selector(instruments.ROUTE_TARGETS), "route"), 1),
        hold_seconds=MINUTE,
        summary="No worker serves a target of the route {route}",
        description="Every request for this model fails until a worker serves one of its targets.",
        unit=AlertUnit.COUNT,
    ),
    _ledger(
        name="upstream_ceiling_near",
        severity=Severity.WARNING,
        when=at_least(highest(Selector(instruments.UPSTREAM_CEILING_SHARE), "route", "target"), 0.8),
        summary="The target {target} of {route} has used 80 % of its daily ceiling",
        description="At its ceiling, the target takes no more requests until the next UTC day. Running requests count at their maximum.",
        unit=AlertUnit.SHARE,
    ),
    _gateway(
        name="rollout_rolled_back",
        severity=Severity.WARNING,
        when=above(highest(series(instruments.ROLLOUT_STATE, state="rolled_back"), "route"), 0),
        summary="The rollout of {route} was rolled back",
        description="Its candidate was worse than its baseline, or an administrator aborted it. `aicli admin rollouts show` says why.",
        unit=AlertUnit.COUNT,
    ),
    _gateway(
        name="rollout_stalled",
        severity=Severity.TICKET,
        when=above(highest(series(instruments.ROLLOUT_STATE, state="holding"), "route"), 0),
        hold_seconds=15 * MINUTE,
        summary="The rollout of {route} has had no outcomes for 15 minutes",
        description="It stays at its step. Nobody uses the route, no worker serves the candidate, or requests are not recorded.",
        unit=AlertUnit.COUNT,
    ),
    _gateway(
        name="config_stale",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.CONFIG_AGE), "node"), CONFIG_STALE_SECONDS),
        hold_seconds=30,
        summary="Gateway {node} has not read the configuration for over 10 s",
        description="It uses the previous one, so its routes, policies and limits may be out of date.",
        unit=AlertUnit.SECONDS,
    ),
)
