"""The history on a real PostgreSQL: written once, rolled up deterministically, deleted by age, and caught up."""

from collections.abc import Iterator
from datetime import timedelta

import asyncpg
import pytest

from services.metrics.history import history_writer, rollup
from services.metrics.history.history_store import HistoryStore
from services.metrics.history.history_writer import HistoryWriter
from shared import errors
from shared.api.metrics import HistoryGrouping
from tests.servers import PostgresServer
from tests.services.metrics.history.looked_at import BEGIN, KEEPS, Mesh


async def test_stored_samples_are_drawn(store: HistoryStore) -> None:
    mesh = Mesh()
    for _ in range(13):
        await mesh.look()
    await mesh.keeper.keep(store)
    (line,) = await mesh.drawn(store, "ai_platform_tokens_total", HistoryGrouping.MODEL)
    assert line.labels == {"model": "m", "type": "output"}
    assert line.values == (2 * 60 / 30, 2 * 120 / 60, 2 * 120 / 60, 2 * 30 / 15), (
        "the first look knows no growth, the last minute is not over"
    )
    (line,) = await mesh.drawn(store, "ai_platform_tokens_total", step=15)
    assert line.values[1:] == (None, *[2 * 30 / 15] * 11)
    of_nodes = await mesh.drawn(store, "ai_platform_queue_depth", HistoryGrouping.NODE, step=15)
    assert [(one.labels, one.values[1]) for one in of_nodes] == [({"node": "a"}, 1.0), ({"node": "b"}, 2.0)]
    (cpu,) = await mesh.drawn(store, "ai_platform_host_cpu_usage_ratio", step=15)
    assert cpu.values[1] == 0.5, "shares of several nodes are not added"
    (trips,) = await mesh.drawn(store, "ai_platform_round_trip_seconds")
    assert trips.labels == {"path": "nats"}
    assert trips.values[1] == pytest.approx(0.015), "nor are round trips"
    (highest,) = await mesh.drawn(store, "max:ai_platform_host_cpu_usage_ratio")
    assert highest.values[1] == 0.75
    (median,) = await mesh.drawn(store, "p50:ai_platform_ttft_seconds")
    assert median.values[1] == pytest.approx(0.3)


async def everything(store: HistoryStore) -> list[tuple[object, ...]]:
    """Return all rows of all resolutions."""
    found: list[tuple[object, ...]] = []
    for resolution in KEEPS:
        rows = await store.rows(resolution, BEGIN - timedelta(days=9), BEGIN + timedelta(days=900), ["a", "b"])
        found += sorted((resolution, row.node, row.layout, row.looks, tuple(row.sums), tuple(row.peaks or ())) for row in rows)
    return found


async def test_writing_again_changes_nothing(store: HistoryStore) -> None:
    mesh = Mesh()
    for _ in range(30):
        await mesh.look()
    waiting = list(mesh.keeper._waiting)
    await mesh.keeper.keep(store)
    before = await everything(store)
    assert len({row[0] for row in before}) == 2
    mesh.keeper._waiting.extend(waiting)
    await mesh.keeper.keep(store)
    assert await everything(store) == before


async def test_hourly_sums_are_right_across_a_clock_change(store: HistoryStore) -> None:
    mesh = Mesh()
    mesh.now = BEGIN + timedelta(minutes=50)
    for _ in range(290):
        await mesh.look()
        await mesh.keeper.keep(store)
    hours = await store.rows(rollup.HOUR, BEGIN, mesh.now, ["a"])
    assert [row.looks for row in hours] == [1, 38, 240], "the first look has no counters"
    (line,) = await mesh.drawn(store, "ai_platform_tokens_total", since=BEGIN, step=3600)
    assert list(line.values[:2]) == pytest.approx([2 * 30 * 38 / (38 * 15), 2 * 30 * 240 / 3600])


async def test_missed_rollups_are_caught_up(store: HistoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh()
    monkeypatch.setattr(history_writer, "MAX_WAITING", 1000)
    mesh.keeper = HistoryWriter(mesh.text, KEEPS, lambda: mesh.now)
    mesh.now = BEGIN + timedelta(minutes=50)
    for _ in range(60):
        await mesh.look()

    class Broken(Exception):
        pass

    rolled = HistoryStore.write_rolled
    calls: Iterator[int] = iter(range(1000))

    async def breaks(self: HistoryStore, *arguments: object) -> None:
        if next(calls) == 5:
            raise Broken
        await rolled(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(HistoryStore, "write_rolled", breaks)
    with pytest.raises(Broken):
        await mesh.keeper.keep(store)
    await mesh.keeper.keep(store)
    assert sum(row.looks for row in await store.rows(rollup.MINUTE, BEGIN, mesh.now, ["a"])) == 59
    assert [row.looks for row in await store.rows(rollup.HOUR, BEGIN, mesh.now, ["a"])] == [1, 38]


async def test_layout_change_within_a_minute_counts_once(store: HistoryStore) -> None:
    mesh = Mesh()
    for number in range(8):
        await mesh.look()
        if number == 4:
            mesh.workers["a"].gpu_usage.labels("laptop-1", "0").set(1)
    await mesh.keeper.keep(store)
    rows = await store.rows(rollup.MINUTE, BEGIN + timedelta(minutes=1), BEGIN + timedelta(minutes=2), ["a"])
    assert sorted(row.looks for row in rows) == [2, 2]
    (line,) = await mesh.drawn(store, "ai_platform_queue_depth")
    assert line.values[1] == 3


async def test_old_rows_are_deleted_but_not_by_a_wrong_clock(store: HistoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_writer, "STEADY_LOOKS", 3)
    mesh = Mesh()
    for _ in range(5):
        await mesh.look()
    await mesh.keeper.keep(store)
    kept_rows = await everything(store)
    await mesh.look(seconds=900 * 86400)
    await mesh.keeper.keep(store)
    assert set(kept_rows) <= set(await everything(store)), "the clock jumped"
    mesh.now = BEGIN + timedelta(minutes=10)
    for _ in range(6):
        await mesh.look()
    await mesh.keeper.keep(store)
    assert await store.find_newest(rollup.RAW, BEGIN + timedelta(days=1000)) == mesh.now, "what the wrong clock wrote is gone"
    mesh.now += timedelta(hours=25)
    for _ in range(6):
        await mesh.look()
    await mesh.keeper.keep(store)
    assert len(await store.rows(rollup.RAW, BEGIN, mesh.now + timedelta(minutes=1), ["a"])) == 6
    assert await store.rows(rollup.MINUTE, BEGIN, BEGIN + timedelta(hours=1), ["a"]), "minutes live longer"


async def test_queue_is_bounded_and_the_gap_is_shown(store: HistoryStore) -> None:
    mesh = Mesh()
    for _ in range(history_writer.MAX_WAITING + 20):
        await mesh.look()
    assert mesh.keeper.waiting == history_writer.MAX_WAITING
    await mesh.keeper.keep(store)
    (line,) = await mesh.drawn(store, "ai_platform_queue_depth", step=15)
    assert [value is None for value in line.values] == [True] * 21 + [False] * (history_writer.MAX_WAITING - 1)


async def test_missing_schema_privilege_is_reported(postgres: PostgresServer, postgres_url: str) -> None:
    async with HistoryStore.open(postgres_url) as store:
        await store._database.run("delete_layouts", BEGIN.date())
    admin = await asyncpg.connect(postgres_url)
    await admin.execute("DROP SCHEMA metrics CASCADE")
    await admin.execute("DROP ROLE IF EXISTS nobody_much")
    await admin.execute("CREATE ROLE nobody_much LOGIN PASSWORD 'x'")
    await admin.close()
    name = postgres_url.rpartition("/")[2].partition("?")[0]
    url = postgres.server.url("nobody_much", "x").replace("/aimesh?", f"/{name}?")
    with pytest.raises(errors.BadSettings, match="denies access"):
        async with HistoryStore.open(url):
            pass
