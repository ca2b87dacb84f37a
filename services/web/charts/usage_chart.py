"""Describe usage for the usage charts and the figures above them. Pure.

A line has only strings, because templates and live events share it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from shared import amounts
from shared.api.usage_report import Bucket, GetUsageReport, UsageBucket, UsageSum, UsageSummary

#: Shown for missing values.
NOTHING = "–"
HOURS_OF_A_DAY, DAYS_OF_A_MONTH = 24, 30
_MILLISECONDS, _SECONDS_OF_A_MINUTE = 1000, 60


class UsageMeasure(StrEnum):
    """The figure that a chart shows."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    COST = "cost"
    LATENCY = "latency"


class UsageSpan(StrEnum):
    """The period that the overview shows."""

    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class ChartColumn:
    """A field of BucketLine as a table column."""

    name: str
    label: str
    #: The unit on the scale; a chart draws only columns with the same unit.
    unit: str = ""


_COLUMNS = {
    UsageMeasure.REQUESTS: (ChartColumn("requests", "Requests"), ChartColumn("failed", "Failed")),
    UsageMeasure.TOKENS: (ChartColumn("tokens", "Tokens"),),
    UsageMeasure.COST: (ChartColumn("cost", "Cost (credits)"),),
    UsageMeasure.LATENCY: (ChartColumn("p50", "Median latency", " s"), ChartColumn("p95", "p95 latency", " s")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketLine:
    """An hour or a day. The chart draws the ``…_value`` fields; empty means a gap."""

    id: str = ""
    label: str = ""
    requests: str = ""
    requests_value: str = ""
    failed: str = ""
    failed_value: str = ""
    tokens: str = ""
    tokens_value: str = ""
    cost: str = ""
    cost_value: str = ""
    p50: str = ""
    p50_value: str = ""
    p95: str = ""
    p95_value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SumLine:
    """The totals of the period; details are empty where there are none."""

    is_used: bool = False
    requests: str = NOTHING
    requests_detail: str = ""
    tokens: str = NOTHING
    tokens_detail: str = ""
    cost: str = NOTHING
    cost_detail: str = ""
    p95: str = NOTHING
    p95_detail: str = ""


@dataclass(frozen=True, slots=True)
class UsageChart:
    measure: UsageMeasure
    #: Drawn columns first.
    columns: tuple[ChartColumn, ...]
    #: Oldest first, including buckets without requests.
    lines: tuple[BucketLine, ...]

    @property
    def kind(self) -> str:
        """Return the chart type: bars for sums, lines for latency."""
        return "lines" if self.measure is UsageMeasure.LATENCY else "bars"


def last_day(now: datetime) -> GetUsageReport:
    """Return the request for 24 whole hours, including the current one."""
    end = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    return GetUsageReport(since=end - timedelta(hours=HOURS_OF_A_DAY), until=end, bucket=Bucket.HOUR)


def last_days(now: datetime, days: int = DAYS_OF_A_MONTH) -> GetUsageReport:
    """Return the request for whole days, including today."""
    end = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return GetUsageReport(since=end - timedelta(days=days), until=end)


def of_span(span: UsageSpan, now: datetime) -> GetUsageReport:
    return last_day(now) if span is UsageSpan.DAY else last_days(now)


def read_measure(text: str) -> UsageMeasure:
    """Return the measure for a query parameter; unknown values mean requests."""
    return UsageMeasure(text) if text in set(UsageMeasure) else UsageMeasure.REQUESTS


def read_span(text: str) -> UsageSpan:
    return UsageSpan(text) if text in set(UsageSpan) else UsageSpan.MONTH


def draw(report: UsageSummary, measure: UsageMeasure, bucket: Bucket) -> UsageChart:
    rest = [column for other, columns in _COLUMNS.items() if other is not measure for column in columns]
    return UsageChart(measure, (*_COLUMNS[measure], *rest), lines(report.buckets, bucket))


def lines(buckets: Iterable[UsageBucket], bucket: Bucket) -> tuple[BucketLine, ...]:
    return tuple(_line(each, bucket) for each in buckets)


def summed(total: UsageSum) -> SumLine:
    details = [f"{number(total.errors)} failed"] if total.errors else []
    details += [f"{number(total.refused)} refused"] if total.refused else []
    details += [f"{number(total.cached)} cached"] if total.cached else []
    return SumLine(
        is_used=total.requests > 0,
        requests=number(total.requests),
        requests_detail=", ".join(details),
        tokens=number(total.prompt_tokens + total.completion_tokens),
        tokens_detail=in_and_out(total.prompt_tokens, total.completion_tokens) if total.requests else "",
        cost=cost(total.cost_micro),
        cost_detail="credits",
        p95=latency(total.p95_ms),
        p95_detail="" if total.p50_ms is None else f"median {latency(total.p50_ms)}",
    )


def _line(piece: UsageBucket, bucket: Bucket) -> BucketLine:
    at, total = piece.at.astimezone(UTC), piece.sum
    tokens = total.prompt_tokens + total.completion_tokens
    return BucketLine(
        id=at.isoformat(),
        label=f"{at.day} {at:%b}" if bucket is Bucket.DAY else f"{at:%H:%M}",
        requests=number(total.requests),
        requests_value=str(total.requests),
        failed=number(total.errors),
        failed_value=str(total.errors),
        tokens=number(tokens),
        tokens_value=str(tokens),
        cost=cost(total.cost_micro),
        cost_value=amounts.written(total.cost_micro),
        p50=latency(total.p50_ms),
        p50_value=_seconds(total.p50_ms),
        p95=latency(total.p95_ms),
        p95_value=_seconds(total.p95_ms),
    )


def number(value: int) -> str:
    return f"{value:,}"


def in_and_out(prompt_tokens: int, completion_tokens: int) -> str:
    return f"{number(prompt_tokens)} in, {number(completion_tokens)} out"


def cost(micro: int) -> str:
    """Format credits with two decimals, or with all decimals below 1."""
    if abs(micro) < amounts.read("1"):
        return amounts.written(micro)
    # Round half up in integers: sums can exceed the precision of a float.
    whole, part = divmod((abs(micro) + 5_000) // 10_000, 100)
    return f"{'-' if micro < 0 else ''}{whole:,}.{part:02}"


def latency(milliseconds: int | None) -> str:
    """Format a duration with at most three digits, in minutes from one minute up."""
    if milliseconds is None:
        return NOTHING
    if milliseconds < _MILLISECONDS:
        return f"{milliseconds} ms"
    seconds = milliseconds / _MILLISECONDS
    if round(seconds) < _SECONDS_OF_A_MINUTE:
        return f"{seconds:.1f} s" if round(seconds, 1) < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), _SECONDS_OF_A_MINUTE)
    return f"{number(minutes)} min {rest} s" if rest else f"{number(minutes)} min"


def _seconds(milliseconds: int | None) -> str:
    return "" if milliseconds is None else amounts.written(milliseconds, 3)
