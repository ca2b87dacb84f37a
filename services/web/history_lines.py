"""One line of a chart of the history: its numbers as texts, and where it has none, in words. Pure.

Times are UTC. A number that is not known is None and never 0, and a line stays broken there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import groupby

from services.web import usage_chart
from services.web.usage_chart import NOTHING

Values = tuple[float | None, ...]

#: The newest steps may have no look yet, or one that is not written: nobody is told of these as a gap.
NOT_YET = 2
#: Of gaps in words; how many more there are is said.
MOST_GAPS = 3
_DAY = timedelta(days=1)
#: Below them a millisecond is too much to be rounded to.
_FEW_SECONDS = 0.00995
_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")


class Unit(StrEnum):
    """What a number means; the scripts know the same words."""

    RATE = "rate"
    #: From 0 to 1.
    SHARE = "share"
    BYTES = "bytes"
    SECONDS = "seconds"
    CELSIUS = "celsius"
    COUNT = "count"


@dataclass(frozen=True, slots=True)
class Grid:
    """When the steps are that all lines of a page have."""

    since: datetime
    step: timedelta
    steps: int

    def begins(self, step: int) -> datetime:
        return self.since + step * self.step

    def fit(self, values: Values) -> Values:
        """As long as the others: two questions at once may have been answered in different steps."""
        return (*values[: self.steps], *[None] * (self.steps - len(values)))


@dataclass(frozen=True, slots=True)
class Gap:
    """Steps without a number, from the first one to the one behind the last."""

    begin: int
    end: int


def gaps(values: Values) -> list[Gap]:
    """Between what is known and behind it; before it there was nothing yet."""
    found, place = [], 0
    for is_known, group in groupby(values, lambda value: value is not None):
        begin, place = place, place + len(list(group))
        if not is_known and begin:
            found.append(Gap(begin, place))
    if found and found[-1].end == len(values) and found[-1].end - found[-1].begin <= NOT_YET:
        found.pop()
    return found


def first_known(values: Values) -> int | None:
    """The first step with a number."""
    return next((step for step, value in enumerate(values) if value is not None), None)


def say_gaps(found: Sequence[Gap], grid: Grid) -> str:
    """Such as "no data from 12:03 to 12:10"; empty where there is no gap."""
    if not found:
        return ""
    parts = [_say_gap(gap, grid) for gap in found[:MOST_GAPS]]
    more = len(found) - MOST_GAPS
    return "no data " + ", ".join(parts) + (f", and in {more} more gaps" if more > 1 else ", and in one more gap" if more == 1 else "")


def _say_gap(gap: Gap, grid: Grid) -> str:
    if gap.end == grid.steps:
        return f"since {moment(grid.begins(gap.begin), grid)}"
    return f"from {moment(grid.begins(gap.begin), grid)} to {moment(grid.begins(gap.end), grid)}"


def moment(at: datetime, grid: Grid) -> str:
    """With its day where the page shows more than one."""
    at = at.astimezone(UTC)
    return f"{at:%H:%M}" if grid.steps * grid.step <= _DAY else f"{at.day} {at:%b %H:%M}"


# --- numbers -----------------------------------------------------------------------------------------------------------


def latest(values: Values) -> float | None:
    """The newest number, if it is not old."""
    return next((value for value in reversed(values[-NOT_YET - 1 :]) if value is not None), None)


def mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def lowest(values: Values) -> float | None:
    return min((value for value in values if value is not None), default=None)


def highest(values: Values) -> float | None:
    return max((value for value in values if value is not None), default=None)


def added(*columns: Values) -> Values:
    """Step by step; what one of them does not know counts for nothing, and what none knows is not known."""
    return tuple(None if all(value is None for value in row) else sum(value or 0.0 for value in row) for row in zip(*columns, strict=True))


def shared(parts: Values, wholes: Values) -> Values:
    return tuple(None if part is None or not whole else part / whole for part, whole in zip(parts, wholes, strict=True))


def counted(values: Values, witness: Values) -> Values:
    """A counter that was not there has counted nothing, as long as somebody looked: ``witness`` has a number then."""
    return tuple(0.0 if value is None and seen is not None else value for value, seen in zip(values, witness, strict=True))


def written(unit: Unit, values: Values) -> str:
    """For the scripts, and short: a page has ten thousand of them, and a screen shows no more digits."""
    return ",".join("" if value is None else _short(unit, value) for value in values)


def _short(unit: Unit, value: float) -> str:
    """Such as .42 and 123e9."""
    if unit is Unit.CELSIUS:
        return f"{value:.0f}"
    digits, _, power = (f"{value:.2f}".rstrip("0").rstrip(".") if unit is Unit.SHARE else f"{value:.3g}").partition("e")
    digits = digits.removeprefix("0") if digits.startswith("0.") else digits
    return f"{digits}e{int(power)}" if power else digits


def text(unit: Unit, value: float | None) -> str:
    if value is None:
        return NOTHING
    match unit:
        case Unit.SHARE:
            return f"{value * 100:.0f} %"
        case Unit.BYTES:
            return _bytes(value)
        case Unit.SECONDS:
            # Round trips within a house are of tenths of a millisecond.
            return f"{value * 1000:.1f} ms" if 0 < value < _FEW_SECONDS else usage_chart.latency(round(value * 1000))
        case Unit.CELSIUS:
            return f"{value:.0f} °C"
        case Unit.RATE | Unit.COUNT:
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
