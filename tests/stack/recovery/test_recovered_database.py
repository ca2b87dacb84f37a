from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from stack.recovery import catalog, recovered_database, restore_plan
from stack.recovery.recovered_database import RestoreSource, WalEnd
from stack.recovery.restore_plan import LATEST, RestorePlan, RestoreTarget
from tests import servers
from tests.backups import BackupMaker


@pytest.fixture
async def maker(tmp_path: Path) -> AsyncIterator[BackupMaker]:
    """With a cluster of its own: the tests look at the whole log."""
    with servers.running(servers.PostgresServer) as server:
        made = BackupMaker(tmp_path / "store", server)
        await made.begin()
        await made.run("CREATE TABLE entries (number bigint)", database="aimesh")
        yield made


def source_of(maker: BackupMaker) -> RestoreSource:
    return RestoreSource(maker.store, maker.store_mesh, (maker.identity,))


async def plan_of(maker: BackupMaker, which: str = LATEST, target: RestoreTarget | None = None) -> RestorePlan:
    found = await catalog.read(maker.store, maker.store_mesh)
    return restore_plan.plan(found, which, target or RestoreTarget(), await source_of(maker).histories(found.histories))


async def add(maker: BackupMaker, *numbers: int) -> None:
    await maker.run(*[f"INSERT INTO entries VALUES ({number})" for number in numbers], database="aimesh")


async def restored(maker: BackupMaker, plan: RestorePlan, folder: Path) -> tuple[list[int], recovered_database.RecoveredDatabase, WalEnd]:
    def progress(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total, what

    end = await recovered_database.fetch_and_unpack(source_of(maker), plan, folder, progress)
    async with recovered_database.recovered(folder, plan, progress, is_durable=False) as database:
        connection = await asyncpg.connect(database.url)
        rows = await connection.fetch("SELECT number FROM entries ORDER BY number")
        await connection.close()
    assert not (folder / "data" / "postmaster.pid").exists(), "it was shut down"
    return [row["number"] for row in rows], database, end


async def test_latest_has_every_commit_that_was_shipped(maker: BackupMaker, tmp_path: Path) -> None:
    await add(maker, 1)
    await maker.base()
    await add(maker, 2)
    await maker.ship()
    plan = await plan_of(maker)
    numbers, database, end = await restored(maker, plan, tmp_path / "restored")
    assert numbers == [1, 2]
    assert database.last_commit_at is not None
    assert database.reached(end, plan) == end.until > database.last_commit_at
    assert database.lsn >= end.lsn


async def test_a_moment_is_exact(maker: BackupMaker, tmp_path: Path) -> None:
    await maker.base()
    await add(maker, 1)
    between = await maker.now()
    await add(maker, 2)
    await maker.ship()
    plan = await plan_of(maker, target=RestoreTarget(at=between))
    numbers, database, end = await restored(maker, plan, tmp_path / "restored")
    assert numbers == [1]
    assert database.reached(end, plan) == between


async def test_a_moment_behind_the_last_commit_is_reached(maker: BackupMaker, tmp_path: Path) -> None:
    await maker.base()
    await add(maker, 1)
    state = await maker.ship()
    plan = await plan_of(maker, target=RestoreTarget(at=state.until))
    numbers, database, end = await restored(maker, plan, tmp_path / "restored")
    assert numbers == [1]
    assert database.reached(end, plan) == state.until
    with pytest.raises(restore_plan.RestoreRefused, match="the last moment"):
        await plan_of(maker, target=RestoreTarget(at=state.until + timedelta(seconds=1)))
