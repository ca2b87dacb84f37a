"""Alert rules for autoscaling. Only the leading metrics replica exports the pools; every replica exports whether it can use POOLS_FILE."""

from services.metrics.alerting.rules.alert_rule import AlertRule, AlertUnit, DashboardName, Severity
from services.metrics.alerting.rules.expressions import MINUTE, Selector, above, at_least, highest
from shared.telemetry import instruments

#: The calls before pause for 5 and 10 s.
FAILURES = 3
#: Twice as old as data that may still change a pool.
STALE_SECONDS = MINUTE

RULES = (
    AlertRule(
        name="pool_at_maximum",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.DENIED_REPLICAS), "pool"), 0),
        hold_seconds=5 * MINUTE,
        summary="The pool {pool} needs more workers than it may have",
        description="Its maximum or its budget of the day is reached. Requests wait longer, and are refused when the queue is full.",
        board=DashboardName.WORKERS,
        unit=AlertUnit.COUNT,
    ),
    AlertRule(
        name="scale_hook_failing",
        severity=Severity.CRITICAL,
        when=at_least(highest(Selector(instruments.SCALE_HOOK_FAILURES), "pool"), FAILURES),
        summary="The hook of the pool {pool} has failed three times in a row",
        description="No worker of the pool is started or stopped until it works. `aicli scale history` has its error.",
        board=DashboardName.WORKERS,
        unit=AlertUnit.COUNT,
    ),
    AlertRule(
        name="scaling_data_stale",
        severity=Severity.CRITICAL,
        when=above(highest(Selector(instruments.SCALING_AGE), "pool"), STALE_SECONDS),
        hold_seconds=MINUTE,
        summary="Metrics does not know how much the pool {pool} has to do",
        description="A gateway does not say how many requests wait, or there is none. The pool keeps its size, whatever arrives.",
        board=DashboardName.WORKERS,
        unit=AlertUnit.SECONDS,
    ),
    AlertRule(
        name="pools_file_bad",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.POOLS_FILE_BAD)), 0),
        hold_seconds=MINUTE,
        summary="The changed POOLS_FILE can't be used",
        description="The pools stay as they were. The metrics service will not start again with this file.",
        board=DashboardName.WORKERS,
    ),
)
