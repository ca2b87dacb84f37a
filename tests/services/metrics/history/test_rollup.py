"""Rollups to minutes and hours lose nothing and count nothing twice; times are UTC."""

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from services.metrics.history import rollup
from services.metrics.history.rollup import RollupPiece, StoredRows

numbers = st.lists(st.integers(0, 1000).map(float), min_size=3, max_size=3)
raw_rows = st.lists(
    st.builds(StoredRows, st.sampled_from("ab"), st.just("inference"), st.integers(1, 2), st.just(1), numbers, st.none()), max_size=40
)


def comparable(rows: list[StoredRows]) -> list[tuple[object, ...]]:
    return [(row.node, row.service, row.layout, row.looks, list(row.sums), list(row.peaks or ())) for row in rows]


@given(raw_rows, st.integers(1, 7))
def test_rollup_of_rollups_equals_rollup_of_raw_rows(rows: list[StoredRows], size: int) -> None:
    minutes = [row for first in range(0, len(rows), size) for row in rollup.roll(rows[first : first + size])]
    assert comparable(rollup.roll(minutes)) == comparable(rollup.roll(rows))


@given(raw_rows)
def test_nothing_is_lost_or_counted_twice(rows: list[StoredRows]) -> None:
    rolled = rollup.roll(rows)
    assert sum(row.looks for row in rolled) == len(rows)
    assert sum(sum(row.sums) for row in rolled) == sum(sum(row.sums) for row in rows)
    assert max((max(row.peaks or ()) for row in rolled), default=0) == max((max(row.sums) for row in rows), default=0)


def test_sums_fit_into_four_bytes() -> None:
    (row,) = rollup.roll([StoredRows("a", "s", 1, 1, [3e38], None)] * 9)
    assert row.sums[0] < float("inf")


@given(st.integers(0, 4_000_000_000), st.sampled_from((15, 60, 3600)), st.integers(-12, 14))
def test_periods_start_at_utc_boundaries(at: int, seconds: int, hours: int) -> None:
    here = datetime.fromtimestamp(at, timezone(timedelta(hours=hours)))
    begin = rollup.floor(here, seconds)
    assert begin.tzinfo is UTC
    assert begin <= here < rollup.ends(begin, seconds)
    assert begin.timestamp() % seconds == 0


@given(st.sampled_from((15, 60, 3600)), st.integers(0, 5000), st.integers(1, 5000), st.none() | st.integers(0, 5000), st.integers(0, 90))
def test_each_moment_is_read_from_one_resolution(resolution: int, since: int, minutes: int, rolled: int | None, hours: int) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    begin, until = start + timedelta(minutes=since), start + timedelta(minutes=since + minutes)
    newest = {60: None if rolled is None else start + timedelta(minutes=rolled), 3600: start + timedelta(hours=hours)}
    pieces = rollup.pieces(resolution, begin, until, newest)
    assert [piece.begin for piece in pieces] == [begin, *(piece.before for piece in pieces)][:-1]
    assert pieces[-1].before == until
    assert [piece.resolution for piece in pieces] == sorted({piece.resolution for piece in pieces}, reverse=True)
    assert all(piece.resolution <= resolution for piece in pieces)


def test_time_without_rollup_is_read_from_raw_rows() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    hours = timedelta(hours=1)
    found = rollup.pieces(3600, at, at + 3 * hours, {3600: at, 60: at + hours + timedelta(minutes=30)})
    rest = at + hours + timedelta(minutes=31)
    assert found == [RollupPiece(3600, at, at + hours), RollupPiece(60, at + hours, rest), RollupPiece(15, rest, at + 3 * hours)]
