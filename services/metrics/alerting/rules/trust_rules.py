"""Alert rules for integrity: the ledger, the audit log and certificates."""

from functools import partial

from services.metrics.alerting.rules.alert_rule import AlertRule, AlertUnit, DashboardName, Severity
from services.metrics.alerting.rules.expressions import (
    DAY,
    HOUR,
    MINUTE,
    Compared,
    Comparison,
    Selector,
    above,
    below,
    grown,
    highest,
    lowest,
    series,
    total,
)
from shared.telemetry import instruments

#: Less than the third of its lifetime at which it is renewed.
CERTIFICATE_ENDS_SECONDS = 6 * HOUR
#: Auth confirms the list of revoked nodes every two minutes.
LIST_OLD_SECONDS = 600
#: The ledger is verified every minute, or less often if that takes long.
UNVERIFIED_SECONDS = 30 * MINUTE
#: The other jobs run at least every hour.
UPKEEP_LATE_SECONDS = 3 * HOUR
RECOVERY_LOG_BEHIND_SECONDS = MINUTE
#: A refused node tries every two seconds for a minute; a revoked node tries as long as it runs.
LOGINS_REFUSED = 60
PARTITIONS_AHEAD_LEAST_SECONDS = 14 * DAY

_ledger = partial(AlertRule, board=DashboardName.LEDGER)
_security = partial(AlertRule, board=DashboardName.SECURITY)

RULES = (
    _ledger(
        name="ledger_drift",
        severity=Severity.PAGE,
        when=Compared(highest(Selector(instruments.LEDGER_DRIFT), "node"), Comparison.OTHER_THAN, 0),
        summary="The ledger is inconsistent",
        description="Accounts, entries and reservations differ. Some users pay too much or too little until this is fixed.",
        unit=AlertUnit.MICRO_CREDITS,
    ),
    _ledger(
        name="ledger_unverified",
        severity=Severity.CRITICAL,
        when=above(highest(series(instruments.UPKEEP_AGE, job="verify"), "node"), UNVERIFIED_SECONDS),
        summary="Gateway {node} has not verified the ledger for 30 minutes",
        description="Every attempt failed, so an error in the ledger would go undetected.",
        unit=AlertUnit.SECONDS,
    ),
    _ledger(
        name="upkeep_late",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.UPKEEP_AGE, without=(("job", ("verify",)),)), "node", "job"), UPKEEP_LATE_SECONDS),
        summary="The job {job} of gateway {node} has not succeeded for 3 hours",
        description="Every attempt failed. Reports get slower, old rows stay, or ledger days are not closed.",
        unit=AlertUnit.SECONDS,
    ),
    _ledger(
        name="partitions_short",
        severity=Severity.CRITICAL,
        when=below(lowest(Selector(instruments.PARTITIONS_AHEAD), "node"), PARTITIONS_AHEAD_LEAST_SECONDS),
        # A gateway that has just started has not measured it yet and shows 0.
        hold_seconds=5 * MINUTE,
        summary="The gateway's tables have partitions for less than 14 days ahead",
        description="Gateways should add them 35 days ahead. Without partitions, rows go to the default ones: nothing is lost, but old"
        " partitions cannot be dropped.",
        unit=AlertUnit.SECONDS,
    ),
    _ledger(
        name="settle_journal_long",
        severity=Severity.CRITICAL,
        when=above(total(Selector(instruments.SETTLE_JOURNAL_ROWS), "node"), 10_000),
        summary="Gateway {node} has over 10,000 requests that are not in PostgreSQL",
        description="They are safe on the gateway's disk until PostgreSQL accepts them. Until then, usage and credits lag behind.",
        unit=AlertUnit.COUNT,
    ),
    _ledger(
        name="reservation_old",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.LEDGER_OLDEST_RESERVATION), "node"), 5 * MINUTE),
        hold_seconds=MINUTE,
        summary="A request at gateway {node} has reserved credits for over 5 minutes",
        description="It is a very long answer, or a request that never ended. Its owner cannot spend the reserved credits.",
        unit=AlertUnit.SECONDS,
    ),
    _security(
        name="audit_chain_broken",
        severity=Severity.PAGE,
        when=below(lowest(Selector(instruments.AUDIT_CHAIN_VALID), "node"), 1),
        summary="The audit log was tampered with",
        description="A row was changed or removed after it was written. Treat it as a break-in until you know the cause.",
    ),
    _security(
        name="recovery_log_behind",
        severity=Severity.CRITICAL,
        when=above(highest(Selector(instruments.RECOVERY_LOG_BEHIND), "service", "node"), RECOVERY_LOG_BEHIND_SECONDS),
        summary="{service} {node} cannot write its recovery log",
        description="Revocations and credits take effect, but restoring an older database now would undo the newest of them.",
        unit=AlertUnit.SECONDS,
    ),
    _security(
        name="recovery_log_behind",
        severity=Severity.CRITICAL,
        when=above(highest(Selector(instruments.RECOVERY_LOG_STORE_BEHIND)), RECOVERY_LOG_BEHIND_SECONDS),
        summary="The store lacks lines of the recovery log",
        description="If you lost this machine's disks now, restoring a backup would undo the newest revocations.",
        unit=AlertUnit.SECONDS,
        labels=(("copy", "store"),),
    ),
    _security(
        name="database_restored",
        severity=Severity.CRITICAL,
        when=above(highest(Selector(instruments.DATABASE_RESTORED), "service", "node"), 0),
        summary="The database of {service} was replaced by an older one",
        description="{service} replayed its recovery log; auth ends all sessions. What was created since the backup is lost. The alert ends"
        " after seven days.",
    ),
    _security(
        name="certificate_expiring",
        severity=Severity.CRITICAL,
        when=below(lowest(Selector(instruments.CERTIFICATE_SECONDS_LEFT), "service", "node"), CERTIFICATE_ENDS_SECONDS),
        hold_seconds=5 * MINUTE,
        summary="The certificate of {service} {node} expires within 6 hours",
        description="It should have been renewed with a third of its lifetime left. Once it expires, other nodes reject this one.",
        unit=AlertUnit.SECONDS,
    ),
    _security(
        name="revocation_list_old",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.REVOCATION_LIST_AGE), "service", "node"), LIST_OLD_SECONDS),
        hold_seconds=MINUTE,
        summary="The revocation list of {service} {node} is over 10 minutes old",
        description="It cannot reach auth, so it still accepts nodes that were revoked since then.",
        unit=AlertUnit.SECONDS,
    ),
    _security(
        name="contested_key",
        severity=Severity.PAGE,
        when=above(grown(Selector(instruments.CONTESTED_KEYS), HOUR, "service", "node"), 0),
        summary="Two processes seem to use the key of {service} {node}",
        description="Its links keep being replaced. It was started twice, or someone has a copy of its key.",
        unit=AlertUnit.COUNT,
    ),
    _security(
        name="nats_logins_refused",
        severity=Severity.WARNING,
        when=above(grown(series(instruments.NATS_LOGINS, result="refused"), 10 * MINUTE), LOGINS_REFUSED),
        summary="Auth refused many NATS logins in 10 minutes",
        description="Nodes cannot join, or someone tries keys. `aicli admin nodes refusals` names keys, addresses and reasons.",
        unit=AlertUnit.COUNT,
    ),
    _security(
        name="ticket_used_from_new_network",
        severity=Severity.WARNING,
        when=above(grown(Selector(instruments.TICKET_NEW_NETWORKS), HOUR), 0),
        summary="A ticket was used from a new network",
        description="A replica moved, or someone copied the ticket. Auth's log names ticket, network and node.",
        unit=AlertUnit.COUNT,
    ),
)
