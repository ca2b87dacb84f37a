"""Backups of a real PostgreSQL."""

import asyncio
import hashlib
import io
import os
import signal
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psutil
import pytest

from features.backup.stack import agent_program, backup_place, catalog, layout, sealing, store_retries
from features.backup.stack.agent import base_backup, recovery_log_copy, wal_shipping
from features.backup.stack.layout import BackupManifest, LogPart
from features.backup.stack.sealing import DamagedObject, WrongIdentity
from features.backup.stack.site_term import SiteRecord
from shared import errors
from shared.identity import node_keys
from shared.identity.node_keys import NodeKey
from shared.stores import file_lock
from shared.stores.objects import StoredObject, StoreUnavailable
from stack import stack_home
from tests import stacks, tiers
from tests.features.backup.stack import copied_database
from tests.features.backup.stack.copied_database import CopiedDatabase
from tests.features.backup.stack.places import make_place
from tests.servers import PostgresServer

FACTS = """
INSERT INTO gateway.feature_migrations (feature, number, name, sha256) VALUES ('hello', 2, '', ''), ('hello', 3, '', '');
    INSERT INTO gateway.ledger_checkpoints VALUES ('2020-01-01', 40, 500, 700, -600, -300, -300, '', '', '', '');
    INSERT INTO gateway.entries (transfer, kind, account, owner, amount_micro)
        SELECT gen_random_uuid(), 'top_up', account, gen_random_uuid(), micro
        FROM (VALUES ('balance', 50), ('payments', -50)) AS sides (account, micro);
    INSERT INTO auth.audit_heads VALUES ('house', 7, '') ON CONFLICT DO NOTHING;
    INSERT INTO auth.recovery_log SELECT number, now(), 'key.revoked', 'x', '{}', '', '' FROM generate_series(1, 3) AS number;
    INSERT INTO gateway.accounts (owner) VALUES (gen_random_uuid());
    CREATE TABLE public.pages AS SELECT gen_random_uuid() FROM generate_series(1, 2000);
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with copied_database.migrated_server() as server:
        yield server


@pytest.fixture
async def copied(server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CopiedDatabase]:
    for module in (base_backup, wal_shipping):
        monkeypatch.setattr(module, "_LOOK_SECONDS", 0.05)
    async with copied_database.copied_database(server, tmp_path) as copied:
        yield copied


async def make(copied: CopiedDatabase, label: str = "") -> BackupManifest:
    async with copied.shipping():
        return await base_backup.make(copied.place, copied.source, label=label)


async def unpack(copied: CopiedDatabase, manifest: BackupManifest, part: str, identity: str) -> dict[str, bytes]:
    name = layout.part_object(manifest.name, part)
    async with sealing.unsealed(copied.place.store.read(name), [identity], manifest.part(part).plain_size) as plain:
        body = await asyncio.to_thread(plain.read)
    assert len(body) == manifest.part(part).plain_size
    with tarfile.open(fileobj=io.BytesIO(body), mode="r:") as archive:
        return {member.name: opened.read() for member in archive if (opened := archive.extractfile(member)) is not None}


async def test_a_backup_has_its_parts_and_a_signed_manifest_with_the_facts(copied: CopiedDatabase) -> None:
    async with copied.admin() as admin:
        await admin.execute(FACTS)
    await recovery_log_copy.write(copied.place, LogPart("auth", 1, 2), b"1\n2\n")
    made = await make(copied, "before the move")
    assert await copied.names(layout.BASE) == {f"base/{made.name}/{name}" for name in (
        "manifest.json", "data.tar.zst.age", "secrets.tar.zst.age", "files.tar.zst.age"
    )}  # fmt: skip
    read = await catalog.read(copied.place.store, copied.place.mesh)
    assert read.backups == (made,)
    for part in made.parts:
        body = await copied.place.store.get(layout.part_object(made.name, part.name))
        assert (len(body), hashlib.sha256(body).hexdigest()) == (part.size, part.sha256)
    assert (made.label, made.site, made.term, made.mesh) == ("before the move", "here", 1, "home")
    assert made.postgres // 10000 >= 15
    assert made.rows["gateway.accounts"] == 1
    # A closed day counts with the numbers of its checkpoint.
    assert (made.ledger_entries, made.ledger_micro) == (42, 1250)
    assert made.audit_heads == {"house": 7}
    assert made.migrations["auth"] >= 15
    assert made.migrations["gateway/hello"] == 3
    assert made.log_heads == {"auth": 2, "gateway": 0}, "not the lines that the store does not have yet"
    # The log that the backup needs to be consistent is in the store: without it, the backup would not be listed.
    numbers = {segment.number for segment in read.segments if segment.timeline == made.timeline and not segment.is_partial}
    assert numbers >= set(range(made.start_lsn // made.segment_size, (made.stop_lsn - 1) // made.segment_size + 1))
    data = await unpack(copied, made, layout.DATA, copied.place.own_identity)
    assert {"PG_VERSION", "global/pg_control", "backup_label", "backup_manifest"} <= data.keys()


async def test_only_the_operator_opens_the_secrets(copied: CopiedDatabase) -> None:
    made = await make(copied)
    with pytest.raises(WrongIdentity, match="does not open the backup"):
        await unpack(copied, made, layout.SECRETS, copied.place.own_identity)
    found = await unpack(copied, made, layout.SECRETS, copied.identity)
    assert found["secrets/mesh_ca.nk"] == (copied.home.secrets / "mesh_ca.nk").read_bytes()
    digests = {name: hashlib.sha256(made.secrets_salt.encode() + body).hexdigest() for name, body in found.items()}
    assert digests == made.secrets
    assert "stack.env" in await unpack(copied, made, layout.FILES, copied.place.own_identity)


@pytest.mark.nightly("recovery")
async def test_damaged_page_means_no_backup(copied: CopiedDatabase) -> None:
    before = await make(copied)
    async with copied.admin() as admin:
        await admin.execute("CREATE TABLE IF NOT EXISTS public.pages AS SELECT gen_random_uuid() FROM generate_series(1, 2000)")
        await admin.execute("CHECKPOINT")
        file = copied.server.server.data / await admin.fetchval("SELECT pg_relation_filepath('public.pages')")
    body = bytearray(file.read_bytes())
    body[8192 + 5000] ^= 1
    file.write_bytes(body)
    try:
        with pytest.raises(base_backup.DamagedDatabase, match=r"damaged pages, so there is no new backup: .*checksum"):
            await make(copied)
    finally:
        body[8192 + 5000] ^= 1
        file.write_bytes(body)
    assert {name.split("/")[1] for name in await copied.names(layout.BASE)} == {before.name}, "the last good one stays"
    await make(copied)


async def test_copy_that_hangs_is_given_up(copied: CopiedDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_backup, "_STALL_SECONDS", 0.5)

    def hang(_copied: int) -> None:
        for child in psutil.Process().children():
            if child.name() == "pg_basebackup":
                child.suspend()

    async with copied.shipping():
        with pytest.raises(errors.Unavailable, match="has not moved for"):
            await base_backup.make(copied.place, copied.source, label="", report=hang)
    assert await copied.names(layout.BASE) == set()


async def test_killed_backup_is_not_listed_and_leaves_nothing(copied: CopiedDatabase) -> None:
    environment = {**os.environ, "AIMESH_HOME": str(copied.home.root), "BACKUP_MB_PER_SECOND": "1"}
    async with copied_database.copied_database(copied.server, copied.home.root.parent, BACKUP_MB_PER_SECOND="1"):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli.main", "stack", "backup", env=environment, cwd=stacks.REPOSITORY
        )
        tools = await stacks.until(
            lambda: children(process.pid, "pg_basebackup"), what="pg_basebackup runs", ignoring=(psutil.NoSuchProcess,)
        )
        await stacks.until(lambda: parts_of(copied.folder), what="a part is in the store")
        commands = [" ".join(each.cmdline()) for each in (psutil.Process(process.pid), *tools)]
        assert not [command for command in commands if "password-of" in command or "AGE-SECRET" in command]
        with pytest.raises(errors.BadSettings, match="this stack is making a backup right now"):
            await base_backup.make(copied.place, copied.source, label="")
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert (await catalog.read(copied.place.store, copied.place.mesh)).backups == ()
    assert await copied.names(layout.BASE), "there is something to remove"
    await stacks.until(lambda: none_runs(tools), what="pg_basebackup has ended")
    made = await make(copied)
    assert {name.split("/")[1] for name in await copied.names(layout.BASE)} == {made.name}


@pytest.mark.parametrize("taken_by", tiers.by_day((None, "here", "there"), "here", "there", group="recovery"))
async def test_command_waits_for_the_agents_backup_and_then_reads_the_term(copied: CopiedDatabase, taken_by: str | None) -> None:
    """The wait is long, and a site may have claimed the next term meanwhile."""
    lock = copied.home.base_backup.with_name(f"{copied.home.base_backup.name}.lock")
    async with file_lock.hold(copied.home.base_backup, patience_seconds=0):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli.main", "stack", "backup", "--label", "second", stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "AIMESH_HOME": str(copied.home.root)}, cwd=stacks.REPOSITORY,
        )  # fmt: skip
        await stacks.until(lambda: opens(process.pid, lock), what="the command asks for the lock")
        if taken_by is not None:
            record = SiteRecord(term=2, site=taken_by, at=datetime.now(UTC), nonce="2")
            await copied.place.store.put("site/2.json", layout.sign("site/2.json", record, copied.place.key))
            if taken_by == "here":
                stack_home.write_struct(copied.home.own_site, record)
    async with copied.shipping():
        _, said = await asyncio.wait_for(process.communicate(), 60)
    made = [(each.label, each.term) for each in (await catalog.read(copied.place.store, copied.place.mesh)).backups]
    assert made == ([] if taken_by == "there" else [("second", 1 if taken_by is None else 2)])
    assert (process.returncode, b"there has taken over (term 2, and this one has 1)" in said) == ((2, True) if not made else (0, False))


async def opens(pid: int, file: Path) -> bool:
    return str(file) in [each.path for each in psutil.Process(pid).open_files()]


async def children(pid: int, name: str) -> list[psutil.Process] | None:
    return [child for child in psutil.Process(pid).children(recursive=True) if child.name() == name] or None


async def parts_of(folder: Path) -> list[Path] | None:
    return await asyncio.to_thread(lambda: list(folder.glob("base/*/*"))) or None


async def none_runs(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() for process in processes)


async def test_a_store_that_lost_mesh_json_still_has_its_backups_and_gets_it_again(copied: CopiedDatabase) -> None:
    made = await make(copied)
    known = await catalog.read_mesh(copied.store, None)
    assert known == made.store
    await copied.store.delete([layout.MESH])
    assert await catalog.read_mesh(copied.store, {copied.place.key.id}) == known
    with pytest.raises(DamagedObject, match="is not signed by this mesh"):
        await catalog.read_mesh(copied.store, {NodeKey(node_keys.new_seed()).id})
    await make(copied)
    assert layout.MESH in await copied.names()
    await copied.store.delete([layout.MESH])
    stranger = make_place(copied.folder.parent, name="stranger")
    with pytest.raises(errors.BadSettings, match="BACKUP_TO has the backups of another stack"):
        await backup_place._ensure_mesh(copied.store, stranger.settings, stranger.mesh.mesh, stranger.key, stranger.own_identity)
    assert layout.MESH not in await copied.names()


@pytest.mark.parametrize("failing", tiers.by_day(("base/2", "mesh.json"), "base/2", group="recovery"))
async def test_failing_store_means_no_backup(copied: CopiedDatabase, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_retries, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(store_retries.retry, "__defaults__", (0.0, *(store_retries.retry.__defaults__ or ())[1:]))
    copied.store.failing = (failing,)
    with pytest.raises(StoreUnavailable, match="403"):
        await make(copied)
    assert await copied.names(layout.BASE) == set()
    copied.store.failing = ()
    await make(copied)


@pytest.mark.nightly("recovery")
async def test_nothing_of_another_cluster_is_written_beside_the_log_of_the_first(copied: CopiedDatabase) -> None:
    """As after `make up` on a home whose database folder was deleted: the new segments have the same names."""
    await make(copied)
    before = await copied.names()
    other = replace(copied.place, mesh=msgspec.structs.replace(copied.place.mesh, system="7"))
    await other.store.put(layout.MESH, layout.sign(layout.MESH, other.mesh, other.key))
    with pytest.raises(errors.BadSettings, match=r"of another database cluster \(7\)"):
        await asyncio.wait_for(base_backup.make(other, copied.source, label=""), 10)
    with pytest.raises(errors.BadSettings, match="of another database cluster"):
        await asyncio.wait_for(wal_shipping.WalShipping(other, copied.source, term=1).run(), 10)
    for option in ((), (agent_program.ONCE,)):
        process = await run_agent(copied, *option)
        _, said = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, b"set BACKUP_TO to an empty folder" in said) == (2, True)
    assert await copied.names() == before


@pytest.mark.nightly("recovery")
async def test_before_an_upgrade_the_agent_makes_one_alone_if_it_is_due(copied: CopiedDatabase) -> None:
    """Its log must get into the store too, although the agent that ships the log does not run yet."""
    copied.home.own_site.unlink()
    for _ in range(2):
        process = await run_agent(copied, agent_program.ONCE)
        _, said = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, said
    found = await catalog.read(copied.place.store, copied.place.mesh)
    (backup,) = found.backups
    needed = range(backup.start_lsn // backup.segment_size, (backup.stop_lsn - 1) // backup.segment_size + 1)
    assert set(needed) <= {segment.number for segment in found.segments if not segment.is_partial}


async def run_agent(copied: CopiedDatabase, *options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "features.backup.stack.agent.backup_agent", *options), cwd=stacks.REPOSITORY,
        env={**os.environ, **copied.agent_environment()}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_two_backups_of_one_second_have_different_names(copied: CopiedDatabase) -> None:
    async with copied.shipping():
        first = await base_backup.make(copied.place, copied.source, label="")
        # As if the clock had been set back.
        at = datetime.strptime(first.name.split("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        assert await base_backup._find_name(copied.place.store, at, 1) == layout.name_backup(at + timedelta(seconds=1), 1)


async def test_managed_database_is_left_to_its_provider(copied: CopiedDatabase) -> None:
    made = await base_backup.make(copied.place, None, label="")
    assert [part.name for part in made.parts] == ["secrets", "files"]
    assert await copied.names(layout.WAL) == set()


def test_leftovers() -> None:
    def stored(name: str, days: float = 0) -> StoredObject:
        return StoredObject(name, 1, datetime(2026, 1, 10, tzinfo=UTC) - timedelta(days=days))

    whole = [stored("base/20260101T000000Z-1/data.tar.zst.age", 9), stored("base/20260101T000000Z-1/manifest.json", 9)]
    ours = stored("base/20260110T000000Z-1/data.tar.zst.age")
    other, old = stored("base/20260109T000000Z-2/data.tar.zst.age", 0.5), stored("base/20260108T000000Z-2/files.tar.zst.age", 2)
    found = [*whole, ours, other, old, stored("base/readme", 30)]
    assert base_backup.find_leftovers(found, term=1) == [ours.name, old.name]
    assert base_backup.find_leftovers(found, term=2) == [other.name, old.name]
    assert base_backup.find_leftovers([], term=1) == []
