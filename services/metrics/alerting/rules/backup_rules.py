"""Alert rules for backups and sites. Every replica of auth exports the same report, so each rule takes the highest value."""

from functools import partial

from services.metrics.alerting.rules.alert_rule import AlertRule, AlertUnit, DashboardName, Severity
from services.metrics.alerting.rules.expressions import (
    DAY,
    HOUR,
    MINUTE,
    Ratio,
    Selector,
    Unless,
    above,
    at_least,
    below,
    highest,
    lowest,
)
from shared.api import recovery
from shared.telemetry import instruments

#: A backup is made every day.
BACKUP_OLD_SECONDS = 26 * HOUR
#: A backup is restored as a test every week.
VERIFY_OLD_SECONDS = 9 * DAY
STORE_FAILING_SECONDS = 20
#: The objective for lost data (RPO).

_rule = partial(AlertRule, board=DashboardName.SECURITY, unit=AlertUnit.SECONDS)
_WAL_LAG = highest(Selector(instruments.WAL_LAG))
_WAL_LAG_DESCRIPTION = "If you lost the database now, you would lose what was committed since then."

RULES = (
    _rule(
        name="backup_off",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.BACKUP_MISSING)), 0),
        summary="There are no backups",
        description="Other machines can reach this stack, but BACKUP_TO isn't set. If you lose its disk, you lose everything.",
        unit=AlertUnit.NONE,
    ),
    _rule(
        name="backup_agent_gone",
        severity=Severity.CRITICAL,
        when=above(highest(Selector(instruments.BACKUP_REPORT_AGE)), recovery.AGENT_GONE_SECONDS),
        summary="The backup agent has not reported for 2 minutes",
        description="It is down or cannot reach auth. New commits may not reach the store, and other alerts about backups are out of date.",
    ),
    _rule(
        name="backup_old",
        severity=Severity.PAGE,
        when=above(highest(Selector(instruments.BACKUP_AGE)), BACKUP_OLD_SECONDS),
        summary="The newest backup is over 26 hours old",
        description="The daily backup failed or did not run. A restore takes longer, because it replays more write-ahead log.",
    ),
    _rule(
        name="backup_verify_failed",
        severity=Severity.PAGE,
        when=below(lowest(Selector(instruments.BACKUP_TEST_OK)), 1),
        summary="The last restore test failed",
        description="The newest backups may be useless. Older ones that were verified still work.",
        unit=AlertUnit.NONE,
    ),
    _rule(
        name="backup_verify_old",
        severity=Severity.WARNING,
        when=above(highest(Selector(instruments.BACKUP_VERIFIED_AGE)), VERIFY_OLD_SECONDS),
        summary="No backup has been verified for 9 days",
        description="The weekly restore test failed or did not run, so nobody knows whether the newest backups work.",
    ),
    _rule(
        name="wal_lag",
        severity=Severity.PAGE,
        when=above(_WAL_LAG, 5 * MINUTE),
        summary="The store lacks over 5 minutes of commits",
        description=_WAL_LAG_DESCRIPTION,
        labels=(("threshold", "5m"),),
    ),
    _rule(
        name="wal_lag",
        severity=Severity.WARNING,
        when=Unless(above(_WAL_LAG, MINUTE), above(_WAL_LAG, 5 * MINUTE)),
        summary="The store lacks over a minute of commits",
        description=_WAL_LAG_DESCRIPTION,
        labels=(("threshold", "1m"),),
    ),
    _rule(
        name="wal_slot_filling",
        severity=Severity.CRITICAL,
        when=above(Ratio(highest(Selector(instruments.WAL_SLOT_BYTES)), highest(Selector(instruments.WAL_SLOT_MOST))), 0.5),
        summary="The write-ahead log kept for the backup is over half of its limit",
        description="At the limit, PostgreSQL drops the oldest part. The agent then makes a new backup, and the time in between cannot be"
        " restored.",
        unit=AlertUnit.SHARE,
    ),
    _rule(
        name="backup_store_failing",
        severity=Severity.CRITICAL,
        when=at_least(highest(Selector(instruments.BACKUP_STORE_FAILING)), STORE_FAILING_SECONDS),
        summary="The backup agent cannot use the store",
        description="Requests are still answered, but nothing is backed up.",
    ),
)
