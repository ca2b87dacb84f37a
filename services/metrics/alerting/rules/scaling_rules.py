"""Alert rules for autoscaling. Only the leading metrics replica exports the pools; every replica exports whether it can use POOLS_FILE."""

from functools import partial

from services.metrics.alerting.rules.alert_rule import AlertRule, AlertUnit, DashboardName, Severity
from services.metrics.alerting.rules.expressions import MINUTE, Selector, above, at_least, highest
from shared.telemetry import instruments

#: The calls before pause for 5 and 10 s.
FAILURES = 3
#: Twice as old as data that may still change a pool.
STALE_SECONDS = MINUTE

_workers = partial(AlertRule, board=DashboardName.WORKERS)

RULES = (
    _workers(
        name="pool_at_maximum",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.DENIED_REPLICAS), "pool"), 0),
        hold_seconds=5 * MINUTE,
        summary="The pool {pool} needs more workers than its limits allow",
        description="Its maximum or its daily budget is reached. Requests wait longer, and are refused when the queue is full.",
        unit=AlertUnit.COUNT,
    ),
    _workers(
        name="scale_hook_failing",
        severity=Severity.CRITICAL,
        when=at_least(highest(Selector(instruments.SCALE_HOOK_FAILURES), "pool"), FAILURES),
        summary="The hook of the pool {pool} has failed three times in a row",
        description="Until it works, no worker of the pool is started or stopped. `aicli scale history` shows the error.",
        unit=AlertUnit.COUNT,
    ),
    _workers(
        name="scaling_data_stale",
        severity=Severity.CRITICAL,
        when=above(highest(Selector(instruments.SCALING_AGE), "pool"), STALE_SECONDS),
        hold_seconds=MINUTE,
        summary="Metrics cannot read the queue of the pool {pool}",
        description="A gateway does not respond, or there is none. The pool keeps its size.",
        unit=AlertUnit.SECONDS,
    ),
    _workers(
        name="pools_file_bad",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.POOLS_FILE_BAD)), 0),
        hold_seconds=MINUTE,
        summary="The new POOLS_FILE is invalid",
        description="The old pools stay in use, but the metrics service cannot start with this file.",
    ),
)
