"""What users are promised (SLOs), and the alerts for when the promise is being broken too fast.

Of an objective over 30 days, burning at 1 uses up exactly what it allows to go wrong. Each alert looks at a long window, so that
it means something, and at a short one, so that it ends soon after the trouble does (SRE workbook, chapter 5, table 5-8). Where
so little was asked that one request would do it, nothing is said.
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

#: Requests within the long window; with fewer, nothing is said.
LEAST_REQUESTS = 50

FAILED = (RequestStatus.ERROR.value, RequestStatus.TIMEOUT.value)
#: All but those that a limit refused or that their caller has to change. Those that their caller left are among the good ones.
ADMITTED = tuple(status.value for status in RequestStatus if status not in (RequestStatus.LIMITED, RequestStatus.REJECTED))
#: A bound of the buckets, as the label has it.
FIRST_TOKEN_BOUND = "2.5"  # noqa: S105 - seconds


@dataclass(frozen=True, slots=True)
class Burn:
    """How fast, seen over which windows, and what is done about it."""

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
    """A share of what is asked that must go well."""

    #: The name of its alert.
    name: str
    #: The middle of the names of what Prometheus records: `ai_platform:requests:error_ratio_rate5m`.
    recorded_as: str
    #: What is promised, for people.
    promise: str
    target: float
    all: Selector
    #: A subset of ``all``: those that went badly …
    bad: Selector | None = None
    #: … or those that went well.
    good: Selector | None = None
    by: tuple[str, ...] = ()
    summary: str
    board: DashboardName

    @property
    def allowed(self) -> float:
        """The share that may go badly."""
        return round(1 - self.target, 10)

    def bad_ratio(self, seconds: int) -> RecordedSeries:
        """The share that went badly within a window."""
        asked = grown(self.all, seconds, *self.by)
        ratio: Expression
        if self.bad is not None:
            ratio = Ratio(grown(self.bad, seconds, *self.by), asked)
        else:
            assert self.good is not None  # one of the two is given
            ratio = Complement(Ratio(grown(self.good, seconds, *self.by), asked))
        return RecordedSeries(f"ai_platform:{self.recorded_as}_rate{duration(seconds)}", ratio)


_STATUS = instruments.COMPLETED_REQUESTS

AVAILABILITY = Objective(
    name="availability_burn",
    recorded_as="requests:error_ratio",
    promise="99.9 % of the admitted requests end without an error or a timeout",
    target=0.999,
    all=series(_STATUS, status=ADMITTED),
    bad=series(_STATUS, status=FAILED),
    summary="Requests fail: the error budget of 30 days is being used up",
    board=DashboardName.OVERVIEW,
)
MODEL_AVAILABILITY = Objective(
    name="model_availability_burn",
    recorded_as="model_requests:error_ratio",
    promise="99.95 % of the admitted requests to each model end without an error or a timeout",
    target=0.9995,
    # A request for a model that nobody knows has none.
    all=replace(series(_STATUS, status=ADMITTED), without=(("model", ("",)),)),
    bad=replace(series(_STATUS, status=FAILED), without=(("model", ("",)),)),
    by=("model",),
    summary="Requests to {model} fail: its error budget of 30 days is being used up",
    board=DashboardName.WORKERS,
)
FIRST_TOKEN = Objective(
    name="first_token_burn",
    recorded_as="first_tokens:slow_ratio",
    promise="95 % of the answers begin within 2.5 s, waiting included",
    target=0.95,
    # Gateway and worker both measure it; the gateway's is what the caller feels.
    all=series(instruments.TTFT_SECONDS, suffix=COUNT, service="gateway"),
    good=series(instruments.TTFT_SECONDS, suffix=BUCKET, service="gateway", le=FIRST_TOKEN_BOUND),
    summary="Answers begin late: the budget of slow answers of 30 days is being used up",
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
            f"Promised: {objective.promise}. More than {threshold:.4%} went badly in the last {long} and in the last {short}; "
            f"at this speed the budget of 30 days is gone after {days:.2g} days."
        ),
        board=objective.board,
        unit=AlertUnit.SHARE,
        labels=(("window", long),),
    )


RULES = tuple(_burning(objective, burn) for objective in OBJECTIVES for burn in BURNS)


def windows_of(objective: Objective) -> tuple[int, ...]:
    """All that its alerts look at, the shortest first."""
    asked = {part.window.seconds for rule in RULES if rule.name == objective.name for part in walk(rule.when) if isinstance(part, Increase)}
    return tuple(sorted(asked))
