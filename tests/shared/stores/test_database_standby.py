"""A read-only PostgreSQL: by its settings, and a real primary and standby behind an address that fails over."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest

from shared import errors
from shared.stores.database import NO_DATABASE, Database
from shared.stores.server_sessions import urls_of
from tests import tiers
from tests.servers import PostgresServer, running_pair
from tests.shared.stores.test_database import QUERIES, TABLE
from tests.switch import Switch


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "queries.sql").write_text(QUERIES)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_pre_things.sql").write_text(TABLE)
    return tmp_path


def opened(url: str, package: Path) -> contextlib.AbstractAsyncContextManager[Database]:
    return Database.open(url, schema="shop", package=package, pool_size=4)


async def set_read_only(url: str, *, is_on: bool) -> None:
    """Make new connections read-only, as a provider does to a database whose disk is full."""
    connection = await asyncpg.connect(url, server_settings={"default_transaction_read_only": "off"})
    try:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {'on' if is_on else 'off'}")
    finally:
        await connection.close()


async def test_a_write_to_a_database_that_only_reads_is_unavailable_and_works_again_afterwards(postgres_url: str, package: Path) -> None:
    async with opened(postgres_url, package) as db:
        await db.run("add", "lamp")
    await set_read_only(postgres_url, is_on=True)
    # No migration is pending, so opening needs no write.
    async with opened(postgres_url, package) as db:
        assert [row["name"] for row in await db.rows("list")] == ["lamp"]
        with pytest.raises(errors.Unavailable, match="read-only"):
            await db.run("add", "chair")
        with pytest.raises(errors.Unavailable, match="read-only"):
            async with db.transaction() as transaction:
                await transaction.run("add", "chair")
        check = await db.check()
        assert not check.ok
        assert "read-only" in check.detail
        await set_read_only(postgres_url, is_on=False)
        await db.run("add", "chair")
        assert (await db.check()).ok
        assert [row["name"] for row in await db.rows("list")] == ["lamp", "chair"]


FAILING = """
-- name: fail
-- With this SQLSTATE.
SELECT fail($1);

-- name: process
-- Who serves this connection.
SELECT pg_backend_pid();
"""

FUNCTION = """
CREATE FUNCTION fail(code text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = code; END $$;
"""


async def test_what_another_server_may_do_better_is_unavailable_and_reconnects(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "queries.sql").write_text(FAILING)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_pre_fail.sql").write_text(FUNCTION)
    async with opened(postgres_url, tmp_path) as db:
        for code in ("25006", "40001", "53100", "53200", "57P01", "57P02", "57P03", "58030"):
            before = await db.value("process")
            assert await db.value("process") == before
            with pytest.raises(errors.Unavailable) as caught:
                await db.run("fail", code)
            assert getattr(caught.value.__cause__, "sqlstate", "") == code
            assert await db.value("process") != before


@dataclass(frozen=True, slots=True)
class Pair:
    """Two servers behind one address."""

    primary: PostgresServer
    standby: PostgresServer
    switch: Switch
    url: str


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    with running_pair() as (primary, standby), tempfile.TemporaryDirectory(prefix="aimesh-") as folder:
        url = primary.url(await primary.new_database()).replace(quote(str(primary.folder), safe=""), quote(folder, safe=""))
        async with Switch(Path(folder, primary.socket.name), primary.socket) as switch:
            yield Pair(primary, standby, switch, url)


async def test_after_a_failover_the_next_call_reaches_the_new_primary(pair: Pair, package: Path) -> None:
    async with opened(pair.url, package) as db, contextlib.aclosing(db.listen("things")) as payloads:
        async with asyncio.timeout(30):
            assert await anext(payloads) is None
        await asyncio.gather(*(db.run("add", f"thing {number}") for number in range(8)))
        await pair.standby.catch_up(pair.primary)
        await pair.primary.demote()
        # The address still leads to the old server, which is a standby now: reads work, writes don't.
        assert len(await db.rows("list")) == 8
        with pytest.raises(errors.Unavailable, match="read-only"):
            await db.run("add", "chair")
        assert not (await db.check()).ok
        await asyncio.gather(*(db.rows("list") for _ in range(8)))
        await pair.standby.promote()
        pair.switch.target = pair.standby.socket
        # Open connections stay with the old server. The first write discovers this; no later call fails.
        with contextlib.suppress(errors.Unavailable):
            await db.run("add", "chair")
        await asyncio.gather(*(db.run("add", f"new thing {number}") for number in range(8)))
        assert (await db.check()).ok
        async with asyncio.timeout(30):
            await db.row("tell", "one")
            while await anext(payloads) != "one":
                await db.row("tell", "one")


@pytest.mark.nightly("long")
async def test_a_check_alone_leads_readers_to_the_new_primary(pair: Pair, package: Path) -> None:
    async with opened(pair.url, package) as db:
        await pair.standby.catch_up(pair.primary)
        await pair.primary.demote()
        assert await db.rows("list") == []
        await pair.standby.promote()
        pair.switch.target = pair.standby.socket
        assert not (await db.check()).ok
        assert (await db.check()).ok


@pytest.mark.nightly("long")
async def test_a_pending_migration_waits_for_a_server_that_writes(pair: Pair, package: Path) -> None:
    async with opened(pair.url, package):
        await pair.standby.catch_up(pair.primary)
    (package / "migrations" / "0002_pre_more.sql").write_text("ALTER TABLE things ADD COLUMN color text;")
    await pair.primary.demote()
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        opening = asyncio.ensure_future(stack.enter_async_context(opened(pair.url, package)))
        before = pair.switch.connections
        while pair.switch.connections < before + 2:  # noqa: ASYNC110 - the switch sets no event
            await asyncio.sleep(0.01)
        assert not opening.done()
        await pair.standby.promote()
        pair.switch.target = pair.standby.socket
        db = await opening
        assert (await db.check()).ok


@pytest.mark.nightly("long")
async def test_two_addresses_and_the_wish_to_write_lead_to_the_primary(pair: Pair, package: Path) -> None:
    ours, theirs = (quote(str(server.folder), safe="") for server in (pair.primary, pair.standby))
    url = pair.url.replace(quote(str(pair.switch.path.parent), safe=""), f"{theirs},{ours}") + "&target_session_attrs=read-write"
    await pair.standby.catch_up(pair.primary)
    async with opened(url.replace("port=5432", "port=5432,5432"), package) as db:
        await db.run("add", "lamp")
        await pair.standby.catch_up(pair.primary)
        await pair.primary.demote()
        with pytest.raises(errors.Unavailable, match=NO_DATABASE):
            await db.run("add", "chair")
        await pair.standby.promote()
        await db.run("add", "chair")
        assert [row["name"] for row in await db.rows("list")] == ["lamp", "chair"]


@pytest.mark.parametrize("is_hung", tiers.by_day((False, True), True, group="long"), ids=["killed", "hung"])
async def test_with_several_hosts_the_next_call_finds_the_promoted_standby(pair: Pair, package: Path, is_hung: bool) -> None:
    """The URL needs no target_session_attrs."""
    ours, theirs = (quote(str(server.folder), safe="") for server in (pair.primary, pair.standby))
    url = pair.url.replace(quote(str(pair.switch.path.parent), safe=""), f"{ours},{theirs}" if is_hung else f"{theirs},{ours}")
    await pair.standby.catch_up(pair.primary)
    async with opened(url, package) as db:
        await db.run("add", "lamp")
        await pair.standby.catch_up(pair.primary)
        with contextlib.ExitStack() as stack:
            if is_hung:
                stack.enter_context(pair.primary.hung())
            else:
                pair.primary.kill()
            await pair.standby.promote()
            with contextlib.suppress(errors.Unavailable):
                await db.run("add", "lost", deadline_seconds=0.5)
            began = time.monotonic()
            await db.run("add", "chair")
            assert time.monotonic() - began < 5
            assert {"lamp", "chair"} <= {row["name"] for row in await db.rows("list")}
            # New connections also try the last reached host first.
            began = time.monotonic()
            await asyncio.gather(*(db.rows("list") for _ in range(4)))
            assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("url", "urls"),
    [
        ("postgresql://u:p,@a/db", ["postgresql://u:p,@a/db"]),
        (
            "postgresql://u:p@a:1,b/db?sslmode=require",
            [f"postgresql://u:p@{host}/db?sslmode=require&target_session_attrs=read-write" for host in ("a:1", "b")],
        ),
        ("postgresql://a,b/db?target_session_attrs=any", [f"postgresql://{host}/db?target_session_attrs=any" for host in "ab"]),
        (
            "postgresql:///db?host=/x,/y&port=1,2",
            [f"postgresql:///db?host=%2F{host}&target_session_attrs=read-write&port={port}" for host, port in ("x1", "y2")],
        ),
    ],
)
def test_each_host_has_a_url(url: str, urls: list[str]) -> None:
    assert urls_of(url) == urls
