"""Whole homes from a store: every step, every refusal, and a kill -9 at each of them."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import asyncpg
import msgspec
import pytest

from features.backup.stack import layout, sealing
from features.backup.stack.layout import BackupManifest, RestoreRefused, StoreState
from features.backup.stack.restoring import recovered_database, restore
from features.backup.stack.restoring.restore import RestoreReport, RestoreRequest, RestoreState
from features.backup.stack.site_term import SiteRecord
from features.backup.stack.upgrade import RestorePoint
from shared import errors, features
from shared.identity import node_keys
from shared.identity.node_keys import NodeKey
from shared.recovery.log_place import AcceptedGap
from shared.recovery.rollback import RecoveryState
from stack import processes, stack_home
from stack.servers import postgres
from stack.stack_home import StackHome
from tests import servers, tiers
from tests.features.backup.stack.agent.test_recovery_log_copy import LogService, copying, until_stored
from tests.features.backup.stack.backups import BackupMaker

ENVIRONMENT = {"PATH": os.environ["PATH"]}


class Case:
    """A store with a backup and three commits, the second before the moment ``between``; and an identity."""

    def __init__(self, maker: BackupMaker, folder: Path) -> None:
        self.maker = maker
        self.identity = folder / "identity"
        self.identity.write_text(f"# signed by: {maker.key.id}\n{maker.identity}\n")
        self.backup: BackupManifest
        self.between: datetime
        self.point_at: datetime

    async def fill(self) -> None:
        await self.maker.begin()
        await self.maker.run("CREATE TABLE entries (number bigint)", "CREATE SCHEMA auth", database="aimesh")
        await self.maker.run(
            "CREATE TABLE auth.recovery_log (number bigint)", "INSERT INTO auth.recovery_log VALUES (1), (2)",
            "CREATE TABLE auth.audit_heads (chain text, sequence bigint)", "INSERT INTO auth.audit_heads VALUES ('mesh', 5)",
            database="aimesh",
        )  # fmt: skip
        secrets = {"secrets/recovery.nk": self.maker.key.seed, "secrets/key_pepper": b"pepper", "secrets/environment/smtp_url": b"smtp://x"}
        files = {
            "stack.env": b"MESH_NAME=home\nSITE_NAME=first\nSMTP_URL_FILE=/elsewhere/.aimesh/secrets/environment/smtp_url\n",
            "keys/gateway.journal": b"row of a request",
            "keys/gateway.mesh": b"{}",
        }
        await self.maker.run("INSERT INTO entries VALUES (1)", database="aimesh")
        self.backup = await self.maker.base(secrets=secrets, files=files)
        await self.maker.run("INSERT INTO entries VALUES (2)", database="aimesh")
        self.between = await self.maker.now()
        await self.maker.run("SELECT pg_create_restore_point('before-9.9')")
        self.point_at = await self.maker.now()
        await self.maker.run("INSERT INTO entries VALUES (3)", database="aimesh")
        await self.maker.ship()
        at = "2026-01-01T00:00:00Z"
        lines = [json.dumps({"number": number, "at": at, "kind": "key.revoked"}).encode() + b"\n" for number in (1, 2, 3, 4)]
        await self.maker.put_log("auth", 1, lines[:3])
        # An interrupted copy left a line twice.
        await self.maker.put_log("auth", 3, lines[2:])
        await self.maker.put_log("anchors", 1, [anchor(sequence) for sequence in (5, 7)])
        first = SiteRecord(term=1, site="first", at=self.between, nonce="1")
        await self.maker.store.put("site/1.json", layout.sign("site/1.json", first, self.maker.key))

    def request(self, **more: object) -> RestoreRequest:
        return msgspec.structs.replace(RestoreRequest(address=str(self.maker.folder)), **more)

    def reset(self) -> None:
        """Free all terms except the first."""
        for path in (self.maker.folder / "site").glob("*"):
            if path.name != "1.json":
                path.unlink()

    async def restore(self, home: StackHome, identity: Path | None = None, **more: object) -> RestoreReport:
        return await restore.restore(home, self.request(**more), identity or self.identity, {}, lambda *_: None)


def anchor(sequence: int) -> bytes:
    at = f"2026-01-01T00:00:0{sequence}Z"
    facts = {"mesh": "home", "chain": "mesh", "sequence": sequence, "hash": "00", "count": sequence, "at": at, "key": "U", "signature": ""}
    return json.dumps(facts).encode() + b"\n"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One cluster for all tests: no test changes it."""
    folder = tmp_path_factory.mktemp("case")
    with servers.running(servers.PostgresServer) as server:
        made = Case(BackupMaker(folder / "store", server), folder)
        asyncio.run(made.fill())
    return made


@pytest.fixture
def home(case: Case, tmp_path: Path) -> StackHome:
    case.reset()
    return stack_home.locate({"AIMESH_HOME": str(tmp_path / "aimesh")})


async def entries(home: StackHome) -> list[int]:
    """Return the rows of the restored cluster, which runs as in a stack."""
    with tempfile.TemporaryDirectory() as sockets:
        hba = Path(sockets) / "hba"
        hba.write_text("local all all trust\n")
        server = postgres.Postgres(home.postgres, Path(sockets), "aimesh_admin", hba)
        postgres.prepare(server)
        running = servers.Server(Path(sockets), postgres.program(server, ENVIRONMENT), ("-c", f"hba_file={hba}", "-c", "fsync=off"))
        running.start()
        try:
            connection = await asyncpg.connect(server.url("aimesh_admin", "-"))
            try:
                return [row["number"] for row in await connection.fetch("SELECT number FROM entries ORDER BY number")]
            finally:
                await connection.close()
        finally:
            running.stop()


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "supervisor.lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


async def test_an_empty_home_gets_everything(case: Case, home: StackHome) -> None:
    report = await case.restore(home)
    assert await entries(home) == [1, 2, 3]
    assert (home.secrets / "key_pepper").read_bytes() == b"pepper"
    assert f"SMTP_URL_FILE={home.secrets}/environment/smtp_url" in home.settings_file.read_text()
    assert (report.log_lines_replayed, report.lost_rows, report.term, report.is_complete) == (2, 2, 2, True)
    assert report.reached_at is not None
    assert 0 <= (report.lost_seconds or 0) < 5
    lines = (home.root / "recovery_log" / "auth-restored-2.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3, 4]
    assert len((home.root / "audit_anchors.jsonl").read_bytes().splitlines()) == 2
    assert not (home.keys / "gateway.journal").exists(), "the gateway would retry its rows for ever"
    assert report.settle_journals == (str(home.run / "settle_journals" / "gateway.journal"),)
    own = msgspec.json.decode(home.own_site.read_bytes(), type=SiteRecord)
    assert (own.term, own.site) == (2, "first")
    assert not home.root.with_name("aimesh.restoring").exists()
    assert not (home.postgres / "wal").exists()
    assert home.root.stat().st_mode & 0o077 == 0


async def test_lost_rows_of_the_audit_log_are_counted_also_without_an_anchor(case: Case, home: StackHome, tmp_path: Path) -> None:
    """The anchors know 2 rows more than the database, and the agent has counted 68 more."""
    store = tmp_path / "store"
    shutil.copytree(case.maker.folder, store)
    state = layout.read_signed(layout.STATE, (store / layout.STATE).read_bytes(), StoreState, None)
    more = msgspec.structs.replace(state, audit_rows=5 + 68)
    (store / layout.STATE).write_bytes(layout.sign(layout.STATE, more, case.maker.key))
    assert (await case.restore(home, address=str(store))).lost_rows == 68


async def test_a_moment_and_a_backup_are_exact(case: Case, home: StackHome, tmp_path: Path) -> None:
    report = await case.restore(home, at=case.between)
    assert (report.reached_at, report.lost_seconds and report.lost_seconds > 0) == (case.between, True)
    assert await entries(home) == [1, 2]
    other = stack_home.locate({"AIMESH_HOME": str(tmp_path / "other")})
    await case.restore(other, which=case.backup.name)
    assert await entries(other) == [1]


@pytest.mark.nightly("recovery")
async def test_an_upgrade_is_taken_back_to_its_restore_point(case: Case, home: StackHome) -> None:
    home.run.mkdir(parents=True)
    points = [RestorePoint("before-9.9", "9.9", case.point_at, "0/0"), RestorePoint("before-9.10", "9.10", case.point_at, "0/0")]
    (home.run / "restore_points.jsonl").write_bytes(b"".join(msgspec.json.encode(point) + b"\n" for point in points))
    with pytest.raises(RestoreRefused, match=r"before-9\.10 is not in the log"):
        await case.restore(home, before_upgrade="9.10", replaces=True)
    # The store has the points too, in case the home is lost.
    shutil.rmtree(home.root)
    points = [
        RestorePoint(name, "9.9", case.point_at + timedelta(days=days), "0/0")
        for name, days in (("before-9.9-failed", -2), ("before-9.9", 0), ("before-9.9-older", -1))
    ]
    await case.maker.put_log("points", 1, [msgspec.json.encode(point) + b"\n" for point in points])
    await case.restore(home, before_upgrade="9.9")
    assert await entries(home) == [1, 2]


@pytest.mark.nightly("recovery")
async def test_replace_keeps_the_old_home_and_uses_what_only_it_has(case: Case, home: StackHome, tmp_path: Path) -> None:
    home.root.mkdir()
    (home.root / "note").write_text("old")
    log = home.root / "recovery_log"
    log.mkdir()
    (log / "auth-UNODE.jsonl").write_bytes(b'{"number": 9, "at": "2026-01-02T00:00:00Z"}\n')
    with pytest.raises(RestoreRefused, match="is not empty"):
        await case.restore(home)
    report = await case.restore(home, replaces=True)
    assert report.old_home is not None
    assert (Path(report.old_home) / "note").read_text() == "old"
    assert report.log_lines_replayed == 7, "the line that the store did not have yet"
    assert (home.root / "recovery_log" / "auth-UNODE.jsonl").exists()


@pytest.mark.nightly("recovery")
async def test_segments_that_only_this_machine_has_are_replayed(case: Case, home: StackHome, tmp_path: Path) -> None:
    """As pg_receivewal leaves them when only the database is lost."""
    wal = home.received_log("1")
    wal.mkdir(parents=True)
    partial = next(path for path in (case.maker.folder / "wal").rglob("*.partial.zst.age"))
    name = f"wal/{partial.parent.name}/{partial.name}"
    opened = sealing.open_bytes(name, partial.read_bytes(), [case.maker.identity], [case.maker.key.id], case.maker.mesh)
    (wal / partial.name.removesuffix(".zst.age")).write_bytes(msgspec.msgpack.decode(opened)["data"])
    kept = partial.read_bytes()
    partial.unlink()
    try:
        await case.restore(home, replaces=True)
    finally:
        partial.write_bytes(kept)
    assert await entries(home) == [1, 2, 3]


@pytest.mark.nightly("recovery")
async def test_the_old_cluster_comes_back_where_a_new_one_was_started(case: Case, home: StackHome, tmp_path: Path) -> None:
    """The new cluster's agent writes nothing into the old one's store, but its log is in the home."""
    shutil.copytree(case.maker.folder, tmp_path / "store")
    with servers.running(servers.PostgresServer) as server:
        other = replace(case.maker, folder=tmp_path / "store", server=server, marks=[], shipped=set())
        await other.begin()
        system = str(await other.run("SELECT system_identifier FROM pg_control_system()"))
        shutil.copytree(server.server.data / "pg_wal", home.received_log(system), ignore=shutil.ignore_patterns("*_status", "summaries"))
        home.recovery_log.mkdir(parents=True)
        state = RecoveryState(system=system, timeline=1, lsn=1, number=4)
        (home.recovery_log / "recovery_state").write_bytes(msgspec.json.encode(state))
        await case.restore(home, replaces=True)
        assert await entries(home) == [1, 2, 3]
        # If the new agent had written there, its segments would have replaced those of the old cluster.
        for number in range(4):
            await other.run(f"CREATE TABLE entries{number} (number bigint)", "SELECT pg_switch_wal()", database="aimesh")
        await other.base()
    shutil.rmtree(home.root)
    before = contents(home.root.parent)
    with pytest.raises(RestoreRefused, match=rf"wal/.* is of another database cluster than the backup {case.backup.name}"):
        await case.restore(home, address=str(other.folder), which=case.backup.name)
    assert contents(home.root.parent) == before


def kill_at(state: RestoreState, *, before: bool) -> str:
    return f"""
import os, sys
from features.backup.stack.restoring import restore
save = restore._Restore._save
def killing(self, state, **facts):
    {"pass" if before else "save(self, state, **facts)"}
    if state == "{state}" and not facts:
        os.kill(os.getpid(), 9)
    {"save(self, state, **facts)" if before else "pass"}
restore._Restore._save = killing
"""


COMMAND = """
from cli import main
sys.argv = ["aicli", *sys.argv[1:]]
main.main()
"""


def run(case: Case, home: StackHome, *more: str, code: str = "import sys", seconds: float = 60) -> "subprocess.CompletedProcess[bytes]":
    words = ["stack", "restore", "latest", "--from", str(case.maker.folder), "--identity", str(case.identity), "--yes", "--json", *more]
    return subprocess.run(
        [sys.executable, "-c", code + COMMAND, *words], env={**os.environ, "AIMESH_HOME": str(home.root)},
        timeout=seconds, capture_output=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("state", tiers.by_day((RestoreState.UNPACKED, RestoreState.OPENED), RestoreState.UNPACKED, group="recovery"))
async def test_the_same_command_continues_after_a_kill(case: Case, home: StackHome, state: RestoreState) -> None:
    home.root.mkdir()
    (home.root / "note").write_text("old")
    # It renames the folders before it saves the state OPENED.
    killed = run(case, home, "--replace", code=kill_at(state, before=state is RestoreState.OPENED))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run(case, home, "--replace")
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert report["term"] == 2, "a restore takes one term, however often it was killed"
    assert (Path(report["old_home"]) / "note").read_text() == "old"
    assert await entries(home) == [1, 2, 3]


@pytest.mark.nightly("recovery")
async def test_abort_puts_the_old_home_back(case: Case, home: StackHome) -> None:
    home.root.mkdir()
    (home.root / "note").write_text("old")
    with pytest.raises(RestoreRefused, match="no unfinished restore"):
        await restore.abort(home)
    killed = run(case, home, "--replace", code=kill_at(RestoreState.OPENED, before=True))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (home.root / "note").exists(), "it was killed behind the last rename"
    with pytest.raises(RestoreRefused, match="was not finished"):
        await case.restore(home, at=case.between, replaces=True)
    await restore.abort(home)
    assert (home.root / "note").read_text() == "old"
    own = msgspec.json.decode(home.own_site.read_bytes(), type=SiteRecord)
    assert own.term == 2, "or its agent would believe that another site has taken over"
    assert [path.name for path in home.root.parent.iterdir() if path.name.startswith("aimesh")] == ["aimesh"]


@pytest.mark.nightly("long")
@pytest.mark.parametrize("state", list(RestoreState))
async def test_it_continues_after_a_kill_in_any_state(case: Case, home: StackHome, state: RestoreState) -> None:
    assert run(case, home, code=kill_at(state, before=False)).returncode == -signal.SIGKILL
    again = run(case, home)
    assert again.returncode == (2 if state is RestoreState.OPENED else 0), again.stderr
    assert await entries(home) == [1, 2, 3]


@pytest.mark.nightly("long")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(30))
async def test_a_kill_at_any_moment_loses_nothing(case: Case, home: StackHome, seed: int) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        run(case, home, seconds=random.Random(seed).uniform(0.3, 4.0))
    again = run(case, home)
    # The first run may have been complete.
    assert again.returncode == 0 or b"is not empty" in again.stderr + again.stdout, again.stderr
    assert await entries(home) == [1, 2, 3]


# --- refusals: nothing is changed


async def refused(case: Case, home: StackHome, why: str, identity: Path | None = None, **more: object) -> str:
    before = contents(home.root.parent)
    with pytest.raises(errors.BadSettings, match=why) as refusal:
        await case.restore(home, identity, **more)
    assert contents(home.root.parent) == before
    assert not home.root.with_name("aimesh.restoring").exists()
    assert refusal.value.hint
    return refusal.value.hint


async def test_a_running_stack(case: Case, home: StackHome) -> None:
    home.run.mkdir(parents=True)
    with processes.only_supervisor(home):
        await refused(case, home, "running", replaces=True)


async def test_a_wrong_identity_names_the_right_ones(case: Case, home: StackHome, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    # The stack's own identity opens the data, but not the secrets.
    wrong.write_text(case.maker.own_identity)
    await refused(case, home, case.maker.recipients[0], wrong)
    wrong.write_text("nothing")
    await refused(case, home, "no age identity", wrong)


@pytest.mark.nightly("recovery")
async def test_a_foreign_mesh(case: Case, home: StackHome, tmp_path: Path) -> None:
    home.root.mkdir()
    home.settings_file.write_text("MESH_NAME=other\n")
    await refused(case, home, "belongs to other", replaces=True)
    home.settings_file.unlink()
    home.secrets.mkdir()
    (home.secrets / "recovery.nk").write_bytes(node_keys.new_seed())
    (home.secrets / "recovery.nk").chmod(0o600)
    hint = await refused(case, home, "not signed by this mesh", replaces=True)
    assert f"if {home.root} was created after the backups, move it away" in hint
    home.root.rename(tmp_path / "moved away")
    await case.restore(home)
    assert await entries(home) == [1, 2, 3]


async def test_a_store_of_another_signer(case: Case, home: StackHome, tmp_path: Path) -> None:
    """Without a home, the line in the identity file names the signer that the backups must have."""
    identity = tmp_path / "identity"
    identity.write_text(f"# signed by: {NodeKey(node_keys.new_seed()).id}\n{case.maker.identity}\n")
    await refused(case, home, "not signed by this mesh", identity)


async def test_a_moment_outside_of_the_window(case: Case, home: StackHome) -> None:
    first = case.backup.finished_at - timedelta(seconds=1)
    await refused(case, home, "the first moment that can be restored is", at=first)
    await refused(case, home, "the last moment", at=case.between + timedelta(days=1))
    await refused(case, home, "has no backup", which="20200101T000000Z-1")
    await refused(case, home, "no restore point", before_upgrade="1.0")


async def test_no_room(case: Case, home: StackHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovered_database.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    await refused(case, home, "are free")


async def test_newer_tables_and_another_postgresql(case: Case, home: StackHome) -> None:
    feature = next(iter(features.known()))
    for more, why in (
        ({"migrations": {"auth": 9999}, "version": "9.9"}, "newer tables"),
        ({"migrations": {f"gateway/{feature}": 9999}}, "newer tables"),
        # The tables of a feature that was taken away are no reason.
        ({"migrations": {"gateway/gone": 9999}, "postgres": 170000}, "PostgreSQL 17"),
    ):
        async with changed_manifest(case, **more):
            await refused(case, home, why)


async def test_a_term_that_was_deleted(case: Case, home: StackHome) -> None:
    async with changed_manifest(case, term=7):
        await refused(case, home, "term 7")


class changed_manifest:  # noqa: N801 - used like a function
    """Replaces the backup's manifest during the block, with a valid signature."""

    def __init__(self, case: Case, **more: object) -> None:
        self._file = case.maker.folder / layout.manifest_object(case.backup.name)
        self._kept = self._file.read_bytes()
        manifest = msgspec.structs.replace(case.backup, **more)
        self._file.write_bytes(layout.sign(layout.manifest_object(case.backup.name), manifest, case.maker.key))

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        self._file.write_bytes(self._kept)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)


DAMAGED = ("base/*/data.tar*", "base/*/secrets.tar*", "wal/*/*.partial*", "log/auth/*")


@pytest.mark.parametrize(
    "damage", tiers.by_day((truncate, flip, Path.unlink), truncate, group="recovery"), ids=["truncated", "flipped", "missing"]
)
@pytest.mark.parametrize("pattern", tiers.by_day(DAMAGED, "base/*/data.tar*", "log/auth/*", group="recovery"))
async def test_a_damaged_object(case: Case, home: StackHome, pattern: str, damage: Callable[[Path], None]) -> None:
    file = sorted(case.maker.folder.glob(pattern))[-1]
    is_end = damage is Path.unlink and not pattern.startswith("base")
    kept = file.read_bytes()
    damage(file)
    try:
        if is_end:
            # The log does not look incomplete, but the store has reported more.
            assert (await case.restore(home)).is_complete != pattern.startswith("wal")
        else:
            await refused(case, home, file.name.removesuffix(".zst.age"))
    finally:
        file.write_bytes(kept)


# For test restores, `make test` covers swapped objects.
@pytest.mark.nightly("recovery")
async def test_swapped_objects(case: Case, home: StackHome) -> None:
    """Both are genuine, but each has the other's name."""
    data, other = (next(case.maker.folder.glob(f"base/*/{part}.tar*")) for part in ("data", "files"))
    first, second = data.read_bytes(), other.read_bytes()
    data.write_bytes(second)
    other.write_bytes(first)
    try:
        await refused(case, home, r"tar\.zst\.age is truncated or was changed")
    finally:
        data.write_bytes(first)
        other.write_bytes(second)


async def test_a_recovery_log_that_was_deleted_is_missed(case: Case, home: StackHome, tmp_path: Path) -> None:
    """Revocations after the restored moment would be undone. The database has lines 1 and 2; only a later backup knows of lines 3 and 4."""
    store = tmp_path / "store"
    shutil.copytree(case.maker.folder, store)
    shutil.rmtree(store / "log")
    for more in ({"log_heads": {"auth": 2}}, {"log_heads": {"auth": 4}, "name": "20990101T000000Z-1", "finished_at": case.point_at}):
        manifest = msgspec.structs.replace(case.backup, **more)
        file = store / layout.manifest_object(manifest.name)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(layout.sign(layout.manifest_object(manifest.name), manifest, case.maker.key))
    hint = await refused(case, home, "lines 3 to 4 of the recovery log of auth are missing", at=case.between, address=str(store))
    assert "docs/howto/recovery.md" in hint
    report = await case.restore(home, at=case.between, address=str(store), accepts_log_gap=True)
    assert (report.log_lines_replayed, report.log_lines_unusable) == (0, 0)
    gap = msgspec.json.decode((home.root / "recovery_log" / "auth.gap").read_bytes(), type=AcceptedGap)
    assert gap.missing == "auth 3 to 4", "auth writes it to the audit log"


@contextlib.asynccontextmanager
async def line_behind_a_gap(case: Case) -> AsyncIterator[None]:
    """The store has line 8, but not lines 5 to 7."""
    log = case.maker.folder / "log"
    before = set(log.rglob("*.age"))
    await case.maker.put_log("auth", 8, [b'{"number": 8, "at": "2026-01-01T00:00:00Z"}\n'])
    try:
        yield
    finally:
        for path in set(log.rglob("*.age")) - before:
            path.unlink()


@pytest.mark.nightly("recovery")
async def test_missing_lines_of_the_recovery_log(case: Case, home: StackHome) -> None:
    async with line_behind_a_gap(case):
        await refused(case, home, "lines 5 to 7 of the recovery log of auth are missing")
        report = await case.restore(home, accepts_log_gap=True)
    assert (report.log_lines_replayed, report.log_lines_unusable) == (2, 1)
    gap = msgspec.json.decode((home.root / "recovery_log" / "auth.gap").read_bytes(), type=AcceptedGap)
    assert gap.missing == "auth 5 to 7", "auth writes it to the audit log"


@pytest.mark.nightly("recovery")
async def test_behind_an_accepted_gap_the_next_restore_has_all_new_lines(case: Case, home: StackHome, tmp_path: Path) -> None:
    """The restored platform numbers its new lines from the gap on, so it also uses the number of the line after the gap."""
    service, other = LogService(), stack_home.locate({"AIMESH_HOME": str(tmp_path / "other")})
    async with line_behind_a_gap(case):
        await case.restore(home, accepts_log_gap=True)
        await case.restore(other)  # the gap was already accepted
        service.append(9)
        async with copying(case.maker.place(home), service, term=2):
            await until_stored(case.maker.place(home), 9)
        assert service.asked == [4]
        report = await case.restore(other, replaces=True)
    assert (report.log_lines_unusable, report.term) == (0, 4)
    lines = (other.root / "recovery_log" / "auth-restored-4.jsonl").read_bytes().splitlines()
    assert lines[4:] == [b"%d" % number for number in range(5, 10)]


async def test_everything_but_the_database(case: Case, home: StackHome) -> None:
    report = await case.restore(home, database_restored=True)
    assert (report.reached_at, report.term, report.lost_rows) == (None, 2, None)
    assert not (home.postgres / "data").exists()
    assert (home.root / "recovery_log" / "auth-restored-2.jsonl").exists()
