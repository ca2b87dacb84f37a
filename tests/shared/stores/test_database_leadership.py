"""One of several processes leads: an advisory lock on a dedicated session, with a real PostgreSQL."""

import asyncio
import itertools
from pathlib import Path

import asyncpg
import pytest

from shared import errors
from shared.stores import database
from shared.stores.database import Database, Leadership
from tests.servers import PostgresServer

QUERIES = """
-- name: find_process
-- Of this session.
SELECT pg_backend_pid();
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "queries.sql").write_text(QUERIES)
    return tmp_path


async def _end_session(url: str, leader: Leadership) -> None:
    """End the leader's session, as PostgreSQL does when the leader's process dies."""
    async with leader.transaction() as transaction:
        process = await transaction.value("find_process")
    admin = await asyncpg.connect(url)
    assert await admin.fetchval("SELECT pg_terminate_backend($1, 5000)", process)
    await admin.close()


async def _until_it_leads(leader: Leadership) -> None:
    async with asyncio.timeout(30):
        for _ in itertools.count():
            if await leader.take():
                return
            await asyncio.sleep(0.02)


async def test_one_of_two_leads_and_the_other_takes_over_when_its_session_ends(package: Path, postgres_url: str) -> None:
    async with (
        Database.open(postgres_url, schema="one", package=package) as opened,
        opened.leadership("alerts") as first,
        opened.leadership("alerts") as second,
    ):
        assert await first.take()
        assert not await second.take()
        assert await first.take(), "asking again changes nothing"
        await _end_session(postgres_url, first)
        assert await second.take()
        with pytest.raises(errors.Unavailable, match="does not answer"):
            await first.take()
        async with opened.leadership("alerts") as back:
            assert not await back.take()


async def test_a_session_that_is_closed_gives_the_lock_back(package: Path, postgres_url: str) -> None:
    async with Database.open(postgres_url, schema="one", package=package) as opened, opened.leadership("alerts") as second:
        async with opened.leadership("alerts") as first:
            assert await first.take()
            assert not await second.take()
        await _until_it_leads(second)


async def test_locks_of_other_names_and_other_schemas_are_others(package: Path, postgres_url: str) -> None:
    async with (
        Database.open(postgres_url, schema="one", package=package) as one,
        Database.open(postgres_url, schema="two", package=package) as two,
        one.leadership("alerts") as first,
        one.leadership("reports") as second,
        two.leadership("alerts") as third,
    ):
        assert [await each.take() for each in (first, second, third)] == [True, True, True]


async def test_a_leader_that_says_nothing_loses_its_lock(package: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_LEASE_SECONDS", 2)
    async with (
        Database.open(postgres_url, schema="one", package=package) as opened,
        opened.leadership("alerts") as hangs,
        opened.leadership("alerts") as second,
    ):
        assert await hangs.take()
        await _until_it_leads(second)
        with pytest.raises(errors.Unavailable, match="does not answer"):
            async with hangs.transaction() as transaction:
                await transaction.value("find_process")


async def test_a_server_that_is_gone_is_said(package: Path, postgres: PostgresServer, postgres_url: str) -> None:
    async with Database.open(postgres_url, schema="one", package=package) as opened:
        async with opened.leadership("alerts") as leader:
            assert await leader.take()
            postgres.kill()
            try:
                with pytest.raises(errors.Unavailable, match="does not answer"):
                    await leader.take()
                with pytest.raises(errors.Unavailable, match="does not answer"):
                    async with opened.leadership("alerts"):
                        pass
            finally:
                postgres.ensure_running()
        async with opened.leadership("alerts") as leader:
            assert await leader.take()
