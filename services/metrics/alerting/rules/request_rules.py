"""Alerts about requests: slow, failing, waiting, costing more than usual."""

from dataclasses import replace

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
    grown,
    highest,
    quantile,
    series,
    total,
)
from shared import errors
from shared.telemetry import instruments
from shared.types import SERVICE_NAMES, Role

#: With fewer calls within five minutes, one slow or failed one would be an alert.
_LEAST_CALLS = 20
#: Of one model.
QUEUE_IS_LONG = 100
#: How a call ends that its caller is not to blame for. Web gives the code that stands for the status.
OUR_FAULT = tuple(sorted(code for code, kind in errors.BY_CODE.items() if kind.fault is not errors.Fault.CALLER))

#: Calls that run no model. What web passes on to the gateway is measured there; what workers are asked besides, nobody waits for.
_PLAIN_CALLS = Selector(
    instruments.REQUEST_DURATION, (("model", ("",)),), (("method", ("passthrough",)), ("service", (SERVICE_NAMES[Role.WORKER],)))
)
_PLAIN_CALLS_COUNT = replace(_PLAIN_CALLS, suffix=COUNT)

RULES = (
    AlertRule(
        name="high_latency",
        severity=Severity.WARNING,
        when=Both(
            above(quantile(0.95, _PLAIN_CALLS, 5 * MINUTE, "service"), 1),
            above(grown(_PLAIN_CALLS_COUNT, 5 * MINUTE, "service"), _LEAST_CALLS),
        ),
        hold_seconds=5 * MINUTE,
        summary="{service} is slow: one call in twenty takes more than 1 s",
        description="Calls that run no model, such as logins, keys and usage. Pages and clients feel slow; answers may begin later, too.",
        board=DashboardName.GATEWAY,
        unit=AlertUnit.SECONDS,
    ),
    AlertRule(
        name="response_slow",
        severity=Severity.CRITICAL,
        when=above(quantile(0.95, series(instruments.TTFT_SECONDS, service="gateway"), 5 * MINUTE, "model"), 5),
        hold_seconds=5 * MINUTE,
        summary="{model} is slow: one answer in twenty begins after more than 5 s",
        description="From the request to the first text, waiting included. How long an answer takes as a whole depends on its length.",
        board=DashboardName.WORKERS,
        unit=AlertUnit.SECONDS,
    ),
    AlertRule(
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
        summary="More than 5 % of the calls to {service} fail",
        description="Failures that the callers are not to blame for, within five minutes. Mistakes of callers are not counted.",
        board=DashboardName.GATEWAY,
        unit=AlertUnit.SHARE,
    ),
    AlertRule(
        name="queue_depth_high",
        severity=Severity.WARNING,
        when=above(total(series(instruments.QUEUE_DEPTH, service="gateway"), "model"), QUEUE_IS_LONG),
        hold_seconds=MINUTE,
        summary="More than 100 requests wait for {model}",
        description="The workers that serve it are all busy. Requests wait, and those that wait too long are refused.",
        board=DashboardName.WORKERS,
        unit=AlertUnit.COUNT,
    ),
    AlertRule(
        name="limiter_degraded",
        severity=Severity.CRITICAL,
        when=above(highest(Selector(instruments.RATE_LIMIT_DEGRADED), "node"), 0),
        hold_seconds=MINUTE,
        summary="Gateway {node} counts requests without Valkey",
        description="Limits hold for each gateway alone or not at all, as LIMITER_WITHOUT_VALKEY says, until Valkey is back.",
        board=DashboardName.GATEWAY,
    ),
    AlertRule(
        name="wrong_counts",
        severity=Severity.CRITICAL,
        # A gateway says it of a worker, so the worker is not the node that told it.
        when=at_least(grown(Selector(instruments.WRONG_COUNTS), HOUR, "exported_node"), 2),
        summary="Worker {exported_node} tells wrong counts of tokens",
        description="Nobody pays for such answers. The third within an hour puts the worker into quarantine for an hour.",
        board=DashboardName.WORKERS,
        unit=AlertUnit.COUNT,
    ),
    AlertRule(
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
            # The mean is one of seven days only when there was something to pay on the first of them.
            above(grown(Selector(instruments.COST), TimeWindow(DAY, ago_seconds=7 * DAY)), 0),
        ),
        hold_seconds=10 * MINUTE,
        summary="The last 24 hours cost more than 1.5 times as much as usual",
        description="Usual is the mean of the seven days before. A new customer, a runaway script or a stolen key look like this.",
        board=DashboardName.LEDGER,
        unit=AlertUnit.TIMES,
    ),
)
