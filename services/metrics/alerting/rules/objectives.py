"""Define the SLOs, and alerts for burning their error budgets too fast.

A burn rate of 1 uses up the error budget in exactly 30 days. Each alert uses a long window for significance, and a short one to resolve
soon after the problem ends (SRE workbook, chapter 5, table 5-8). With very few requests, no alert fires.
"""

from dataclasses import dataclass, replace

from services.metrics.alerting.rules.alert_rule import AlertRule, AlertUnit, DashboardName, Severity
from services.metrics.alerting.rules.expressions import (
    BUCKET,
    COUNT,
    DAY,
    HOUR,
    MINUTE,
    Both,
    Complement,
    Expression,
    Increase,
    Ratio,
    RecordedSeries,
    Selector,
    above,
    grown,
    series,
    walk,
)
from services.metrics.alerting.rules.promql import duration
from shared.telemetry import instruments
from shared.types import RequestStatus

LEAST_REQUESTS = 50

FAILED = (RequestStatus.ERROR.value, RequestStatus.TIMEOUT.value)
#: Without rate-limited and invalid requests. Canceled requests count as good.
ADMITTED = tuple(status.value for status in RequestStatus if status not in (RequestStatus.LIMITED, RequestStatus.REJECTED))
FIRST_TOKEN_BOUND = "2.5"  # noqa: S105 - seconds


@dataclass(frozen=True, slots=True)
class Burn:
    """A burn rate, its windows, and the severity of its alert."""

    rate: float
    long_seconds: int
    short_seconds: int
    severity: Severity


BURNS = (
    Burn(14.4, HOUR, 5 * MINUTE, Severity.PAGE),
    Burn(6, 6 * HOUR, 30 * MINUTE, Severity.PAGE),
    Burn(3, DAY, 2 * HOUR, Severity.TICKET),
    Burn(1, 3 * DAY, 6 * HOUR, Severity.TICKET),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The share of requests that must succeed."""

    name: str
    #: The middle of recorded names: `ai_platform:requests:error_ratio_rate5m`.
    recorded_as: str
    statement: str
    target: float
    all: Selector
    #: The failed part of ``all`` …
    bad: Selector | None = None
    #: … or the successful part.
    good: Selector | None = None
    by: tuple[str, ...] = ()
    summary: str
    board: DashboardName

    @property
    def allowed(self) -> float:
        """Return the share that may fail."""
        return round(1 - self.target, 10)

    def bad_ratio(self, seconds: int) -> RecordedSeries:
        """Return the share that failed within a window."""
        total = grown(self.all, seconds, *self.by)
        ratio: Expression
        if self.bad is not None:
            ratio = Ratio(grown(self.bad, seconds, *self.by), total)
        else:
            assert self.good is not None  # one of the two is set
            ratio = Complement(Ratio(grown(self.good, seconds, *self.by), total))
        return RecordedSeries(f"ai_platform:{self.recorded_as}_rate{duration(seconds)}", ratio)


_STATUS = instruments.COMPLETED_REQUESTS

AVAILABILITY = Objective(
    name="availability_burn",
    recorded_as="requests:error_ratio",
    statement="99.9 % of admitted requests succeed, without an error or a timeout",
    target=0.999,
    all=series(_STATUS, status=ADMITTED),
    bad=series(_STATUS, status=FAILED),
    summary="Requests are failing: the 30-day error budget is burning too fast",
    board=DashboardName.OVERVIEW,
)
MODEL_AVAILABILITY = Objective(
    name="model_availability_burn",
    recorded_as="model_requests:error_ratio",
    statement="99.95 % of admitted requests to each model succeed, without an error or a timeout",
    target=0.9995,
    # Requests for unknown models have no label.
    all=replace(series(_STATUS, status=ADMITTED), without=(("model", ("",)),)),
    bad=replace(series(_STATUS, status=FAILED), without=(("model", ("",)),)),
    by=("model",),
    summary="Requests to {model} are failing: its 30-day error budget is burning too fast",
    board=DashboardName.WORKERS,
)
FIRST_TOKEN = Objective(
    name="first_token_burn",
    recorded_as="first_tokens:slow_ratio",
    statement="95 % of answers start within 2.5 s, including queueing",
    target=0.95,
    # Gateway and worker both measure it; the gateway's is what callers see.
    all=series(instruments.TTFT_SECONDS, suffix=COUNT, service="gateway"),
    good=series(instruments.TTFT_SECONDS, suffix=BUCKET, service="gateway", le=FIRST_TOKEN_BOUND),
    summary="Answers start late: the 30-day budget for slow answers is burning too fast",
    board=DashboardName.OVERVIEW,
)
OBJECTIVES = (AVAILABILITY, MODEL_AVAILABILITY, FIRST_TOKEN)


def _burning(objective: Objective, burn: Burn) -> AlertRule:
    threshold = round(burn.rate * objective.allowed, 10)
    is_burning = Both(above(objective.bad_ratio(burn.long_seconds), threshold), above(objective.bad_ratio(burn.short_seconds), threshold))
    enough = above(grown(objective.all, burn.long_seconds, *objective.by), LEAST_REQUESTS)
    long, short = duration(burn.long_seconds), duration(burn.short_seconds)
    days = 30 / burn.rate
    return AlertRule(
        name=objective.name,
        severity=burn.severity,
        when=Both(is_burning, enough),
        summary=objective.summary,
        description=(
            f"Objective: {objective.statement}. More than {threshold:.4%} failed in the last {long} and in the last {short}. "
            f"At this rate, the 30-day budget is gone after {days:.2g} days."
        ),
        board=objective.board,
        unit=AlertUnit.SHARE,
        labels=(("window", long),),
    )


RULES = tuple(_burning(objective, burn) for objective in OBJECTIVES for burn in BURNS)


def windows_of(objective: Objective) -> tuple[int, ...]:
    """Return the windows of its alerts, shortest first."""
    spans = {part.window.seconds for rule in RULES if rule.name == objective.name for part in walk(rule.when) if isinstance(part, Increase)}
    return tuple(sorted(spans))
