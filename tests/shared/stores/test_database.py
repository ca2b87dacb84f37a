"""The pool against a real PostgreSQL: queries, transactions, notifications, and a server that is killed and restarted."""

import asyncio
import contextlib
import gc
import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from shared import errors
from shared.node.member import CHECK_SECONDS
from shared.stores import database
from shared.stores.database import _CHECK_SECONDS, NO_DATABASE, Database
from tests.servers import PostgresServer
from tests.stopwatch import HANG_SECONDS
from tests.testnet import until

QUERIES = """
-- name: add
-- One thing.
INSERT INTO things (name) VALUES ($1) RETURNING id;

-- name: add_quietly
-- One thing, without an answer.
INSERT INTO things (name) VALUES ($1);

-- name: list
-- All of them.
SELECT id, name FROM things ORDER BY id;

-- name: find
-- One by name.
SELECT id, name FROM things WHERE name = $1;

-- name: rename_all
-- Give all one name.
UPDATE things SET name = $1;

-- name: sleep
-- Takes long.
SELECT pg_sleep($1);

-- name: lock
-- Until the end of the transaction.
SELECT pg_advisory_xact_lock($1);

-- name: lock_three
-- One after the other.
SELECT pg_advisory_xact_lock($1), pg_advisory_xact_lock($2), pg_advisory_xact_lock($3);

-- name: never_be_the_victim
-- Until the end of the transaction. PostgreSQL looks for a deadlock once in each wait, after this time, and fails the one that looks.
SELECT set_config('deadlock_timeout', '10min', true);

-- name: count_waiting
-- Those that wait for such a lock.
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted;

-- name: tell
-- A notification.
SELECT pg_notify('things', $1);

-- name: cut_others
-- End every other connection to this database, as a restart or an administrator would.
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();

-- name: cut_me
-- Die while answering.
SELECT pg_terminate_backend(pg_backend_pid());

-- name: add_and_die
-- A write whose connection dies before the answer.
INSERT INTO things (name) SELECT 'x' WHERE pg_terminate_backend(pg_backend_pid());
"""

TABLE = "CREATE TABLE things (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE NOT NULL);"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "queries.sql").write_text(QUERIES)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_pre_things.sql").write_text(TABLE)
    return tmp_path


def opened(url: str, package: Path, pool_size: int = 4) -> contextlib.AbstractAsyncContextManager[Database]:
    return Database.open(url, schema="shop", package=package, pool_size=pool_size)


async def test_rows_values_and_counts(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package) as db:
        assert await db.value("add", "lamp") == 1
        assert await db.run("add_quietly", "chair") == 1
        assert [row["name"] for row in await db.rows("list")] == ["lamp", "chair"]
        found = await db.row("find", "lamp")
        assert found is not None
        assert found["id"] == 1
        assert await db.row("find", "table") is None
        assert (await db.check()).ok


async def test_a_check_tells_the_connections_in_use(postgres_url: str, package: Path) -> None:
    async def used(db: Database) -> tuple[int, ...]:
        found = re.fullmatch(r"connections in use: (\d+) of 200; (\d+) of 4 by this service", (await db.check()).detail)
        assert found is not None
        return tuple(map(int, found.groups()))

    async with opened(postgres_url, package) as db:
        _, none_held = await used(db)
        async with db.transaction(), db.transaction():
            in_server, in_pool = await used(db)
        assert in_pool == none_held + 2
        assert 3 <= in_server <= 200


async def test_a_unique_violation_is_the_stores_to_translate(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package) as db:
        await db.run("add", "lamp")
        with pytest.raises(database.UniqueViolation):
            await db.run("add", "lamp")


async def test_a_transaction_happens_whole_or_not_at_all(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package) as db:
        with pytest.raises(database.UniqueViolation):
            async with db.transaction() as tx:
                await tx.run("add", "lamp")
                await tx.run("add", "lamp")
        assert await db.rows("list") == []
        async with db.transaction() as tx:
            assert await tx.value("add", "lamp") is not None
            assert await tx.row("find", "lamp") is not None
        assert len(await db.rows("list")) == 1


async def until_waiting(db: Database, count: int) -> None:
    while await db.value("count_waiting") != count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_what_waits_in_a_circle_is_asked_again(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package) as db, asyncio.TaskGroup() as tasks:
        async with db.transaction(deadline_seconds=60) as other:
            await other.row("never_be_the_victim")
            await other.run("lock", 2)
            async with db.transaction(deadline_seconds=60) as pause:
                await pause.run("lock", 3)
                asked = tasks.create_task(db.run("lock_three", 1, 3, 2, deadline_seconds=60))
                await until_waiting(db, 1)
                locking = tasks.create_task(other.run("lock", 1))
                await until_waiting(db, 2)
            # Now the statement waits for 2 as well. PostgreSQL cancels it to break the deadlock: only then does the other one get 1.
            await locking
            assert not asked.done()
        assert await asked == 1


async def test_a_transaction_that_waits_in_a_circle_is_told_to_try_again(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package) as db, asyncio.TaskGroup() as tasks, db.transaction(deadline_seconds=60) as other:
        await other.row("never_be_the_victim")
        await other.run("lock", 2)
        with pytest.raises(errors.Unavailable, match="same rows"):
            async with db.transaction(deadline_seconds=60) as tx:
                await tx.run("lock", 1)
                locking = tasks.create_task(other.run("lock", 1))
                await until_waiting(db, 1)
                await tx.run("lock", 2)
        await locking


async def test_a_slow_answer_is_given_up_at_the_deadline_and_the_connection_is_good_again(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package, pool_size=1) as db:
        with pytest.raises(errors.Unavailable, match=NO_DATABASE):
            async with asyncio.timeout(HANG_SECONDS):
                await db.row("sleep", 2 * HANG_SECONDS, deadline_seconds=0.1)
        assert await db.value("add", "lamp") == 1


async def test_more_callers_than_connections_wait_their_turn(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package, pool_size=2) as db:
        await asyncio.gather(*(db.run("add", f"thing {n}") for n in range(50)))
        assert len(await db.rows("list")) == 50


async def test_a_mistake_of_ours_is_not_called_unavailable(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package) as db:
        with pytest.raises(Exception, match="expects 1 argument") as caught:
            await db.row("find")
        assert not isinstance(caught.value, errors.AimeshError)
        with pytest.raises(KeyError):
            await db.row("no_such_query")


async def test_a_read_survives_connections_that_died_while_idle(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package) as db, opened(postgres_url, package) as other:
        await asyncio.gather(*(db.rows("list") for _ in range(8)))
        await other.row("cut_others")
        assert await db.rows("list") == []
        assert await asyncio.gather(*(db.rows("list") for _ in range(8))) == [[]] * 8


async def test_a_write_is_never_sent_twice(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package) as db:
        with pytest.raises(errors.Unavailable):
            await db.run("add_and_die")
        assert await db.rows("list") == []


async def test_a_read_that_kills_its_connection_is_tried_twice_and_no_more(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package) as db:
        with pytest.raises(errors.Unavailable):
            await db.row("cut_me")
        assert await db.rows("list") == []


async def test_a_connection_that_ends_within_a_statement_is_unavailable(
    postgres_url: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as when the service stops: the driver has prepared the statement and then has no connection left to run it on."""
    prepare = asyncpg.Connection._get_statement

    async def ends(connection: asyncpg.Connection, query: str, *args: Any, **more: Any) -> Any:
        prepared = await prepare(connection, query, *args, **more)
        if "FROM things" in query:
            connection.terminate()
        return prepared

    async with opened(postgres_url, package) as db:
        monkeypatch.setattr(asyncpg.Connection, "_get_statement", ends)
        with pytest.raises(errors.Unavailable, match=NO_DATABASE):
            await db.rows("list")
        with pytest.raises(errors.Unavailable, match=NO_DATABASE):
            async with db.transaction() as transaction:
                await transaction.rows("list")
        monkeypatch.undo()
        assert await db.rows("list") == []


async def test_a_killed_server_is_unavailable_at_once_and_used_again_when_it_is_back(
    postgres: PostgresServer, postgres_url: str, package: Path
) -> None:
    async with opened(postgres_url, package) as db:
        await db.run("add", "lamp")
        postgres.kill()
        await asyncio.sleep(0.02)  # let the loop notice that its connections are gone, as it does when nothing blocks it
        async with asyncio.timeout(HANG_SECONDS):
            with pytest.raises(errors.Unavailable, match=NO_DATABASE):
                await db.rows("list", deadline_seconds=2 * HANG_SECONDS)
            check = await db.check()
        assert not check.ok
        assert "DATABASE_URL" in check.detail
        postgres.start()
        async with asyncio.timeout(HANG_SECONDS):
            assert [row["name"] for row in await db.rows("list", deadline_seconds=2 * HANG_SECONDS)] == ["lamp"]
            await db.run("add", "chair", deadline_seconds=2 * HANG_SECONDS)


async def test_a_server_that_hangs_is_named_before_the_health_check_is_over(
    postgres: PostgresServer, postgres_url: str, package: Path
) -> None:
    async with opened(postgres_url, package) as db:
        await db.run("add", "lamp")
        with postgres.hung():
            async with asyncio.timeout(30):
                check = await db.check()
        assert _CHECK_SECONDS < 0.85 * CHECK_SECONDS
        assert (check.name, check.ok) == ("postgresql", False)
        assert check.detail.startswith(f"{NO_DATABASE} (no answer in time)")


async def test_opening_waits_for_a_server_that_is_still_starting(postgres: PostgresServer, postgres_url: str, package: Path) -> None:
    postgres.kill()
    async with contextlib.AsyncExitStack() as stack:
        opening = asyncio.ensure_future(stack.enter_async_context(opened(postgres_url, package)))
        await asyncio.sleep(0.02)
        assert not opening.done()
        postgres.start()
        db = await asyncio.wait_for(opening, 30)
        assert (await db.check()).ok


async def test_a_database_that_does_not_exist_is_a_wrong_setting(postgres_url: str, postgres: PostgresServer, package: Path) -> None:
    with pytest.raises(errors.BadSettings, match="nowhere"):
        async with opened(postgres.url("nowhere"), package):
            pass


async def test_notifications_arrive_and_a_reconnect_says_so(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package) as db, contextlib.aclosing(db.listen("things")) as payloads:
        assert await asyncio.wait_for(anext(payloads), 30) is None
        await db.row("tell", "one")
        assert await asyncio.wait_for(anext(payloads), 30) == "one"
        await db.row("cut_others")
        assert await asyncio.wait_for(anext(payloads), 30) is None
        await db.row("tell", "two")
        assert await asyncio.wait_for(anext(payloads), 30) == "two"


async def test_a_listener_that_does_not_read_learns_that_it_missed_some(
    postgres_url: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_arrived = asyncio.Event()
    add_listener = asyncpg.Connection.add_listener

    async def watched(connection: asyncpg.Connection, channel: str, listener: Any) -> None:
        def arrived(connection: asyncpg.Connection, pid: int, channel: str, payload: str) -> None:
            listener(connection, pid, channel, payload)
            if payload == "1001":
                all_arrived.set()

        await add_listener(connection, channel, arrived)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", watched)
    async with opened(postgres_url, package) as db, contextlib.aclosing(db.listen("things")) as payloads:
        await anext(payloads)
        async with db.transaction() as tx:
            for n in range(1002):
                await tx.row("tell", str(n))
        # The notifications may arrive in several parts: a read between two of them would make room.
        await asyncio.wait_for(all_arrived.wait(), 30)
        seen = [await asyncio.wait_for(anext(payloads), 30)]
        while seen[-1] != "1001":
            seen.append(await asyncio.wait_for(anext(payloads), 30))
        assert seen[0] is None
        assert len(seen) <= 1000


async def test_a_listener_that_is_cancelled_in_the_moment_in_which_something_comes_ends(
    postgres_url: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listeners: list[Any] = []
    add_listener = asyncpg.Connection.add_listener

    async def caught(connection: asyncpg.Connection, channel: str, listener: Any) -> None:
        listeners.append(listener)
        await add_listener(connection, channel, listener)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", caught)
    ready, heard = asyncio.Event(), 0

    async def listen(db: Database) -> None:
        nonlocal heard
        async with contextlib.aclosing(db.listen("things")) as payloads:
            async for payload in payloads:
                ready.set()
                heard += payload is not None

    async with opened(postgres_url, package) as db:
        listening = asyncio.create_task(listen(db))
        await ready.wait()
        await asyncio.sleep(0)
        listeners[0](None, 0, "things", "now")
        listening.cancel()
        await asyncio.wait((listening,), timeout=30)
        assert listening.cancelled()
    assert heard == 0


async def test_a_listener_whose_server_hangs_as_it_begins_listens_on_another_connection(
    postgres_url: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_listener, began = asyncpg.Connection.add_listener, 0

    async def slow(connection: asyncpg.Connection, channel: str, listener: Any) -> None:
        nonlocal began
        began += 1
        if began == 1:
            await asyncio.Event().wait()
        await add_listener(connection, channel, listener)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", slow)
    monkeypatch.setattr("shared.stores.database._LISTEN_SECONDS", 0.1)
    async with opened(postgres_url, package) as db, contextlib.aclosing(db.listen("things")) as payloads:
        assert await asyncio.wait_for(anext(payloads), 30) is None
    assert began == 2


async def test_a_task_that_is_cancelled_ends_also_where_its_connection_dies_meanwhile(postgres_url: str, package: Path) -> None:
    asked = asyncio.Event()

    async def work(db: Database) -> None:
        with contextlib.suppress(errors.Unavailable):
            async with db.transaction() as tx:
                try:
                    asked.set()
                    await tx.row("sleep", 30)
                finally:
                    # Like a rollback that fails.
                    await tx.row("cut_me")
        await asyncio.Event().wait()

    async with opened(postgres_url, package) as db:
        working = asyncio.create_task(work(db))
        await asked.wait()
        working.cancel()
        await asyncio.wait((working,), timeout=20)
        was_cancelled = working.cancelled()
        working.cancel()
        assert was_cancelled


async def test_a_connection_that_is_not_confirmed_after_its_caller_has_gone_is_no_error(
    postgres_url: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, problems = asyncio.Event(), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))

    async def hang(_connection: asyncpg.Connection) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with opened(postgres_url, package) as db:
        monkeypatch.setattr(asyncpg.Connection, "_reset", hang)
        working = asyncio.create_task(db.check())
        await asked.wait()
        working.cancel()
        await asyncio.wait((working,), timeout=30)
        await until(lambda: db._pool.get_size() == 0)
    gc.collect()
    assert working.cancelled()
    assert problems == []
