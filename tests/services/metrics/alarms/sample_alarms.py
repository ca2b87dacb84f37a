"""Alerts for what tells them, as the desk would make them."""

import hashlib

from services.metrics.alarms.desk import Alarm, News
from services.metrics.alerts.evaluating import labels
from services.metrics.alerts.expressions import above, highest, series
from services.metrics.alerts.rule import Board, Rule, Severity
from shared.telemetry import instruments

NOON = 1_795_262_400.0


def alarm(
    summary: str = "No worker is up", severity: Severity = Severity.PAGE, *, since: float = NOON, ended: float | None = None, **where: str
) -> Alarm:
    """One for each summary."""
    rule = Rule(
        name="no_worker",
        severity=severity,
        when=above(highest(series(instruments.QUEUE_DEPTH), "model"), 1),
        summary=summary,
        description="Nobody gets an answer until one is back.",
        board=Board.OVERVIEW,
    )
    key = hashlib.sha256(f"{summary}{sorted(where.items())}".encode()).hexdigest()[:12]
    return Alarm(id=key, rule=rule, labels=labels(**where), since=since, value=2, firing=True, ended=ended)


def began(*alarms: Alarm) -> News:
    return News(began=alarms)


def ended(*alarms: Alarm) -> News:
    return News(ended=alarms)
