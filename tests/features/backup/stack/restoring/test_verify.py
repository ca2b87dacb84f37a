"""Testing backups of a database with the tables of auth and the gateway, undamaged and damaged."""

import asyncio
import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import psutil
import pytest

from features.backup.stack import catalog, layout, sealing
from features.backup.stack.layout import BackupManifest, RestoreRefused
from features.backup.stack.restoring import verify
from features.backup.stack.restoring.recovered_database import RestoreSource
from features.backup.stack.restoring.verify import VerifiedBackup
from features.backup.stack.sealing import DamagedObject, WrongIdentity
from features.backup.stack.upgrade import RestorePoint
from services.auth import store as auth_store
from services.auth.audit.anchoring import Anchoring, AnchorKeys
from services.auth.audit.audit_store import AuditStore
from services.gateway import store as gateway_store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import NO_PLAN
from shared import errors
from shared.identity import node_keys
from shared.identity.node_keys import NodeKey
from shared.stores import objects
from shared.stores.recovery_check import RecoveryCheck, SchemaFacts
from shared.types import MeshName, MicroCredits, RequestId, TenantId
from stack.secret_files import LOGIN_ROLES
from stack.servers import postgres as stack_postgres
from tests import servers, tiers
from tests.features.backup.stack.backups import BackupMaker
from tests.services.auth.audit.deeds import TENANT, act, fill

PASSWORDS = {role: f"password-of-{role}" for role in LOGIN_ROLES}
OWNER = TenantId(UUID(int=1))


class Site:
    """A cluster with two services' tables, whose backups are in ``maker.folder``."""

    def __init__(self, folder: Path, server: servers.PostgresServer) -> None:
        self.server = server
        self.maker = BackupMaker(folder / "store", server)
        self.anchors = folder / "audit_anchors.jsonl"

    def url(self, role: str) -> str:
        return self.server.server.url(role, PASSWORDS[role])

    async def begin(self) -> None:
        await self.maker.begin()
        await asyncio.to_thread(stack_postgres.provision, self.server.server, PASSWORDS)
        async with auth_store.opened(self.url("auth")) as database:
            rows = AuditStore(database)
            anchoring = Anchoring(rows, AnchorKeys.of(bytes(32)), MeshName("home"), self.anchors)
            await anchoring.write()
            await fill(rows, *map(act, range(9)))
            await anchoring.write()
        await self.top_up(5)

    async def top_up(self, micro: int) -> None:
        async with gateway_store.opened(self.url("gateway")) as database:
            await LedgerStore(database).top_up(RequestId(uuid4()), OWNER, MicroCredits(micro), "", NO_PLAN)

    async def execute(self, role: str, *statements: str) -> None:
        """Execute statements as a superuser, without triggers."""
        connection = await asyncpg.connect(
            self.server.url("aimesh"), server_settings={"search_path": role, "session_replication_role": "replica"}
        )
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def base(self) -> BackupManifest:
        secrets, files = {"secrets/mesh_ca": b"seed", "keys/auth.nk": b"key"}, {"audit_anchors.jsonl": self.anchors.read_bytes()}
        return await self.maker.base(secrets=secrets, files=files)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with a backup, and a top-up after it."""
    with servers.running(servers.PostgresServer) as server:
        made = Site(tmp_path_factory.mktemp("site"), server)

        async def begin() -> None:
            await made.begin()
            await made.base()
            await made.top_up(7)
            await made.maker.ship()
            await made.maker.put_log("auth", 1, [b"1\n", b"2\n"])
            await made.maker.put_log("points", 1, [msgspec.json.encode(RestorePoint("before-9.9", "9.9", await made.maker.now(), "0/0"))])

        asyncio.run(begin())
        yield made


class CopiedStore:
    """Tests copies of the site's backups as the agent does: with the stack's own identity."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.work = site, folder / "work"
        self.folder = folder / "store"
        shutil.copytree(site.maker.folder, self.folder)
        self.store = objects.open_store(str(self.folder), {})

    def source(self, identity: str | None = None) -> RestoreSource:
        return RestoreSource(self.store, self.site.maker.store_mesh, (identity or self.site.maker.own_identity,))

    async def verify(self, which: str = "latest", *, identity: str | None = None) -> VerifiedBackup:
        return await verify.verify(
            self.source(identity), which, self.work, lambda *_: None, opens_secrets=identity is not None, key=self.site.maker.key
        )

    def object(self, ending: str) -> str:
        """Return the name of the last object with this ending."""
        return max(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if str(path).endswith(ending))


@pytest.fixture
def copied(site: Site, tmp_path: Path) -> CopiedStore:
    return CopiedStore(site, tmp_path)


def children() -> dict[int, tuple[str, set[str], int, bool]]:
    """Return this process's child programs: their names, the names in their environment, the number of open ports and connections, and
    whether they have a separate network."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            words = process.cmdline()
            what = next((name for name in ("services.auth", "services.gateway", "pg_checksums") if any(name in word for word in words)), "")
            what = what or (process.name() if process.name() == "postgres" else "")
            own_network = Path(f"/proc/{process.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
            if what and words[0] != "unshare":
                found[process.pid] = (what, set(process.environ()), len(process.net_connections("inet")), own_network)
    return found


async def test_a_good_backup_passes_and_the_test_cannot_reach_anybody(copied: CopiedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_URL", "NODE_KEY_FILE", "AUTH_DATABASE_URL", "SMTP_URL", "DATA_KEY", "REDIS_URL", "PGPASSWORD"):
        monkeypatch.setenv(name, "secret")
    mine, seen = set(children()), {}
    test = asyncio.create_task(copied.verify())
    while not test.done():
        seen |= {pid: facts for pid, facts in children().items() if pid not in mine}
        await asyncio.wait([test], timeout=0.1)
    result = test.result()
    assert (result.failures, result.ok, result.secrets_opened) == ((), True, False)
    assert (result.ledger_entries, result.audit_rows, result.lost_rows) == (4, 9, 0), "with the top-up behind the backup"
    assert 0 < result.seconds <= result.present_seconds
    kept = (await catalog.read(copied.store, copied.site.maker.store_mesh)).tests
    assert kept is not None
    assert (kept.backup, kept.ok, kept.passed) == (result.backup, True, {result.backup: result.at})
    assert list(copied.work.iterdir()) == [], "nothing is left"
    assert {what for what, *_ in seen.values()} >= {"postgres", "services.auth", "services.gateway"}
    for what, names, connections, has_own_network in seen.values():
        assert names <= ({"DATABASE_URL"} if what.startswith("services") else {"PATH", "LC_ALL"}), what
        assert connections == 0, what
        assert has_own_network == (os.geteuid() == 0), what


LOG = ("log/auth/000000000001-000000000002.zst.age", "log/points/000000000001-000000000001.zst.age")
OBJECTS = ("/manifest.json", "/data.tar.zst.age", "/files.tar.zst.age", "/secrets.tar.zst.age", "state.json", ".partial.zst.age")


DAMAGES = (*itertools.product(("flipped", "truncated"), (*OBJECTS, *LOG)), *itertools.product(("missing",), OBJECTS[1:4]))


@pytest.mark.parametrize("damage", tiers.by_day(DAMAGES, *DAMAGES[:2], DAMAGES[5], DAMAGES[6], group="recovery"), ids="".join)
async def test_a_damaged_object_is_named(copied: CopiedStore, damage: tuple[str, str]) -> None:
    kind, ending = damage
    name = copied.object(ending)
    body = bytearray((copied.folder / name).read_bytes())
    if kind == "missing":
        (copied.folder / name).unlink()
    elif kind == "truncated":
        (copied.folder / name).write_bytes(body[: len(body) // 2])
    else:
        body[len(body) // 2] ^= 1
        (copied.folder / name).write_bytes(body)
    with pytest.raises(errors.BadSettings) as refused:
        await copied.verify()
    assert name in refused.value.message, "and the command ends with 2"
    assert not copied.work.exists() or list(copied.work.iterdir()) == []


async def test_a_swapped_object_and_a_foreign_manifest_are_named(copied: CopiedStore) -> None:
    manifest = layout.read_signed(
        name := copied.object("/manifest.json"), (copied.folder / name).read_bytes(), BackupManifest, copied.site.maker.store_mesh.keys
    )
    secrets, files = (layout.part_object(manifest.name, part) for part in (layout.SECRETS, layout.FILES))
    (copied.folder / secrets).write_bytes((copied.folder / files).read_bytes())
    with pytest.raises(DamagedObject, match=secrets):
        await copied.verify()
    (copied.folder / name).write_bytes(layout.sign(name, manifest, NodeKey(node_keys.new_seed())))
    with pytest.raises(DamagedObject, match=f"{name} is not signed by this mesh"):
        await copied.verify()


async def test_missing_lines_of_the_recovery_log_fail_the_test_as_they_would_fail_a_restore(copied: CopiedStore) -> None:
    name = copied.object("/manifest.json")
    manifest = layout.read_signed(name, (copied.folder / name).read_bytes(), BackupManifest, None)
    (copied.folder / name).write_bytes(layout.sign(name, msgspec.structs.replace(manifest, log_heads={"auth": 5}), copied.site.maker.key))
    with pytest.raises(RestoreRefused, match="lines 3 to 5 of the recovery log of auth are missing in the store"):
        await copied.verify()
    kept = (await catalog.read(copied.store, copied.site.maker.store_mesh)).tests
    assert kept is not None
    assert (kept.ok, kept.why) == (False, "lines 3 to 5 of the recovery log of auth are missing in the store")


@pytest.mark.nightly("recovery")
async def test_a_failed_test_is_kept_and_forgets_no_earlier_success(copied: CopiedStore) -> None:
    first = await copied.verify()
    name = copied.object("/files.tar.zst.age")
    (copied.folder / name).write_bytes(b"x")
    with pytest.raises(DamagedObject, match=name):
        await copied.verify(first.backup)
    kept = (await catalog.read(copied.store, copied.site.maker.store_mesh)).tests
    assert kept is not None
    assert (kept.ok, name in kept.why, kept.passed) == (False, True, {first.backup: first.at})


@pytest.mark.nightly("recovery")
async def test_the_operators_identity_opens_the_secrets(copied: CopiedStore) -> None:
    result = await copied.verify(identity=copied.site.maker.identity)
    assert (result.failures, result.secrets_opened) == ((), True)
    name = copied.object("/manifest.json")
    manifest = layout.read_signed(name, (copied.folder / name).read_bytes(), BackupManifest, None)
    wrong = msgspec.structs.replace(manifest, secrets=manifest.secrets | {"keys/auth.nk": "0", "secrets/gone": "1"})
    (copied.folder / name).write_bytes(layout.sign(name, wrong, copied.site.maker.key))
    (failure,) = (await copied.verify(identity=copied.site.maker.identity)).failures
    assert failure == f"{copied.object('secrets.tar.zst.age')} differs from its manifest in keys/auth.nk, secrets/gone"
    with pytest.raises(WrongIdentity, match="does not open"):
        await copied.verify(identity=sealing.new_identity())


@pytest.mark.nightly("recovery")
async def test_each_fault_of_the_database_is_found_with_its_reason(site: Site, tmp_path: Path) -> None:
    """Faults in the write-ahead log: a wrong balance, and a changed row of the audit log. Faults in the copied data: an index without its
    newest row, and a flipped bit of a table."""
    copy = Site(tmp_path, site.server)
    copy.maker.key, copy.maker.checks_pages = site.maker.key, False
    await copy.maker.store.put(layout.MESH, layout.sign(layout.MESH, copy.maker.store_mesh, copy.maker.key))
    copy.anchors = site.anchors
    connection = await asyncpg.connect(site.server.url("aimesh"), server_settings={"allow_system_table_mods": "on"})
    await connection.execute("CREATE TABLE public.rows AS SELECT number FROM generate_series(1, 1000) AS number")
    await connection.execute("CREATE TABLE public.indexed (number int PRIMARY KEY)")
    await connection.execute("UPDATE pg_index SET indisready = false WHERE indexrelid = 'public.indexed_pkey'::regclass")
    await connection.execute("INSERT INTO public.indexed VALUES (1)")
    await connection.execute("UPDATE pg_index SET indisready = true WHERE indexrelid = 'public.indexed_pkey'::regclass")
    file = site.server.server.data / await connection.fetchval("SELECT pg_relation_filepath('public.rows')")
    await connection.execute("CHECKPOINT")
    await connection.close()
    page = bytearray(file.read_bytes())
    page[8000] ^= 1
    file.write_bytes(page)
    await copy.base()
    await copy.execute("gateway", "UPDATE accounts SET balance_micro = balance_micro + 1")
    await copy.execute("auth", "UPDATE audit_log SET target = 'x' WHERE sequence = 4")
    await copy.maker.ship()
    failures = (await CopiedStore(copy, tmp_path / "copy").verify()).failures
    assert len(failures) == 4, failures
    assert failures[0] == "the index public.indexed_pkey has 0 rows, and its table 1"
    assert "checksum verification failed" in failures[1]
    assert file.name in failures[1]
    assert failures[2] == f"audit log: row 4 of the chain {TENANT}: the row was changed"
    assert failures[3] == "ledger: accounts differ from the sum of their entries by 1 micro-credits"


async def aicli(home: Path, *words: str) -> tuple[int | None, bytes, bytes]:
    """Run the command on a machine without this stack."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", "stack", "verify", *words,
        env={"PATH": os.environ["PATH"], "AIMESH_HOME": str(home)}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, said = await process.communicate()
    return process.returncode, output, said


@pytest.mark.nightly("recovery")
async def test_the_command_needs_a_store_and_an_identity_and_ends_with_2_if_anything_is_wrong(copied: CopiedStore, tmp_path: Path) -> None:
    identity, home, store = tmp_path / "identity", tmp_path / "home", f"--from={copied.folder}"
    identity.write_text(f"# signed by: {copied.site.maker.key.id}\n{copied.site.maker.identity}\n")
    status, output, _ = await aicli(home, store, f"--identity={identity}", "--json")
    found = msgspec.json.decode(output)
    assert (status, found["ok"], found["failures"], found["secrets_opened"]) == (0, True, [], True)
    assert (await aicli(home, f"--identity={identity}"))[::2] == (2, b"error: no store is known \xe2\x80\x93 give it with --from\n")
    status, _, said = await aicli(home, store)
    assert (status, b"there is no identity" in said) == (2, True)
    identity.write_text(f"# signed by: {NodeKey(node_keys.new_seed()).id}\n{copied.site.maker.identity}\n")
    status, _, said = await aicli(home, store, f"--identity={identity}")
    assert (status, b"mesh.json is not signed by this mesh" in said) == (2, True)
    name = copied.object("/manifest.json")
    manifest = layout.read_signed(name, (copied.folder / name).read_bytes(), BackupManifest, None)
    (copied.folder / name).write_bytes(layout.sign(name, msgspec.structs.replace(manifest, ledger_entries=99), copied.site.maker.key))
    identity.write_text(copied.site.maker.identity)
    status, output, _ = await aicli(home, store, f"--identity={identity}")
    assert status == 2
    assert output.decode() == f"{manifest.name} is damaged:\n  the number of ledger entries: 4 instead of at least 99\n"


# --- facts in the manifest


def check_of(**changed: Any) -> RecoveryCheck:
    facts = SchemaFacts(migration=7, rows={"auth.users": 5}, log_head=9, failures=())
    return RecoveryCheck(facts=facts, failures=(), **changed)


@pytest.mark.parametrize(
    ("field", "value", "loss"),
    [
        ("rows", {"auth.users": 6}, "auth.users: 5 instead of at least 6"),
        ("rows", {"gateway.prices": 1}, "gateway.prices: 0 instead of at least 1"),
        ("migrations", {"auth": 8}, "the newest migration of auth: 7 instead of at least 8"),
        ("log_heads", {"gateway": 10}, "the newest line of the recovery log of gateway: 9 instead of at least 10"),
        ("ledger_entries", 3, "the number of ledger entries: 2 instead of at least 3"),
        ("audit_heads", {"house": 2}, "the newest row of the audit log's chain house: 1 instead of at least 2"),
    ],
)
def test_what_the_manifest_knows_must_be_there(site: Site, field: str, value: object, loss: str) -> None:
    name = layout.manifest_object(min(path.name for path in (site.maker.folder / "base").iterdir()))
    manifest = layout.read_signed(name, (site.maker.folder / name).read_bytes(), BackupManifest, None)
    checks = {"auth": check_of(audit_heads={"house": 1}), "gateway": check_of(ledger_entries=2)}
    assert verify.find_losses(manifest, checks) == []
    assert verify.find_losses(msgspec.structs.replace(manifest, **{field: value}), checks) == [loss]
