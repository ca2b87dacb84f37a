"""The backup agent: a program of the stack that copies the database, the recovery logs and the program logs to BACKUP_TO.

Nothing that fails here stops a service: the store, auth, the gateway and the database are retried without end.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import STDOUT
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import UTC, date, datetime
from pathlib import Path

import msgspec

from features.backup.contract import ReportBackup, report_backup
from features.backup.settings import BackupSettings
from features.backup.stack import agent_program, backup_place, catalog, layout, sealing, site_term
from features.backup.stack.agent import agent_report, agent_schedule, base_backup, pruning, recovery_log_copy
from features.backup.stack.agent.recovery_log_copy import FileCopy, RecoveryLogCopy
from features.backup.stack.agent.source_database import SourceDatabase, SourcePosition
from features.backup.stack.agent.wal_shipping import WalGap, WalShipping, patiently
from features.backup.stack.backup_place import BackupPlace
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import RestoreTests
from features.backup.stack.restoring import restore_plan
from features.backup.stack.restoring.recovered_database import RestoreSource
from features.backup.stack.restoring.restore_plan import RecoveryWindow
from features.backup.stack.site_term import SiteRecord
from features.backup.stack.store_retries import retry
from shared import config, errors, large_blocks
from shared.api.recovery import follow_auth_log, follow_gateway_log
from shared.node.client_node import ClientSettings, client
from shared.node.lifecycle import background
from shared.node.settings import NodeSettings
from shared.processes import end
from shared.rpc.calling import RpcClient
from shared.stores import file_lock
from shared.telemetry import logs
from shared.timing.backoff import Backoff
from shared.types import Role
from stack import control, processes, settings
from stack import logs as log_files
from stack import stack_home as homes
from stack.stack_home import StackHome

_REPORT_SECONDS = 10.0
_FILES_SECONDS = 30.0
#: How often the term is compared with the store's, and how long that may take.
_TERM_SECONDS = 10.0
#: How often the store is read to decide what is due.
_LOOK_SECONDS = 300.0
_BACKOFF = Backoff(first_seconds=1.0, longest_seconds=3600.0)
_MIN_MAX_SECONDS = 5.0
#: Every so many failures in a row are logged.
_TOLD_FAILURES = 30
#: A backup of a damaged database fails each time, after it has read much.
_RETRY_SECONDS = 3600.0
_TEST_DEADLINE_SECONDS = 12 * 3600.0
#: To open the store before an upgrade, which waits for that.
_OPEN_SECONDS = 60.0
#: For the newest commits when the agent is stopped.
_LAST_SECONDS = 10.0
#: As auth reads reports.
_MAX_TEXT = 1000
#: The exit status of `aicli` for what cannot be done.
_REFUSED = 2

_log = logs.get(part="backup")


class Agent:
    """``run`` it once."""

    def __init__(self, place: BackupPlace, source: SourceDatabase | None, own: SiteRecord, node: NodeSettings) -> None:
        self._place = place
        self._source = source
        self._node = node
        self._own = own
        #: Final.
        self._replaced_by: SiteRecord | None = None
        self._shipping = None if source is None else WalShipping(place, source, term=own.term)
        self._copies = [RecoveryLogCopy(place, method, own.term) for method in (follow_auth_log, follow_gateway_log)]
        recorded = settings.read_recorded(place.home)
        anchors = Path(recorded.get("AUDIT_ANCHOR_FILE", place.home.audit_anchors))
        self._files = [
            FileCopy(place, layout.ANCHORS, anchors, own.term),
            FileCopy(place, layout.POINTS, place.home.restore_points, own.term),
        ]
        #: None while the mesh can't be reached.
        self._rpc: RpcClient | None = None
        self._catalog: StoreCatalog | None = None
        self._window: RecoveryWindow | None = None
        self._failing_since: datetime | None = None
        self._store_error = ""
        #: Log is missing since the last backup.
        self._has_gap = False
        self._is_due = asyncio.Event()
        self._logs_copied: date | None = None
        #: What a replaced site must not do: the store is the other site's.
        self._writers: list[asyncio.Task[None]] = []

    async def run(self, stop: asyncio.Event) -> None:
        async with background() as tasks:
            await self._check_term()
            if self._shipping is not None:
                self._write(tasks, self._ship(self._shipping))
            self._write(tasks, _repeat(_LOOK_SECONDS, self._maintain, "a backup", soon=self._is_due, longest=_RETRY_SECONDS))
            self._write(tasks, _repeat(_LOOK_SECONDS, self._test, "a restore test"))
            self._write(tasks, _repeat(_FILES_SECONDS, self._copy_files, "copying the audit anchors"))
            tasks.create_task(_repeat(_TERM_SECONDS, self._check_term, "comparing the term"))
            tasks.create_task(_repeat(_REPORT_SECONDS, self._report, "the report"))
            tasks.create_task(self._join_mesh())
            await stop.wait()
            await self._finish()

    async def back_up_once(self) -> None:
        """Make a backup if one is due, while no service runs: the log that it needs is shipped meanwhile. Raises AimeshError."""
        await self._check_term()
        if self._store_error:
            raise errors.Unavailable(self._store_error)
        if self._replaced_by is not None:
            raise errors.BadSettings("another site has taken over")
        async with background() as tasks:
            if self._shipping is not None:
                tasks.create_task(self._ship(self._shipping))
            await self._maintain()

    def _write(self, tasks: asyncio.TaskGroup, work: Coroutine[None, None, None]) -> None:
        """Run it until another site has taken over."""
        self._writers.append(tasks.create_task(work))
        self._end_writers()

    def _end_writers(self) -> None:
        if self._replaced_by is not None:
            for writer in self._writers:
                writer.cancel()

    async def _finish(self) -> None:
        """Store what came last, as far as that is possible now."""
        with contextlib.suppress(errors.AimeshError, TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                if self._replaced_by is not None:
                    return
                await self._copy_files()
                if self._shipping is not None:
                    await self._shipping.ship_partial()

    async def _ship(self, shipping: WalShipping) -> None:
        while True:
            try:
                await shipping.run()
            except WalGap as error:
                _log.error("write-ahead log is missing; a new backup is made at once", reason=error.message)
                await shipping.start_over()
                self._has_gap = True
                self._is_due.set()

    async def _join_mesh(self) -> None:
        """Keep a node of the mesh, and copy the recovery logs through it."""
        node, files = self._node, self._node.nats_files
        joining = ClientSettings(
            mesh=node.mesh, nats_url=node.nats_url, node_key_file=node.node_key_file, nats_ca_file=files.ca, nats_cert_file=files.cert,
            nats_key_file=files.key, nats_creds_file=files.creds, role=Role.BACKUP,
        )  # fmt: skip

        async def stay() -> None:
            async with client(joining) as me, background() as tasks:
                self._rpc = me.rpc
                for copy in self._copies:
                    self._write(tasks, copy.run(me.rpc))
                await asyncio.Event().wait()

        await _repeat(0, stay, "joining the mesh")

    async def _check_term(self) -> None:
        """If another home has taken over, stop this one: the store and the mesh are the other one's."""
        self._store_error, highest = "", None
        try:
            async with asyncio.timeout(_TERM_SECONDS):
                highest = await site_term.find_highest(self._place.store, self._place.mesh)
        except TimeoutError:
            self._store_error = f"the store did not answer in {_TERM_SECONDS:.0f} s"
        except errors.AimeshError as error:
            self._store_error = error.message
        self._failing_since = (self._failing_since or self._now()) if self._store_error else None
        if self._replaced_by is None and highest is not None and highest.replaces(self._own):
            self._replaced_by = highest
            _log.error("another site has taken over", site=highest.site, term=highest.term)
            self._end_writers()
        if self._replaced_by is not None:
            await asyncio.to_thread(site_term.record_replaced, self._place.home, self._replaced_by)
            await control.send(self._place.home.control_socket, control.Stop())

    async def _report(self) -> None:
        if self._rpc is None:
            return
        report = agent_report.describe(self._catalog, self._window, self._own, self._replaced_by)
        report = msgspec.structs.replace(
            report,
            to=self._place.settings.backup_to or "",
            log_behind_seconds=max(copy.behind_seconds for copy in self._copies),
            store_failing_since=self._failing_since,
            store_error=self._store_error[:_MAX_TEXT],
        )
        if (shipping := self._shipping) is not None:
            report = msgspec.structs.replace(
                report,
                recoverable_until=shipping.until or report.recoverable_until,
                wal_lag_seconds=shipping.lag_seconds,
                wal_slot_bytes=shipping.newest.slot_bytes if shipping.newest else 0,
                wal_slot_most_bytes=self._place.settings.wal_most_bytes,
            )
        await self._rpc.call(report_backup, ReportBackup(report), deadline_seconds=_REPORT_SECONDS)

    def _now(self) -> datetime:
        """Return PostgreSQL's time as far as it is known, to a second or two."""
        newest = None if self._shipping is None else self._shipping.newest
        return datetime.now(UTC) if newest is None else newest.at

    async def _maintain(self) -> None:
        """Make a backup and copy the program logs if they are due."""
        place, term = self._place, self._own.term
        found = await self._read_store()
        if self._source is None:
            timeline = found.backups[-1].timeline if found.backups else 0
            position = SourcePosition(datetime.now(UTC), 0, timeline)
        else:
            position = await self._source.position()
        why = "write-ahead log was lost" if self._has_gap else agent_schedule.why_backup(found, term, position, place.settings)
        if why is not None:
            _log.info("making a backup", why=why)
            made = await base_backup.make(place, self._source, label="")
            self._has_gap = False
            _log.info("made a backup", name=made.name, seconds=round(made.seconds, 1), bytes=made.size)
            await self._prune(await self._read_store(), made.finished_at)
        await self._copy_logs(agent_schedule.day_to_copy(position.at))

    async def _prune(self, found: StoreCatalog, now: datetime) -> None:
        place = self._place
        if not place.settings.backup_prune:
            return
        program_logs = [each.name async for each in place.store.list(layout.PROGRAM_LOGS)]
        gone = await asyncio.to_thread(pruning.plan_pruning, found, program_logs, now, place.settings)
        await place.store.delete(gone)
        for service in (*(copy.service for copy in self._copies), layout.ANCHORS, layout.POINTS):
            await recovery_log_copy.join(place, service)
        if gone:
            _log.info("deleted what is too old", objects=len(gone))
            await self._read_store()

    async def _copy_files(self) -> None:
        for file in self._files:
            await file.copy()

    async def _copy_logs(self, day: date) -> None:
        """Copy the lines of a day, once."""
        place = self._place
        if self._logs_copied == day:
            return
        stored = {each.name async for each in place.store.list(f"{layout.PROGRAM_LOGS}{day}/")}
        for path in sorted(place.home.logs.glob("*.log")):
            name = layout.program_log_object(day, path.stem)
            if name not in stored and (lines := await asyncio.to_thread(log_files.read_day, path, day)):
                await place.store.put(
                    name, await asyncio.to_thread(sealing.seal_bytes, name, lines, place.key, place.mesh.mesh, place.recipients)
                )
        self._logs_copied = day

    async def _test(self) -> None:
        """Run a restore test if it is due. It keeps its result in the store; if it was refused, we do."""
        found = self._catalog
        if found is None or not agent_schedule.is_test_due(found, self._now()):
            return
        started = time.monotonic()
        status, said = await _run_verify()
        after = await self._read_store()
        if after.tests is None or after.tests == found.tests:
            if status != _REFUSED:
                raise errors.Unavailable(f"it ended with status {status}: {said[-_MAX_TEXT:]}")
            seconds, backup = time.monotonic() - started, found.backups[-1].name
            result = RestoreTests(at=self._now(), backup=backup, ok=False, seconds=seconds, why=said[-_MAX_TEXT:])
            await catalog.record_test(self._place.store, self._place.key, found, result)
            after = await self._read_store()
        tests = after.tests
        if tests is not None:
            (_log.info if tests.ok else _log.error)("tested a restore", backup=tests.backup, ok=tests.ok, why=tests.why)

    async def _read_store(self) -> StoreCatalog:
        place = self._place
        # One damaged object must not prevent new backups.
        found = await catalog.read(place.store, place.mesh, lambda error: _log.error("an object in the store is bad", why=error.message))
        histories = await RestoreSource(place.store, place.mesh, (place.own_identity,)).histories(found.histories)
        self._window = await asyncio.to_thread(restore_plan.window, found, histories)
        self._catalog = found
        return found


async def _run_verify() -> tuple[int, str]:
    """Run the test in a separate program, because it needs much memory for a while. Return its exit status and what it said."""
    command = (sys.executable, "-m", "cli.main", "stack", "verify", restore_plan.LATEST)
    ended = await processes.run("a restore test", command, _TEST_DEADLINE_SECONDS, stderr=STDOUT)
    return ended.status, ended.output.decode(errors="replace").strip()


async def _repeat(
    seconds: float, work: Callable[[], Awaitable[None]], what: str, *, soon: asyncio.Event | None = None, longest: float = 0
) -> None:
    """Repeat ``work`` every so many seconds, or as soon as ``soon`` is set. A failure is retried with growing pauses."""
    failures = 0
    while True:
        started = time.monotonic()
        if soon is not None:
            soon.clear()
        try:
            await work()
        except (errors.AimeshError, OSError) as error:
            failures += 1
            pause = min(_BACKOFF.pause(failures), longest or max(seconds, _MIN_MAX_SECONDS))
            if failures == 1 or failures % _TOLD_FAILURES == 0:
                reason = error.message if isinstance(error, errors.AimeshError) else str(error)
                _log.warning(f"{what} failed; it will be retried", reason=reason, failures=failures)
        else:
            failures, pause = 0, seconds - (time.monotonic() - started)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, pause)):
                await (soon or asyncio.Event()).wait()


@contextlib.asynccontextmanager
async def _answering(place: Path, expected: bytes, is_ready: asyncio.Event) -> AsyncIterator[None]:
    """Answer the supervisor."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(expected if is_ready.is_set() else b"opening the store\n")
        writer.close()

    # asyncio replaces the socket that a killed agent left.
    async with await asyncio.start_unix_server(answer, place):
        yield


async def _live(home: StackHome, backup: BackupSettings, node: NodeSettings) -> None:
    stop, is_ready = asyncio.Event(), asyncio.Event()
    async with file_lock.hold(home.run / "backup"), _answering(agent_program.socket_of(home), agent_program.READY, is_ready):
        agent = await _open(home, backup, node)
        is_ready.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await agent.run(stop)


async def _live_once(home: StackHome, backup: BackupSettings, node: NodeSettings) -> None:
    async with file_lock.hold(home.run / "backup"):
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                agent = await _open(home, backup, node)
        except TimeoutError as error:
            raise errors.Unavailable(f"the store did not answer in {_OPEN_SECONDS:.0f} s", hint="check BACKUP_TO") from error
        await agent.back_up_once()


async def _open(home: StackHome, backup: BackupSettings, node: NodeSettings) -> Agent:
    """Raises BadSettings if the store is another mesh's, site's or database cluster's. A failing store or database is retried."""

    def report(error: errors.AimeshError) -> None:
        _log.warning("the store cannot be opened; it will be retried", reason=error.message)

    place = await retry(lambda: backup_place.open_place(home, backup, node.mesh), None, report)
    source = SourceDatabase(backup.backup_database_url, home.run) if backup.streams_database and backup.backup_database_url else None
    if source is not None:
        place = await place.with_system((await patiently(source.identity)).system)
    own = await retry(lambda: site_term.ensure_own(place), None, report)
    return Agent(place, source, own, node)


def main() -> int:
    """With ``--once``, make a backup if one is due, and end."""
    large_blocks.give_back()
    os.umask(0o077)
    live = _live_once if sys.argv[1:] == [agent_program.ONCE] else _live
    status = 0
    try:
        backup, node = config.load(BackupSettings, os.environ), config.load(NodeSettings, os.environ)
        logs.configure("backup", node.log_level, format=node.log_format)
        asyncio.run(live(homes.locate(os.environ), backup, node))
    except* errors.AimeshError as group:
        error = errors.first_of(group)
        print(f"error: {error.message}" + (f" – {error.hint}" if error.hint else ""), file=sys.stderr)
        status = 2 if isinstance(error, errors.BadSettings) else 1
    return status


if __name__ == "__main__":
    end(main())
