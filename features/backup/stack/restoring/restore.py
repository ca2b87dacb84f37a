"""`aicli stack restore`: builds a whole home from the store beside the old one, and puts it in place at the end.

Everything happens in ``<home>.restoring``, whose ``run/restore.json`` has the last step that is complete, so that the same command
continues after a crash. Until the last step, the old home is only read.
"""

import asyncio
import os
import shlex
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import msgspec

from features.backup.stack import catalog, layout, sealing, site_term, upgrade
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import BackupManifest, RestoreRefused, Segment
from features.backup.stack.restoring import recovered_database, restore_plan, restored_log
from features.backup.stack.restoring.recovered_database import Progress, RecoveredDatabase, RestoreSource, WalEnd
from features.backup.stack.restoring.restore_plan import LATEST, RestorePlan, RestoreTarget
from features.backup.stack.restoring.restored_log import LogFacts
from features.backup.stack.site_term import SiteRecord
from features.backup.stack.upgrade import RestorePoint
from shared import errors
from shared.identity import node_keys
from shared.stores import file_lock, objects
from shared.types import MeshName, Moment, NodeId
from stack import processes, secret_files, settings, stack_home
from stack.stack_home import StackHome

_FILE = "restore.json"
_JOURNALS = "settle_journals"
_SIGNED_BY = "# signed by:"
_STOP_SECONDS = 60.0
_STRICT_SECONDS = 1800
#: Enough for the header of an age file with a hundred recipients.
_HEADER_BYTES = 64 << 10


class RestoreState(StrEnum):
    """The last step that is complete, in this order."""

    CHECKED = "checked"
    FETCHED = "fetched"
    UNPACKED = "unpacked"
    DATABASE_READY = "database_ready"
    REPLAYED = "replayed"
    OPENED = "opened"


class RestoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the administrator asked for. The same request continues a restore that was killed."""

    which: str = LATEST
    address: str
    at: Moment | None = None
    before_upgrade: str | None = None
    replaces: bool = False
    is_strict: bool = False
    accepts_log_gap: bool = False
    #: The provider of the database has restored it.
    database_restored: bool = False


class StrictFacts(msgspec.Struct, frozen=True):
    """What ``--strict`` has ended."""

    revoked_keys: int
    disabled_users: int


class RestoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of the command."""

    backup: str
    #: Every commit before this moment is there; None for a database that another tool restored.
    reached_at: Moment | None
    #: From then to the last sign of life of the old stack.
    lost_seconds: float | None
    #: Lines of the recovery logs that the services apply at their next start.
    log_lines_replayed: int
    #: Rows of the audit log that the anchors or the store know and the database lacks; None if another tool restored the database.
    lost_rows: int | None
    seconds: float
    #: False if the log ended before the target, or before what the store had reported.
    is_complete: bool
    term: int
    old_home: str | None
    #: Ends of requests that the old gateways had not written to their database. They are kept here and never billed.
    settle_journals: tuple[str, ...]
    #: Lines of the recovery log that cannot be applied, because earlier ones are missing (--accept-log-gap).
    log_lines_unusable: int
    strict: StrictFacts | None


class RestoreProgress(msgspec.Struct, frozen=True, kw_only=True):
    """``run/restore.json``."""

    request: RestoreRequest
    state: RestoreState
    started_at: Moment
    plan: RestorePlan
    alive_until: Moment
    #: Where the store's log ends, by its own report, and the rows of the audit log then.
    end_lsn: int
    audit_rows: int = 0
    end: WalEnd | None = None
    reached_at: Moment | None = None
    is_complete: bool = True
    log: LogFacts = LogFacts()
    strict: StrictFacts | None = None
    record: SiteRecord | None = None
    old_home: str | None = None


async def restore(
    home: StackHome, request: RestoreRequest, identity: Path, environment: Mapping[str, str], progress: Progress
) -> RestoreReport:
    """Raises RestoreRefused and other BadSettings before anything was changed, and Unavailable: then run it again."""
    work = _work(home)
    async with _only_restore(work):
        restoring = _Restore(home, work, request, progress)
        try:
            return await restoring.run(identity, environment)
        except errors.BadSettings:
            await asyncio.to_thread(restoring.undo)
            raise


async def abort(home: StackHome) -> str:
    """Remove an unfinished restore, put the old home back, and return a sentence about it. Raises RestoreRefused if there is none."""
    work = _work(home)
    async with _only_restore(work):
        await asyncio.to_thread(_put_back, home, work)
        return f"the restore was removed; {home.root} is as it was" if home.root.is_dir() else "the restore was removed"


def _put_back(home: StackHome, work: Path) -> None:
    refuse_running(home)
    in_place = _read(home.root)
    if in_place is not None and in_place.state is RestoreState.REPLAYED and not work.exists():
        home.root.rename(work)  # killed behind the last rename
    if not work.exists():
        raise RestoreRefused("there is no unfinished restore", hint="after a complete one, its report names the folder of the old home")
    end_database(work)
    now = _read(work)
    if now is not None and now.old_home is not None and not home.root.exists():
        Path(now.old_home).rename(home.root)
    if now is not None and now.record is not None and home.root.is_dir():
        # The term may be taken already: this home could not start without it.
        home.run.mkdir(mode=0o700, exist_ok=True)
        stack_home.write_struct(home.own_site, now.record)
    shutil.rmtree(work)


def _credentials(home: StackHome, environment: Mapping[str, str]) -> dict[str, str]:
    """Return those for the store: from the environment, or as `make up` saved them."""
    recorded = settings.read_recorded(home)
    found = {}
    for name in (*objects.S3_CREDENTIALS, *objects.GOOGLE_CREDENTIALS):
        if value := environment.get(name) or recorded.get(name):
            found[name] = value
        elif file := recorded.get(f"{name}_FILE"):
            found[name] = Path(file).read_text(encoding="utf-8").strip()
    return found


def find_store(home: StackHome, given: str | None, environment: Mapping[str, str]) -> str:
    """Return the address of the store: BACKUP_TO, if none is given. Raises BadSettings."""
    address = given or environment.get("BACKUP_TO") or settings.read_recorded(home).get("BACKUP_TO")
    if not address:
        raise errors.BadSettings("no store is known", hint="give it with --from")
    return address if "://" in address else str(Path(address).expanduser().absolute())


async def open_source(home: StackHome, address: str, files: Sequence[Path], environment: Mapping[str, str]) -> RestoreSource:
    """``files`` have the identities. Raises BadSettings, such as RestoreRefused if the store has no backups of this mesh."""
    identities = tuple(each for file in files for each in sealing.read_identities(file))
    if address.startswith("/") and not await asyncio.to_thread(Path(address).is_dir):
        raise RestoreRefused(f"there is no folder {address}", hint="is its disk mounted? Give the store with --from")
    store = await asyncio.to_thread(objects.open_store, address, _credentials(home, environment))
    try:
        mesh = await catalog.read_mesh(store, _signers(home, files[0]))
    except sealing.DamagedObject as error:
        await catalog.read_mesh(store, None)  # raises it if it is damaged
        raise RestoreRefused(
            error.message,
            hint=f"if {home.root} was created after the backups, move it away, and run this again; otherwise somebody forged them",
        ) from error
    if mesh is None:
        raise RestoreRefused(f"{address} has no backups", hint="give the store with --from")
    own = settings.read_recorded(home).get("MESH_NAME", MeshName("home")) if home.settings_file.exists() else mesh.mesh
    if own != mesh.mesh:
        raise RestoreRefused(
            f"{address} has the backups of the mesh {mesh.mesh}, and {home.root} belongs to {own}",
            hint="give another store with --from, or set AIMESH_HOME to an empty folder",
        )
    return RestoreSource(store, mesh, identities)


class _Restore:
    #: Once ``run`` has checked everything.
    now: RestoreProgress

    def __init__(self, home: StackHome, work: Path, request: RestoreRequest, progress: Progress) -> None:
        self._home = home
        self._work = StackHome(work, work / "run")
        self._request = request
        self._progress = progress
        self._is_new = False

    async def run(self, identity: Path, environment: Mapping[str, str]) -> RestoreReport:
        begun = _find_begun(self._home, self._work.root)
        if begun is not None and begun.request != self._request:
            raise RestoreRefused("another restore was not finished", hint="run that command again, or: aicli stack restore --abort")
        refuse_running(self._home)
        source, found = await self._open_store(identity, environment)
        if begun is not None:
            self.now = begun
        else:
            self.now = await self._check(source, found)
            self._is_new = True
            self._save(RestoreState.CHECKED)
        steps: dict[RestoreState, Callable[[RestoreSource], Awaitable[None]]] = {
            RestoreState.FETCHED: self._fetch,
            RestoreState.UNPACKED: self._unpack,
            RestoreState.DATABASE_READY: self._recover,
            RestoreState.REPLAYED: self._take_over,
            RestoreState.OPENED: self._open,
        }
        order = list(RestoreState)
        if self.now.state is RestoreState.UNPACKED:
            # It was killed while PostgreSQL recovered: the moment reached would be unknown. The archives are unpacked again.
            self.now = msgspec.structs.replace(self.now, state=RestoreState.FETCHED)
        for state, act in steps.items():
            if order.index(state) > order.index(self.now.state):
                await act(source)
                self._save(state)
        return self._report()

    def undo(self) -> None:
        """After a refusal, leave nothing behind, unless an earlier run has begun it or the term is taken."""
        if self._is_new and self.now.record is None:
            end_database(self._work.root)
            shutil.rmtree(self._work.root, ignore_errors=True)

    def _save(self, state: RestoreState, **facts: object) -> None:
        self.now = msgspec.structs.replace(self.now, state=state, **facts)
        folder = self._work.run if self._work.root.exists() or state is RestoreState.CHECKED else self._home.run
        for each in (folder.parent, folder):
            each.mkdir(mode=0o700, exist_ok=True)
        stack_home.write_struct(folder / _FILE, self.now)

    # --- the steps

    async def _open_store(self, identity: Path, environment: Mapping[str, str]) -> tuple[RestoreSource, StoreCatalog]:
        source = await open_source(self._home, self._request.address, (identity,), environment)
        read = await catalog.read(source.store, source.mesh)
        if self._request.which == LATEST and self._request.at is None and self._request.before_upgrade is None and read.backups:
            local = _find_local(self._home.received_log(source.mesh.system), read)
            source = replace(source, local_segments=local)
            read = replace(read, segments=tuple(sorted({*read.segments, *local})))
        return source, read

    async def _check(self, source: RestoreSource, found: StoreCatalog) -> RestoreProgress:
        refuse_taken(self._home.root, replaces=self._request.replaces)
        points = upgrade.read_points(self._home)
        if self._request.before_upgrade is not None:
            points += await restored_log.read_points(source)
        plan = self._plan(found, await source.histories(found.histories), points)
        await check_backup(source, plan, self._home.root, has_database=not self._request.database_restored)
        if plan.gap is not None:
            reachable = (await source.segment(plan.segments[-1], plan.backup.segment_size)).until
            if plan.target.at is None or plan.target.at >= reachable:
                raise restore_plan.refusal_of_gap(plan, reachable)
        state, highest = found.state, await site_term.find_highest(source.store, source.mesh)
        if highest is not None and highest.term < plan.backup.term:
            raise RestoreRefused(
                f"the backup is of term {plan.backup.term}, and the store knows {highest.term}",
                hint="terms were deleted; check who can write to the store",
            )
        return RestoreProgress(
            request=self._request, state=RestoreState.CHECKED, started_at=datetime.now(UTC), plan=plan,
            alive_until=plan.backup.finished_at if state is None else state.until, end_lsn=0 if state is None else state.lsn,
            audit_rows=0 if state is None else state.audit_rows,
        )  # fmt: skip

    def _plan(
        self, found: StoreCatalog, histories: Mapping[int, tuple[restore_plan.TimelineEnd, ...]], points: Sequence[RestorePoint]
    ) -> RestorePlan:
        request = self._request
        if request.database_restored and found.backups:
            newest = found.backups[-1]
            return RestorePlan(backup=newest, target=RestoreTarget(), timeline=newest.timeline, segments=(), gap=None, histories=())
        target = RestoreTarget(at=request.at)
        if request.before_upgrade is not None:
            point = _find_point(points, request.before_upgrade)
            target = RestoreTarget(at=point.at, point=point.name)
        return restore_plan.plan(found, request.which, target, histories)

    async def _fetch(self, source: RestoreSource) -> None:
        if not self._request.database_restored:
            end = await recovered_database.fetch_wal(source, self.now.plan, self._work.postgres / "wal", self._progress)
            self.now = msgspec.structs.replace(self.now, end=end)

    async def _unpack(self, source: RestoreSource) -> None:
        backup, work = self.now.plan.backup, self._work
        await asyncio.to_thread(end_database, work.root)
        await unpack_files(source, backup, work, self._home, self._progress)
        # Before what takes long: it may refuse.
        known = {} if self._request.database_restored else backup.log_heads
        log = await restored_log.fetch(source, work, self._home, known=known, accepts_gap=self._request.accepts_log_gap)
        if not self._request.database_restored:
            await asyncio.to_thread(shutil.rmtree, work.postgres / "data", ignore_errors=True)
            await recovered_database.unpack(source, backup, layout.DATA, work.postgres / "data", progress=self._progress)
        self.now = msgspec.structs.replace(self.now, log=log)

    async def _recover(self, _: RestoreSource) -> None:
        if self._request.database_restored:
            return
        plan, end = self.now.plan, self.now.end
        assert end is not None
        strict = None
        async with recovered_database.recovered(self._work.postgres, plan, self._progress) as database:
            reached = database.reached(end, plan)
            log = await restored_log.compare(database, self.now.log, self._work, self.now.audit_rows)
            if self._request.is_strict:
                strict = await _make_strict(database, reached)
        is_complete = plan.target.at is not None or plan.target.is_backup_end or database.lsn >= max(end.lsn, self.now.end_lsn)
        self.now = msgspec.structs.replace(self.now, reached_at=reached, log=log, strict=strict, is_complete=is_complete)

    async def _take_over(self, source: RestoreSource) -> None:
        if self.now.record is None:
            # Saved before it is written, so that the same restore knows its own term again.
            highest = await site_term.find_highest(source.store, source.mesh)
            site = settings.read_recorded(self._work).get("SITE_NAME") or socket.gethostname()
            term = max(self.now.plan.backup.term, 0 if highest is None else highest.term) + 1
            self._save(self.now.state, record=site_term.new_record(term, site))
        assert self.now.record is not None
        key = node_keys.load(self._work.secrets / secret_files.RECOVERY_KEY)
        await site_term.take(source.store, source.mesh, key, self.now.record)
        stack_home.write_struct(self._work.own_site, self.now.record)
        restored_log.place(self._work, self._home, self.now.record.term, self.now.log)
        await restored_log.cut(source, key, self.now.record.term, self.now.log)

    async def _open(self, _: RestoreSource) -> None:
        await asyncio.to_thread(os.sync)
        if self._work.root.exists():
            refuse_running(self._home)
            home = self._home.root
            if home.is_dir() and any(home.iterdir()):
                self._save(RestoreState.REPLAYED, old_home=place_aside(home))
                home.rename(str(self.now.old_home))
            elif home.is_dir():
                home.rmdir()
            for fetched in (self._work.gathered_log, self._work.postgres / "wal"):
                await asyncio.to_thread(shutil.rmtree, fetched, ignore_errors=True)
            self._work.root.rename(home)

    def _report(self) -> RestoreReport:
        now, reached = self.now, self.now.reached_at
        assert now.record is not None
        alive_until = max(now.alive_until, now.log.newest_at or now.alive_until)
        return RestoreReport(
            backup=now.plan.backup.name,
            reached_at=reached,
            lost_seconds=None if reached is None else max(0.0, (alive_until - reached).total_seconds()),
            log_lines_replayed=now.log.lines,
            lost_rows=now.log.lost_rows,
            seconds=(datetime.now(UTC) - now.started_at).total_seconds(),
            is_complete=now.is_complete,
            term=now.record.term,
            old_home=now.old_home,
            settle_journals=tuple(str(path) for path in sorted((self._home.run / _JOURNALS).glob("*.journal"))),
            log_lines_unusable=now.log.unusable,
            strict=now.strict,
        )


def _find_begun(home: StackHome, work: Path) -> RestoreProgress | None:
    if (begun := _read(work)) is not None:
        return begun
    in_place = _read(home.root)
    # Killed behind the last rename.
    return in_place if in_place is not None and in_place.state is RestoreState.REPLAYED else None


def refuse_running(home: StackHome) -> None:
    """Raises RestoreRefused if the stack runs, and ends what a killed supervisor left."""
    if home.run.is_dir():
        with processes.only_supervisor(home) as lock:
            if lock is None:
                raise RestoreRefused("the stack is running", hint="stop it first: make down")
            processes.clear_leftovers(home)


def refuse_taken(home: Path, *, replaces: bool) -> None:
    """Raises RestoreRefused if something is there that must not be moved aside."""
    if home.is_dir() and any(home.iterdir()) and not replaces:
        raise RestoreRefused(f"{home} is not empty", hint="add --replace, which moves it aside, or set AIMESH_HOME to another folder")
    if home.is_mount():
        raise RestoreRefused(f"{home} is a mounted disk, and cannot be renamed", hint="set AIMESH_HOME to a folder on it")


def place_aside(home: Path) -> str:
    """Return where to move it."""
    return f"{home}.before-restore-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def _work(home: StackHome) -> Path:
    return home.root.with_name(f"{home.root.name}.restoring")


@asynccontextmanager
async def _only_restore(work: Path) -> AsyncIterator[None]:
    work.parent.mkdir(parents=True, exist_ok=True)
    refusal = RestoreRefused("another restore of this home is running", hint="wait for it, or stop it")
    async with file_lock.hold(work, patience_seconds=0, refusal=refusal):
        try:
            yield
        finally:
            work.with_name(f"{work.name}.lock").unlink(missing_ok=True)


def _read(home: Path) -> RestoreProgress | None:
    return stack_home.read_struct(home / "run" / _FILE, RestoreProgress, "start over: aicli stack restore --abort")


def _signers(home: StackHome, identity: Path) -> frozenset[NodeId] | None:
    """Return the keys that are known to sign this mesh's backups; None if the store itself has to name them."""
    own = home.secrets / secret_files.RECOVERY_KEY
    if own.exists():
        return frozenset({node_keys.load(own).id})
    lines = (line.partition(_SIGNED_BY) for line in identity.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return frozenset(NodeId(key.strip()) for _, found, key in lines if found) or None


def _find_local(folder: Path, found: StoreCatalog) -> dict[Segment, Path]:
    """Return the segments that pg_receivewal left on this machine and the store lacks, or has only as they were some seconds before."""
    size = found.backups[-1].segment_size
    timelines = {segment.timeline for segment in found.segments}
    local = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        segment = layout.parse_segment(f"{layout.WAL}{path.name[:8]}/{path.name}{sealing.SUFFIX}", size)
        if segment is not None and segment.timeline in timelines and replace(segment, is_partial=False) not in found.segments:
            local[segment] = path
    return local


async def check_backup(source: RestoreSource, plan: RestorePlan, home: Path, *, has_database: bool = True) -> None:
    """Raises RestoreRefused if this machine, version or identity cannot restore it."""
    _refuse_newer(plan)
    await _check_identity(source, plan)
    if has_database:
        await asyncio.to_thread(recovered_database.require_version, plan.backup)
    await asyncio.to_thread(recovered_database.require_space, home, plan.needed_bytes)


def _refuse_newer(plan: RestorePlan) -> None:
    checkout = stack_home.checkout()
    for place, newest in plan.backup.migrations.items():
        schema, _, feature = place.partition("/")
        folder = checkout / "features" / feature / "migrations" / schema if feature else checkout / "services" / schema / "migrations"
        known = max((int(path.name[:4]) for path in folder.glob("[0-9][0-9][0-9][0-9]_*.sql")), default=0)
        # The tables of a feature that was taken away stay, and nothing reads them.
        if newest > known and not (feature and not (checkout / "features" / feature).is_dir()):
            raise RestoreRefused(
                f"the backup {plan.backup.name} is of aimesh {plan.backup.version}, which has newer tables than this version",
                hint="install that version, or use an older backup: aicli stack backups",
            )


async def _check_identity(source: RestoreSource, plan: RestorePlan) -> None:
    name = layout.part_object(plan.backup.name, layout.SECRETS)
    try:
        header = await source.store.get(name, 0, min(_HEADER_BYTES, plan.backup.part(layout.SECRETS).size))
    except objects.ObjectMissing as error:
        raise sealing.damaged(name) from error

    async def pieces() -> AsyncIterator[bytes]:
        yield header

    try:
        async with sealing.unsealed(pieces(), source.identities, _HEADER_BYTES << 10) as file:
            await asyncio.to_thread(file.read)
    except sealing.WrongIdentity as error:
        raise RestoreRefused(
            f"this identity does not open the backup: it is for {', '.join(source.mesh.recipients)}",
            hint="give another one with --identity",
        ) from error
    except sealing.DamagedObject:  # because its end is missing here; the restore reads all of it
        pass


def _find_point(points: Sequence[RestorePoint], version: str) -> RestorePoint:
    """Return the newest one of the version: an upgrade may have been tried before."""
    of_version = [point for point in points if point.version == version]
    if of_version:
        return max(of_version, key=lambda point: point.at)
    known = ", ".join(sorted({point.version for point in points})) or "none"
    raise RestoreRefused(f"there is no restore point before an upgrade to {version[:40]!r}; known: {known}", hint="use --at with a time")


async def unpack_files(source: RestoreSource, backup: BackupManifest, work: StackHome, home: StackHome, progress: Progress) -> None:
    """Unpack secrets and files, and adapt them to their new place, ``home``."""
    for part in (layout.SECRETS, layout.FILES):
        await recovered_database.unpack(source, backup, part, work.root, progress=progress)
    await asyncio.to_thread(_repair_files, work, home)


def _repair_files(work: StackHome, home: StackHome) -> None:
    journals = work.run / _JOURNALS
    for path in sorted(work.keys.glob("*.journal")):
        if path.stat().st_size:
            # The gateway would try forever to write rows of requests that the database does not know.
            journals.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.rename(journals / path.name)
    if work.settings_file.exists():
        text = work.settings_file.read_text(encoding="utf-8")
        recorded = settings.read_recorded(work)
        for name in settings.SECRET:
            old = Path(recorded.get(f"{name}_FILE", ""))
            if old.parts[-3:] == ("secrets", "environment", name.lower()):
                text = text.replace(shlex.quote(str(old)), shlex.quote(str(home.secrets / "environment" / name.lower())))
        stack_home.write_private(work.settings_file, text)


async def _make_strict(database: RecoveredDatabase, reached: datetime) -> StrictFacts:
    words = ("--strict-before", reached.isoformat())
    ended = await database.run("disabling accounts", "auth", "recovery_check", *words, seconds=_STRICT_SECONDS)
    try:
        return msgspec.json.decode(ended.output, type=StrictFacts)
    except msgspec.DecodeError as error:
        reason = (ended.output.decode(errors="replace").strip() or ended.said)[-300:]
        raise errors.Internal(f"the accounts could not be disabled: {reason}", hint="run it again, or leave --strict out") from error


def end_database(work: Path) -> None:
    """End the server of a restore that was killed. Blocks."""
    processes.end_postgres(work / "postgres" / "data", signal.SIGINT, _STOP_SECONDS)
