"""The chart of the dashboard: usage rows in, bars out. Pure; the caller brings the date."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

from shared.api.usage import UsageDay

SHOWN_DAYS = 30
#: Units of the drawing; the page stretches it to its own width.
BAR_STEP, CHART_HEIGHT = 10, 100
_BAR_WIDTH = 7
#: A day with any usage is visible, however small beside the others.
_LEAST_HEIGHT = 1.5


@dataclass(frozen=True, slots=True)
class Day:
    date: date
    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Bar:
    day: Day
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Chart:
    #: Oldest first, days without usage included.
    bars: tuple[Bar, ...]
    #: What the full height stands for, in tokens.
    top: int
    width: int
    height: int

    @property
    def used_days(self) -> tuple[Day, ...]:
        """The days with any request, newest first."""
        return tuple(bar.day for bar in reversed(self.bars) if bar.day.requests)

    @property
    def requests(self) -> int:
        return sum(bar.day.requests for bar in self.bars)

    @property
    def tokens(self) -> int:
        return sum(bar.day.tokens for bar in self.bars)


def draw(rows: Iterable[UsageDay], today: date) -> Chart:
    """The last 30 days up to ``today``, with the keys of a day added together."""
    days = _by_day(rows, today)
    top = _round_up(max(day.tokens for day in days))
    bars = []
    for place, day in enumerate(days):
        height = max(_LEAST_HEIGHT, CHART_HEIGHT * day.tokens / top) if day.tokens else 0.0
        bars.append(Bar(day, place * BAR_STEP + (BAR_STEP - _BAR_WIDTH) / 2, round(CHART_HEIGHT - height, 2), _BAR_WIDTH, round(height, 2)))
    return Chart(tuple(bars), top, SHOWN_DAYS * BAR_STEP, CHART_HEIGHT)


def _by_day(rows: Iterable[UsageDay], today: date) -> list[Day]:
    requests: dict[date, int] = {}
    tokens: dict[date, int] = {}
    for row in rows:
        requests[row.date] = requests.get(row.date, 0) + row.request_count
        tokens[row.date] = tokens.get(row.date, 0) + row.tokens_used
    shown = [today - timedelta(days=ago) for ago in reversed(range(SHOWN_DAYS))]
    return [Day(day, requests.get(day, 0), tokens.get(day, 0)) for day in shown]


def _round_up(most: int) -> int:
    """The next 1, 2 or 5 with zeros: a scale that people read at a glance. At least 10."""
    scale = 10
    while True:
        for step in (1, 2, 5):
            if most <= step * scale:
                return step * scale
        scale *= 10
