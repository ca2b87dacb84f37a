"""Define the type of an alert rule."""

from dataclasses import dataclass
from enum import StrEnum

from services.metrics.alerting.rules import expressions


class Severity(StrEnum):
    """How soon someone must act."""

    #: Now, even at night: users get no answers, or data is inconsistent.
    PAGE = "page"
    #: Within the hour.
    CRITICAL = "critical"
    #: Today.
    WARNING = "warning"
    #: This week.
    TICKET = "ticket"
    #: Never: it shows that alerts work.
    NONE = "none"


#: Severity -> 0 for the most urgent.
RANKS = {severity: rank for rank, severity in enumerate(Severity)}


class DashboardName(StrEnum):
    """The uid of the dashboard that shows it: a file of deploy/grafana/dashboards."""

    OVERVIEW = "aimesh-overview"
    GATEWAY = "aimesh-gateway"
    WORKERS = "aimesh-workers"
    LEDGER = "aimesh-ledger"
    MESH = "aimesh-mesh"
    SECURITY = "aimesh-security"


class AlertUnit(StrEnum):
    """The unit of an alert's value."""

    #: The value is not shown.
    NONE = ""
    COUNT = "count"
    SECONDS = "seconds"
    #: From 0 to 1.
    SHARE = "share"
    #: A multiple of the usual value.
    TIMES = "times"
    #: Millionths of a credit.
    MICRO_CREDITS = "micro-credits"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """One condition. Rules with the same name share a runbook and differ in ``labels``."""

    name: str
    severity: Severity
    when: expressions.Expression
    #: How long the condition must hold before the alert fires.
    hold_seconds: int = 0
    #: One line for a phone. `{label}` is replaced by the value of that label.
    summary: str
    #: What it means for users, in one or two sentences, with the same replacement.
    description: str
    board: DashboardName
    unit: AlertUnit = AlertUnit.NONE
    #: Labels in addition to those of the condition.
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def runbook(self) -> str:
        """Return the path from the repository root."""
        return f"docs/runbooks/{self.name}.md"

    def shown(self, value: float) -> str:
        """Format a value; empty if it is not shown."""
        match self.unit:
            case AlertUnit.NONE:
                return ""
            case AlertUnit.COUNT:
                return f"{value:,.0f}"
            case AlertUnit.SECONDS:
                return _duration(value)
            case AlertUnit.SHARE:
                return f"{100 * value:.3g} %"
            case AlertUnit.TIMES:
                return f"{value:.3g} times as much"
            case AlertUnit.MICRO_CREDITS:
                return f"{value:,.0f} micro-credits"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
