"""Format the values and gaps of one chart line. Pure.

Times are UTC. An unknown value is None, never 0, and leaves a gap in the line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import groupby

from services.web.charts import usage_chart
from services.web.charts.usage_chart import NOTHING

Values = tuple[float | None, ...]

#: The newest steps may not be collected or stored yet; they do not count as a gap.
NOT_YET = 2
#: How many gaps are listed; the rest are counted.
MAX_GAPS = 3
_DAY = timedelta(days=1)
#: Below this, durations show tenths of a millisecond.
_FEW_SECONDS = 0.00995
_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")


class ChartUnit(StrEnum):
    """The unit of a chart. series_table.js knows the same words."""

    RATE = "rate"
    #: From 0 to 1.
    SHARE = "share"
    BYTES = "bytes"
    SECONDS = "seconds"
    CELSIUS = "celsius"
    COUNT = "count"


@dataclass(frozen=True, slots=True)
class Grid:
    """The time steps that all lines of a page share."""

    since: datetime
    step: timedelta
    steps: int

    def begins(self, step: int) -> datetime:
        return self.since + step * self.step

    def fit(self, values: Values) -> Values:
        """Cut or pad values to the grid: two concurrent queries may have been answered at different steps."""
        return (*values[: self.steps], *[None] * (self.steps - len(values)))


@dataclass(frozen=True, slots=True)
class Gap:
    """A range of steps without values; ``end`` is exclusive."""

    begin: int
    end: int


def gaps(values: Values) -> list[Gap]:
    """Return the gaps after the first known value."""
    found, place = [], 0
    for is_known, group in groupby(values, lambda value: value is not None):
        begin, place = place, place + len(list(group))
        if not is_known and begin:
            found.append(Gap(begin, place))
    if found and found[-1].end == len(values) and found[-1].end - found[-1].begin <= NOT_YET:
        found.pop()
    return found


def first_known(values: Values) -> int | None:
    """Return the first step with a value."""
    return next((step for step, value in enumerate(values) if value is not None), None)


def describe_gaps(found: Sequence[Gap], grid: Grid) -> str:
    """Describe gaps, such as "no data from 12:03 to 12:10"; empty without gaps."""
    if not found:
        return ""
    parts = [_describe_gap(gap, grid) for gap in found[:MAX_GAPS]]
    more = len(found) - MAX_GAPS
    return "no data " + ", ".join(parts) + (f", and {more} more gaps" if more > 1 else ", and 1 more gap" if more == 1 else "")


def _describe_gap(gap: Gap, grid: Grid) -> str:
    if gap.end == grid.steps:
        return f"since {moment(grid.begins(gap.begin), grid)}"
    return f"from {moment(grid.begins(gap.begin), grid)} to {moment(grid.begins(gap.end), grid)}"


def moment(at: datetime, grid: Grid) -> str:
    """Format a time; with its day if the page shows more than one day."""
    at = at.astimezone(UTC)
    return f"{at:%H:%M}" if grid.steps * grid.step <= _DAY else f"{at.day} {at:%b %H:%M}"


def latest(values: Values) -> float | None:
    """Return the newest value, or None if it is too old."""
    return next((value for value in reversed(values[-NOT_YET - 1 :]) if value is not None), None)


def mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def lowest(values: Values) -> float | None:
    return min((value for value in values if value is not None), default=None)


def highest(values: Values) -> float | None:
    return max((value for value in values if value is not None), default=None)


def added(*columns: Values) -> Values:
    """Sum lines step by step. An unknown value counts as 0, unless all are unknown."""
    return tuple(None if all(value is None for value in row) else sum(value or 0.0 for value in row) for row in zip(*columns, strict=True))


def averaged(*columns: Values) -> Values:
    """Average lines step by step, ignoring unknown values."""
    return tuple(mean(row) for row in zip(*columns, strict=True))


def least(*columns: Values) -> Values:
    """Return the lowest known value of each step."""
    return tuple(lowest(row) for row in zip(*columns, strict=True))


def shared(parts: Values, wholes: Values) -> Values:
    return tuple(None if part is None or not whole else part / whole for part, whole in zip(parts, wholes, strict=True))


def counted(values: Values, witness: Values) -> Values:
    """Replace unknown counter values by 0 where ``witness`` shows that metrics were collected."""
    return tuple(0.0 if value is None and seen is not None else value for value, seen in zip(values, witness, strict=True))


def written(unit: ChartUnit, values: Values) -> str:
    """Write values for the script, as short as possible: a page has ten thousand of them."""
    return ",".join("" if value is None else _short(unit, value) for value in values)


def _short(unit: ChartUnit, value: float) -> str:
    if unit is ChartUnit.CELSIUS:
        return f"{value:.0f}"
    digits, _, power = (f"{value:.2f}".rstrip("0").rstrip(".") if unit is ChartUnit.SHARE else f"{value:.3g}").partition("e")
    digits = digits.removeprefix("0") if digits.startswith("0.") else digits
    return f"{digits}e{int(power)}" if power else digits


def text(unit: ChartUnit, value: float | None) -> str:
    if value is None:
        return NOTHING
    match unit:
        case ChartUnit.SHARE:
            return f"{value * 100:.0f} %"
        case ChartUnit.BYTES:
            return _bytes(value)
        case ChartUnit.SECONDS:
            # Local round trips take tenths of a millisecond.
            return f"{value * 1000:.1f} ms" if 0 < value < _FEW_SECONDS else usage_chart.latency(round(value * 1000))
        case ChartUnit.CELSIUS:
            return f"{value:.0f} °C"
        case ChartUnit.RATE | ChartUnit.COUNT:
            return _plain(value)


def _plain(value: float) -> str:
    if value >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _bytes(value: float) -> str:
    size = 0
    while value >= 999.5 and size < len(_BYTES) - 1:
        value, size = value / 1000, size + 1
    return f"{value:.3g} {_BYTES[size]}"
