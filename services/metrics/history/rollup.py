"""Times of the history, and how rows of a short time become one of a longer. Pure.

Rows are added up and never averaged, with the number of looks beside: so minutes made of looks and hours made of minutes are the
same as hours made of looks. Times are counted in UTC from 1970, where every minute and hour has the same length.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Final

from services.metrics.history.row_reader import MOST

#: Seconds of a row: as it was seen, and rolled up.
RAW: Final = 15
MINUTE: Final = 60
HOUR: Final = 3600
#: What is rolled up -> from what.
FROM: Final = {MINUTE: RAW, HOUR: MINUTE}


@dataclass(frozen=True, slots=True)
class StoredRows:
    """One row of a node as PostgreSQL has it."""

    node: str
    service: str
    layout: int
    looks: int
    sums: Sequence[float]
    #: None where there was but one look, whose numbers are the highest.
    peaks: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class RollupPiece:
    """A time, and the rows to read it from."""

    resolution: int
    begin: datetime
    before: datetime


def pieces(resolution: int, since: datetime, until: datetime, newest: Mapping[int, datetime | None]) -> list[RollupPiece]:
    """The rows of this resolution as far as it was rolled up, and behind them those that are yet to be. ``newest`` is the last row of
    each."""
    found = []
    begin = since
    for one in (*sorted((each for each in FROM if each <= resolution), reverse=True), RAW):
        last = newest.get(one)
        before = until if one == RAW else begin if last is None else min(until, max(begin, ends(last, one)))
        if begin < before:
            found.append(RollupPiece(one, begin, before))
            begin = before
    return found


def floor(at: datetime, seconds: int) -> datetime:
    """The beginning of the time of this length that it falls into."""
    return datetime.fromtimestamp(at.timestamp() // seconds * seconds, UTC)


def ends(begin: datetime, seconds: int) -> datetime:
    return begin + timedelta(seconds=seconds)


def roll(rows: Iterable[StoredRows]) -> list[StoredRows]:
    """All of one time: one row for each node and layout, always in the same order."""

    def key(row: StoredRows) -> tuple[str, str, int]:
        return row.node, row.service, row.layout

    return [_add(list(of_one)) for _, of_one in groupby(sorted(rows, key=key), key)]


def _add(rows: Sequence[StoredRows]) -> StoredRows:
    first = rows[0]
    sums = array("f", (_bounded(sum(column)) for column in zip(*(row.sums for row in rows), strict=True)))
    peaks = array("f", map(max, zip(*(row.sums if row.peaks is None else row.peaks for row in rows), strict=True)))
    return StoredRows(first.node, first.service, first.layout, sum(row.looks for row in rows), sums, peaks)


def _bounded(number: float) -> float:
    return max(-MOST, min(MOST, number))
