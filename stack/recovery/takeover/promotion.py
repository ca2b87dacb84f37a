"""`aicli stack promote`: makes a standby the site that owns the mesh.

``run/promote.json`` has what was done, so that the same command continues after a crash. Every step may run twice.
"""

import asyncio
import os
import shlex
import shutil
import signal
import sys
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import msgspec

from shared import errors
from shared.api.recovery import SiteLeaseMode
from shared.identity import node_keys
from shared.stores.objects import StoreUnavailable
from shared.timing.boot_clock import boot_time
from shared.types import SERVICE_ROLES, NodeId, Role
from stack import initialization, processes, secret_files, settings, stack_home, stack_plan
from stack.recovery import catalog, layout
from stack.recovery.layout import RestoreRefused, StoreState
from stack.recovery.restoring import recovered_database, restore, restored_log
from stack.recovery.restoring.recovered_database import RecoveredDatabase, RestoreSource
from stack.recovery.restoring.restore_plan import RestorePlan
from stack.recovery.restoring.restored_log import LogFacts
from stack.recovery.sites import site_claim, site_terms
from stack.recovery.sites.site_terms import Fence, FenceCheck, SiteAcknowledgement, SiteLeaseRecord, SiteRecord
from stack.recovery.takeover import standby, standby_plan
from stack.recovery.takeover.standby import StandbyFacts
from stack.stack_home import StackHome

_FENCE_LOOK_SECONDS = 1.0
_STANDBY_STOP_SECONDS = 60.0
_REVOKE_SECONDS = 60.0
_COMMAND_SECONDS = 60.0
#: `aicli stack up` gives up sooner, unless a model is large.
_START_SECONDS = 3900.0
_LOCK_SECONDS = 5.0
_MOST_WHY = 300
_FILE = "promote.json"
_BEFORE_OPENING = ("standby.signal", "backup_label")


class PromoteStep(msgspec.Struct, frozen=True):
    what: str
    seconds: float


class PromoteReport(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of the command."""

    site: str
    term: int
    url: str
    steps: tuple[PromoteStep, ...]
    #: Every commit before this moment is there.
    reached_at: datetime | None
    log_lines_replayed: int
    log_lines_unusable: int
    lost_rows: int | None
    revoked_nodes: int
    #: Why PROMOTE_COMMAND failed; empty if it did not.
    command_error: str


class PromoteProgress(msgspec.Struct, frozen=True, kw_only=True):
    """``run/promote.json``."""

    address: str
    record: SiteRecord
    #: Of the old site.
    nodes: dict[NodeId, Role]
    is_fenced: bool = False
    plan: RestorePlan | None = None
    log: LogFacts = LogFacts()
    reached_at: datetime | None = None
    #: The database is ours, and so are the keys.
    is_open: bool = False


async def promote(
    home: StackHome, environment: Mapping[str, str], folder: Path, *, old_site_is_off: bool, show: Callable[[PromoteStep], None]
) -> PromoteReport:
    """Raises RestoreRefused and other BadSettings, Unavailable, and Internal if a service does not start: then run it again."""
    promotion = _Promotion(home, environment, folder, show)
    if promotion.begun is None or not promotion.begun.is_open:
        await promotion.take_over(old_site_is_off=old_site_is_off)
    return await promotion.start()


class _Promotion:
    #: Once the term was chosen.
    now: PromoteProgress

    def __init__(self, home: StackHome, environment: Mapping[str, str], folder: Path, show: Callable[[PromoteStep], None]) -> None:
        self._home = home
        self._environment = environment
        self._folder = folder
        self._show = show
        self._steps: list[PromoteStep] = []
        hint = "restore this site instead: aicli stack restore latest --replace"
        self.begun = stack_home.read_struct(home.run / _FILE, PromoteProgress, hint)
        if self.begun is not None:
            self.now = self.begun

    def _save(self, **facts: object) -> None:
        self.now = msgspec.structs.replace(self.now, **facts)
        stack_home.write_struct(self._home.run / _FILE, self.now)

    @asynccontextmanager
    async def _step(self, what: str) -> AsyncIterator[None]:
        began = time.monotonic()
        yield
        self._steps.append(PromoteStep(what, time.monotonic() - began))
        self._show(self._steps[-1])

    async def take_over(self, *, old_site_is_off: bool) -> None:
        """Bring the home to a database that is ours, and stopped."""
        home, facts = self._home, standby.read_facts(self._home)
        if facts is None or facts.backup is None:
            raise RestoreRefused(f"{home.root} is no complete standby", hint="let `aicli stack standby` run until it says that it follows")
        async with self._step("stop the standby"):
            if facts.process is not None:
                await asyncio.to_thread(processes.end, [facts.process], lambda _: signal.SIGTERM, _STANDBY_STOP_SECONDS)
        with processes.only_supervisor(home, patience_seconds=_LOCK_SECONDS) as lock:
            if lock is None:
                raise RestoreRefused("another process uses this home", hint="is another promotion running?")
            await asyncio.to_thread(restore.end_database, home.root)
            source, key = await self._open_store(facts.address), node_keys.load(home.secrets / secret_files.RECOVERY_KEY)
            async with self._step("take the term"):
                record = await self._take_term(facts, source, key, old_site_is_off=old_site_is_off)
            async with self._step("wait for the end of the other site"):
                await self._wait_for_fence(source, record, old_site_is_off=old_site_is_off)
            await self._open_database(source, key, facts.backup)
            async with self._step("create this site's node keys"):
                await asyncio.to_thread(self._renew_keys)
            site_claim.save(home, record)
            for fetched in (home.gathered_log, home.postgres / "wal"):
                await asyncio.to_thread(shutil.rmtree, fetched, ignore_errors=True)
            self._save(is_open=True)

    async def _open_store(self, address: str) -> RestoreSource:
        return await restore.open_source(self._home, address, (self._home.secrets / secret_files.BACKUP_IDENTITY,), self._environment)

    async def _take_term(self, facts: StandbyFacts, source: RestoreSource, key: node_keys.NodeKey, *, old_site_is_off: bool) -> SiteRecord:
        if self.begun is None:
            home = self._home
            recorded = await asyncio.to_thread(settings.record, home, self._environment, self._folder)
            # Before anything is changed: settings that are refused, or a database that cannot be brought up to date, make no successor.
            settings.load(recorded)
            plan = await self._plan(source, facts.backup)
            record = await site_claim.plan_record(source.store, source.mesh, recorded, 0)
            # Whose changes came into the store last.
            state = await catalog.find_signed(source.store, source.mesh, layout.STATE, StoreState)
            followed = plan.backup.term if state is None else state.term
            if record.term > followed + 1 and not old_site_is_off:
                raise RestoreRefused(
                    f"lost_race: the site {record.previous or '?'} has taken term {record.term - 1}, and this one followed term {followed}",
                    hint="only one site may own the mesh; if that one is off: aicli stack promote --old-site-is-off",
                )
            keys = [(home.key(name), role) for name, role in secret_files.NODES.items()]
            nodes = {node_keys.load(path).id: role for path, role in keys if path.exists()}
            self.now = PromoteProgress(address=facts.address, record=record, nodes=nodes)
            self._save()
        try:
            await site_claim.take(source.store, source.mesh, key, self.now.record)
        except RestoreRefused:
            # The other one owns the mesh: this stays its standby.
            (self._home.run / _FILE).unlink()
            raise
        return self.now.record

    async def _plan(self, source: RestoreSource, backup: str | None) -> RestorePlan:
        found = await catalog.read(source.store, source.mesh)
        manifest = next((each for each in found.backups if each.name == backup), found.backups[-1])
        position = await asyncio.to_thread(standby.find_start, self._home, manifest)
        return standby_plan.plan(found, position, await source.histories(found.histories))

    async def _wait_for_fence(self, source: RestoreSource, record: SiteRecord, *, old_site_is_off: bool) -> None:
        written_at = boot_time()
        while not self.now.is_fenced:
            check = await _read_fence(source, record.term)
            match site_terms.decide_fence(record.term, written_at, check, boot_time(), old_site_is_off=old_site_is_off):
                case Fence.OPEN:
                    self._save(is_fenced=True)
                case Fence.WAIT:
                    await asyncio.sleep(_FENCE_LOOK_SECONDS)
                case Fence.ASK:
                    raise RestoreRefused(
                        f"the site {record.previous or '?'} has not confirmed that it stopped",
                        hint="make sure that it is off, then: aicli stack promote --old-site-is-off",
                    )
                case Fence.LOST_RACE:
                    (self._home.run / _FILE).unlink()
                    raise RestoreRefused(f"lost_race: another site has taken term {check.highest}", hint="only one site may own the mesh")

    async def _open_database(self, source: RestoreSource, key: node_keys.NodeKey, backup: str) -> None:
        home = self._home

        def ignore(*_: object) -> None:
            pass

        async with self._step("fetch the last changes"):
            control, plan = await asyncio.to_thread(standby.read_control, home), self.now.plan
            is_waiting = control.is_in_recovery or any((home.postgres / "data" / name).exists() for name in _BEFORE_OPENING)
            if plan is None or is_waiting:
                plan = await self._plan(source, backup)
            else:  # killed after it was opened
                plan = replace(plan, timeline=control.redo.timeline, segments=())
            end = await recovered_database.fetch_wal(source, plan, home.postgres / "wal", ignore)
            if is_waiting:
                self._save(plan=plan, reached_at=end.until)
            replayed = [each for each in await catalog.read_backups(source.store, source.mesh) if each.stop_lsn <= end.lsn]
            known = {service: layout.newest_known_line(service, (), replayed) for service in layout.LOG_SERVICES}
            log = await restored_log.fetch(source, home, home, known=known, accepts_gap=True)
        async with self._step("open the database"):
            (home.postgres / "data" / "standby.signal").unlink(missing_ok=True)
            async with recovered_database.recovered(home.postgres, plan, ignore) as database:
                state = await catalog.find_signed(source.store, source.mesh, layout.STATE, StoreState)
                log = await restored_log.compare(database, log, home, 0 if state is None else state.audit_rows)
                await self._revoke(database)
                reached = database.reached(end, plan)
            restored_log.place(home, home, self.now.record.term, log)
            await restored_log.cut(source, key, self.now.record.term, log)
            self._save(log=log, reached_at=max(reached, self.now.reached_at or reached))

    async def _revoke(self, database: RecoveredDatabase) -> None:
        """The keys of the old site are revoked before any service of this one starts."""
        # The others have no certificate: only the old site's NATS server knows them.
        services = msgspec.json.encode({node: role for node, role in self.now.nodes.items() if role in SERVICE_ROLES})
        ended = await database.run("revoking nodes", "auth", "nodes.ended_site", seconds=_REVOKE_SECONDS, given=services)
        if ended.status != 0:
            reason = ended.said[-_MOST_WHY:]
            raise errors.Internal(f"the nodes of the old site could not be revoked: {reason}", hint="run it again")

    def _renew_keys(self) -> None:
        """Drop the keys of the old site's services; those of more nodes stay, which are elsewhere."""
        for name in secret_files.NODES:
            key = self._home.key(name)
            if key.exists() and node_keys.load(key).id in self.now.nodes:
                for path in self._home.keys.glob(f"{name}.*"):
                    path.unlink()
        initialization.ensure(self._home, self._environment, self._folder)

    async def start(self) -> PromoteReport:
        """Start the services, and run PROMOTE_COMMAND."""
        now, home = self.now, self._home
        standby.forget(home)
        async with self._step("start the services"):
            await _start_services(self._environment)
        recorded = settings.read_recorded(home)
        url, error = stack_plan.public_url("gateway", settings.load(recorded)), ""
        command = recorded.get("PROMOTE_COMMAND")
        if command:
            async with self._step("run PROMOTE_COMMAND"):
                error = await _run_command(shlex.split(command), {"site": now.record.site, "term": now.record.term, "url": url})
        await self._forget_standby(now)
        return PromoteReport(
            site=now.record.site, term=now.record.term, url=url, steps=tuple(self._steps), reached_at=now.reached_at,
            log_lines_replayed=now.log.lines, log_lines_unusable=now.log.unusable, lost_rows=now.log.lost_rows,
            revoked_nodes=sum(role in SERVICE_ROLES for role in now.nodes.values()), command_error=error,
        )  # fmt: skip

    async def _forget_standby(self, now: PromoteProgress) -> None:
        source = await self._open_store(now.address)
        try:
            await source.store.delete([standby_plan.record_name(now.record.site)])
        except StoreUnavailable:  # the credentials may not delete; it is shown as behind until it is removed
            pass


async def _read_fence(source: RestoreSource, own_term: int) -> FenceCheck:
    store, mesh = source.store, source.mesh
    names = {each.name async for each in store.list(site_terms.FOLDER)}
    leases: dict[int, SiteLeaseMode] = {}
    ended: set[int] = set()
    for term in range(1, own_term):
        if (name := site_terms.lease_name(term)) in names:
            leases[term] = (await catalog.get_signed(store, mesh, name, SiteLeaseRecord)).mode
        if site_terms.advisory_name(term) in names:
            leases[term] = SiteLeaseMode.ADVISORY
        if (name := site_terms.acknowledgement_name(term)) in names:
            await catalog.get_signed(store, mesh, name, SiteAcknowledgement)
            ended.add(term)
    return FenceCheck(highest=site_terms.find_highest(names) or 0, leases=leases, ended=ended)


async def _start_services(environment: Mapping[str, str]) -> None:
    """Run `aicli stack up`, which shows its progress and the log of what does not start."""
    command = (sys.executable, "-m", "cli.main", "stack", "up")
    ended = await processes.run("the start of the services", command, _START_SECONDS, env={**os.environ, **environment}, stderr=None)
    if ended.status != 0:
        raise errors.Internal("the site owns the mesh, but its services did not start", hint="repair what is named above, and run it again")


async def _run_command(words: list[str], facts: dict[str, object]) -> str:
    """Return why it failed, or an empty text."""
    try:
        ended = await processes.run("it", words, _COMMAND_SECONDS, msgspec.json.encode(facts) + b"\n", stdout=DEVNULL, process_group=0)
    except (OSError, errors.Unavailable) as error:
        return f"failed: {error}"
    return "" if ended.status == 0 else f"ended with status {ended.status}: {ended.said[-_MOST_WHY:]}"
