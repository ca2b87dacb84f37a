"""Roll up rows of the history to coarser resolutions. Pure.

Rows are summed and never averaged, and they count their samples, so hours made from minutes equal hours made from samples. Periods are
aligned to UTC since 1970, where every minute and hour has the same length.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Final

from services.metrics.history.row_reader import MAX

RAW: Final = 15
MINUTE: Final = 60
HOUR: Final = 3600
#: Resolution -> the finer one it is made from.
FROM: Final = {MINUTE: RAW, HOUR: MINUTE}


@dataclass(frozen=True, slots=True)
class StoredRows:
    """One row of a node in PostgreSQL."""

    node: str
    service: str
    layout: int
    looks: int
    sums: Sequence[float]
    #: None for a single sample, whose values are the peaks.
    peaks: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class RollupPiece:
    """A period, and the resolution to read it from."""

    resolution: int
    begin: datetime
    before: datetime


def pieces(resolution: int, since: datetime, until: datetime, newest: Mapping[int, datetime | None]) -> list[RollupPiece]:
    """Return the rows of this resolution as far as they exist, then finer ones. ``newest`` has the last row of each resolution."""
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
    """Return the start of the period that contains ``at``."""
    return datetime.fromtimestamp(at.timestamp() // seconds * seconds, UTC)


def ends(begin: datetime, seconds: int) -> datetime:
    return begin + timedelta(seconds=seconds)


def roll(rows: Iterable[StoredRows]) -> list[StoredRows]:
    """Sum the rows of one period by node and layout, in a fixed order."""

    def key(row: StoredRows) -> tuple[str, str, int]:
        return row.node, row.service, row.layout

    return [_add(list(of_one)) for _, of_one in groupby(sorted(rows, key=key), key)]


def _add(rows: Sequence[StoredRows]) -> StoredRows:
    first = rows[0]
    sums = array("f", (max(-MAX, min(MAX, sum(column))) for column in zip(*(row.sums for row in rows), strict=True)))
    peaks = array("f", map(max, zip(*(row.sums if row.peaks is None else row.peaks for row in rows), strict=True)))
    return StoredRows(first.node, first.service, first.layout, sum(row.looks for row in rows), sums, peaks)
