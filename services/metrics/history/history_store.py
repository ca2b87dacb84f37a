"""Read and write the history tables. The only module of the history that talks to PostgreSQL."""

import hashlib
from array import array
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime
from itertools import accumulate, groupby
from pathlib import Path

import asyncpg

from services.metrics.history import kept_series, rollup
from services.metrics.history.chart_lines import StoredPoint
from services.metrics.history.query_plan import QueryPlan
from services.metrics.history.rollup import RollupPiece, StoredRows
from services.metrics.history.row_reader import HistoryRow, Names
from shared import errors
from shared.api.gateway import Check
from shared.api.metrics import HistoryGrouping
from shared.stores import database
from shared.stores.replica_reads import DatabaseOptions

#: Enough for a year of hours, or a day of minutes of 200 nodes.
_READ_SECONDS = 20.0
_WRITE_SECONDS = 20.0
_NO_OPTIONS = DatabaseOptions()


@dataclass(frozen=True, slots=True)
class FoundRows:
    """The stored data for one query."""

    points: Sequence[StoredPoint]
    #: Step -> its observed seconds; empty unless a rate is requested.
    covered: Mapping[int, float]


class HistoryStore:
    """Every method can raise Unavailable."""

    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        pool_size: int = 10,
        *,
        migrate: bool = True,
        options: DatabaseOptions = _NO_OPTIONS,
    ) -> AsyncIterator["HistoryStore"]:
        """Raises Unavailable if PostgreSQL is down for 30 s, and BadSettings if it denies access."""
        package = Path(__file__).parents[1]
        try:
            async with database.Database.open(
                url, schema="metrics", package=package, pool_size=pool_size, migrate=migrate, options=options
            ) as opened:
                yield cls(opened)
        except asyncpg.PostgresError as error:
            # Mostly a role that may not create the schema. This must not stop the service.
            hint = "DATABASE_URL or METRICS_DATABASE_URL must name a role that may create the schema `metrics`"
            raise errors.BadSettings(f"PostgreSQL denies access to the history: {error}", hint=hint) from error

    async def check(self) -> Check:
        return await self._database.check()

    def check_replica(self) -> tuple[Check, ...]:
        return self._database.check_replica()

    async def ensure_layout(self, names: Names, today: date) -> int:
        digest = hashlib.sha256("\n".join(names).encode()).digest()
        return int(await self._database.value("ensure_layout", digest, list(names), today))

    async def write_looks(self, resolution: int, rows: Sequence[tuple[datetime, HistoryRow]], layouts: Mapping[Names, int]) -> None:
        """Write all rows or none."""
        numbers, firsts, lasts = _flat([row.values for _, row in rows])
        columns = (
            [at for at, _ in rows],
            [row.node for _, row in rows],
            [row.service for _, row in rows],
            [layouts[row.names] for _, row in rows],
            firsts,
        )
        await self._database.run("write_looks", resolution, *columns, numbers, lasts, deadline_seconds=_WRITE_SECONDS)

    async def write_rolled(self, resolution: int, at: datetime, rows: Sequence[StoredRows]) -> None:
        """Write the rolled-up rows of one time, in the order of ``rollup.roll``."""
        numbers, firsts, lasts = _flat([row.sums for row in rows])
        peaks, _, _ = _flat([row.peaks or row.sums for row in rows])
        parts = [part for _, of_one in groupby(rows, lambda row: (row.node, row.service)) for part, _ in enumerate(of_one)]
        columns = (
            [row.node for row in rows],
            [row.service for row in rows],
            parts,
            [row.layout for row in rows],
            [row.looks for row in rows],
        )
        await self._database.run("write_rolled", resolution, at, *columns, numbers, peaks, firsts, lasts, deadline_seconds=_WRITE_SECONDS)

    async def delete_before(self, resolution: int, before: datetime, after: datetime, most: int) -> int:
        """Delete old rows and those from ``after``, which is in the future. Returns their number."""
        return await self._database.run("delete_before", resolution, before, after, most, deadline_seconds=_WRITE_SECONDS)

    async def delete_layouts(self, before: date) -> int:
        return await self._database.run("delete_layouts", before)

    async def find_newest(self, resolution: int, now: datetime) -> datetime | None:
        found: datetime | None = await self._database.value("find_newest", resolution, now)
        return found

    async def find_next(self, resolution: int, since: datetime, before: datetime) -> datetime | None:
        found: datetime | None = await self._database.value("find_next", resolution, since, before)
        return found

    async def nodes(self, resolution: int, since: datetime, before: datetime) -> list[str]:
        rows = await self._database.rows("list_nodes", resolution, since, before, deadline_seconds=_READ_SECONDS)
        return [row["node"] for row in rows]

    async def rows(self, resolution: int, since: datetime, before: datetime, nodes: Sequence[str]) -> list[StoredRows]:
        found = await self._database.rows("list_rows", resolution, since, before, list(nodes), deadline_seconds=_READ_SECONDS)
        return [StoredRows(row["node"], row["service"], row["layout"], row["looks"], row["sums"], row["peaks"]) for row in found]

    async def lines(self, question: QueryPlan, by: Collection[HistoryGrouping], most: int) -> FoundRows:
        """Return at most ``most`` points."""
        is_divided = any(one.is_divided for one in question.wanted)
        async with self._database.transaction(deadline_seconds=_READ_SECONDS) as transaction:
            await transaction.value("plan_by_question")
            pieces = await _pieces(transaction, question)
            arguments = (
                [piece.resolution for piece in pieces],
                question.since,
                [piece.begin for piece in pieces],
                sorted({one.name for one in question.wanted}),
                question.step_seconds,
                HistoryGrouping.SERVICE in by,
                HistoryGrouping.NODE in by,
                most,
                [piece.before for piece in pieces],
                question.node,
                question.steps,
            )
            rows = await transaction.rows("read_lines", *arguments)
            covered = await _covered(transaction, question, pieces) if is_divided else {}
        points = [
            StoredPoint(row["service"], row["node"], row["name"], row["step"], row["growth"], row["mean"], row["nodes"], row["peak"])
            for row in rows
        ]
        return FoundRows(points, covered)


async def _pieces(transaction: database.Transaction, question: QueryPlan) -> list[RollupPiece]:
    """Return the pieces to read, up to the newest sample, so that a concurrent write cannot appear in part."""
    resolutions = (*rollup.FROM, rollup.RAW)
    newest = {resolution: await transaction.value("read_newest", resolution, question.until) for resolution in resolutions}
    seen = max((rollup.ends(last, resolution) for resolution, last in newest.items() if last is not None), default=question.until)
    return rollup.pieces(question.resolution, question.since, min(question.until, seen), newest)


async def _covered(transaction: database.Transaction, question: QueryPlan, pieces: Sequence[RollupPiece]) -> Mapping[int, float]:
    rows = await transaction.rows(
        "read_covered",
        [piece.resolution for piece in pieces],
        question.since,
        [piece.begin for piece in pieces],
        [piece.before for piece in pieces],
        question.step_seconds,
        *kept_series.WITNESS,
    )
    return {row["step"]: float(row["looks"] * rollup.RAW) for row in rows}


def _flat(arrays: Sequence[Sequence[float]]) -> tuple["array[float]", list[int], list[int]]:
    lasts = list(accumulate(len(one) for one in arrays))
    return (
        array("f", (number for one in arrays for number in one)),
        [last - len(one) + 1 for one, last in zip(arrays, lasts, strict=True)],
        lasts,
    )
