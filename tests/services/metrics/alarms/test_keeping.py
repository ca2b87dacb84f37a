"""Alerts on a real PostgreSQL: they outlive a restart, two replicas agree on them, and without PostgreSQL they go on."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

import asyncpg
import pytest

from services.metrics.alarms import keeping, room
from services.metrics.alarms.attendance import Attendance
from services.metrics.alarms.changes import Changes
from services.metrics.alarms.desk import ENDED_SECONDS, OUTAGE_SECONDS, News
from services.metrics.alarms.keeping import TOUCH_SECONDS, Keeper
from services.metrics.alarms.room import Alarms
from services.metrics.alarms.store import Store
from services.metrics.alarms.watch import Watch
from services.metrics.alerts import rules
from services.metrics.settings import MetricsSettings
from shared import errors
from shared.api import alerts as api
from shared.rpc import Call
from tests.servers import PostgresServer
from tests.testnet import until

CALL = cast("Call", type("OfAnOperator", (), {"found": None})())
WELL = "\n".join(
    f'ai_platform_node_up{{service="{service}",node="UAAA"}} 1' for service in ("auth", "gateway", "inference", "metrics", "web")
)
DRIFTING = 'ai_platform_ledger_drift_micro{service="gateway",node="UAAA"} 5\n' + WELL
#: It has to last for a minute.
LONG_QUEUE = 'ai_platform_queue_depth{service="gateway",node="UAAA",model="llama3"} 150\n' + WELL


class Mesh:
    """What all replicas look at."""

    def __init__(self) -> None:
        self.text = WELL
        self.now = 1_800_000_000.25


class Replica:
    """One life of one."""

    def __init__(self, mesh: Mesh, node: str = "UONE") -> None:
        self.mesh = mesh
        self.node = node
        self.news: list[News] = []
        self.is_all_taken = True
        self.watch = Watch(self._text, self.news.append, lambda: mesh.now)
        self.keeper = Keeper(self.watch, node, lambda: self.is_all_taken, lambda: mesh.now)

    async def _text(self) -> str:
        return self.mesh.text

    async def look(self, store: Store, times: int = 1) -> None:
        for _ in range(times):
            self.mesh.now += 15
            await self.keeper.keep(store)
            await self.watch.look()
            await self.keeper.keep(store)

    @property
    def told(self) -> tuple[int, int]:
        """How many beginnings and ends."""
        return sum(len(news.began) for news in self.news), sum(len(news.ended) for news in self.news)


Open = Callable[[str], Awaitable[Store]]


@pytest.fixture
async def open_store(postgres_url: str) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def opened(node: str) -> Store:
            return await stack.enter_async_context(Store.open(postgres_url, node, rules.ALL))

        yield opened


@pytest.fixture
async def store(open_store: Open) -> Store:
    return await open_store("UONE")


async def shown(replica: Replica) -> list[tuple[str, str, str]]:
    found = await replica.watch.list_alerts(api.ListAlerts(), CALL)
    return [(alert.name, alert.state, alert.seen_by) for alert in found.alerts]


async def silences_of(replica: Replica) -> list[str]:
    return [one.id for one in (await replica.watch.list_alerts(api.ListAlerts(), CALL)).silences]


async def test_an_alert_its_helper_and_a_silence_outlive_a_restart(store: Store) -> None:
    mesh = Mesh()
    first = Replica(mesh)
    mesh.text = DRIFTING
    await first.look(store)
    [alert] = (await first.watch.list_alerts(api.ListAlerts(), CALL)).alerts
    await first.watch.acknowledge_alert(api.AcknowledgeAlert(alert.id), CALL)
    silence = await first.watch.silence_alerts(api.SilenceAlerts(3600, "cpu_high", {"node": "UAAA"}, 'it\0 "compiles"'), CALL)
    await first.keeper.keep(store)

    second = Replica(mesh)
    await second.keeper.keep(store)
    found = await second.watch.list_alerts(api.ListAlerts(), CALL)
    assert found.silences == (silence,)
    await second.look(store, 3)
    assert second.told == (0, 0), "told before"
    [again] = (await second.watch.list_alerts(api.ListAlerts(), CALL)).alerts
    assert (again.id, again.since, again.seen_by) == (alert.id, alert.since, "operator")
    mesh.text = WELL
    await second.look(store)
    assert second.told == (0, 1)

    third = Replica(mesh)
    await third.keeper.keep(store)
    await third.look(store)
    assert third.told == (0, 0)
    assert await shown(third) == [("ledger_drift", "over", "operator")]


async def test_how_long_it_has_held_outlives_a_restart(store: Store) -> None:
    mesh = Mesh()
    mesh.text = LONG_QUEUE
    await Replica(mesh).look(store, 4)
    second = Replica(mesh)
    await second.keeper.keep(store)
    await second.look(store)
    assert second.told == (1, 0), "a minute has passed since it began"


async def test_news_that_nobody_took_before_the_restart_are_told_after_it(store: Store) -> None:
    mesh = Mesh()
    mesh.text = DRIFTING
    first = Replica(mesh)
    first.is_all_taken = False
    await first.look(store, 2)
    second = Replica(mesh)
    await second.keeper.keep(store)
    await second.look(store)
    assert second.told == (1, 0)
    mesh.text = WELL
    second.is_all_taken = False
    await second.look(store)
    third = Replica(mesh)
    await third.keeper.keep(store)
    await third.look(store)
    assert third.told == (0, 1)


async def test_it_is_written_when_it_changes_and_not_at_each_look(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    run, write = store._database.run, store.write

    async def noted_run(name: str, *args: object) -> int:
        writes.append(name)
        return await run(name, *args)

    async def noted_write(changes: Changes) -> None:
        writes.append("write")
        await write(changes)

    monkeypatch.setattr(store._database, "run", noted_run)
    monkeypatch.setattr(store, "write", noted_write)
    mesh = Mesh()
    mesh.text = DRIFTING
    replica = Replica(mesh)
    await replica.look(store)
    assert writes == ["write", "touch_alarms", "touch_attendance", "delete_old_alarms", "delete_old_silences", "delete_old_attendance"]
    writes.clear()
    for number in range(int(TOUCH_SECONDS) // 15 - 1):
        mesh.text = DRIFTING.replace("} 5", f"}} {number + 6}")
        await replica.look(store)
    assert writes == []
    await replica.look(store)
    assert writes[0] == "touch_alarms"


async def test_what_is_old_is_thrown_away(store: Store, open_store: Open) -> None:
    mesh = Mesh()
    mesh.text = DRIFTING
    gone = Replica(mesh, "UGONE")
    await gone.watch.silence_alerts(api.SilenceAlerts(60), CALL)
    await gone.look(await open_store("UGONE"))
    mesh.text = WELL
    mesh.now += 3 * ENDED_SECONDS
    await Replica(mesh).look(store)
    assert await store.others(0, 0) == []
    assert (await store.silences(0)).ids == frozenset()


async def test_replicas_share_silences_and_helpers_and_tell_once(store: Store, open_store: Open) -> None:
    mesh = Mesh()
    one, two = Replica(mesh), Replica(mesh, "UTWO")
    of_two = await open_store("UTWO")
    mine = await one.watch.silence_alerts(api.SilenceAlerts(3600, "cpu_high"), CALL)
    theirs = await two.watch.silence_alerts(api.SilenceAlerts(7200, "disk_low"), CALL)
    mesh.text = DRIFTING
    await one.look(store)
    await two.keeper.keep(of_two)
    assert await silences_of(two) == [theirs.id, mine.id]
    await two.look(of_two)
    await one.keeper.keep(store)
    assert await silences_of(one) == [mine.id, theirs.id]

    [alert] = (await two.watch.list_alerts(api.ListAlerts(), CALL)).alerts
    await two.watch.acknowledge_alert(api.AcknowledgeAlert(alert.id), CALL)
    await two.watch.end_silence(api.EndSilence(mine.id), CALL)
    await two.keeper.keep(of_two)
    await one.keeper.keep(store)
    assert await shown(one) == [("ledger_drift", "firing", "operator")]
    assert await silences_of(one) == [theirs.id]

    mesh.text = WELL
    for _ in range(3):
        await one.look(store)
        await two.look(of_two)
    assert one.told == (1, 1)
    assert two.told == (1, 0), "both saw it before they heard of each other, and the end only one of them told"


async def test_a_second_replica_that_starts_later_does_not_tell_what_the_first_has_told(store: Store, open_store: Open) -> None:
    mesh = Mesh()
    mesh.text = LONG_QUEUE
    one, two = Replica(mesh), Replica(mesh, "UTWO")
    of_two = await open_store("UTWO")
    for _ in range(8):
        await one.look(store)
        await two.look(of_two)
    assert (one.told, two.told) == ((1, 0), (0, 0))
    mesh.now += OUTAGE_SECONDS
    three = Replica(mesh, "UTHREE")
    await three.look(await open_store("UTHREE"), 8)
    assert three.told == (1, 0), "nobody has looked for an hour"


# --- PostgreSQL that comes and goes -------------------------------------------------------------------------------------


@asynccontextmanager
async def living(mesh: Mesh, url: str) -> AsyncIterator[Alarms]:
    async def text() -> str:
        return mesh.text

    settings = MetricsSettings(node_key_file=Path("/nowhere"), port=0, database_url=url)
    alarms = Alarms(settings, "UONE", text, Attendance(), lambda: mesh.now)
    task = asyncio.create_task(alarms.run())
    try:
        yield alarms
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_postgresql_is_away_at_the_start_and_comes_back(
    postgres: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setattr(keeping, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr(keeping, "_SOON_SECONDS", 0.02)
    monkeypatch.setattr(room, "REMEMBERING_SECONDS", 0.05)
    monkeypatch.setattr("services.metrics.alarms.watch.EVERY_SECONDS", 0.02)
    mesh = Mesh()
    mesh.text = DRIFTING
    before = Replica(mesh)
    old = await before.watch.silence_alerts(api.SilenceAlerts(3600, "cpu_high"), CALL)
    await before.look(store)
    postgres.kill()
    try:
        mesh.now += 60
        async with living(mesh, postgres_url) as alarms:
            await until(alarms.watch.desk.firing)
            [check] = [check for check in await alarms.checks() if check.name == "alerts"]
            assert (check.ok, check.needed) == (False, False)
            assert "outlive" in check.detail
            new = await alarms.watch.silence_alerts(api.SilenceAlerts(3600, "disk_low"), CALL)
            [alert] = alarms.watch.desk.firing()
            await alarms.watch.acknowledge_alert(api.AcknowledgeAlert(alert.id), CALL)
            postgres.ensure_running()
            await until(lambda: not alarms._keeper._trouble)
            assert {one.id for one in alarms.watch.desk.silences()} == {old.id, new.id}
            [alert] = alarms.watch.desk.firing()
            assert (alert.since, alert.seen_by) == (mesh.now - 60, "operator")

            postgres.kill()
            await alarms.watch.end_silence(api.EndSilence(old.id), CALL)
            await until(lambda: bool(alarms._keeper._trouble))
            postgres.ensure_running()
            await until(lambda: not alarms._keeper._trouble)
            await until(lambda: not alarms.watch.desk.ended_silences())
    finally:
        postgres.ensure_running()
    async with Store.open(postgres_url, "UONE", rules.ALL) as opened:
        after = Replica(mesh)
        await after.keeper.keep(opened)
        assert await silences_of(after) == [new.id]
        assert await shown(after) == [("ledger_drift", "firing", "operator")]


async def test_a_silence_that_no_table_has_stays_and_is_written_again(store: Store) -> None:
    mesh = Mesh()
    replica = Replica(mesh)
    made = await replica.watch.silence_alerts(api.SilenceAlerts(3600, "cpu_high"), CALL)
    await replica.look(store)
    await store.delete_before(mesh.now + 1e6)
    assert (await store.silences(mesh.now)).ids == frozenset()
    await replica.look(store)
    assert (await store.silences(mesh.now)).ids == {made.id}


async def test_without_a_database_nobody_complains() -> None:
    async def text() -> str:
        return WELL

    checks = await Alarms(MetricsSettings(node_key_file=Path("/nowhere"), port=0), "UONE", text, Attendance()).checks()
    assert [(check.name, check.ok) for check in checks] == [("alert rules", True)]


async def test_a_role_that_may_not_make_its_schema_is_told(postgres: PostgresServer, postgres_url: str) -> None:
    name = f"nobody_much_{secrets.token_hex(4)}"
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    await admin.close()
    database = postgres_url.partition("?")[0].rpartition("/")[2]
    url = postgres.server.url(name, "x").replace("/aimesh?", f"/{database}?")
    with pytest.raises(errors.BadSettings, match="refuses"):
        async with Store.open(url, "UONE", rules.ALL):
            pass
