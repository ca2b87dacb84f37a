"""`aicli stack standby`: a home whose PostgreSQL stays in recovery and replays what another site brings into the store.

It runs no service, uses no node key, and opens no port. ``run/standby.json`` in its home tells what it follows; while it is there, nothing
but `aicli stack promote` starts the stack.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from shared import config, errors
from shared.identity import node_keys
from stack import processes, secret_files, settings, stack_home
from stack.processes import Child
from stack.recovery import catalog, layout, sealing
from stack.recovery.catalog import StoreCatalog
from stack.recovery.layout import BackupManifest, RestoreRefused, Segment, StoreState
from stack.recovery.restoring import recovered_database, restore, restore_plan
from stack.recovery.restoring.recovered_database import Progress, RecoveringServer, RestoreSource
from stack.recovery.restoring.restore_plan import LATEST, RestoreTarget
from stack.recovery.sites import replaced, site_keeper, site_terms
from stack.recovery.takeover import standby_plan
from stack.recovery.takeover.standby_plan import ControlFile, LogPosition, StandbyRecord
from stack.servers import postgres
from stack.settings import BackupSettings
from stack.stack_home import StackHome

_CONTROL_SECONDS = 30
#: How often the store is read, unless BACKUP_SHIP_SECONDS is shorter.
_LOOK_SECONDS = 5.0
_BACKUPS_SECONDS = 300.0
#: Segments that PostgreSQL has not read yet: half a gigabyte.
_MOST_WAITING = 32
#: PostgreSQL replays a segment in less than a second.
_STALL_SECONDS = 300.0
#: While it waits, PostgreSQL writes two lines a second.
_QUIET = {"log_min_messages": "fatal"}
#: A list of objects is not a snapshot, so what seems to be missing may have come meanwhile.
_REFUSALS = 3


class StandbyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``run/standby.json``."""

    address: str
    site: str
    #: The backup whose secrets and files are here; None until everything was unpacked.
    backup: str | None = None
    #: The process that keeps it up to date.
    process: Child | None = None


def read_facts(home: StackHome) -> StandbyFacts | None:
    """Raises BadSettings."""
    return stack_home.read_struct(home.run / replaced.STANDBY, StandbyFacts, "begin again: aicli stack standby --replace")


def save_facts(home: StackHome, facts: StandbyFacts) -> None:
    stack_home.write_struct(home.run / replaced.STANDBY, facts)


def forget(home: StackHome) -> None:
    (home.run / replaced.STANDBY).unlink(missing_ok=True)


def read_control(home: StackHome) -> ControlFile:
    """Blocks. The server must be stopped."""
    command = (str(postgres.binaries() / "pg_controldata"), "-D", str(home.postgres / "data"))
    done = subprocess.run(command, env={"LC_ALL": "C"}, capture_output=True, text=True, timeout=_CONTROL_SECONDS, check=False)  # noqa: S603
    if done.returncode != 0:
        raise RestoreRefused("the standby has no complete database yet", hint="let `aicli stack standby` run until it says that it follows")
    return standby_plan.parse_control(done.stdout)


def find_start(home: StackHome, backup: BackupManifest) -> LogPosition:
    """Return from where PostgreSQL will read. Blocks."""
    redo = read_control(home).redo
    # Until the first checkpoint, the label of the backup counts.
    label = (home.postgres / "data" / "backup_label").exists()
    return LogPosition(backup.timeline, min(redo.lsn, backup.start_lsn)) if label else redo


@dataclass(frozen=True, slots=True)
class StandbyOutput:
    """Where progress and news go."""

    progress: Progress
    report: Callable[[str], None]


async def run(
    home: StackHome, address: str, identity: Path, *, replaces: bool, environment: Mapping[str, str], shown: StandbyOutput
) -> None:
    """Follow the store until canceled. Raises RestoreRefused and other BadSettings before anything was changed."""
    facts = read_facts(home)
    if facts is not None and facts.process is not None and processes.is_alive(facts.process):
        raise RestoreRefused(f"{home.root} is kept up to date by process {facts.process.pid} already", hint="stop that one first")
    restore.refuse_running(home)
    source = await restore.open_source(home, address, (identity,), environment)
    chosen = {**environment, "BACKUP_TO": address, "SITE_NAME": environment.get("SITE_NAME") or BackupSettings().site}
    standby = _Standby(home, source, chosen, shown)
    if facts is None:
        await standby.check(replaces=replaces)
        if home.root.is_dir() and any(home.root.iterdir()):
            home.root.rename(restore.place_aside(home.root))
    elif facts.address != address:
        raise RestoreRefused(f"{home.root} is a standby of {facts.address}", hint="set AIMESH_HOME to another folder")
    stack_home.ensure_folders(home)
    with processes.only_supervisor(home) as lock:
        if lock is None:
            raise RestoreRefused("another standby uses this home", hint="stop it first")
        own = Child("standby", os.getpid(), processes.start_of(os.getpid()) or 0)
        save_facts(
            home, StandbyFacts(address=address, site=chosen["SITE_NAME"], backup=None if facts is None else facts.backup, process=own)
        )
        try:
            await standby.follow()
        finally:
            if (left := read_facts(home)) is not None:
                save_facts(home, msgspec.structs.replace(left, process=None))


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A version of a segment that PostgreSQL gets."""

    path: Path
    lsn: int
    until: datetime


class _Standby:
    def __init__(self, home: StackHome, source: RestoreSource, chosen: Mapping[str, str], shown: StandbyOutput) -> None:
        self._home = home
        self._source = source
        self._chosen = chosen
        self._shown = shown
        loaded = config.load(BackupSettings, {**chosen, "BACKUP_RECIPIENTS": ",".join(source.mesh.recipients)})
        self._look_seconds = min(_LOOK_SECONDS, loaded.backup_ship_seconds)
        self._wal = home.postgres / "wal"
        self._position = LogPosition(0, 0)
        self._waiting: deque[_Fetched] = deque()
        self._moved_at = 0.0
        self._state: StoreState | None = None
        self._reached = StandbyRecord(site=chosen["SITE_NAME"], until=None, lsn=0)
        self._backup: BackupManifest

    async def check(self, *, replaces: bool) -> None:
        """Raises RestoreRefused."""
        home = self._home.root
        restore.refuse_taken(home, replaces=replaces)
        own = await asyncio.to_thread(site_keeper.read_own, self._home)
        highest = site_terms.find_highest({each.name async for each in self._source.store.list(site_terms.FOLDER)})
        if own is not None and own.term == highest:
            raise RestoreRefused(f"{home} owns the mesh, in term {own.term}", hint="promote a standby on another machine first")
        found = await catalog.read(self._source.store, self._source.mesh)
        chosen = restore_plan.plan(found, LATEST, RestoreTarget(), await self._source.histories(found.histories))
        await restore.check_backup(self._source, chosen, home)

    async def follow(self) -> None:
        has_lost_track = False
        while True:
            await asyncio.to_thread(restore.end_database, self._home.root)
            facts = self._facts()
            try:
                if has_lost_track or facts.backup is None:
                    await self._build(facts)
                    has_lost_track = False
                else:
                    self._backup = await self._manifest(facts.backup)
                await self._replay()
            except RestoreRefused as error:
                self._shown.report(f"the store cannot be followed from here, so the newest backup is fetched: {error.message}")
                has_lost_track = True
                await asyncio.sleep(self._look_seconds)

    def _facts(self) -> StandbyFacts:
        facts = read_facts(self._home)
        assert facts is not None  # written before we follow
        return facts

    async def _build(self, facts: StandbyFacts) -> None:
        """Unpack the newest backup."""
        found = await catalog.read(self._source.store, self._source.mesh)
        newest = restore_plan.plan(found, LATEST, RestoreTarget(), await self._source.histories(found.histories)).backup
        save_facts(self._home, msgspec.structs.replace(facts, backup=None))
        for folder in (self._home.postgres / "data", self._wal):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        await recovered_database.unpack(self._source, newest, layout.DATA, self._home.postgres / "data", progress=self._shown.progress)
        await self._take_files(newest)
        self._reached = msgspec.structs.replace(self._reached, until=None, lsn=0)

    async def _take_files(self, backup: BackupManifest) -> None:
        """Unpack secrets and files, which a later promotion needs as they were last, with the settings of this site."""
        await restore.unpack_files(self._source, backup, self._home, self._home, self._shown.progress)
        await asyncio.to_thread(settings.record, self._home, {"PROMOTE_COMMAND": "", **self._chosen}, Path.cwd())
        self._backup = backup
        save_facts(self._home, msgspec.structs.replace(self._facts(), backup=backup.name))

    async def _replay(self) -> None:
        data = self._home.postgres / "data"
        await asyncio.to_thread(shutil.rmtree, self._wal, ignore_errors=True)
        self._wal.mkdir(mode=0o700)
        await asyncio.to_thread(recovered_database.prepare, data, "standby.signal")
        self._position = await asyncio.to_thread(find_start, self._home, self._backup)
        self._waiting.clear()
        self._state, self._moved_at = None, time.monotonic()
        with tempfile.TemporaryDirectory(prefix="aimesh-", ignore_cleanup_errors=True) as sockets:
            server = RecoveringServer(self._home.postgres, Path(sockets), 0, self._shown.progress, is_durable=True)
            try:
                await server.start(
                    {"restore_command": _consume(self._wal), "recovery_target_timeline": "latest", "wal_retrieve_retry_interval": "1s"}
                    | _QUIET
                )
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(server.until_ended())
                    tasks.create_task(self._fetch())
                    tasks.create_task(self._watch_backups())
            except* errors.AimeshError as group:
                raise errors.first_of(group) from None
            finally:
                await server.stop()

    # --- what comes from the store

    async def _fetch(self) -> None:
        refusals, is_told = 0, False
        while True:
            try:
                await self._look()
                refusals = 0
                if self._reached.until is not None and not is_told:
                    is_told = True
                    self._shown.report(f"following {self._backup.site}; the database is as of {self._reached.until:%Y-%m-%d %H:%M:%S} UTC")
            except RestoreRefused:
                refusals += 1
                if refusals == _REFUSALS:
                    raise
            except errors.Unavailable as error:
                self._shown.report(f"the store cannot be read; it will be retried: {error.message}")
            await asyncio.sleep(self._look_seconds)

    async def _look(self) -> None:
        store, mesh = self._source.store, self._source.mesh
        self._note_replayed()
        state = await catalog.find_signed(store, mesh, layout.STATE, StoreState)
        is_new = state is None or self._state is None or (state.timeline, state.lsn) != (self._state.timeline, self._state.lsn)
        if (not is_new or await self._fetch_segments()) and state is not None:
            self._note_replayed()
            self._state = state
            if not self._waiting and self._position.lsn >= state.lsn and self._position.timeline >= state.timeline:
                # Nothing is newer: also of a moment without a commit, everything is here.
                self._reached = msgspec.structs.replace(self._reached, until=state.until, lsn=state.lsn)
        if self._waiting and time.monotonic() - self._moved_at > _STALL_SECONDS:
            raise RestoreRefused(f"PostgreSQL does not read {self._waiting[0].path.name}", hint="see postgres/recovery.log")
        name = standby_plan.record_name(self._reached.site)
        key = await asyncio.to_thread(node_keys.load, self._home.secrets / secret_files.RECOVERY_KEY)
        await store.put(name, layout.sign(name, self._reached, key))

    async def _fetch_segments(self) -> bool:
        """Return whether everything was fetched. Raises RestoreRefused."""
        size = self._backup.segment_size
        segments, timelines = await catalog.list_log(self._source.store, size)
        histories = await self._source.histories(timelines)
        plan = standby_plan.plan(StoreCatalog((self._backup,), segments, timelines, None), self._position, histories)
        for timeline in plan.histories:
            (self._wal / f"{timeline:08X}.history").write_bytes(await self._source.open(layout.history_object(timeline)))
        for segment in plan.segments:
            if len(self._waiting) >= _MOST_WAITING:
                return False
            await self._fetch_segment(segment, size)
        return True

    async def _fetch_segment(self, segment: Segment, size: int) -> None:
        try:
            wal = await self._source.segment(segment, size)
        except sealing.DamagedObject:
            if not segment.is_partial:
                raise
            return  # it was finished meanwhile, and is the next one to fetch
        path = self._wal / segment.file(size)
        end = wal.lsn if segment.is_partial else segment.end(size)
        if end <= self._position.lsn and segment.timeline == self._position.timeline:
            return  # PostgreSQL has it
        await asyncio.to_thread(_hand_over, path, wal.data, size)
        self._position = LogPosition(segment.timeline, max(end, self._position.lsn))
        self._waiting.append(_Fetched(path, end, wal.until))

    def _note_replayed(self) -> None:
        """PostgreSQL has taken what is gone, and needs nothing before it, as a new timeline's first segment replaces the old one's last."""
        taken = [number for number, each in enumerate(self._waiting, start=1) if not each.path.exists()]
        for _ in range(max(taken, default=0)):
            read = self._waiting.popleft()
            self._moved_at = time.monotonic()
            until = max(read.until, self._reached.until or read.until)
            self._reached = msgspec.structs.replace(self._reached, until=until, lsn=max(read.lsn, self._reached.lsn))
        if not self._waiting:
            self._moved_at = time.monotonic()

    async def _watch_backups(self) -> None:
        """Take secrets and files of each new backup."""
        while True:
            await asyncio.sleep(_BACKUPS_SECONDS)
            with contextlib.suppress(errors.Unavailable):
                names = [found async for each in self._source.store.list(layout.BASE) if (found := layout.parse_backup(each.name))]
                newest = max((name.name for name, file in names if file == "manifest.json"), default=self._backup.name)
                if newest != self._backup.name:
                    await self._take_files(await self._manifest(newest))

    async def _manifest(self, backup: str) -> BackupManifest:
        store, mesh = self._source.store, self._source.mesh
        found = await catalog.find_signed(store, mesh, layout.manifest_object(backup), BackupManifest)
        # If it was pruned, another one tells the size of segments, too.
        return found or (await catalog.read(store, mesh)).backups[-1]


def _consume(wal: Path) -> str:
    """Return the command for each file: a segment is given once, so that an unfinished one is only read again when it has grown."""
    place = shlex.quote(str(wal)).replace("%", "%%")
    return f'case %f in *.history) cp {place}/%f "%p";; *) mv {place}/%f "%p";; esac 2>/dev/null'


def _hand_over(path: Path, data: bytes, size: int) -> None:
    """PostgreSQL takes it at any moment: whole, or not at all."""
    unfinished = path.with_suffix(".unfinished")
    recovered_database.write_segment(unfinished, data, size)
    unfinished.replace(path)
