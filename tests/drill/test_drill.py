"""The accidents of docs/runbooks/disaster.md on a whole stack under load: what is lost, and when users are served again.

`make drill` prints the table. A row counts as lost if it could be read before the accident and can't be after the restore. Each row is
known to be committed between two moments of PostgreSQL's clock, so "every commit before the moment reached is there" is exact.
"""

import asyncio
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import asyncpg
import pytest

from features.backup.stack import sealing
from shared.api import auth
from stack import control, stack_plan
from tests import patroni, people, stacks, stopwatch
from tests.chaos import clients, invariants, ledger, world
from tests.chaos.clients import Clients
from tests.chaos.invariants import Allowed
from tests.chaos.oracle import CONNECTION_LOST
from tests.drill.decisions import Decisions, session_of, status_of
from tests.people import Key, Person
from tests.servers import PostgresServer, running_pair
from tests.stacks import RunningStack, until

T = TypeVar("T")

CALLERS, LEAD_SECONDS, SHIP_SECONDS = 6, 4.0, 5
#: How much may be lost with the whole machine: commits, and lines of the recovery log.
LOST_SECONDS, LOST_LOG_SECONDS = 60.0, 2.0
REVOKE_EVERY_SECONDS = 0.6
SETTINGS = {
    "INFERENCE_BACKEND": "echo", "ECHO_TOKEN_MS": "10", "RESPONSE_CACHE": "off", "DEFAULT_RATE_LIMIT": "1000000000",
    "TIER_FREE": world.UNREACHED,
}  # fmt: skip
#: How calls may end while PostgreSQL or the whole stack is down.
CODES = frozenset({"link_lost", "not_reachable", "draining", "unavailable", "ledger_unavailable", "auth_unavailable", CONNECTION_LOST})
#: Rows written after each answer; the keys of both tables are never reused.
ROWS = "SELECT transfer::text || kind || account AS row FROM entries UNION ALL SELECT id::text FROM request_logs"
_NEVER = datetime.min.replace(tzinfo=UTC)


# --- what was committed ----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """Row -> the moments of PostgreSQL's clock before and after its commit."""

    rows: dict[str, tuple[datetime, datetime]] = field(default_factory=dict)
    last: datetime = _NEVER

    async def look(self, database: asyncpg.Connection) -> None:
        found = {row["row"] for row in await database.fetch(ROWS)}
        now = await database.fetchval("SELECT clock_timestamp()")
        for row in found - self.rows.keys():
            self.rows[row] = (self.last, now)
        # The next query begins after this.
        self.last = now

    def violations(self, present: set[str], reached: datetime, *, is_exact: bool) -> list[str]:
        """Return what is wrong. ``is_exact``: rows from after the moment must not be there."""
        missing = [row for row, (_, by) in self.rows.items() if by <= reached and row not in present]
        later = [row for row, (after, _) in self.rows.items() if after > reached and row in present and is_exact]
        found = [f"{len(missing)} rows are lost from before {reached}, such as {missing[0]}"] if missing else []
        return found + ([f"{len(later)} rows are there from after {reached}, such as {later[0]}"] if later else [])


@asynccontextmanager
async def watched(stack: RunningStack) -> AsyncIterator[Seen]:
    """Record commits until the block or the database ends."""
    seen = Seen()

    async def watch() -> None:
        try:
            async with stack.database("gateway") as database:
                while True:
                    await seen.look(database)
                    await asyncio.sleep(0.05)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            return

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch())
        yield seen
        watching.cancel()


# --- the drill -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """The moment of an accident, by both clocks, and everything seen before it."""

    calls: Clients
    seen: Seen
    at: float
    moment: datetime


@dataclass(frozen=True, slots=True)
class Return:
    """The number of lost rows, and the seconds that they span."""

    lost: int
    lost_for: float


async def _timed(times: dict[str, float], step: str, work: Awaitable[T]) -> T:
    began = time.monotonic()
    found = await work
    times[step] = time.monotonic() - began
    return found


@dataclass(slots=True)
class Drill:
    stack: RunningStack
    store: Path
    usb: Path
    people: list[Person] = field(default_factory=list)
    #: Lines of the table.
    lines: list[str] = field(default_factory=list)
    #: Lost rows of the audit log, over all restores so far.
    lost_rows: int = 0

    async def good(self, *words: str, seconds: float = 180) -> str:
        done = await self.stack.aicli(*words, deadline_seconds=seconds)
        assert done.status == 0, (words, done.out, done.err)
        return done.out

    async def said(self, *words: str) -> Any:
        return (await self.stack.aicli(*words, "--json", deadline_seconds=240)).json()

    async def with_people(self) -> "Drill":
        async with people.api_client(self.stack) as api_client:
            self.people = [await api_client.register(f"tenant{number}") for number in range(3)]
        return self

    @asynccontextmanager
    async def load(self) -> AsyncIterator[tuple[Clients, Seen]]:
        """Every caller sends one request after another; the block begins when all are served."""
        rng = random.Random(1)
        async with (
            watched(self.stack) as seen,
            clients.opened(self.stack, self.people, rng) as opened,
            clients.busy(opened, CALLERS),
        ):
            await clients.until_served(opened, since=0)
            await asyncio.sleep(LEAD_SECONDS)
            yield opened, seen

    async def is_stored(self, moment: datetime) -> bool:
        stored = (await self.said("stack", "backups"))["recoverable_until"]
        return stored is not None and datetime.fromisoformat(stored) >= moment

    async def restore(self, name: str, loss: Loss, *options: str, target: datetime | None = None) -> Return:
        """Restore, start and send requests; then check what was restored."""
        times: dict[str, float] = {}
        if (self.stack.home / "run").exists():
            await _timed(times, "stop", self.good("stack", "down"))
        words = ("stack", "restore", "latest", "--from", str(self.store), "--identity", str(self.usb), *options, "--yes")
        report = await _timed(times, "restore", self.said(*words))
        assert report["is_complete"]
        await _timed(times, "start", self.good("stack", "up"))
        return await self.judge(name, loss, report, times, is_exact=target is not None)

    async def judge(self, name: str, loss: Loss, report: dict[str, Any], times: dict[str, float], *, is_exact: bool = False) -> Return:
        """Send requests, check what is there, and add a line to the table."""
        await _timed(times, "first answer", self._served())
        reached = datetime.fromisoformat(report["reached_at"])
        self.lost_rows += report["lost_rows"]
        await self._check(loss, reached, is_exact=is_exact)
        async with self.stack.database("gateway") as database:
            present = {row["row"] for row in await database.fetch(ROWS)}
        gone = len(loss.seen.rows.keys() - present)
        lost_for = 0.0 if not gone else (loss.moment - reached).total_seconds()
        steps = ", ".join(f"{step} {seconds:.0f}" for step, seconds in times.items())
        replayed = f"{report['log_lines_replayed']} lines replayed"
        self.lines.append(
            f"{name:44} {gone:5} of {len(loss.seen.rows):<5} {lost_for:6.1f}  {sum(times.values()):6.1f}  {steps}; {replayed}"
        )
        return Return(gone, lost_for)

    async def _served(self) -> None:
        async def is_answered() -> bool:
            async with self.stack.http(self.people[0].key.secret) as http:
                body = {"model": "echo", "prompt": "first", "max_tokens": 8}
                return (await http.post("/v1/completions", json=body)).status_code == 200

        await until(is_answered, seconds=60, what="a request is answered", ignoring=(OSError,))

    async def _check(self, loss: Loss, reached: datetime, *, is_exact: bool) -> None:
        async with self.stack.database("gateway") as database:
            present = {row["row"] for row in await database.fetch(ROWS)}
            wrong = loss.seen.violations(present, reached, is_exact=is_exact)
            held = "SELECT count(*) FROM reservations WHERE state = 'reserved' AND lease_until > now() + interval '3 minutes'"
            wrong += [f"I5: {count} reservations are held for longer than a lease"] if (count := await database.fetchval(held)) else []
        books = await ledger.read(self.stack, [person.id for person in self.people])
        # I1 and I2 hold for every call; the ledger has only the calls that ended some time before the moment reached.
        known_until = loss.at - max(0.0, (loss.moment - reached).total_seconds()) - 1.0
        allowed = Allowed(codes=CODES, since=loss.at, gateway_died=True, in_flight_tokens=1000)
        calls = loss.calls.calls
        wrong += invariants.violations([call for call in calls if call.ended < known_until], books, allowed)
        wrong += invariants.violations([call for call in calls if call.ended >= known_until], ledger.Books(), allowed)
        verified = await self.stack.aicli("admin", "ledger", "verify")
        wrong += [verified.out + verified.err] if verified.status else []
        # The check names the rows that a restore has lost, and finds nothing else.
        audit = await self.stack.aicli("admin", "audit", "verify")
        wrong += [audit.out + audit.err] if audit.status or ("were lost" in audit.out and not self.lost_rows) else []
        assert not wrong, "\n".join(wrong)


@pytest.fixture
async def drill(tmp_path: Path) -> AsyncIterator[Drill]:
    usb, store = tmp_path / "aimesh.age", tmp_path / "store"
    usb.write_text(sealing.new_identity())
    backups = {
        "BACKUP_TO": str(store), "BACKUP_SHIP_SECONDS": str(SHIP_SECONDS), "BACKUP_RECIPIENTS": sealing.recipient_of(usb.read_text()),
    }  # fmt: skip
    async with stacks.stack(**SETTINGS, **backups) as stack:
        yield await Drill(stack, store, usb).with_people()


def of_the_database(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


# --- exercises -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
async def test_each_accident_loses_no_more_than_it_may(drill: Drill, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with people.api_client(drill.stack) as api_client:
        decided = await Decisions.prepare(drill.stack, api_client)
    try:
        await lose_postgres(drill)
        await delete_rows(drill, decided)
        await lose_the_machine(drill)
    finally:
        with capsys.disabled():
            print(f"\n{'':44} {'rows lost':14} RPO s   RTO s  of which", *drill.lines, sep="\n")


async def lose_postgres(drill: Drill) -> None:
    """D1. The agent has every commit in the home, even if it isn't in the store yet."""
    await drill.good("stack", "backup")
    async with drill.load() as (calls, seen):
        moment, at = seen.last, time.monotonic()
        await drill.stack.kill("postgres")
        await asyncio.to_thread(shutil.rmtree, drill.stack.home / "postgres")
        await until(lambda: has_failed(calls, at), what="a caller notices")
    back = await drill.restore("D1 PostgreSQL killed, its folder deleted", Loss(calls, seen, at, moment), "--replace")
    assert back.lost == 0


async def delete_rows(drill: Drill, decided: Decisions) -> None:
    """D2, and D5: decisions made after the restored moment still hold."""
    async with drill.load() as (calls, seen):
        mistake, at = seen.last, time.monotonic()
        wrong = "SET session_replication_role = replica; DELETE FROM gateway.entries"
        await drill.good("stack", "psql", "-d", "aimesh", "-c", wrong)
    target = mistake - timedelta(seconds=1)
    async with people.api_client(drill.stack) as api_client:
        await decided.make(drill.stack, api_client, drill.people[0])
    await until(lambda: drill.is_stored(target), seconds=60, what="the moment is in the store")
    await asyncio.sleep(LOST_LOG_SECONDS)
    loss = Loss(calls, seen, at, mistake)
    await drill.restore("D2 rows deleted, one second before; D5", loss, "--at", of_the_database(target), "--replace", target=target)
    async with people.api_client(drill.stack) as api_client:
        await decided.check(drill.stack, api_client)


async def lose_the_machine(drill: Drill) -> None:
    """D4. A user revokes keys up to the end: the agent has up to 2 s to copy a revocation."""
    async with people.api_client(drill.stack) as api_client:
        session = await session_of(api_client, drill.people[0])
        person = replace(drill.people[0], access_token=session)
        spares = [await api_client.make_key(person, f"spare {number}") for number in range(6)]
    await drill.good("stack", "backup")
    revoked: list[tuple[float, Key]] = []
    async with drill.load() as (calls, seen), people.api_client(drill.stack) as api_client:
        for spare in spares:
            request = auth.RevokeApiKey(str(spare.id))
            await api_client.mesh.rpc.call(auth.revoke_api_key, request, credential=session)
            revoked.append((time.monotonic(), spare))
            await asyncio.sleep(REVOKE_EVERY_SECONDS)
        moment, at = seen.last, time.monotonic()
        await kill_everything(drill.stack)
        await asyncio.to_thread(shutil.rmtree, drill.stack.home)
    back = await drill.restore("D4 everything killed, the home deleted", Loss(calls, seen, at, moment))
    assert back.lost_for <= LOST_SECONDS
    lost = [at - then for then, spare in revoked if await status_of(drill.stack, spare.secret) == 200]
    drill.lines.append(f"{'   its recovery log, revocations':44} {len(lost):5} of {len(revoked):<5} {max(lost, default=0.0):6.1f}")
    assert not stopwatch.bounds_hold or max(lost, default=0.0) <= LOST_LOG_SECONDS


async def has_failed(calls: Clients, since: float) -> bool:
    return any(call.failed and call.ended > since for call in calls.calls)


async def kill_everything(stack: RunningStack) -> None:
    answer = await control.send(stack.place.control_socket, control.StatusRequest())
    assert answer is not None
    world.signal_all(world.pids_below(answer.pid), signal.SIGKILL)


@asynccontextmanager
async def with_standby(server: PostgresServer, standby: PostgresServer, folder: Path) -> AsyncIterator[Drill]:
    """A stack whose database is a primary and a standby of PostgreSQL's own."""
    hosts = ",".join(quote(str(each.folder), safe="") for each in (server, standby))
    url = server.url().replace(quote(str(server.folder), safe=""), hosts)
    async with stacks.stack(**SETTINGS, DATABASE_URL=url) as stack:
        ours = url.replace("port=5432", "port=5432,5432") + "&target_session_attrs=read-write"
        stack_plan.database_url_file(stack.place, "gateway").write_text(ours, encoding="utf-8")
        yield await Drill(stack, folder, folder).with_people()


@pytest.mark.timeout(400)
async def test_a_promoted_standby_is_found_by_running_services(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """D8. Nothing is restarted."""
    with running_pair() as (server, standby):
        async with with_standby(server, standby, tmp_path) as drill:
            pids, times = await drill.stack.pids(), dict[str, float]()
            async with drill.load() as (calls, seen):
                moment, at = seen.last, time.monotonic()
                await asyncio.to_thread(server.kill)
                reached = await standby.replayed_until()
                await _timed(times, "promote", standby.promote())
                await _timed(times, "callers served", clients.until_served(calls, since=time.monotonic()))
            report = {"reached_at": reached.isoformat(), "lost_rows": 0, "log_lines_replayed": 0}
            back = await drill.judge("D8 PostgreSQL killed, its standby promoted", Loss(calls, seen, at, moment), report, times)
            with capsys.disabled():
                print(f"\n{'':44} {'rows lost':14} RPO s   RTO s  of which", *drill.lines, sep="\n")
            assert back.lost_for <= LOST_LOG_SECONDS
            assert await drill.stack.pids() == pids


@pytest.mark.timeout(600)
async def test_a_lost_leader_of_patroni_is_replaced_without_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """D8, with the cluster of deploy/compose/database-cluster.yaml."""
    async with patroni.running(tmp_path) as cluster, stacks.stack(**SETTINGS, DATABASE_URL=cluster.url()) as stack:
        ours = cluster.url() + "?target_session_attrs=read-write"
        stack_plan.database_url_file(stack.place, "gateway").write_text(ours, encoding="utf-8")
        drill = await Drill(stack, tmp_path, tmp_path).with_people()
        pids, times = await stack.pids(), dict[str, float]()
        leader = await cluster.leader()
        async with drill.load() as (calls, seen):
            moment, at = seen.last, time.monotonic()
            await asyncio.to_thread(leader.kill)
            await _timed(times, "callers served", clients.until_served(calls, since=at, seconds=120))
        # Each commit that anyone could see must be there.
        report = {"reached_at": moment.isoformat(), "lost_rows": 0, "log_lines_replayed": 0}
        back = await drill.judge("D8 Patroni's leader killed", Loss(calls, seen, at, moment), report, times)
        with capsys.disabled():
            print(f"\n{'':44} {'rows lost':14} RPO s   RTO s  of which", *drill.lines, sep="\n")
        assert back.lost == 0
        assert await stack.pids() == pids
