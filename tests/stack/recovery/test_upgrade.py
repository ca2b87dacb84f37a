"""The restore point before an upgrade, on a real server that is provisioned as by `make up`."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from shared import errors
from shared.stores.database import Database
from stack import secret_files
from stack import stack_home as homes
from stack.recovery import upgrade
from stack.servers import postgres
from stack.servers.postgres import Postgres
from stack.stack_home import StackHome
from tests import servers
from tests.servers import PostgresServer


@pytest.fixture
async def server() -> AsyncIterator[Postgres]:
    with servers.running(PostgresServer) as running:
        yield running.server


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    found = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    homes.ensure_folders(found)
    secret_files.ensure(found)
    return found


async def test_a_restore_point_is_written_before_tables_are_migrated(
    home: StackHome, server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = {role: secret_files.read(home, f"postgres_{role}") for role in secret_files.LOGIN_ROLES}
    await asyncio.to_thread(postgres.provision, server, passwords)
    monkeypatch.setattr(homes, "checkout", lambda: tmp_path)
    for role in passwords:
        (tmp_path / "services" / role / "migrations").mkdir(parents=True)
    package = tmp_path / "services" / "auth"
    (package / "queries.sql").write_text("-- name: one\n-- One.\nSELECT 1;")
    (package / "migrations" / "0001_pre_a.sql").write_text("CREATE TABLE a ();")
    (package / "migrations" / "0002_post_b.sql").write_text("CREATE TABLE b ();")
    calls: list[str] = []

    async def back_up() -> None:
        calls.append(await wal_position(server))

    assert await upgrade.before_migrations(home, server, back_up) is None, "a new database has nothing to go back to"
    async with Database.open(server.url("auth", passwords["auth"]), schema="auth", package=package):
        pass
    assert await upgrade.before_migrations(home, server, back_up) is None, "only post migrations are pending"
    assert (calls, upgrade.read_points(home)) == ([], [])
    (package / "migrations" / "0003_pre_c.sql").write_text("CREATE TABLE c ();")
    point = await upgrade.before_migrations(home, server, back_up)
    again = await upgrade.before_migrations(home, server)
    assert point is not None
    assert again is not None
    assert upgrade.read_points(home) == [point, again]
    assert (home.run / "restore_points.jsonl").stat().st_mode & 0o777 == 0o600
    assert point.name.startswith(f"before-{point.version}-")
    assert len(calls) == 1
    assert lsn(calls[0]) < lsn(point.lsn) < lsn(again.lsn), "the base backup ends before the point, or no restore can stop there"
    with pytest.raises(errors.Unavailable, match="no restore point could be written"):
        await upgrade.before_migrations(home, replace(server, admin="auth", admin_password=home.secrets / "postgres_auth"))


async def wal_position(server: Postgres) -> str:
    connection = await asyncpg.connect(server.url(server.admin, server.admin_password.read_text()))
    try:
        return str(await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text"))
    finally:
        await connection.close()


def lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)
