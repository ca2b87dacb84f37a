"""What an alert rule says."""

from dataclasses import dataclass
from enum import StrEnum

from services.metrics.alerting.rules import expressions


class Severity(StrEnum):
    """What is done about it, and how soon."""

    #: Somebody is woken: users are without answers, or something is false that must be true.
    PAGE = "page"
    #: Somebody looks within the hour.
    CRITICAL = "critical"
    #: Somebody looks today.
    WARNING = "warning"
    #: Somebody looks this week.
    TICKET = "ticket"
    #: Nothing: it says that alerts work.
    NONE = "none"


class DashboardName(StrEnum):
    """The uid of the dashboard that shows it."""

    OVERVIEW = "aimesh-overview"
    GATEWAY = "aimesh-gateway"
    WORKERS = "aimesh-workers"
    LEDGER = "aimesh-ledger"
    MESH = "aimesh-mesh"
    SECURITY = "aimesh-security"


class AlertUnit(StrEnum):
    """What an alert's value counts."""

    #: Nothing that says more than the alert does.
    NONE = ""
    COUNT = "count"
    SECONDS = "seconds"
    #: Of 1.
    SHARE = "share"
    #: As much as usual.
    TIMES = "times"
    #: Millionths of a credit.
    MICRO_CREDITS = "micro-credits"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """One condition. Rules of one name are one alert with one runbook; ``labels`` tell them apart."""

    name: str
    severity: Severity
    when: expressions.Expression
    #: How long the condition has to hold before the alert fires.
    hold_seconds: int = 0
    #: One line for a phone. `{label}` is the value of that label of the alert.
    summary: str
    #: What it means for users, in a sentence or two; `{label}` as above.
    description: str
    board: DashboardName
    unit: AlertUnit = AlertUnit.NONE
    #: Besides those of the condition.
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def runbook(self) -> str:
        """From the top of the repository."""
        return f"docs/runbooks/{self.name}.md"

    @property
    def label_names(self) -> frozenset[str]:
        """What its alerts have, besides name and severity."""
        return expressions.labels_of(self.when) | {label for label, _ in self.labels}

    def shown(self, value: float) -> str:
        """For people; empty where it says nothing."""
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
