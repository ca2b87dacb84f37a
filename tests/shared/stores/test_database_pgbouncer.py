"""A real PgBouncer in front of a real PostgreSQL: in session mode everything works; in the other modes the service refuses to start."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from shared import errors
from shared.stores import server_sessions
from shared.stores.database import Database
from shared.stores.server_sessions import ServerPlace
from tests import pgbouncer
from tests.servers import PostgresServer
from tests.shared.stores.test_database import QUERIES, TABLE

SHOW = """
-- name: show
-- How a setting stands.
SELECT current_setting($1);
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "queries.sql").write_text(QUERIES + SHOW)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_pre_things.sql").write_text(TABLE)
    return tmp_path


def opened(url: str, package: Path) -> contextlib.AbstractAsyncContextManager[Database]:
    return Database.open(url, schema="shop", package=package, pool_size=4)


@pytest.fixture
async def name(postgres: PostgresServer) -> str:
    return await postgres.new_database()


@pytest.mark.parametrize("ignored", ["", "search_path,statement_timeout,extra_float_digits"])
async def test_in_session_mode_everything_works_and_all_settings_hold(
    postgres: PostgresServer, name: str, package: Path, ignored: str
) -> None:
    with pgbouncer.running(postgres, name, "session", ignore_startup_parameters=ignored) as url:
        async with opened(url, package) as db, contextlib.aclosing(db.listen("things")) as payloads:
            async with asyncio.timeout(30):
                assert await anext(payloads) is None
            await asyncio.gather(*(db.run("add", f"thing {number}") for number in range(20)))
            for _ in range(10):
                shown = await asyncio.gather(
                    *(db.value("show", setting) for setting in ("search_path", "aimesh.tenant", "statement_timeout"))
                )
                assert shown == ["shop", "*", "1min"]
            await db.row("tell", "one")
            async with asyncio.timeout(30):
                assert await anext(payloads) == "one"
            assert (await db.check()).ok
        # The next client of the same server process finds none of our session state.
        async with opened(url, package) as db:
            assert len(await db.rows("list")) == 20


@pytest.mark.parametrize("round_robin", ["0", "1"])
@pytest.mark.parametrize("pool_mode", ["transaction", "statement"])
async def test_a_pooler_that_does_not_keep_sessions_is_refused_and_told_what_to_set(
    postgres: PostgresServer, name: str, package: Path, pool_mode: str, round_robin: str
) -> None:
    settings = {"server_round_robin": round_robin, "ignore_startup_parameters": "search_path,statement_timeout"}
    with pgbouncer.running(postgres, name, pool_mode, **settings) as url:
        for _ in range(3):
            with pytest.raises(errors.BadSettings, match="does not keep") as refused:
                async with opened(url, package):
                    pass
            assert "pool_mode = session" in refused.value.hint


class Unprepared(ServerPlace):
    """Without prepared statements: with them this PgBouncer reveals itself, but a newer one does not."""

    async def connect(self, **more: Any) -> asyncpg.Connection:
        return await ServerPlace.connect(self, statement_cache_size=0, **more)


@pytest.mark.parametrize("round_robin", ["0", "1"])
@pytest.mark.parametrize("pool_mode", ["transaction", "statement"])
async def test_it_is_refused_also_where_it_knows_prepared_statements(
    postgres: PostgresServer, name: str, pool_mode: str, round_robin: str
) -> None:
    with (
        pgbouncer.running(postgres, name, pool_mode, server_round_robin=round_robin) as url,
        pytest.raises(errors.BadSettings, match="does not keep"),
    ):
        await server_sessions.open_first(Unprepared(url, "shop"))
    with pgbouncer.running(postgres, name, "session") as url:
        (await server_sessions.open_first(Unprepared(url, "shop"))).terminate()


@pytest.mark.parametrize("round_robin", ["0", "1"])
async def test_it_is_refused_also_where_other_clients_have_made_it_open_several_connections(
    postgres: PostgresServer, name: str, package: Path, round_robin: str
) -> None:
    settings = {"server_round_robin": round_robin, "min_pool_size": "4"}
    with pgbouncer.running(postgres, name, "transaction", **settings) as url:
        others = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(4)]
        transactions = [other.transaction() for other in others]
        for transaction in transactions:
            await transaction.start()
        for transaction in transactions:
            await transaction.rollback()
        with pytest.raises(errors.BadSettings, match="does not keep"):
            async with opened(url, package):
                pass
        for other in others:
            await other.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(("&port", "&made_up=1&port"), "unsupported startup parameter: made_up", id="parameter"),
        pytest.param(("&port", "&options=-c%20search_path%3Dx&port"), "unsupported startup parameter: options", id="options"),
        pytest.param(("admin:", "admin:wrong"), "authentication failed", id="password"),
        pytest.param(("/test_", "/nowhere_"), "does not exist", id="database"),
    ],
)
async def test_what_pgbouncer_refuses_is_a_wrong_setting_in_its_words(
    postgres: PostgresServer, name: str, package: Path, change: tuple[str, str], words: str
) -> None:
    with pgbouncer.running(postgres, name, "session") as url:
        with pytest.raises(errors.BadSettings, match=words) as refused:
            async with opened(url.replace(*change), package):
                pass
        assert "DATABASE_URL" in refused.value.hint


async def test_a_parameter_that_postgresql_does_not_know_is_a_wrong_setting(postgres_url: str, package: Path) -> None:
    with pytest.raises(errors.BadSettings, match="made_up"):
        async with opened(f"{postgres_url}&made_up=1", package):
            pass
