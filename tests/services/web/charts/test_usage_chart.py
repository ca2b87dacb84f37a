from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.web.charts import usage_chart
from services.web.charts.usage_chart import UsageMeasure, UsageSpan
from shared.api.usage_report import Bucket, UsageBucket, UsageSum, UsageSummary
from shared.types import MicroCredits

NOW = datetime(2026, 11, 20, 14, 5, 59, tzinfo=UTC)
BUSY = UsageSum(1200, 3, 2_000, 500, MicroCredits(1_500_000), 4, 840, 12_340)


def report(*sums: UsageSum) -> UsageSummary:
    first = datetime(2026, 11, 19, tzinfo=UTC)
    buckets = tuple(UsageBucket(first + timedelta(days=place), each) for place, each in enumerate(sums))
    return UsageSummary(UsageSum(), buckets, (), ())


def test_day_is_24_whole_hours_including_the_current_one() -> None:
    sent = usage_chart.of_span(UsageSpan.DAY, NOW)
    assert (sent.since, sent.until, sent.bucket) == (
        datetime(2026, 11, 19, 15, tzinfo=UTC), datetime(2026, 11, 20, 15, tzinfo=UTC), Bucket.HOUR,
    )  # fmt: skip


def test_month_is_30_whole_utc_days_including_today() -> None:
    # In Kiribati (UTC+14) it is already the next day.
    sent = usage_chart.of_span(UsageSpan.MONTH, NOW.astimezone(timezone(timedelta(hours=14))))
    assert (sent.since, sent.until) == (datetime(2026, 10, 22, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC))
    assert sent.bucket is Bucket.DAY


@given(st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)), st.sampled_from(UsageSpan))  # noqa: DTZ001 - Hypothesis takes its bounds without a zone
def test_last_bucket_contains_now(now: datetime, span: UsageSpan) -> None:
    sent = usage_chart.of_span(span, now)
    step = timedelta(hours=1) if sent.bucket is Bucket.HOUR else timedelta(days=1)
    assert sent.until - step <= now < sent.until


@pytest.mark.parametrize(
    ("measure", "kind", "drawn"),
    [
        (UsageMeasure.REQUESTS, "bars", "requests"),
        (UsageMeasure.TOKENS, "bars", "tokens"),
        (UsageMeasure.COST, "bars", "cost"),
        (UsageMeasure.LATENCY, "lines", "p50"),
    ],
)
def test_chosen_measure_is_drawn_and_the_others_are_in_the_table(measure: UsageMeasure, kind: str, drawn: str) -> None:
    chart = usage_chart.draw(report(BUSY), measure, Bucket.DAY)
    assert (chart.kind, chart.columns[0].name) == (kind, drawn)
    assert {column.name for column in chart.columns} == {"requests", "failed", "tokens", "cost", "p50", "p95"}


def test_only_columns_of_one_unit_are_drawn_as_lines() -> None:
    units = [column.unit for column in usage_chart.draw(report(), UsageMeasure.LATENCY, Bucket.DAY).columns]
    assert units == [" s", " s", "", "", "", ""]


def test_line_has_the_text_and_the_value() -> None:
    (line,) = usage_chart.draw(report(BUSY), UsageMeasure.COST, Bucket.DAY).lines
    assert (line.label, line.id) == ("19 Nov", "2026-11-19T00:00:00+00:00")
    assert (line.requests, line.requests_value, line.failed) == ("1,200", "1200", "3")
    assert (line.tokens, line.tokens_value) == ("2,500", "2500")
    assert (line.cost, line.cost_value) == ("1.50", "1.5")
    assert (line.p50, line.p50_value, line.p95, line.p95_value) == ("840 ms", "0.84", "12 s", "12.34")


def test_latency_without_answers_is_not_drawn() -> None:
    (line,) = usage_chart.draw(report(UsageSum()), UsageMeasure.LATENCY, Bucket.HOUR).lines
    assert (line.label, line.p95, line.p95_value, line.requests_value) == ("00:00", "–", "", "0")


def test_sums_have_details() -> None:
    line = usage_chart.summed(BUSY)
    assert (line.requests, line.requests_detail) == ("1,200", "3 failed, 4 cached")
    refused = usage_chart.summed(UsageSum(requests=7, refused=12))
    assert (refused.requests, refused.requests_detail) == ("7", "12 refused")
    assert (line.tokens, line.tokens_detail) == ("2,500", "2,000 in, 500 out")
    assert (line.p95, line.p95_detail) == ("12 s", "median 840 ms")
    nothing = usage_chart.summed(UsageSum())
    assert (nothing.is_used, nothing.requests, nothing.requests_detail, nothing.tokens_detail, nothing.p95_detail) == (
        False, "0", "", "", "",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("micro", "text"),
    [
        (0, "0"), (1, "0.000001"), (1_234, "0.001234"), (999_999, "0.999999"), (1_000_000, "1.00"), (1_004_999, "1.00"),
        (1_005_000, "1.01"), (1_999_999, "2.00"), (12_345_678_900_000, "12,345,678.90"), (10**18, "1,000,000,000,000.00"),
        (-2_500_000, "-2.50"), (-500, "-0.0005"),
    ],
)  # fmt: skip
def test_cost_is_easy_to_read(micro: int, text: str) -> None:
    assert usage_chart.cost(micro) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, "–"), (0, "0 ms"), (999, "999 ms"), (1000, "1.0 s"), (9_949, "9.9 s"), (9_960, "10 s"), (59_400, "59 s"),
        (59_600, "1 min"), (61_000, "1 min 1 s"), (3_600_000, "60 min"),
    ],
)  # fmt: skip
def test_latency_is_easy_to_read(milliseconds: int | None, text: str) -> None:
    assert usage_chart.latency(milliseconds) == text


@pytest.mark.parametrize("text", ["", "day'--", "DAY", "\0", "month "])
def test_invalid_choice_is_the_default(text: str) -> None:
    assert usage_chart.read_span(text) is UsageSpan.MONTH
    assert usage_chart.read_measure(text) is UsageMeasure.REQUESTS
