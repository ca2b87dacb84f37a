import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import asyncpg
import pytest

from features.backup.stack import catalog, layout, sealing
from features.backup.stack.restoring import recovered_database, restore_plan
from features.backup.stack.restoring.recovered_database import RestoreSource, WalEnd
from features.backup.stack.restoring.restore_plan import LATEST, RestorePlan, RestoreTarget
from shared.stores import objects
from shared.types import MeshName
from tests import servers
from tests.features.backup.stack.backups import SEGMENT, BackupMaker


@pytest.fixture
async def maker(tmp_path: Path) -> AsyncIterator[BackupMaker]:
    """With a separate cluster: the tests check the whole log."""
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


@pytest.mark.nightly("recovery")
async def test_a_database_is_recovered_to_its_end_to_a_moment_and_behind_its_last_commit(maker: BackupMaker, tmp_path: Path) -> None:
    await maker.base()
    await add(maker, 1)
    between = await maker.now()
    await add(maker, 2)
    state = await maker.ship()

    plan = await plan_of(maker)
    numbers, database, end = await restored(maker, plan, tmp_path / "end")
    assert numbers == [1, 2]
    assert database.last_commit_at is not None
    assert database.reached(end, plan) == end.until > database.last_commit_at
    assert database.lsn >= end.lsn

    plan = await plan_of(maker, target=RestoreTarget(at=between))
    numbers, database, end = await restored(maker, plan, tmp_path / "between")
    assert (numbers, database.reached(end, plan)) == ([1], between)

    plan = await plan_of(maker, target=RestoreTarget(at=state.until))
    numbers, database, end = await restored(maker, plan, tmp_path / "behind")
    assert (numbers, database.reached(end, plan)) == ([1, 2], state.until)
    with pytest.raises(layout.RestoreRefused, match="the last moment"):
        await plan_of(maker, target=RestoreTarget(at=state.until + timedelta(seconds=1)))


@dataclass(frozen=True)
class HostileStore:
    """A store whose owner has replaced the archives: anyone can encrypt to the recipients."""

    folder: Path
    identity: str = field(default_factory=sealing.new_identity)

    async def unpack(self, plain: bytes, folder: Path, *, plain_size: int | None = None, part: str = layout.FILES) -> None:
        store, digest = objects.open_store(str(self.folder), {}), sealing.CountedDigest()
        async with sealing.sealed(io.BytesIO(plain), [sealing.recipient_of(self.identity)]) as pieces:
            await store.put_stream(layout.part_object("b", part), digest.over(pieces))
        size = len(plain) if plain_size is None else plain_size
        described = layout.BackupPart(name=part, size=digest.size, sha256=digest.sha256, plain_size=size)
        mesh = layout.StoreMesh(format=1, mesh=MeshName("home"), system="1", keys=(), recipients=(), own_recipient="")
        manifest = cast("layout.BackupManifest", SimpleNamespace(name="b", part=lambda _: described))
        await recovered_database.unpack(RestoreSource(store, mesh, (self.identity,)), manifest, part, folder, progress=lambda *_: None)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", body: bytes = b"evil") -> bytes:
    sink = io.BytesIO()
    with tarfile.TarFile.open(fileobj=sink, mode="w") as archive:
        described = tarfile.TarInfo(name)
        described.type, described.linkname, described.size = kind, link, len(body) if kind == tarfile.REGTYPE else 0
        archive.addfile(described, io.BytesIO(body))
    return sink.getvalue()


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside"), member("/tmp/outside"), member("keys/../../outside"), member("link", tarfile.SYMTYPE, "/etc"),
        member("link", tarfile.LNKTYPE, "/etc/passwd"), member("device", tarfile.CHRTYPE), member("pipe", tarfile.FIFOTYPE),
        member("postgres/data/base"), member("run/restore.json"), member("./run/site.json"), member("//tmp/outside"),
    ],
)  # fmt: skip
async def test_a_hostile_member_is_refused_before_it_is_written(tmp_path: Path, hostile: bytes) -> None:
    folder = tmp_path / "inside"
    with pytest.raises(sealing.DamagedObject, match="which no backup contains"):
        await HostileStore(tmp_path / "store").unpack(hostile, folder)
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in await asyncio.to_thread(lambda: list(tmp_path.iterdir()))) == ["inside", "store"]


@pytest.mark.parametrize("name", ["standby.signal", "recovery.signal", "tablespace_map"])
async def test_a_cluster_has_no_file_that_postgresql_would_obey(tmp_path: Path, name: str) -> None:
    with pytest.raises(sealing.DamagedObject, match="which no backup contains"):
        await HostileStore(tmp_path / "store").unpack(member(name), tmp_path / "inside", part=layout.DATA)


@pytest.mark.parametrize("name", ["backup_label.old", "server.crt", "conf.d/ours.conf", "pg_wal/archive_status/x"])
async def test_a_cluster_may_have_files_of_its_administrator(tmp_path: Path, name: str) -> None:
    """For example, a restored cluster has backup_label.old."""
    await HostileStore(tmp_path / "store").unpack(member(name), tmp_path / "inside", part=layout.DATA)
    assert (tmp_path / "inside" / name).exists()


async def test_an_archive_that_grows_is_refused_at_the_size_of_its_manifest(tmp_path: Path) -> None:
    bomb = member("keys/zeros", body=bytes(64 << 20))
    with pytest.raises(sealing.DamagedObject, match=r"files\.tar\.zst\.age"):
        await HostileStore(tmp_path / "store").unpack(bomb, tmp_path / "inside", plain_size=1 << 20)
    assert sum(path.stat().st_size for path in (tmp_path / "inside").rglob("*")) <= 2 << 20


@pytest.mark.nightly("recovery")
async def test_a_segment_that_was_finished_since_the_catalog_was_read_is_fetched(maker: BackupMaker, tmp_path: Path) -> None:
    await maker.base()
    await add(maker, 1)
    await maker.ship()
    plan = await plan_of(maker)
    assert plan.segments[-1].is_partial
    await maker.run("SELECT pg_switch_wal()")
    await add(maker, 2)
    await maker.ship()
    # As the agent does.
    await maker.store.delete([plan.segments[-1].object(SEGMENT)])
    numbers, _, _ = await restored(maker, plan, tmp_path / "restored")
    assert numbers == [1]
