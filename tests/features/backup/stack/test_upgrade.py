"""The restore point before an upgrade, on a real server that is provisioned as by `make up`."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from features.backup.stack import upgrade
from shared import errors
from shared.stores.database import Database
from stack import schema_migrations, secret_files
from stack import stack_home as homes
from stack.servers import postgres
from stack.servers.postgres import Postgres
from stack.servers.program import Program
from stack.stack_home import StackHome
from tests import servers
from tests.servers import PostgresServer

AGENT = Program(name="backup", command=("true",), environment={}, stage=1)


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

    async def back_up(_home: StackHome, _agent: Program) -> None:
        calls.append(await wal_position(server))

    monkeypatch.setattr(upgrade, "_back_up", back_up)
    assert not await schema_migrations.will_change_tables(home, server), "a new database has nothing to go back to"
    async with Database.open(server.url("auth", passwords["auth"]), schema="auth", package=package):
        pass
    assert not await schema_migrations.will_change_tables(home, server), "only post migrations are pending"
    (package / "migrations" / "0003_pre_c.sql").write_text("CREATE TABLE c ();")
    assert await schema_migrations.will_change_tables(home, server)
    point = await upgrade.before_migrations(home, server, AGENT)
    again = await upgrade.before_migrations(home, server, None)
    assert upgrade.read_points(home) == [point, again]
    assert (home.run / "restore_points.jsonl").stat().st_mode & 0o777 == 0o600
    assert point.name.startswith(f"before-{point.version}-")
    assert len(calls) == 1
    assert lsn(calls[0]) < lsn(point.lsn) < lsn(again.lsn), "the base backup ends before the point, or no restore can stop there"
    with pytest.raises(errors.Unavailable, match="no restore point could be written"):
        await upgrade.before_migrations(home, replace(server, admin="auth", admin_password=home.secrets / "postgres_auth"), None)


async def wal_position(server: Postgres) -> str:
    connection = await asyncpg.connect(server.url(server.admin, server.admin_password.read_text()))
    try:
        return str(await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text"))
    finally:
        await connection.close()


def lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


@pytest.mark.parametrize(("status", "said"), [(0, ""), (1, "none was made before the migrations (status 1)")])
async def test_a_base_backup_is_made_before_an_upgrade_and_a_failing_store_does_not_prevent_it(
    home: StackHome, caplog: pytest.LogCaptureFixture, status: int, said: str
) -> None:
    await upgrade._back_up(home, agent(f'echo "asked $0"; exit {status}'))
    assert home.log("backup").read_text() == "asked --once\n"
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [said in each for each in errors] == [True] * bool(said)


async def test_a_backup_before_an_upgrade_ends_with_the_supervisor(home: StackHome) -> None:
    asked = agent("trap 'sleep 0.2; echo ended; exit 0' TERM; echo begun; while :; do sleep 0.02; done")
    async with asyncio.TaskGroup() as tasks:
        backup = tasks.create_task(upgrade._back_up(home, asked))
        async with asyncio.timeout(30):
            while not home.log("backup").exists() or home.log("backup").read_text() != "begun\n":  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        backup.cancel()
    assert home.log("backup").read_text() == "begun\nended\n"


def agent(script: str) -> Program:
    return replace(AGENT, command=("sh", "-c", script), environment={"PATH": os.environ["PATH"]})
