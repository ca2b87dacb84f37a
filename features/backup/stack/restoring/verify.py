"""Tests a backup: restores it into a throw-away PostgreSQL, and checks what is in it.

The throw-away has no node key, no address of NATS and no mail settings, and everything that runs beside it knows its socket and nothing
else. So it cannot join the mesh or send anything, whatever the restored tables say.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import msgspec

from features.backup.stack import catalog, layout, sealing
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import DATA, FILES, SECRETS, BackupManifest, RestoreRefused, RestoreTests
from features.backup.stack.restoring import backup_manifest_check, recovered_database, restore_plan, restored_log, throwaway
from features.backup.stack.restoring.recovered_database import Progress, RecoveredDatabase, RestoreSource
from features.backup.stack.restoring.restore_plan import LATEST, RestorePlan, RestoreTarget
from features.backup.stack.sealing import CountedDigest, DamagedObject
from shared import audit_anchors
from shared.identity.node_keys import NodeKey
from shared.stores import queries, signed_lines
from shared.stores.objects import ObjectMissing
from shared.stores.recovery_check import RecoveryCheck, RecoveryCheckFailed
from shared.types import Moment
from stack import processes
from stack.servers import postgres
from stack.stack_home import StackHome

#: Reading a hundred million rows takes minutes on a fast disk.
_CHECK_SECONDS = 6 * 3600.0
_WHAT = "a check of the backup"
_CONNECT_SECONDS = 10.0
_MAX_FINDINGS = 20
_SQL = queries.load(Path(__file__).with_suffix(".sql"))


class VerifiedBackup(msgspec.Struct, frozen=True, kw_only=True):
    """What a test found."""

    backup: str
    ok: bool
    at: Moment
    #: One sentence for each check that failed.
    failures: tuple[str, ...] = ()
    #: Every commit before this moment was restored.
    reached_at: Moment | None = None
    #: To fetch, unpack and recover this; and, by the same rates, the newest backup with all of the log behind it.
    seconds: float = 0.0
    present_seconds: float = 0.0
    #: If False, only the size and digest of the secrets were checked.
    secrets_opened: bool = False
    ledger_entries: int = 0
    audit_rows: int = 0
    #: Rows of the audit log that the backup's anchors know and its database lacks.
    lost_rows: int = 0


async def verify(
    source: RestoreSource, which: str, work: Path, progress: Progress, *, opens_secrets: bool, key: NodeKey | None
) -> VerifiedBackup:
    """Test a backup, or ``latest``, in a new folder in ``work``. With ``key``, which signs, the result is kept in the store.

    Raises DamagedObject, which names the object, RestoreRefused, WrongIdentity and Unavailable.
    """
    found = await catalog.read(source.store, source.mesh)
    if found.backups and which == found.backups[-1].name:
        which = LATEST  # with all of the write-ahead log
    plan = restore_plan.plan(found, which, RestoreTarget(), await source.histories(found.histories))
    await asyncio.to_thread(recovered_database.require_space, work, plan.needed_bytes)
    try:
        async with throwaway.folder(work) as folder:
            result = await _BackupTest(source, plan, folder, progress, opens_secrets=opens_secrets).run(found)
    except (DamagedObject, RestoreRefused) as error:
        failed = VerifiedBackup(backup=plan.backup.name, ok=False, at=datetime.now(UTC), failures=(error.message,))
        await _record(source, key, found, failed)
        raise
    await _record(source, key, found, result)
    return result


def find_losses(backup: BackupManifest, checks: Mapping[str, RecoveryCheck]) -> list[str]:
    """Compare what was restored with what the manifest says that it has at least."""
    losses = []
    for service, check in checks.items():
        expected = {
            **{table: (rows, check.facts.rows.get(table, 0)) for table, rows in backup.rows.items() if table.startswith(f"{service}.")},
            f"the newest migration of {service}": (backup.migrations.get(service, 0), check.facts.migration),
            f"the newest line of the recovery log of {service}": (backup.log_heads.get(service, 0), check.facts.log_head),
        }
        if service == "gateway":
            expected["the number of ledger entries"] = (backup.ledger_entries, check.ledger_entries)
        if service == "auth":
            for chain, head in backup.audit_heads.items():
                expected[f"the newest row of the audit log's chain {chain}"] = (head, check.audit_heads.get(chain, 0))
        losses += [f"{what}: {found} instead of at least {least}" for what, (least, found) in expected.items() if found < least]
    return losses


def extrapolate(found: StoreCatalog, plan: RestorePlan, seconds: float) -> float:
    """Return how long it takes to restore the newest backup and all segments behind it."""
    newest = found.backups[-1]
    later = [each for each in found.segments if each.number >= newest.start_lsn // newest.segment_size]
    tested = plan.backup.part(DATA).plain_size + len(plan.segments) * plan.backup.segment_size
    return seconds * max(1.0, (newest.part(DATA).plain_size + len(later) * newest.segment_size) / tested)


class _BackupTest:
    def __init__(self, source: RestoreSource, plan: RestorePlan, folder: Path, progress: Progress, *, opens_secrets: bool) -> None:
        self._source = source
        self._plan = plan
        self._folder = folder
        self._progress = progress
        self._opens_secrets = opens_secrets

    async def run(self, found: StoreCatalog) -> VerifiedBackup:
        backup, data = self._plan.backup, self._folder / "data"
        work = StackHome(self._folder / "log", self._folder / "log" / "run")
        await restored_log.fetch(self._source, work, work, known={}, accepts_gap=False)
        await restored_log.read_points(self._source)
        began = time.monotonic()
        end = await recovered_database.fetch_and_unpack(self._source, self._plan, self._folder, self._progress)
        seconds = time.monotonic() - began
        failures = await backup_manifest_check.check(data, backup)
        await recovered_database.unpack(self._source, backup, FILES, self._folder / "files", progress=self._progress)
        failures += await self._check_secrets()
        if failures:  # PostgreSQL would only obscure them
            return VerifiedBackup(backup=backup.name, ok=False, at=datetime.now(UTC), failures=tuple(failures[:_MAX_FINDINGS]))
        began = time.monotonic()
        async with recovered_database.recovered(self._folder, self._plan, self._progress, is_durable=False) as database:
            seconds += time.monotonic() - began
            reached = database.reached(end, self._plan)
            self._progress("checking", 0, 1)
            failures += await _find_bad_indexes(database)
            checks = {service: await self._check_service(service, database) for service in layout.LOG_SERVICES}
        failures += await self._find_bad_pages()
        for check in checks.values():
            failures += [check.error] if isinstance(check, RecoveryCheckFailed) else check.failures
        done = {service: check for service, check in checks.items() if isinstance(check, RecoveryCheck)}
        failures += find_losses(backup, done)
        return VerifiedBackup(
            backup=backup.name, ok=not failures, at=datetime.now(UTC), failures=tuple(failures[:_MAX_FINDINGS]), reached_at=reached,
            seconds=seconds, present_seconds=extrapolate(found, self._plan, seconds), secrets_opened=self._opens_secrets,
            ledger_entries=sum(check.ledger_entries for check in done.values()),
            audit_rows=sum(sum(check.audit_heads.values()) for check in done.values()),
            lost_rows=sum(check.lost_rows for check in done.values()),
        )  # fmt: skip

    async def _check_secrets(self) -> list[str]:
        """Compare each file with the manifest's digest. They are gone before PostgreSQL starts."""
        backup, folder = self._plan.backup, self._folder / "secrets"
        name = layout.part_object(backup.name, SECRETS)
        if not self._opens_secrets:
            await self._check_digest(name)
            return []
        await recovered_database.unpack(self._source, backup, SECRETS, folder, progress=self._progress)
        found = await asyncio.to_thread(_salted_digests, folder, backup.secrets_salt)
        await asyncio.to_thread(shutil.rmtree, folder)
        wrong = sorted(each for each in found.keys() | backup.secrets.keys() if found.get(each) != backup.secrets.get(each))
        return [f"{name} differs from its manifest in {', '.join(wrong[:3])}"] if wrong else []

    async def _check_digest(self, name: str) -> None:
        part, digest = self._plan.backup.part(SECRETS), CountedDigest()
        try:
            async for _ in digest.over(self._source.store.read(name)):
                if digest.size > part.size:
                    break
        except ObjectMissing as error:
            raise sealing.missing(name) from error
        if (digest.size, digest.sha256) != (part.size, part.sha256):
            raise sealing.damaged(name)

    async def _check_service(self, service: str, database: RecoveredDatabase) -> RecoveryCheck | RecoveryCheckFailed:
        words = []
        anchors = StackHome(self._folder / "files", self._folder).audit_anchors
        if service == "auth" and anchors.exists():
            keys = await asyncio.to_thread(_anchor_keys, anchors)
            words = [f"--anchors={anchors}", *(f"--anchor-key={key}" for key in sorted(keys))]
        done = await database.run(_WHAT, service, "recovery_check", *words, seconds=_CHECK_SECONDS)
        kind: type[RecoveryCheck | RecoveryCheckFailed] = RecoveryCheckFailed if done.status == 2 else RecoveryCheck
        try:
            return msgspec.json.decode(done.output, type=kind)
        except msgspec.DecodeError:
            return RecoveryCheckFailed(f"the check of {service} ended with status {done.status}", "")

    async def _find_bad_pages(self) -> list[str]:
        """The server has shut down cleanly, which pg_checksums needs."""
        words = (str(postgres.binaries() / "pg_checksums"), "--check", "-D", str(self._folder / "data"))
        command = throwaway.without_network(*postgres.unprivileged(*words))
        done = await processes.run(_WHAT, command, _CHECK_SECONDS, env={"LC_ALL": "C.UTF-8"})
        if done.status == 0 or "checksums are not enabled" in done.said:
            return []
        found = [line.partition("error: ")[2] for line in done.said.splitlines() if "error: " in line]
        return found or [f"pg_checksums: {done.said[-300:]}"]


async def _find_bad_indexes(database: RecoveredDatabase) -> list[str]:
    connection = await asyncpg.connect(database.url, timeout=_CONNECT_SECONDS)
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            await connection.transaction().start()
            await connection.execute(_SQL["make_index_check"].text)
            await connection.execute(_SQL["allow_catalog_changes"].text)
            return [row["find_bad_indexes"] for row in await connection.fetch(_SQL["find_bad_indexes"].text)]
    except asyncpg.PostgresError as error:
        return [f"the indexes cannot be read: {error}"]
    finally:
        connection.terminate()  # nothing is committed


async def _record(source: RestoreSource, key: NodeKey | None, found: StoreCatalog, result: VerifiedBackup) -> None:
    if key is not None:
        why = "; ".join(result.failures)
        test = RestoreTests(at=result.at, backup=result.backup, ok=result.ok, seconds=result.seconds, why=why)
        await catalog.record_test(source.store, key, found, test)


def _salted_digests(folder: Path, salt: str) -> dict[str, str]:
    paths = [(Path(place) / name).relative_to(folder) for place, _, names in os.walk(folder) for name in names]
    return sealing.salted_digests(folder, paths, salt)


def _anchor_keys(file: Path) -> set[str]:
    """The file is part of the signed backup, so the keys that it names are this mesh's."""
    return {anchor.key for text in signed_lines.read(file) for anchor in audit_anchors.read_lines([text])[0]}
