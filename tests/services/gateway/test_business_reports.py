"""What a report may contain, and how the background job summarizes days."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import usage_reports
from services.gateway.usage_reports import BusinessReports
from services.gateway.usage_store import DaysStore
from shared import errors
from shared.api.business import MAX_DAYS, BusinessGrouping, GetBusinessReport
from shared.telemetry import Metrics
from shared.types import MicroCredits

SINCE = date(2026, 3, 1)


@given(st.dates(date(1000, 1, 1), date(3000, 1, 1)), st.integers(-MAX_DAYS * 2, MAX_DAYS * 2))
def test_a_report_covers_a_limited_number_of_days(since: date, days: int) -> None:
    query = GetBusinessReport(since, since + timedelta(days=days))
    if 1 <= days <= MAX_DAYS:
        usage_reports.check_period(query)
    else:
        with pytest.raises(errors.BadRequest, match=r"days; the limit is 750|since must be before until"):
            usage_reports.check_period(query)


@pytest.mark.parametrize("by", list(BusinessGrouping))
def test_a_label_requires_grouping_by_label(by: BusinessGrouping) -> None:
    query = GetBusinessReport(SINCE, SINCE + timedelta(days=1), by, "region")
    if by is BusinessGrouping.LABEL:
        usage_reports.check_period(query)
    else:
        with pytest.raises(errors.BadRequest, match="requires grouping by label"):
            usage_reports.check_period(query)


class Days(DaysStore):
    """A store with days to summarize; it records its calls."""

    def __init__(self, *stale: date) -> None:
        self.stale, self.done = list(stale), list[str]()

    async def open_days(self) -> None:
        self.done.append("open")

    async def roll_one(self) -> date | None:
        if not self.stale:
            return None
        self.done.append(f"roll {self.stale[0]}")
        return self.stale.pop(0)

    async def close_days(self, days: int) -> None:
        self.done.append(f"close after {days} days")

    async def compare_cost(self) -> float:
        return 1.6

    async def sum_upstream(self) -> MicroCredits:
        return MicroCredits(600_000_000)


async def test_days_are_summed_up_before_their_rows_are_deleted() -> None:
    days = Days(SINCE, SINCE + timedelta(days=1))
    metrics = Metrics("gateway")
    await BusinessReports(days, request_log_days=90).roll(metrics)
    assert days.done == ["open", "roll 2026-03-01", "roll 2026-03-02", "close after 90 days"]
    assert "ai_platform_cost_of_usual_ratio 1.6" in metrics.render()
    assert "upstream_of_month" not in metrics.render()


async def test_what_providers_cost_is_compared_with_the_limit_of_a_month() -> None:
    metrics = Metrics("gateway")
    await BusinessReports(Days(), request_log_days=90, upstream_monthly=500).roll(metrics)
    assert "ai_platform_upstream_of_month_ratio 1.2" in metrics.render()
