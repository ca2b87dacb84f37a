"""Alerts about what must always be true: the ledger adds up, the audit log is as it was written, certificates are good."""

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
    total,
)
from shared.telemetry import instruments

#: It is renewed when a third of its life is left, which is more.
CERTIFICATE_ENDS_SECONDS = 6 * HOUR
#: Auth confirms the list of revoked nodes every two minutes.
LIST_OLD_SECONDS = 600
#: The ledger is verified once a minute, and less often only where that takes long.
UNVERIFIED_SECONDS = 30 * MINUTE
#: The rarest of the other jobs runs every hour.
UPKEEP_LATE_SECONDS = 3 * HOUR
PARTITIONS_AHEAD_LEAST_SECONDS = 14 * DAY

RULES = (
    AlertRule(
        name="ledger_drift",
        severity=Severity.PAGE,
        when=Compared(highest(Selector(instruments.LEDGER_DRIFT), "node"), Comparison.OTHER_THAN, 0),
        summary="The ledger does not add up",
        description="Accounts, entries and reservations say different things. Somebody pays too much or too little until it is put right.",
        board=DashboardName.LEDGER,
        unit=AlertUnit.MICRO_CREDITS,
    ),
    AlertRule(
        name="ledger_unverified",
        severity=Severity.CRITICAL,
        when=above(highest(Selector(instruments.UPKEEP_AGE, (("job", ("verify",)),)), "node"), UNVERIFIED_SECONDS),
        summary="Gateway {node} has not verified the ledger for 30 minutes",
        description="Every attempt failed, so an error in the ledger would not be noticed.",
        board=DashboardName.LEDGER,
        unit=AlertUnit.SECONDS,
    ),
    AlertRule(
        name="upkeep_late",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.UPKEEP_AGE, without=(("job", ("verify",)),)), "node", "job"), UPKEEP_LATE_SECONDS),
        summary="The job {job} of gateway {node} has not succeeded for 3 hours",
        description="Every attempt failed. Reports get slower, old rows stay, or days of the ledger are not closed.",
        board=DashboardName.LEDGER,
        unit=AlertUnit.SECONDS,
    ),
    AlertRule(
        name="partitions_short",
        severity=Severity.CRITICAL,
        when=below(lowest(Selector(instruments.PARTITIONS_AHEAD), "node"), PARTITIONS_AHEAD_LEAST_SECONDS),
        # A gateway that has just started has not measured it yet and shows 0.
        hold_seconds=5 * MINUTE,
        summary="The gateway's tables have partitions for less than 14 days",
        description="Gateways add them 35 days ahead, and fail to. Afterwards rows go to the default partitions: nothing is lost,"
        " but nothing can be dropped.",
        board=DashboardName.LEDGER,
        unit=AlertUnit.SECONDS,
    ),
    AlertRule(
        name="settle_journal_long",
        severity=Severity.CRITICAL,
        when=above(total(Selector(instruments.SETTLE_JOURNAL_ROWS), "node"), 10_000),
        summary="Gateway {node} has more than 10,000 requests that PostgreSQL has not taken",
        description="They are safe on the gateway's disk, and written as soon as PostgreSQL takes them; until then usage and credits lag.",
        board=DashboardName.LEDGER,
        unit=AlertUnit.COUNT,
    ),
    AlertRule(
        name="reservation_old",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.LEDGER_OLDEST_RESERVATION), "node"), 5 * MINUTE),
        hold_seconds=MINUTE,
        summary="A request at gateway {node} holds credits for more than 5 minutes",
        description="A very long answer, or a request that was never ended. Its owner cannot spend what it holds.",
        board=DashboardName.LEDGER,
        unit=AlertUnit.SECONDS,
    ),
    AlertRule(
        name="audit_chain_broken",
        severity=Severity.PAGE,
        when=below(lowest(Selector(instruments.AUDIT_CHAIN_VALID), "node"), 1),
        summary="The audit log is not as it was written",
        description="A row was changed or taken away after it was written. Treat it as a break-in until it is explained.",
        board=DashboardName.SECURITY,
    ),
    AlertRule(
        name="certificate_expiring",
        severity=Severity.CRITICAL,
        when=below(lowest(Selector(instruments.CERTIFICATE_SECONDS_LEFT), "service", "node"), CERTIFICATE_ENDS_SECONDS),
        hold_seconds=5 * MINUTE,
        summary="The certificate of {service} {node} ends within 6 hours",
        description="It should have been renewed when a third of its life was left. When it ends, no node talks to this one any more.",
        board=DashboardName.SECURITY,
        unit=AlertUnit.SECONDS,
    ),
    AlertRule(
        name="revocation_list_old",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.REVOCATION_LIST_AGE), "service", "node"), LIST_OLD_SECONDS),
        hold_seconds=MINUTE,
        summary="{service} {node} has not heard for 10 minutes which nodes are revoked",
        description="Auth cannot be reached from there. A node that is revoked now is still believed there.",
        board=DashboardName.SECURITY,
        unit=AlertUnit.SECONDS,
    ),
    AlertRule(
        name="contested_key",
        severity=Severity.PAGE,
        when=above(grown(Selector(instruments.CONTESTED_KEYS), HOUR, "service", "node"), 0),
        summary="Two processes seem to show the key of {service} {node}",
        description="Its links are made anew again and again. It was started twice, or somebody has a copy of its key.",
        board=DashboardName.SECURITY,
        unit=AlertUnit.COUNT,
    ),
)
