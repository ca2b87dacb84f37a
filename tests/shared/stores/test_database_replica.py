"""Queries marked `-- replica` at a real standby: behind, disconnected, hung, promoted, and after the caller's own write."""

import asyncio
import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import quote
from uuid import UUID, uuid4

import asyncpg
import pytest

from shared.stores.cache import Cache
from shared.stores.database import Database
from shared.stores.recent_writes import RecentWrites
from shared.stores.replica_lag import ReplicaState
from shared.stores.replica_reads import DatabaseOptions, ReplicaPlan
from tests.servers import PostgresServer, running_pair
from tests.switch import Switch

QUERIES = """
-- name: add
-- One thing.
INSERT INTO things (tenant, name) VALUES ($1, $2);

-- name: list
-- All of them.
-- replica
SELECT name, pg_is_in_recovery() AS at_replica, current_setting('work_mem') AS memory FROM things WHERE tenant = $1 ORDER BY name;

-- name: list_here
-- The same at the primary.
SELECT name, pg_is_in_recovery() AS at_replica FROM things WHERE tenant = $1 ORDER BY name;

-- name: where
-- Who answers.
-- replica
SELECT pg_is_in_recovery();

-- name: set_memory
-- In this transaction, with a comment of
-- two lines.
-- replica
SELECT set_config('work_mem', '7MB', true);

-- name: only_replica
-- Fails at the primary's table.
-- replica
SELECT count(*) FROM newer;
"""
TABLE = """
CREATE TABLE things (tenant uuid NOT NULL, name text NOT NULL);
ALTER TABLE things ENABLE ROW LEVEL SECURITY;
ALTER TABLE things FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON things USING (current_setting('aimesh.tenant', true) IN ('*', tenant::text));
"""
LAG_SECONDS = 3.0


class Reports:
    """The reports of a database."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.reads: Counter[str] = Counter()
        self.lag_seconds = 0.0
        self.statements = 0
        self.sizes: list[tuple[str, int | None]] = []
        self.connections: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 0)

    def took(self, seconds: float) -> None:
        self.statements += 1

    def pool(self, read: Callable[[], tuple[int, int, int]]) -> None:
        self.connections = read

    def size(self, schema: str, stored_bytes: int | None) -> None:
        self.sizes.append((schema, stored_bytes))

    def changed(self, state: str, detail: str) -> None:
        assert bool(detail) is (state != ReplicaState.USED)
        self.states.append(state)

    def read_from(self, server: str) -> None:
        self.reads[server] += 1

    def lag(self, seconds: float) -> None:
        self.lag_seconds = seconds


class Pair:
    """A primary, and a standby behind a switch."""

    def __init__(self, primary: PostgresServer, standby: PostgresServer, switch: Switch, url: str) -> None:
        self.primary, self.standby, self.switch = primary, standby, switch
        self.url = url
        self.read_url = self.url.replace(quote(str(primary.folder), safe=""), quote(str(switch.path.parent), safe=""))


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    with running_pair() as servers:
        yield servers


@pytest.fixture
async def pair(started: tuple[PostgresServer, PostgresServer]) -> AsyncIterator[Pair]:
    async with as_pair(*started) as pair:
        yield pair
    pair.standby.ensure_running()
    connection = await asyncpg.connect(pair.standby.url())
    try:
        await connection.execute("SELECT pg_wal_replay_resume()")
    finally:
        await connection.close()
    await pair.standby.catch_up(pair.primary)


@contextlib.asynccontextmanager
async def as_pair(primary: PostgresServer, standby: PostgresServer) -> AsyncIterator[Pair]:
    database = primary.url(await primary.new_database())
    with tempfile.TemporaryDirectory(prefix="aimesh-") as folder:
        # Row-level security does not apply to superusers.
        async with primary.plain_role(database) as url, Switch(Path(folder, primary.socket.name), standby.socket) as switch:
            yield Pair(primary, standby, switch, url)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "queries.sql").write_text(QUERIES)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_pre_things.sql").write_text(TABLE)
    return tmp_path


@contextlib.asynccontextmanager
async def opened(pair: Pair, package: Path, valkey_url: str) -> AsyncIterator[tuple[Database, Reports]]:
    reports = Reports()
    async with Cache.open(valkey_url) as cache:
        plan = ReplicaPlan(pair.read_url, LAG_SECONDS, RecentWrites(cache, "shop", LAG_SECONDS))
        async with Database.open(pair.url, schema="shop", package=package, options=DatabaseOptions(plan, reports)) as db:
            yield db, reports


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - no event is set
            await asyncio.sleep(0.02)


async def becomes(reports: Reports, state: ReplicaState) -> None:
    await until(lambda: reports.states[-1:] == [state])


async def names(db: Database, tenant: UUID) -> list[str]:
    async with db.bound(tenant) as transaction:
        return [row["name"] for row in await transaction.rows("list", tenant)]


async def write(db: Database, tenant: UUID, name: str) -> None:
    await db.run("add", tenant, name)
    await db.written(tenant)


async def pause_replay(server: PostgresServer, *, is_on: bool) -> None:
    connection = await asyncpg.connect(server.url())
    try:
        await connection.execute(f"SELECT pg_wal_replay_{'pause' if is_on else 'resume'}()")
    finally:
        await connection.close()


async def test_the_mark_chooses_the_replica(pair: Pair, package: Path, valkey_url: str) -> None:
    ann = uuid4()
    async with opened(pair, package, valkey_url) as (db, reports):
        await becomes(reports, ReplicaState.USED)
        await write(db, ann, "lamp")
        assert await db.value("where") is True
        rows = await db.rows("list", ann)
        assert [(row["name"], row["at_replica"]) for row in rows] == [("lamp", True)]
        assert [row["at_replica"] for row in await db.rows("list_here", ann)] == [False]
        async with db.bound(ann) as transaction:
            await transaction.run("set_memory")
            assert [(row["at_replica"], row["memory"]) for row in await transaction.rows("list", ann)] == [(True, "7MB")]
            with pytest.raises(RuntimeError, match="not marked"):
                await transaction.run("add", ann, "chair")
        async with db.bound(uuid4()) as transaction:
            assert await transaction.rows("list", ann) == [], "row-level security counts there, too"
        async with db.transaction() as transaction:
            await transaction.run("add", ann, "chair")
            assert [row["at_replica"] for row in await transaction.rows("list", ann)] == [False, False], "its own write is there"
        assert reports.states == [ReplicaState.USED]
        assert reports.statements > 0
        assert reports.connections()[2] == 10
        assert [check.ok for check in db.check_replica()] == [True]


@pytest.mark.nightly("long")
async def test_nobody_misses_what_they_have_just_written(pair: Pair, package: Path, valkey_url: str) -> None:
    ann, bob = uuid4(), uuid4()
    async with opened(pair, package, valkey_url) as (ours, reports), opened(pair, package, valkey_url) as (theirs, others):
        await becomes(reports, ReplicaState.USED)
        await becomes(others, ReplicaState.USED)
        await write(ours, bob, "desk")
        assert await names(theirs, bob) == ["desk"]
        for number in range(20):
            await write(ours, ann, f"{number:02}")
            assert len(await names(theirs, ann)) == number + 1
        others.reads.clear()
        await pause_replay(pair.standby, is_on=True)
        await write(ours, ann, "lamp")
        assert "lamp" in await names(theirs, ann), "another process has written it"
        assert others.reads == Counter(primary_own_write=1)
        assert await names(theirs, bob) == ["desk"]
        assert others.reads["replica"] == 1, "who wrote nothing reads from the replica"
        async with theirs.transaction() as transaction:
            assert len(await transaction.rows("list", ann)) == 21, "reports on everybody have everybody's writes"


async def test_without_valkey_the_primary_answers(pair: Pair, package: Path) -> None:
    async with opened(pair, package, "unix:///nowhere/valkey") as (db, reports):
        await becomes(reports, ReplicaState.USED)
        await write(db, uuid4(), "lamp")
        assert await db.value("where") is False
        assert reports.reads == Counter(primary_own_write=1)


@pytest.mark.nightly("long")
async def test_a_replica_that_is_behind_is_left_until_it_has_caught_up(pair: Pair, package: Path, valkey_url: str) -> None:
    ann = uuid4()
    async with opened(pair, package, valkey_url) as (db, reports):
        await becomes(reports, ReplicaState.USED)
        async with option(pair.standby, "recovery_min_apply_delay", "30s"):
            await write_until_behind(db, reports)
            await db.run("add", ann, "lamp")
            assert reports.lag_seconds > LAG_SECONDS - 1
            assert await names(db, ann) == ["lamp"]
            assert reports.reads["primary_behind"] == 1
            assert [check.ok for check in db.check_replica()] == [False]
        await becomes(reports, ReplicaState.USED)
        assert await names(db, ann) == ["lamp"]
        assert reports.states == [ReplicaState.USED, ReplicaState.BEHIND, ReplicaState.USED]
        assert reports.reads["replica"] == 1


async def test_a_replica_that_is_cut_off_from_the_primary_is_behind(pair: Pair, package: Path, valkey_url: str) -> None:
    """The replica answers, and doesn't know what it lacks."""
    ann = uuid4()
    async with opened(pair, package, valkey_url) as (db, reports):
        await becomes(reports, ReplicaState.USED)
        async with option(pair.standby, "primary_conninfo", "host=/nowhere"):
            await write_until_behind(db, reports)
            await db.run("add", ann, "lamp")
            assert await names(db, ann) == ["lamp"]


async def test_a_transaction_whose_replica_dies_continues_at_the_primary(pair: Pair, package: Path, valkey_url: str) -> None:
    ann = uuid4()
    async with opened(pair, package, valkey_url) as (db, reports):
        await becomes(reports, ReplicaState.USED)
        await write(db, ann, "lamp")
        async with db.bound(ann) as transaction:
            await transaction.run("set_memory")
            assert await transaction.value("where") is True
            pair.standby.kill()
            rows = await transaction.rows("list", ann)
            assert [(row["name"], row["at_replica"], row["memory"]) for row in rows] == [("lamp", False, "7MB")]
        assert await names(db, ann) == ["lamp"]
        await becomes(reports, ReplicaState.AWAY)
        # In this thread, because the server ends with the thread that started it.
        pair.standby.start()
        await becomes(reports, ReplicaState.USED)
        assert reports.states == [ReplicaState.USED, ReplicaState.AWAY, ReplicaState.USED]
        assert await db.value("where") is True


async def test_a_replica_that_hangs_costs_half_of_the_deadline(pair: Pair, package: Path, valkey_url: str) -> None:
    async with opened(pair, package, valkey_url) as (db, reports):
        await becomes(reports, ReplicaState.USED)
        assert await db.value("where") is True
        with pair.standby.hung():
            began = time.monotonic()
            assert await db.value("where", deadline_seconds=2) is False
            assert time.monotonic() - began < 4
            await becomes(reports, ReplicaState.AWAY)
            began = time.monotonic()
            assert await db.value("where", deadline_seconds=2) is False
            assert time.monotonic() - began < 1, "nobody waits for it again"
        await becomes(reports, ReplicaState.USED)


async def test_a_statement_that_fails_at_the_replica_alone_says_nothing_about_it(pair: Pair, package: Path, valkey_url: str) -> None:
    """For example, the replica has an older schema."""
    async with opened(pair, package, valkey_url) as (db, reports):
        await becomes(reports, ReplicaState.USED)
        await pause_replay(pair.standby, is_on=True)
        connection = await asyncpg.connect(pair.url)
        await connection.execute("CREATE TABLE shop.newer ()")
        await connection.close()
        assert await db.value("only_replica") == 0
        assert reports.reads["primary_error"] == 1
        assert await db.value("where") is True


async def test_a_promoted_replica_is_no_replica(package: Path, valkey_url: str) -> None:
    ann = uuid4()
    with running_pair() as servers:
        async with as_pair(*servers) as pair, opened(pair, package, valkey_url) as (db, reports):
            await becomes(reports, ReplicaState.USED)
            assert await names(db, ann) == []
            await pair.standby.promote()
            await write(db, ann, "lamp")
            assert await names(db, ann) == ["lamp"]
            await becomes(reports, ReplicaState.PROMOTED)
            assert await names(db, ann) == ["lamp"]
            assert reports.reads["primary_promoted"] >= 1


async def test_of_several_hosts_only_a_standby_answers(pair: Pair, package: Path, valkey_url: str) -> None:
    ours, theirs = (quote(str(server.folder), safe="") for server in (pair.primary, pair.standby))
    pair.read_url = pair.url.replace(ours, f"{ours},{theirs}") + "&target_session_attrs=prefer-standby"
    async with opened(pair, package, valkey_url) as (db, reports):
        await becomes(reports, ReplicaState.USED)
        assert await db.value("where") is True


async def test_a_missing_replica_changes_nothing(pair: Pair, package: Path, valkey_url: str) -> None:
    pair.read_url = pair.read_url.replace("aimesh-", "nowhere-")
    ann = uuid4()
    async with opened(pair, package, valkey_url) as (db, reports):
        await write(db, ann, "lamp")
        assert await names(db, ann) == ["lamp"]
        await becomes(reports, ReplicaState.AWAY)
        assert await names(db, ann) == ["lamp"]
        assert reports.states == [ReplicaState.AWAY]
        assert (await db.check()).ok


async def write_until_behind(db: Database, reports: Reports) -> None:
    """The standby may replay some writes before it has read its new options. As if from another program: no caller's write is noted."""
    async with asyncio.timeout(30):
        while reports.states[-1:] != [ReplicaState.BEHIND]:
            await db.run("add", uuid4(), "chair")
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def option(server: PostgresServer, name: str, value: str) -> AsyncIterator[None]:
    before = await set_option(server, name, value)
    try:
        yield
    finally:
        await set_option(server, name, before)


async def set_option(server: PostgresServer, name: str, value: str) -> str:
    """Set an option; return its previous value."""
    connection = await asyncpg.connect(server.url())
    try:
        before = await connection.fetchval(f"SHOW {name}")
        await connection.execute(f"ALTER SYSTEM SET {name} = {await connection.fetchval('SELECT quote_literal($1::text)', value)}")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()
    return str(before)
