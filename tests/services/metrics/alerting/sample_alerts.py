"""Sample alerts for tests of the channels."""

import hashlib

from services.metrics.alerting.alert_state import ActiveAlert, AlertNotice
from services.metrics.alerting.rules.alert_rule import AlertRule, DashboardName, Severity
from services.metrics.alerting.rules.evaluation import labels
from services.metrics.alerting.rules.expressions import above, highest, series
from shared.telemetry import instruments

NOON = 1_795_262_400.0


def alert(
    summary: str = "No worker is up", severity: Severity = Severity.PAGE, *, since: float = NOON, ended: float | None = None, **where: str
) -> ActiveAlert:
    """Return an alert whose id follows from its summary and labels."""
    rule = AlertRule(
        name="no_worker",
        severity=severity,
        when=above(highest(series(instruments.QUEUE_DEPTH), "model"), 1),
        summary=summary,
        description="Nobody gets an answer until one is back.",
        board=DashboardName.OVERVIEW,
    )
    key = hashlib.sha256(f"{summary}{sorted(where.items())}".encode()).hexdigest()[:12]
    return ActiveAlert(id=key, rule=rule, labels=labels(**where), since=since, value=2, firing=True, ended=ended)


def began(*alerts: ActiveAlert) -> AlertNotice:
    return AlertNotice(began=alerts)


def ended(*alerts: ActiveAlert) -> AlertNotice:
    return AlertNotice(ended=alerts)
