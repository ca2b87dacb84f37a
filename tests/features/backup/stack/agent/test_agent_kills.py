"""kill -9 of the backup agent and of PostgreSQL at random moments under load: the newest listed backup passes each time."""

import asyncio
import contextlib
import functools
import itertools
import os
import random
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from features.backup.stack import catalog, layout
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.restoring import verify
from features.backup.stack.restoring.recovered_database import RestoreSource
from services.gateway import store as gateway_store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import NO_PLAN
from shared import errors
from shared.types import MicroCredits, RequestId, TenantId
from stack.secret_files import POSTGRES_ADMIN
from stack.servers import postgres
from tests import stacks, tiers
from tests.chaos import world
from tests.features.backup.stack import copied_database
from tests.features.backup.stack.copied_database import ROLES, CopiedDatabase
from tests.servers import PostgresServer, running

KILLS, MAX_SECONDS = 30, 2.5
WRITERS, OWNERS = 3, 20
#: The real program, which checks what is due every half second instead of every five minutes.
AGENT = """
from shared.processes import end
from features.backup.stack.agent import backup_agent
backup_agent._LOOK_SECONDS = 0.5
end(backup_agent.main())
"""
AWAY = (errors.Unavailable, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@dataclass
class Site:
    copied: CopiedDatabase
    environment: dict[str, str]
    log: Path
    agent: Process | None = None
    #: Moment of PostgreSQL's clock -> how many ledger entries were committed before it.
    marks: list[tuple[datetime, int]] = field(default_factory=list)

    # --- what is killed

    async def start_agent(self) -> None:
        with self.log.open("ab") as log:
            self.agent = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", AGENT), cwd=stacks.REPOSITORY, env=self.environment, stdout=log, stderr=log
            )

    async def kill_agent(self) -> None:
        """Kill the agent; its child processes end with it."""
        assert self.agent is not None
        self.agent.kill()
        await self.agent.wait()
        self.agent = None

    async def kill_postgres(self) -> None:
        """Kill all of its processes: each leads its own process group."""
        world.signal_all(world.pids_below(self.copied.server.pid), signal.SIGKILL)
        self.copied.server.kill()

    async def start_postgres(self) -> None:
        self.copied.server.launch()

        async def answers() -> bool:
            if not self.copied.server.running:
                self.copied.server.launch()
            async with self.copied.admin():
                return True

        await stacks.until(answers, seconds=30, what="PostgreSQL answers", ignoring=AWAY)

    async def now(self) -> datetime:
        async with self.copied.admin() as admin:
            moment: datetime = await admin.fetchval("SELECT clock_timestamp()")
            return moment

    # --- the load

    async def write(self, number: int) -> None:
        rng = random.Random(number)
        async with gateway_store.opened(self.copied.server.server.url("gateway", ROLES["gateway"])) as database:
            ledger = LedgerStore(database)
            while True:
                with contextlib.suppress(errors.Unavailable):
                    await ledger.top_up(RequestId(uuid4()), TenantId(UUID(int=rng.randrange(OWNERS) + 1)), MicroCredits(7), "", NO_PLAN)
                await asyncio.sleep(0.01)

    async def fill_segments(self) -> None:
        """Fill a segment every few seconds, without making tables larger."""
        while True:
            with contextlib.suppress(*AWAY):
                async with self.copied.admin() as admin:
                    while True:
                        await admin.execute("SELECT pg_logical_emit_message(false, 'load', $1::bytea)", os.urandom(100_000))
                        await asyncio.sleep(0.03)
            await asyncio.sleep(0.05)

    async def watch(self) -> None:
        while True:
            with contextlib.suppress(*AWAY):
                async with self.copied.admin() as admin:
                    while True:
                        count = await admin.fetchval("SELECT count(*) FROM gateway.entries")
                        self.marks.append((await admin.fetchval("SELECT clock_timestamp()"), count))
                        await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)

    @contextlib.asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in (self.fill_segments(), self.watch(), *map(self.write, range(WRITERS)))]
            yield
            for task in tasks:
                task.cancel()

    # --- the store

    async def read(self) -> StoreCatalog:
        return await catalog.read(self.copied.place.store, self.copied.place.mesh)

    async def has_backups(self, count: int = 1) -> bool:
        return len((await self.read()).backups) >= count

    async def is_shipped(self, moment: datetime) -> bool:
        state = (await self.read()).state
        return state is not None and state.until >= moment

    async def unfinished(self) -> set[str]:
        """Return the unfinished backups."""
        names = [layout.parse_backup(name) for name in await self.copied.names(layout.BASE)]
        found = [(str(parsed[0]), parsed[1]) for parsed in names if parsed is not None]
        return {backup for backup, _ in found} - {backup for backup, file in found if file == "manifest.json"}

    async def verify_newest(self, work: Path) -> tuple[str, int]:
        """Return the backup's name, and how many ledger entries it has."""
        place = self.copied.place
        newest = (await self.read()).backups[-1].name
        mesh = await catalog.read_mesh(place.store, {place.key.id})
        assert mesh is not None
        source = RestoreSource(place.store, mesh, (self.copied.identity,))
        result = await verify.verify(source, newest, work, lambda *_: None, opens_secrets=True, key=place.key)
        assert (result.backup, result.failures, result.ok) == (newest, (), True)
        assert result.reached_at is not None
        committed = max((count for moment, count in self.marks if moment <= result.reached_at), default=0)
        assert result.ledger_entries >= committed, f"of the entries before {result.reached_at}"
        return newest, result.ledger_entries


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """Confirmed commits are on disk, and full-page writes repair a write that a kill interrupted."""
    with running(functools.partial(PostgresServer, durable=True)) as found:
        postgres.provision(found.server, ROLES)
        yield found


@pytest.fixture
async def site(server: PostgresServer, tmp_path: Path) -> AsyncIterator[Site]:
    await copied_database.migrate(server)
    variables = {"BACKUP_BASE_AFTER_WAL": "1MB", "BACKUP_SHIP_SECONDS": "1"}
    async with copied_database.copied_database(server, tmp_path, **variables) as copied:
        async with copied.admin() as admin:
            await admin.execute(f"CREATE ROLE {POSTGRES_ADMIN} SUPERUSER LOGIN")
        made = Site(copied, {"PATH": os.environ["PATH"], **copied.agent_environment()}, tmp_path / "agent.log")
        try:
            yield made
        finally:
            if made.agent is not None:
                await made.kill_agent()


async def kill_and_verify(site: Site, kills: int, folder: Path) -> None:
    seed = tiers.seed("BACKUP_KILLS_SEED")
    rng, halves, lines = random.Random(seed), 0, [f"BACKUP_KILLS_SEED={seed}"]
    await site.start_agent()
    async with site.load():
        await stacks.until(site.has_backups, seconds=60, what="the first backup is listed")
        for number, victim in zip(range(kills), itertools.cycle(("agent", "PostgreSQL")), strict=False):
            pause = rng.uniform(0, MAX_SECONDS)
            await asyncio.sleep(pause)
            unfinished = await site.unfinished()
            if victim == "agent":
                await site.kill_agent()
                await site.start_agent()
            else:
                await site.kill_postgres()
                await site.start_postgres()
            restarted = await site.now()
            halves += bool(unfinished)
            began = time.monotonic()
            name, entries = await site.verify_newest(folder / "work")
            lines.append(
                f"{number + 1:2} {victim:10} killed after {pause:.2f} s{', in a backup' if unfinished else '':13}: "
                f"{name} has {entries} entries, tested in {time.monotonic() - began:.1f} s"
            )
            await stacks.until(functools.partial(site.is_shipped, restarted), seconds=30, what=f"log is shipped after kill {number + 1}")
        count = len((await site.read()).backups)
        await stacks.until(lambda: site.has_backups(count + 1), seconds=60, what="the agent makes backups")
    print(*lines, f"{halves} of {kills} kills in the middle of a backup; {count} backups", sep="\n")
    assert halves, "no kill was in the middle of a backup"
    # The next backup removes the leftovers of the killed ones.
    assert len(await site.unfinished()) <= 1


@pytest.mark.timeout(900)
@pytest.mark.nightly("long")
async def test_the_newest_backup_is_whole_after_each_of_30_kills(site: Site, tmp_path: Path) -> None:
    await kill_and_verify(site, KILLS, tmp_path)
