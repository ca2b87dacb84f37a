"""The cost of the history: the time to write and roll up a snapshot and to read a chart, and the size on disk per node and day.

    python -m bench.history [--quick] [--nodes 200] [--series 100] [--json FILE]

PostgreSQL runs with durable commits. The bench writes two hours of snapshots of a few nodes for the sizes, some snapshots of all nodes for
the times, and a day of their minutes for the queries of the page of charts.
"""

import random
import time
from array import array
from datetime import UTC, datetime, timedelta
from functools import partial

import asyncpg

from bench import report
from services.metrics.history import kept_series, query_plan, rollup
from services.metrics.history.history_store import HistoryStore
from services.metrics.history.history_writer import HistoryWriter
from services.metrics.history.row_reader import HistoryRow, MeshReading
from services.web.charts import history_questions
from shared.api.metrics import GetHistory, HistoryGrouping
from tests.servers import PostgresServer, running

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
KEEPS = {rollup.RAW: timedelta(hours=24), rollup.MINUTE: timedelta(days=7), rollup.HOUR: timedelta(days=730)}
ROWS_A_DAY = {rollup.RAW: 5760, rollup.MINUTE: 1440, rollup.HOUR: 24}
SIZE_NODES, SIZE_LOOKS, TIMED_LOOKS = 5, 490, 490
#: The series on the page of charts, for each machine.
OF_A_MACHINE = tuple(history_questions.OF_MACHINE.values())

#: A day of minutes; the nodes have four layouts.
_LAYOUT = "INSERT INTO metrics.layouts (digest, names, used_on) VALUES ($1, $2, $3)"
_DAY = """
INSERT INTO metrics.snapshots (resolution, at, node, service, part, layout, looks, sums, peaks)
SELECT 60, $1::timestamptz + minute * interval '1 minute', 'U' || translate(lpad(node::text, 11, '0'), '0189', 'ABCD'), 'inference', 0,
       1 + node % 4, 4, array_fill(node::real, ARRAY[$3::integer]), array_fill(node::real, ARRAY[$3::integer])
FROM generate_series(0, 1439) AS minute, generate_series(1, $2::integer) AS node
"""
_SIZES = "SELECT resolution, avg(pg_column_size(s.*)) AS own, count(*) AS rows FROM metrics.snapshots s GROUP BY 1"


def look(number: int, nodes: int, names: tuple[str, ...], draw: random.Random) -> MeshReading:
    at = BEGIN + timedelta(seconds=15 * number)
    rows = tuple(HistoryRow("inference", f"U{node:011d}", names, array("f", [draw.random() for _ in names])) for node in range(nodes))
    return MeshReading(at, rows, 0)


async def _nothing() -> str:
    return ""


async def keep(store: HistoryStore, looks: int, nodes: int, names: tuple[str, ...]) -> list[float]:
    """Return the milliseconds to write each snapshot and to roll up what is due."""
    keeper, draw, took = HistoryWriter(_nothing, KEEPS), random.Random(nodes), []
    for number in range(looks):
        made = look(number, nodes, names, draw)
        keeper._waiting.append(made)
        keeper._last = made.at
        began = time.perf_counter()
        await keeper.keep(store)
        took.append((time.perf_counter() - began) * 1000)
    return took


async def measure(table: report.Table, server: PostgresServer, nodes: int, series: int) -> None:
    table.expect(("sizes", "looks", "a day"))
    names = (*("ai_platform_queue_depth", *(f'ai_platform_tokens_total{{model="m{number}"}}' for number in range(series - 1))),)
    with table.part("sizes") as rows:
        await measure_sizes(rows, server, names)
    with table.part("looks") as rows:
        await measure_looks(rows, server, nodes, names)
    with table.part("a day") as rows:
        await measure_day(rows, server, nodes, series)


async def measure_sizes(rows: list[report.Row], server: PostgresServer, names: tuple[str, ...]) -> None:
    small = server.url(await server.new_database())
    async with HistoryStore.open(small) as store:
        await keep(store, SIZE_LOOKS, SIZE_NODES, names)
    sizes = await _bytes_a_row(small)
    for resolution, days in ((rollup.RAW, 1), (rollup.MINUTE, 7), (rollup.HOUR, 730)):
        each = sizes[resolution] * ROWS_A_DAY[resolution]
        rows.append(report.alone(f"rows of {resolution} s, {len(names)} series: per node and day", each / 1e6, "MB"))
        rows.append(report.alone(f"rows of {resolution} s: per node, {days} days", each * days / 1e6, "MB"))


async def measure_looks(rows: list[report.Row], server: PostgresServer, nodes: int, names: tuple[str, ...]) -> None:
    url = server.url(await server.new_database())
    async with HistoryStore.open(url) as store:
        took = sorted(await keep(store, TIMED_LOOKS, nodes, names))
        rows.append(report.alone(f"write a look of {nodes} nodes: median", took[len(took) // 2], "ms"))
        rows.append(report.alone("the same with its minute rolled up: 99th of 100", took[int(len(took) * 0.99)], "ms"))
        rows.append(report.alone("the same with an hour rolled up: the longest", took[-1], "ms"))
        for step, by in ((15, ()), (60, ()), (60, (HistoryGrouping.NODE,)), (3600, ())):
            until = BEGIN + timedelta(seconds=15 * TIMED_LOOKS)
            question = query_plan.read(GetHistory(("ai_platform_queue_depth",), BEGIN, until, step, by), until, KEEPS)
            began = time.perf_counter()
            points = (await store.lines(question, by, query_plan.MOST_POINTS)).points
            ms = (time.perf_counter() - began) * 1000
            claim = f"read two hours of them in steps of {step} s{' by node' if by else ''}, {len(points)} points"
            rows.append(report.alone(claim, ms, "ms"))


async def measure_day(rows: list[report.Row], server: PostgresServer, nodes: int, series: int) -> None:
    """Read a day in steps of ten minutes: all series of all machines, one series of all, and all series of one machine."""
    url = server.url(await server.new_database())
    until = BEGIN + timedelta(days=1)
    async with HistoryStore.open(url) as store:
        await _fill_day(url, nodes, series)
        by = (HistoryGrouping.SERVICE, HistoryGrouping.NODE)
        for what, names, node in (
            (f"all of {nodes} machines", OF_A_MACHINE, None),
            (f"one number of {nodes} machines", OF_A_MACHINE[:1], None),
            ("all of one machine", OF_A_MACHINE, "UAAAAAAAAAA2"),
        ):
            question = query_plan.read(GetHistory(names, BEGIN, until, 600, by, node), until, KEEPS)
            began = time.perf_counter()
            points = (await store.lines(question, by, 2 * query_plan.MOST_POINTS)).points
            seconds = time.perf_counter() - began
            rows.append(report.alone(f"read a day in steps of 600 s: {what}, {len(points)} points", seconds, "s"))


async def _fill_day(url: str, nodes: int, series: int) -> None:
    rest = tuple(f"ai_platform_other_{number}_total" for number in range(series - len(OF_A_MACHINE)))
    connection = await asyncpg.connect(url)
    try:
        for layout in range(4):
            names = (*rest[: 10 * layout], *OF_A_MACHINE, *rest[10 * layout :])
            await connection.execute(_LAYOUT, bytes([layout]), names, BEGIN.date())
        await connection.execute(_DAY, BEGIN, nodes, series)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()


async def _bytes_a_row(url: str) -> dict[int, float]:
    """Return the bytes of a row by resolution: its own size and an equal share of the index and the overhead."""
    connection = await asyncpg.connect(url)
    try:
        found = await connection.fetch(_SIZES)
        whole = await connection.fetchval("SELECT pg_total_relation_size('metrics.snapshots')")
    finally:
        await connection.close()
    own = sum(row["own"] * row["rows"] for row in found)
    around = (whole - float(own)) / sum(row["rows"] for row in found)
    return {row["resolution"]: float(row["own"]) + around for row in found}


async def _measure(table: report.Table, nodes: int, series: int) -> None:
    assert nodes <= kept_series.MAX_NODES
    assert series <= kept_series.MAX_SERIES
    with running(partial(PostgresServer, durable=True)) as server:
        await measure(table, server, nodes, series)


if __name__ == "__main__":
    report.run(__doc__, _measure, limits=(900.0, 180.0), nodes=(200, 20), series=(100, 100))
