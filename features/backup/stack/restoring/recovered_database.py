"""Fetches a backup from the store, and recovers its database to a moment, in a folder of the caller's.

PostgreSQL gets no network address, no configuration but ours, and a private socket. The folder has ``data``, ``wal`` and ``recovery.log``.
"""

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import quote

import asyncpg
import msgspec

from features.backup.stack import layout, sealing
from features.backup.stack.layout import DATA, BackupManifest, Segment, StoreMesh, WalObject
from features.backup.stack.restoring import restore_plan, throwaway
from features.backup.stack.restoring.restore_plan import RestorePlan, TimelineEnd
from features.backup.stack.sealing import CountedDigest, DamagedObject
from shared import errors
from shared.stores import queries
from shared.stores.objects import ObjectMissing, ObjectStore
from stack import processes, stack_home
from stack.secret_files import POSTGRES_ADMIN
from stack.servers import postgres

#: What is done, how much of it, and of how much: bytes, or segments.
Progress = Callable[[str, int, int], None]
_SEGMENTS_AT_ONCE = 4
#: PostgreSQL replays 100 MB/s; without a line in its log for this long, something is broken.
_STALL_SECONDS = 300.0
_LOOK_SECONDS = 0.1
_PIECE_BYTES = 1 << 20
#: What tarfile reads and writes at a time. With each read it copies all that it has read ahead, so 1 MiB takes a third more processor time.
_TAR_READ_BYTES, _TAR_WRITE_BYTES = 64 << 10, 256 << 10
#: Where a segment has the cluster's identifier (PostgreSQL's xlp_sysid).
_SYSTEM_BYTES = slice(24, 32)
_STOP_SECONDS = 120.0
_CONNECT_SECONDS = 10.0
#: What a cluster's folder never contains: PostgreSQL would obey it. Your own server may have any other file there.
_NOT_OF_CLUSTER = {"recovery.signal", "standby.signal", "tablespace_map"}
#: What the other parts never contain: settings can name files anywhere else in the home.
_NOT_OF_HOME = {"postgres", "valkey", "run", "logs", "backup"}
#: A restore point is written a moment before its time is read.
_MARGIN = timedelta(seconds=5)
_UNKNOWN = datetime.min.replace(tzinfo=UTC)
_SQL = queries.load(Path(__file__).with_suffix(".sql"))
_ENDED_EARLY = "recovery ended before configured recovery target was reached"


@dataclass(frozen=True, slots=True)
class RestoreSource:
    """A store that can be read."""

    store: ObjectStore
    mesh: StoreMesh
    identities: tuple[str, ...]
    #: Newer ones than those in the store: PostgreSQL's files on this machine.
    local_segments: Mapping[Segment, Path] = field(default_factory=dict)

    async def open(self, name: str) -> bytes:
        """Return the content of a small object. Raises WrongIdentity, DamagedObject, also if it is missing, and StoreUnavailable."""
        try:
            body = await self.store.get(name)
        except ObjectMissing as error:
            raise sealing.missing(name) from error
        return await asyncio.to_thread(sealing.open_bytes, name, body, self.identities, self.mesh.keys, self.mesh.mesh)

    async def segment(self, segment: Segment, segment_size: int) -> WalObject:
        if (local := self.local_segments.get(segment)) is not None:
            return WalObject(data=await asyncio.to_thread(local.read_bytes), until=_UNKNOWN, lsn=0)
        name = segment.object(segment_size)
        try:
            wal = msgspec.msgpack.decode(await self.open(name), type=WalObject)
        except DamagedObject as error:
            if segment.is_partial and isinstance(error.__cause__, ObjectMissing):
                # The agent may have finished it since the store was listed.
                return await self.segment(replace(segment, is_partial=False), segment_size)
            raise
        except msgspec.DecodeError as error:
            raise sealing.damaged(name) from error
        if len(wal.data) > segment_size:
            raise sealing.damaged(name)
        return wal

    async def histories(self, timelines: Collection[int]) -> dict[int, tuple[TimelineEnd, ...]]:
        texts = await asyncio.gather(*(self.open(layout.history_object(timeline)) for timeline in timelines))
        return {
            timeline: restore_plan.parse_history(text.decode(errors="replace")) for timeline, text in zip(timelines, texts, strict=True)
        }


@dataclass(frozen=True, slots=True)
class WalEnd:
    """How far the fetched write-ahead log reaches."""

    #: Every commit before this moment is there.
    until: datetime
    lsn: int


@dataclass(frozen=True, slots=True)
class RecoveredDatabase:
    """A running server whose recovery has ended. It accepts its superuser on its socket."""

    url: str
    admin: str
    #: Of the last replayed commit; None without one.
    last_commit_at: datetime | None
    lsn: int
    #: Nothing that works on it may reach a network.
    is_isolated: bool

    def url_of(self, role: str) -> str:
        """Return the address for another role: objects that it makes are its own."""
        return self.url.replace(f"//{self.admin}@", f"//{quote(role)}@", 1)

    async def run(self, what: str, service: str, program: str, *words: str, seconds: float, given: bytes = b"") -> processes.EndedProgram:
        """Run a program of a service, which knows the address of this database and nothing else. Raises Unavailable after the deadline."""
        command = (sys.executable, "-m", f"services.{service}.{program}", *words)
        environment = {"DATABASE_URL": self.url_of(service)}
        isolated = throwaway.without_network(*command) if self.is_isolated else command
        return await processes.run(what, isolated, seconds, given, cwd=stack_home.checkout(), env=environment)

    def reached(self, end: WalEnd, plan: RestorePlan) -> datetime:
        """Return the moment of the database: every commit before it is there. ``end`` is what was fetched."""
        if plan.target.at is not None and end.until >= plan.target.at:
            return plan.target.at
        known = plan.backup.started_at if plan.target.is_backup_end else end.until
        return max(known, self.last_commit_at or known)


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raises RestoreRefused. ``folder`` may not exist yet. Blocks."""
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise layout.RestoreRefused(
            f"the restore needs {needed_bytes / 1e6:.0f} MB on the disk of {folder}, and {free / 1e6:.0f} MB are free",
            hint="free some, or set AIMESH_HOME to a folder on another disk",
        )


def require_version(backup: BackupManifest) -> None:
    """Raises RestoreRefused. Blocks for some milliseconds."""
    said = subprocess.run([postgres.binaries() / "postgres", "--version"], capture_output=True, timeout=30, check=False).stdout  # noqa: S603
    found = re.search(rb"\) (\d+)", said)
    if found is not None and int(found[1]) != backup.postgres // 10_000:
        raise layout.RestoreRefused(
            f"the backup {backup.name} is of PostgreSQL {backup.postgres // 10_000}, and this machine has {int(found[1])}",
            hint="install aimesh in the version that made the backup",
        )


async def fetch_and_unpack(source: RestoreSource, plan: RestorePlan, folder: Path, progress: Progress) -> WalEnd:
    """Fetch the write-ahead log and the database into ``folder``. Raises what ``RestoreSource.open`` raises, and OSError."""
    end = await fetch_wal(source, plan, folder / "wal", progress)
    await unpack(source, plan.backup, DATA, folder / "data", progress=progress)
    return end


async def fetch_wal(source: RestoreSource, plan: RestorePlan, folder: Path, progress: Progress) -> WalEnd:
    """Write the segments up to the target, each under PostgreSQL's name. Raises RestoreRefused if the target is behind a gap, or a
    segment is another cluster's."""
    await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
    for timeline in plan.histories:
        (folder / f"{timeline:08X}.history").write_bytes(await source.open(layout.history_object(timeline)))
    size, total = plan.backup.segment_size, len(plan.segments)
    end = WalEnd(plan.backup.finished_at, plan.backup.stop_lsn)

    async def fetch(segment: Segment) -> WalEnd:
        wal = await source.segment(segment, size)
        # A segment that has only begun may have zeros there.
        if any(system := wal.data[_SYSTEM_BYTES]) and int.from_bytes(system, sys.byteorder) != int(plan.backup.system):
            raise layout.RestoreRefused(
                f"{segment.object(size)} is of another database cluster than the backup {plan.backup.name}",
                hint="use a newer backup (aicli stack backups), or a copy of the store from before the other cluster's first backup",
            )
        await asyncio.to_thread(write_segment, folder / segment.file(size), wal.data, size)
        return WalEnd(wal.until, wal.lsn)

    for done in range(0, total, _SEGMENTS_AT_ONCE):
        try:
            async with asyncio.TaskGroup() as tasks:
                fetching = [tasks.create_task(fetch(segment)) for segment in plan.segments[done : done + _SEGMENTS_AT_ONCE]]
        except ExceptionGroup as group:
            raise errors.first_of(group) from None
        ends = [end, *(task.result() for task in fetching)]
        end = WalEnd(max(each.until for each in ends), max(each.lsn for each in ends))
        progress("fetching the write-ahead log", min(done + _SEGMENTS_AT_ONCE, total), total)
        if plan.target.at is not None and end.until > plan.target.at + _MARGIN and end.lsn >= plan.backup.stop_lsn:
            return end
    if plan.gap is not None and (plan.target.at is None or plan.target.at >= end.until):
        raise restore_plan.refusal_of_gap(plan, end.until)
    return end


async def unpack(source: RestoreSource, backup: BackupManifest, part: str, folder: Path, *, progress: Progress) -> None:
    """Unpack an archive, whose size and SHA-256 the manifest knows.

    Until this returns, nothing of the folder can be believed: a part of another archive may be there. Raises DamagedObject and OSError.
    """
    described, name, digest = backup.part(part), layout.part_object(backup.name, part), CountedDigest()

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in digest.over(source.store.read(name)):
            if digest.size > described.size:
                raise sealing.damaged(name)
            progress(f"fetching and unpacking {part}", digest.size, described.size)
            yield piece

    await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
    try:
        async with sealing.unsealed(pieces(), source.identities, described.plain_size) as file:
            await _extract_to_the_end(_StoppableReader(file), folder, part, name)
    except ObjectMissing as error:
        raise sealing.missing(name) from error
    except sealing.WrongIdentity:
        raise
    except DamagedObject as error:
        raise (error if name in error.message else sealing.damaged(name)) from error
    if (digest.size, digest.sha256) != (described.size, described.sha256):
        raise sealing.damaged(name)


class _StoppableReader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.is_stopped = False

    def read(self, size: int) -> bytes:
        if self.is_stopped:
            raise EOFError
        return self._file.read(size)


async def _extract_to_the_end(file: _StoppableReader, folder: Path, part: str, archive: str) -> None:
    """Return only when the thread has ended: after an error elsewhere, or a cancel, it must not write any more."""
    extracting = asyncio.get_running_loop().run_in_executor(None, _extract, file, folder, part, archive)
    try:
        await asyncio.shield(extracting)
    except asyncio.CancelledError:
        file.is_stopped = True
        await asyncio.wait([extracting])
        extracting.exception()
        raise


def _extract(file: _StoppableReader, folder: Path, part: str, archive: str) -> None:
    try:
        with tarfile.TarFile.open(fileobj=cast("BinaryIO", file), mode="r|", bufsize=_TAR_READ_BYTES) as members:
            # Debian 12's Python 3.11.2 has no filters yet. They change modes and owners, and refuse what ``_is_harmless`` has refused.
            members.extraction_filter = getattr(tarfile, "data_filter", None)
            members.copybufsize = _TAR_WRITE_BYTES  # type: ignore[attr-defined]
            for member in members:
                if _is_harmless(member, part):
                    member.uid, member.gid, member.uname, member.gname, member.mode = os.getuid(), os.getgid(), "", "", member.mode & 0o700
                    members.extract(member, folder)
                elif not (member.name == "tablespace_map" and member.size == 0):
                    raise DamagedObject(
                        f"{archive} contains {member.name[:200]!r}, which no backup contains",
                        hint="somebody forged it, so nothing was kept",
                    )
        while file.read(_PIECE_BYTES):  # the archive's padding, and the end of the digest
            pass
    except (tarfile.TarError, EOFError) as error:
        raise sealing.damaged(archive) from error


def _is_harmless(member: tarfile.TarInfo, part: str) -> bool:
    """No link, no device, and no path that leaves the folder. The filter of ``extract`` would refuse most of these, too."""
    is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and not member.issparse()
    path = PurePosixPath(member.name)
    first = path.parts[0] if path.parts else ""
    is_expected = first not in (_NOT_OF_CLUSTER if part == DATA else _NOT_OF_HOME)
    return is_plain and is_expected and not path.is_absolute() and ".." not in path.parts


def write_segment(path: Path, data: bytes, size: int) -> None:
    """PostgreSQL refuses a segment of another size; zeros are the end of the log."""
    with path.open("wb") as file:
        file.write(data)
        file.truncate(size)


# --- the server


@contextlib.asynccontextmanager
async def recovered(folder: Path, plan: RestorePlan, progress: Progress, *, is_durable: bool = True) -> AsyncIterator[RecoveredDatabase]:
    """Recover ``folder / data`` to the target, and run the server for the block. After it, the data is cleanly shut down.

    ``is_durable`` False, for a test: nothing of it has to survive a power failure, and it has no network at all. Raises Unavailable with
    the end of PostgreSQL's log.
    """
    data = folder / "data"
    await asyncio.to_thread(prepare, data)
    with tempfile.TemporaryDirectory(prefix="aimesh-", ignore_cleanup_errors=True) as sockets:  # short: its path has 107 bytes at most
        server = RecoveringServer(folder, Path(sockets), len(plan.segments), progress, is_durable=is_durable)
        try:
            await server.start(_target_settings(plan))
            try:
                await server.until_open()
            except _EndedEarly as early:
                if plan.target.point is not None:
                    raise layout.RestoreRefused(
                        f"the restore point {plan.target.point} is not in the log", hint="use --at with its time"
                    ) from early
                # There is no commit behind the target.
                await server.start({"recovery_target_timeline": str(plan.timeline)})
                await server.until_open()
            yield await server.facts()
        finally:
            await server.stop()


class _EndedEarly(Exception):
    """The log ends before the target."""


class RecoveringServer:
    def __init__(self, folder: Path, sockets: Path, segments: int, progress: Progress, *, is_durable: bool) -> None:
        self._folder = folder
        self._sockets = sockets
        self._segments = segments
        self._progress = progress
        self._is_durable = is_durable
        self._process: asyncio.subprocess.Process | None = None
        self._admin = POSTGRES_ADMIN

    @property
    def _log(self) -> Path:
        return self._folder / "recovery.log"

    async def start(self, target: dict[str, str]) -> None:
        """``target``: more options of the server."""
        hba, empty = self._sockets / "pg_hba.conf", self._sockets / "postgresql.conf"
        # Only this user can reach the socket.
        hba.write_text("local all all trust\n", encoding="ascii")
        empty.touch()
        command = restore_command(self._folder / "wal")
        options = server_options(empty, hba, self._sockets) | {"restore_command": command, "recovery_target_action": "promote"} | target
        if not self._is_durable:
            options |= {"fsync": "off", "full_page_writes": "off"}
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        program = postgres.binaries() / "postgres"
        server = postgres.unprivileged(str(program), "-D", str(self._folder / "data"), *words)
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(server if self._is_durable else throwaway.without_network(*server)),
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=processes.dies_with_parent(signal.SIGINT, os.getpid()),
            )

    async def until_open(self) -> None:
        assert self._process is not None
        moved, last = time.monotonic(), -1
        while time.monotonic() - moved < _STALL_SECONDS:
            if self._process.returncode is not None:
                raise await asyncio.to_thread(self._failure)
            log = await asyncio.to_thread(self._log.read_bytes)
            if len(log) != last:
                moved, last = time.monotonic(), len(log)
                self._progress("replaying the write-ahead log", min(log.count(b"restored log file"), self._segments), self._segments)
            if b"database system is ready to accept connections" in log:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._process.wait()
        raise errors.Unavailable(f"PostgreSQL made no progress for {_STALL_SECONDS:.0f} s", hint=f"see {self._log}; then run it again")

    async def facts(self) -> RecoveredDatabase:
        """As the stack's superuser, or that of a cluster which was not the stack's."""
        for self._admin in (POSTGRES_ADMIN, "postgres"):
            url = f"postgresql://{self._admin}@/{postgres.DATABASE}?host={quote(str(self._sockets), safe='')}&port={postgres.PORT}"
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    connection = await asyncpg.connect(url)
            except asyncpg.InvalidAuthorizationSpecificationError:
                continue
            except (OSError, asyncpg.PostgresError) as error:
                raise errors.Unavailable(f"the recovered database does not answer: {error}", hint=f"see {self._log}") from error
            try:
                row = await connection.fetchrow(_SQL["find_end_of_recovery"].text, timeout=_CONNECT_SECONDS)
            finally:
                connection.terminate()
            return RecoveredDatabase(url, self._admin, row["last_commit_at"], row["lsn"], not self._is_durable)
        raise errors.Unavailable("the recovered database has no known superuser", hint=f"it has neither {POSTGRES_ADMIN} nor postgres")

    async def stop(self) -> None:
        """Shut down cleanly. A server that does not end is killed."""
        if self._process is not None:
            await processes.stop(self._process, signal.SIGINT, _STOP_SECONDS)

    def _failure(self) -> Exception:
        log = self._log.read_text(encoding="utf-8", errors="replace")
        if _ENDED_EARLY in log:
            return _EndedEarly()
        reason = " / ".join(log.strip().splitlines()[-3:])
        return errors.Unavailable(f"PostgreSQL could not recover the database: {reason[-600:]}", hint=f"see {self._log}")


def server_options(config: Path, hba: Path, sockets: Path) -> dict[str, str]:
    """Return the options of a server that makes no connections, and that only we can reach. They win over every file of the data."""
    return {
        "config_file": str(config),
        "hba_file": str(hba),
        "listen_addresses": "",
        "port": str(postgres.PORT),
        "unix_socket_directories": str(sockets).replace(",", "\\,"),
        "unix_socket_permissions": "0700",
        "shared_preload_libraries": "",
        "archive_mode": "off",
        "primary_conninfo": "",
        # A read-only server before the target would need the settings of the old one, such as max_connections.
        "hot_standby": "off",
        "lc_messages": "C",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }


def restore_command(wal: Path) -> str:
    """Return what PostgreSQL runs for each segment. It replaces %f and %p, and a shell reads the rest."""
    return f'cp {shlex.quote(str(wal)).replace("%", "%%")}/%f "%p"'


def _target_settings(plan: RestorePlan) -> dict[str, str]:
    chosen = {"recovery_target_timeline": str(plan.timeline)}
    if plan.target.is_backup_end:
        return chosen | {"recovery_target": "immediate"}
    if plan.target.point is not None:
        return chosen | {"recovery_target_name": plan.target.point}
    if plan.target.at is not None:
        return chosen | {"recovery_target_time": plan.target.at.astimezone(UTC).isoformat(" ")}
    return chosen


def prepare(data: Path) -> None:
    data.chmod(0o700)
    (data / "recovery.signal").touch(mode=0o600)
    (data / "postmaster.pid").unlink(missing_ok=True)
