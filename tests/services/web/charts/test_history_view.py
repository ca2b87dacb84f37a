from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.web.charts import history_view
from services.web.charts.history_view import ChartUnit, Gap, Grid

GRID = Grid(datetime(2026, 11, 20, 12, 0, tzinfo=UTC), timedelta(minutes=1), 20)
_ = None


@pytest.mark.parametrize(
    ("values", "found"),
    [
        pytest.param((1.0, 2.0), [], id="nothing is missing"),
        pytest.param((1.0, _, _, 2.0), [Gap(1, 3)], id="a gap in the middle"),
        pytest.param((_, _, 1.0), [], id="before the beginning there was nothing to miss"),
        pytest.param((1.0, _, _), [], id="the newest look is not written yet"),
        pytest.param((1.0, _, _, _), [Gap(1, 4)], id="too long for that: it went away"),
        pytest.param((0.0, _, 0.0, _, 0.0), [Gap(1, 2), Gap(3, 4)], id="a zero is a number"),
        pytest.param((_, _, _, _), [], id="nothing ever"),
        pytest.param((), [], id="no steps"),
    ],
)
def test_gaps_between_steps(values: history_view.Values, found: list[Gap]) -> None:
    assert history_view.gaps(values) == found


@given(st.lists(st.none() | st.floats(0, 9), max_size=40))
def test_every_missing_step_is_in_a_gap_or_outside_the_line(values: list[float | None]) -> None:
    found = history_view.gaps(tuple(values))
    inside = {step for gap in found for step in range(gap.begin, gap.end)}
    assert all(values[step] is None for step in inside)
    first = history_view.first_known(tuple(values))
    rest = [step for step, value in enumerate(values) if value is None and step not in inside]
    ends = range(len(values) - history_view.NOT_YET, len(values))
    assert all(first is None or step < first or step in ends for step in rest)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], ""),
        ([Gap(3, 10)], "no data from 12:03 to 12:10"),
        ([Gap(3, 10), Gap(17, 20)], "no data from 12:03 to 12:10, since 12:17"),
        ([Gap(at, at + 1) for at in (1, 3, 5, 7)],
         "no data from 12:01 to 12:02, from 12:03 to 12:04, from 12:05 to 12:06, and 1 more gap"),
    ],
)  # fmt: skip
def test_gaps_are_described(found: list[Gap], words: str) -> None:
    assert history_view.describe_gaps(found, GRID) == words


def test_many_gaps_are_counted() -> None:
    assert history_view.describe_gaps([Gap(at, at + 1) for at in range(1, 19, 2)], GRID).endswith(", and 6 more gaps")


def test_moment_has_its_day_if_the_span_exceeds_a_day() -> None:
    grid = Grid(datetime(2026, 11, 1, tzinfo=UTC), timedelta(hours=4), 180)
    assert history_view.moment(grid.begins(2), grid) == "1 Nov 08:00"
    day = Grid(datetime(2026, 11, 1, tzinfo=UTC), timedelta(minutes=10), 144)
    assert history_view.moment(day.begins(2), day) == "00:20"


@pytest.mark.parametrize(
    ("unit", "value", "words"),
    [
        (ChartUnit.RATE, _, "–"),
        (ChartUnit.RATE, 0.0, "0"),
        (ChartUnit.RATE, 0.25, "0.25"),
        (ChartUnit.RATE, 0.0123, "0.012"),
        (ChartUnit.RATE, 12.34, "12.3"),
        (ChartUnit.RATE, 12_345.6, "12,346"),
        (ChartUnit.COUNT, 3.0, "3"),
        (ChartUnit.COUNT, 2.5, "2.5"),
        (ChartUnit.SHARE, 0.424, "42 %"),
        (ChartUnit.SHARE, 1.0, "100 %"),
        (ChartUnit.BYTES, 0.0, "0 B"),
        (ChartUnit.BYTES, 999.6, "1 kB"),
        (ChartUnit.BYTES, 123.4e9, "123 GB"),
        (ChartUnit.BYTES, 1e21, "1e+06 PB"),
        (ChartUnit.SECONDS, 0.084, "84 ms"),
        (ChartUnit.SECONDS, 0.0004, "0.4 ms"),
        (ChartUnit.SECONDS, 0.00996, "10 ms"),
        (ChartUnit.SECONDS, 0.0, "0 ms"),
        (ChartUnit.SECONDS, 2.5, "2.5 s"),
        (ChartUnit.CELSIUS, 71.4, "71 °C"),
    ],
)
def test_numbers_have_their_unit(unit: ChartUnit, value: float | None, words: str) -> None:
    assert history_view.text(unit, value) == words


def test_script_values_are_short_and_keep_gaps() -> None:
    assert history_view.written(ChartUnit.RATE, (0.0, 0.4251, _, 12.345, 1234.5, 0.00001)) == "0,.425,,12.3,1.23e3,1e-5"
    assert history_view.written(ChartUnit.SHARE, (0.0, 0.4251, 0.4, 1.0, 0.999, 0.001)) == "0,.43,.4,1,1,0"
    assert history_view.written(ChartUnit.CELSIUS, (71.4, _)) == "71,"
    assert history_view.written(ChartUnit.BYTES, (123.4e9,)) == "1.23e11"


@given(st.lists(st.none() | st.floats(0, 1e15), max_size=30), st.sampled_from(ChartUnit))
def test_script_values_are_close_to_the_originals(values: list[float | None], unit: ChartUnit) -> None:
    read = [float(each) if each else None for each in history_view.written(unit, tuple(values)).split(",")] if values else []
    assert len(read) == len(values)
    for before, after in zip(values, read, strict=True):
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert after == pytest.approx(
                before, rel=0.006, abs=0.51 if unit is ChartUnit.CELSIUS else 0.0051 if unit is ChartUnit.SHARE else 0
            )


def test_sums_and_shares_only_use_known_values() -> None:
    assert history_view.added((1.0, _, _), (2.0, 3.0, _)) == (3.0, 3.0, _)
    assert history_view.shared((1.0, _, 1.0, 1.0), (4.0, 4.0, _, 0.0)) == (0.25, _, _, _)


def test_missing_counter_is_zero_only_while_metrics_were_collected() -> None:
    assert history_view.counted((_, 2.0, _, _), (1.0, 1.0, 0.0, _)) == (0.0, 2.0, 0.0, _)


def test_latest_value_is_never_an_old_one() -> None:
    assert history_view.latest((1.0, 2.0, _, _)) == 2.0
    assert history_view.latest((2.0, _, _, _)) is None
    assert history_view.latest(()) is None


def test_series_of_different_length_are_aligned() -> None:
    grid = Grid(GRID.since, GRID.step, 3)
    assert grid.fit((1.0,)) == (1.0, _, _)
    assert grid.fit((1.0, 2.0, 3.0, 4.0)) == (1.0, 2.0, 3.0)
