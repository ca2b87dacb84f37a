"""The cost of the history: the time to write and roll up a snapshot and to read a chart, and the size on disk per node and day.

PostgreSQL runs with durable commits. The bench writes two hours of snapshots of a few nodes for the sizes, some snapshots of all nodes for
the times, and a day of their minutes for the queries of the page of charts.
"""

import random
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import asyncpg

from bench import report
from bench.report import Options, Rows
from services.metrics.history import kept_series, query_plan, rollup
from services.metrics.history.history_store import HistoryStore
from services.metrics.history.history_writer import HistoryWriter
from services.metrics.history.row_reader import HistoryRow, MeshReading
from services.web.charts import history_queries
from shared.api.metrics import GetHistory, HistoryGrouping
from shared.stores import queries
from tests.servers import PostgresServer, running

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
KEEPS = {rollup.RAW: timedelta(hours=24), rollup.MINUTE: timedelta(days=7), rollup.HOUR: timedelta(days=730)}
ROWS_A_DAY = {rollup.RAW: 5760, rollup.MINUTE: 1440, rollup.HOUR: 24}
LOOKS = 490
#: The series on the page of charts, for each machine.
OF_A_MACHINE = tuple(history_queries.OF_MACHINE.values())

_SQL = {name: query.text for name, query in queries.load(Path(__file__).with_suffix(".sql")).items()}


async def _keep(store: HistoryStore, nodes: int, series: int) -> list[float]:
    """Return the milliseconds to write each snapshot and to roll up what is due."""

    async def nothing() -> str:
        return ""

    names = ("ai_platform_queue_depth", *(f'ai_platform_tokens_total{{model="m{number}"}}' for number in range(series - 1)))
    writer, draw, took = HistoryWriter(nothing, KEEPS), random.Random(nodes), []
    for number in range(LOOKS):
        at = BEGIN + timedelta(seconds=15 * number)
        made = [HistoryRow("inference", f"U{node:011d}", names, array("f", [draw.random() for _ in names])) for node in range(nodes)]
        writer._waiting.append(MeshReading(at, tuple(made), 0))
        writer._last = at
        began = time.perf_counter()
        await writer.keep(store)
        took.append((time.perf_counter() - began) * 1000)
    return took


async def _read(store: HistoryStore, asked: GetHistory, most_points: int) -> tuple[int, float]:
    """Return the number of points, and the seconds that reading them takes."""
    question = query_plan.read(asked, asked.until, KEEPS)
    began = time.perf_counter()
    points = (await store.lines(question, asked.by, most_points)).points
    return len(points), time.perf_counter() - began


@asynccontextmanager
async def _postgres(options: Options) -> AsyncIterator[PostgresServer]:
    assert options.nodes <= kept_series.MAX_NODES
    assert options.series <= kept_series.MAX_SERIES
    with running(partial(PostgresServer, durable=True)) as server:
        yield server


async def _measure_sizes(rows: Rows, server: PostgresServer, options: Options) -> None:
    url = server.url(await server.new_database())
    async with HistoryStore.open(url) as store:
        await _keep(store, 5, options.series)
    connection = await asyncpg.connect(url)
    try:
        sizes = {row["resolution"]: row["bytes"] for row in await connection.fetch(_SQL["measure_rows"])}
    finally:
        await connection.close()
    for resolution, kept in KEEPS.items():
        each = sizes[resolution] * ROWS_A_DAY[resolution]
        rows.alone(f"rows of {resolution} s, {options.series} series: per node and day", each / 1e6, "MB")
        rows.alone(f"rows of {resolution} s: per node, {kept.days} days", each * kept.days / 1e6, "MB")


async def _measure_looks(rows: Rows, server: PostgresServer, options: Options) -> None:
    async with HistoryStore.open(server.url(await server.new_database())) as store:
        took = sorted(await _keep(store, options.nodes, options.series))
        rows.alone(f"write a look of {options.nodes} nodes: median", took[len(took) // 2], "ms")
        rows.alone("the same with its minute rolled up: 99th of 100", took[int(len(took) * 0.99)], "ms")
        rows.alone("the same with an hour rolled up: the longest", took[-1], "ms")
        until = BEGIN + timedelta(seconds=15 * LOOKS)
        for step, by in ((15, ()), (60, ()), (60, (HistoryGrouping.NODE,)), (3600, ())):
            asked = GetHistory(("ai_platform_queue_depth",), BEGIN, until, step, by)
            points, seconds = await _read(store, asked, query_plan.MOST_POINTS)
            rows.alone(f"read two hours in steps of {step} s{' by node' if by else ''}, {points} points", 1000 * seconds, "ms")


async def _measure_day(rows: Rows, server: PostgresServer, options: Options) -> None:
    """Read a day in steps of ten minutes: all series of all machines, one series of all, and all series of one machine."""
    url = server.url(await server.new_database())
    by = (HistoryGrouping.SERVICE, HistoryGrouping.NODE)
    async with HistoryStore.open(url) as store:
        await _fill_day(url, options.nodes, options.series)
        for what, names, node in (
            (f"all of {options.nodes} machines", OF_A_MACHINE, None),
            (f"one number of {options.nodes} machines", OF_A_MACHINE[:1], None),
            ("all of one machine", OF_A_MACHINE, "UAAAAAAAAAA2"),
        ):
            asked = GetHistory(names, BEGIN, BEGIN + timedelta(days=1), 600, by, node)
            points, seconds = await _read(store, asked, 2 * query_plan.MOST_POINTS)
            rows.alone(f"read a day in steps of 600 s: {what}, {points} points", seconds, "s")


async def _fill_day(url: str, nodes: int, series: int) -> None:
    rest = tuple(f"ai_platform_other_{number}_total" for number in range(series - len(OF_A_MACHINE)))
    connection = await asyncpg.connect(url)
    try:
        for layout in range(4):
            names = (*rest[: 10 * layout], *OF_A_MACHINE, *rest[10 * layout :])
            await connection.execute(_SQL["add_layout"], bytes([layout]), names, BEGIN.date())
        await connection.execute(_SQL["fill_day"], BEGIN, nodes, series)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()


if __name__ == "__main__":
    parts: dict[str, report.Part] = {"sizes": _measure_sizes, "looks": _measure_looks, "a day": _measure_day}
    report.run(__doc__, parts, limits=(900.0, 180.0), setting=_postgres, nodes=(200, 20), series=(100, 100))
