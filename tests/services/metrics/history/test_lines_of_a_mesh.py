"""Chart lines equal those of a slow, simple implementation, for all nodes or one, and counter rates are right in every step, including
partially sampled ones."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
import pytest

from services.metrics.history import history_store, query_plan, rollup
from services.metrics.history.history_store import HistoryStore, StoredPoint
from services.metrics.history.history_writer import HistoryWriter
from services.metrics.history.query_plan import QueryPlan
from services.metrics.history.rollup import RollupPiece
from shared.api.metrics import GetHistory, HistoryGrouping
from shared.telemetry import Metrics
from tests import tiers
from tests.services.metrics.history.looked_at import BEGIN, KEEPS, Mesh

NODES = ("UAAAAAAAAAAA", "UBBBBBBBBBBB", "UCCCCCCCCCCC")
DEPTH, TOKENS, CPU = "ai_platform_queue_depth", "ai_platform_tokens_total", "ai_platform_host_cpu_usage_ratio"
#: Each layout has some of these names, in its own order. The last name begins like another one.
NAMES = (CPU, f'{DEPTH}{{model="m"}}', f'{DEPTH}{{model="n"}}', f'{TOKENS}{{model="m",type="output"}}', f"{DEPTH}_elsewhere")
RATE = 2 * 30 / 15


@dataclass(frozen=True)
class Written:
    """One row of the history."""

    resolution: int
    at: datetime
    node: str
    service: str
    part: int
    layout: int
    names: tuple[str, ...]
    looks: int
    sums: list[float]
    peaks: list[float] | None


async def write(connection: asyncpg.Connection, draw: random.Random) -> list[Written]:
    """Write random rows, each only once. Some samples are not rolled up, and nodes come and go."""
    layouts = []
    for number in range(4):
        names = tuple(draw.sample(NAMES, draw.randint(1, len(NAMES))))
        add = "INSERT INTO metrics.layouts (digest, names, used_on) VALUES ($1, $2, $3) RETURNING id"
        layout = await connection.fetchval(add, hashlib.sha256(bytes([number])).digest(), list(names), BEGIN.date())
        layouts.append((layout, names))
    rows = []
    ends = {rollup.HOUR: 2 * 3600, rollup.MINUTE: draw.randrange(2 * 3600, 3 * 3600, 60), rollup.RAW: 3 * 3600}
    for resolution, end in ends.items():
        for at in range(0, end, resolution):
            for node in draw.sample(NODES, draw.randint(0, len(NODES))):
                for part in range(draw.randint(1, 2)):
                    layout, names = draw.choice(layouts)
                    sums, peaks = ([float(draw.randint(0, 1000)) for _ in names] for _ in range(2))
                    looks = 1 if resolution == rollup.RAW else draw.randint(1, resolution // rollup.RAW)
                    service = "gateway" if node == NODES[0] else "inference"
                    begin = BEGIN + timedelta(seconds=at)
                    rows.append(
                        Written(resolution, begin, node, service, part, layout, names, looks, sums, None if resolution == 15 else peaks)
                    )
    columns = "resolution, at, node, service, part, layout, looks, sums, peaks"
    await connection.executemany(
        f"INSERT INTO metrics.snapshots ({columns}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        [(row.resolution, row.at, row.node, row.service, row.part, row.layout, row.looks, row.sums, row.peaks) for row in rows],
    )
    return rows


def slowly(
    rows: Sequence[Written], pieces: Sequence[RollupPiece], question: QueryPlan, by: Sequence[HistoryGrouping]
) -> dict[tuple[object, ...], list[float]]:
    """Return growth, mean, number of nodes and highest sample by service, node, name and step."""
    of_node: dict[tuple[str, str, str, int], list[tuple[float, int, float]]] = defaultdict(list)
    wanted = {one.name for one in question.wanted}
    for piece in pieces:
        for row in rows:
            if row.resolution != piece.resolution or not piece.begin <= row.at < piece.before or question.node not in (None, row.node):
                continue
            step = int((row.at - question.since).total_seconds() // question.step_seconds)
            for name, total, peak in zip(row.names, row.sums, row.peaks or row.sums, strict=True):
                if name.partition("{")[0] in wanted:
                    of_node[row.service, row.node, name, step].append((total, row.looks, peak))
    found: dict[tuple[object, ...], list[float]] = {}
    for (service, node, name, step), seen in of_node.items():
        total, looks = sum(each[0] for each in seen), sum(each[1] for each in seen)
        key = (service if HistoryGrouping.SERVICE in by else "", node if HistoryGrouping.NODE in by else "", name, step)
        growth, mean, nodes, highest = found.get(key, [0.0, 0.0, 0.0, 0.0])
        found[key] = [growth + total, mean + total / looks, nodes + 1, max(highest, *(each[2] for each in seen))]
    return found


def by_line(points: Sequence[StoredPoint]) -> dict[tuple[object, ...], list[float]]:
    assert len({(point.service, point.node, point.name, point.step) for point in points}) == len(points)
    return {(each.service, each.node, each.name, each.step): [each.growth, each.mean, each.nodes, each.peak] for each in points}


@pytest.mark.parametrize("seed", tiers.by_day(range(6), 0, 1, group="long"))
async def test_query_gives_the_same_lines_as_a_simple_implementation(store: HistoryStore, postgres_url: str, seed: int) -> None:
    draw = random.Random(seed)
    connection = await asyncpg.connect(postgres_url)
    try:
        rows = await write(connection, draw)
    finally:
        await connection.close()
    for _ in range(12):
        names = tuple(draw.sample((DEPTH, TOKENS, CPU), draw.randint(1, 3)))
        by = tuple(draw.sample((HistoryGrouping.SERVICE, HistoryGrouping.NODE), draw.randint(0, 2)))
        since = BEGIN + timedelta(seconds=draw.randrange(0, 2 * 3600))
        until = since + timedelta(seconds=draw.randrange(1, 4 * 3600))
        request = GetHistory(names, since, until, draw.choice((15, 45, 60, 600, 3600)), by, draw.choice((None, None, *NODES)))
        question = query_plan.read(request, BEGIN + timedelta(hours=3), KEEPS)
        async with store._database.transaction() as transaction:
            pieces = await history_store._pieces(transaction, question)
        found, wanted = by_line((await store.lines(question, by, 100_000)).points), slowly(rows, pieces, question, by)
        assert found.keys() == wanted.keys()
        for key, numbers in found.items():
            assert numbers == pytest.approx(wanted[key], rel=1e-6), key


async def test_query_for_one_node_returns_only_its_lines(store: HistoryStore) -> None:
    mesh = Mesh(NODES[:2])
    for _ in range(9):
        await mesh.look()
    await mesh.keeper.keep(store)
    (line,) = await mesh.drawn(store, DEPTH, HistoryGrouping.NODE, node=NODES[1])
    assert (line.labels, line.values[1]) == ({"node": NODES[1]}, 2.0)
    (line,) = await mesh.drawn(store, TOKENS, node=NODES[0] + "A" * 44)
    assert line.values[1] == RATE / 2
    assert await mesh.drawn(store, DEPTH, node="UNKNOWNAAAAA") == []


@pytest.mark.parametrize("step", tiers.by_day([15, 30, 60, 150], 15, 150, group="long"))
async def test_steady_counter_has_the_same_rate_in_every_step(store: HistoryStore, step: int) -> None:
    """This includes the first step, the last step, and a step in which the service restarted."""
    mesh, seen = Mesh(), []
    for number in range(45):
        if number == 24:
            mesh.keeper = HistoryWriter(mesh.text, KEEPS, lambda: mesh.now)
        await mesh.look()
        await mesh.keeper.keep(store)
        looked = mesh.now
        for phase in (0.0, 0.5, 7.0, 14.9):
            mesh.now = looked + timedelta(seconds=phase)
            if found := await mesh.drawn(store, TOKENS, HistoryGrouping.MODEL, step=step):
                seen += [(number, phase, value) for value in found[0].values if value is not None]
        mesh.now = looked
    assert len(seen) > 400
    assert [each for each in seen if abs(each[2] - RATE) > 0.05 * RATE] == []


async def test_query_plan_does_not_depend_on_earlier_queries(store: HistoryStore) -> None:
    """A generic plan reads the whole table once for each step, and PostgreSQL would choose it at the sixth query."""
    mesh = Mesh()
    for _ in range(9):
        await mesh.look()
    await mesh.keeper.keep(store)
    for _ in range(8):
        assert await mesh.drawn(store, TOKENS)
    plans = "SELECT sum(generic_plans)::int, sum(custom_plans)::int FROM pg_prepared_statements WHERE statement LIKE '%AS ' || 'piece %'"
    async with store._database.transaction() as transaction:
        assert tuple(await transaction._connection.fetchrow(plans)) == (0, 16)


async def test_without_collection_times_a_step_has_its_full_length(store: HistoryStore) -> None:
    mesh = Mesh()
    mesh.own = Metrics("metrics")
    mesh.own.active_users.labels(time_window="1h").set(2)
    for _ in range(9):
        await mesh.look()
    await mesh.keeper.keep(store)
    (line,) = await mesh.drawn(store, TOKENS, HistoryGrouping.MODEL)
    assert line.values[1] == RATE
