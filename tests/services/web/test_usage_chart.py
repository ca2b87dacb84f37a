from datetime import date, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.web import usage_chart
from services.web.usage_chart import CHART_HEIGHT, SHOWN_DAYS, Day
from shared.api.usage import UsageDay
from shared.types import KeyId

TODAY = date(2026, 11, 20)


def row(days_ago: int, requests: int, tokens: int, key: int = 1) -> UsageDay:
    return UsageDay(TODAY - timedelta(days=days_ago), KeyId(UUID(int=key)), requests, tokens)


def test_the_keys_of_a_day_are_added_together() -> None:
    chart = usage_chart.draw([row(0, 2, 50), row(0, 3, 70, key=2)], TODAY)
    assert chart.bars[-1].day == Day(TODAY, 5, 120)


def test_every_day_of_the_month_has_a_bar_in_order() -> None:
    chart = usage_chart.draw([], TODAY)
    assert [bar.day.date for bar in chart.bars] == [TODAY - timedelta(days=ago) for ago in range(SHOWN_DAYS - 1, -1, -1)]


def test_days_before_the_month_are_left_out() -> None:
    chart = usage_chart.draw([row(SHOWN_DAYS, 9, 900), row(SHOWN_DAYS - 1, 1, 5)], TODAY)
    assert (chart.requests, chart.tokens) == (1, 5)
    assert chart.used_days == (Day(TODAY - timedelta(days=SHOWN_DAYS - 1), 1, 5),)


@pytest.mark.parametrize(
    ("most", "top"), [(0, 10), (10, 10), (11, 20), (20, 20), (21, 50), (51, 100), (48_000, 50_000), (100_001, 200_000)]
)
def test_the_scale_ends_at_a_round_number(most: int, top: int) -> None:
    assert usage_chart.draw([row(0, 1, most)], TODAY).top == top


def test_a_small_day_beside_a_large_one_is_still_visible() -> None:
    bars = usage_chart.draw([row(0, 1, 1), row(1, 1, 1_000_000)], TODAY).bars
    assert bars[-1].height >= 1


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10**6), st.integers(0, 10**15)), max_size=60))
def test_bars_stay_inside_the_drawing(rows: list[tuple[int, int, int]]) -> None:
    chart = usage_chart.draw([row(*values) for values in rows], TODAY)
    for bar in chart.bars:
        assert 0 <= bar.x <= bar.x + bar.width <= chart.width
        assert 0 <= bar.y <= bar.y + bar.height <= CHART_HEIGHT + 0.01
