"""kill -9 of every server and service under load: the others survive, the killed one comes back and is used, and no request is lost
without an error. Each is killed once, because the supervisor pauses longer after a second kill."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass, field

import asyncpg
import httpx
import pytest

from cli.output import exit_codes
from services.gateway.billing.ledger import RESERVE_SECONDS
from shared import errors
from shared.api import gateway
from tests.chaos import judging, load, strangers
from tests.chaos.load import History
from tests.chaos.oracle import CONNECTION_LOST, Door, Fault
from tests.chaos.strangers import Answers
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, until

#: Time that the issue allows between the new process and its use.
USED_WITHIN_SECONDS = 5.0
#: The supervisor's first pause, plus the start of a process on a busy machine.
RESTARTED_WITHIN_SECONDS = 10.0

#: Time that pools need to reconnect after PostgreSQL accepts connections again.
POOLS_BACK_SECONDS = 1.0

#: What a probe may raise until then.
_NOT_YET = (httpx.TransportError, errors.AimeshError, asyncpg.PostgresError, OSError)

Probe = Callable[[RunningStack, Person], Awaitable[bool]]


async def _registers(stack: RunningStack, _person: Person) -> bool:
    """Register a user, which needs auth and PostgreSQL and is answered from no cache."""
    name = f"probe-{secrets.token_hex(6)}"
    body = {"username": name, "email": f"{name}@example.org", "password": secrets.token_urlsafe(12)}
    async with stack.http() as http:
        return (await http.post("/api/auth/register", json=body)).status_code == 201


async def _has_quota(stack: RunningStack, person: Person) -> bool:
    async with stack.http(person.key.secret) as http:
        return (await http.get("/api/quota")).status_code == 200


async def _infers(stack: RunningStack, person: Person) -> bool:
    async with stack.http(person.key.secret) as http:
        return (await http.post("/api/inference", json={"model": "echo", "prompt": "hi"})).status_code == 200


async def _scrapes(stack: RunningStack, _person: Person) -> bool:
    return await stack.metric("metrics", "ai_platform_node_up", service="gateway") == 1


async def _shows_pages(stack: RunningStack, _person: Person) -> bool:
    async with stack.http(service="web") as http:
        return (await http.get("/login")).status_code == 200


async def _lists_nodes(stack: RunningStack, person: Person) -> bool:
    async with stack.client() as mesh:
        found = await mesh.rpc.call(gateway.list_nodes, gateway.ListNodes(), credential=person.key.secret)
    return len(found.nodes) >= 6 and await _infers(stack, person)


async def _takes_connections(stack: RunningStack, _person: Person) -> bool:
    async with stack.database("gateway") as database:
        return await database.fetchval("SELECT 1") == 1


@dataclass(frozen=True, slots=True)
class Kill:
    """What killing one program may do to running requests."""

    probe: Probe
    doors: Set[Door] = field(default_factory=frozenset)
    codes: Set[str] = field(default_factory=frozenset)
    #: Whether the program itself is back. If set, requests wait RESERVE_SECONDS for it, and only a request that would wait longer fails.
    is_back: Probe | None = None


EVERY_DOOR = frozenset(Door)
#: No gateway could be found, or the link to it, or from it to the worker, broke.
_MESH = frozenset({"link_lost", "not_reachable"})

#: Endings of the lines that `aicli infer` prints when it retries or resumes.
RESUMING = (". Retrying …", "Connection lost. Resuming …")
KILLS: dict[str, Kill] = {
    # Keys are cached, and rows and reservations wait, so callers notice nothing unless PostgreSQL is down for longer than those wait. On a
    # busy machine its restart and recovery take that long.
    "postgres": Kill(_registers, EVERY_DOOR, frozenset({"ledger_unavailable"}), is_back=_takes_connections),
    # Without its counts no limit can be exact, so the gateway refuses all requests.
    "valkey": Kill(_has_quota, EVERY_DOOR, frozenset({"unavailable"})),
    "nats": Kill(_lists_nodes, EVERY_DOOR, _MESH),
    "auth": Kill(_registers),
    "gateway": Kill(_infers, EVERY_DOOR, _MESH | {CONNECTION_LOST, "unavailable"}),
    "inference-echo": Kill(_infers, EVERY_DOOR, _MESH),
    "metrics": Kill(_scrapes),
    "web": Kill(_shows_pages, frozenset({Door.WEB}), frozenset({CONNECTION_LOST})),
}


@pytest.mark.parametrize("program", KILLS)
async def test_kill_9_under_load(stack: RunningStack, api_client: ApiClient, ann: Person, program: str) -> None:
    kill = KILLS[program]
    bob = await api_client.register("bob")
    before = await stack.pids()
    async with strangers.asking(stack, api_client, bob) as told, load.running(stack, ann) as history:
        await history.until_each_door_succeeds(5)
        killed_at = time.monotonic()
        old = await stack.kill(program)
        restarted_at = await _new_process(stack, program, old)
        back_at, used_at = await asyncio.gather(
            _when(kill.is_back or kill.probe, stack, ann, f"{program} is back"), _when(kill.probe, stack, ann, f"{program} is used")
        )
        await stack.restarted(program, old, seconds=USED_WITHIN_SECONDS)
        await history.until_each_door_succeeds(5, since=used_at)
    _report(program, history, killed_at, restarted_at, used_at)
    print(f"back {back_at - killed_at:.2f} s after the kill")
    print(f"strangers: {Counter(told.statuses)}; aicli: {Counter(told.commands)}")

    after = await stack.pids()
    assert {name: pid for name, pid in after.items() if name != program} == {name: pid for name, pid in before.items() if name != program}
    fault = Fault(began=killed_at, over=restarted_at + USED_WITHIN_SECONDS, doors=kill.doors, codes=kill.codes)
    await judging.judge(stack, ann, history, fault)
    if kill.is_back is not None:
        _check_that_they_waited(history, back_at)
    _check_strangers(told)


def _check_that_they_waited(history: History, back_at: float) -> None:
    """Check that a refused caller has waited, and that PostgreSQL was still down."""
    for attempt in (attempt for attempt in history.attempts if not attempt.succeeded):
        assert attempt.ended - attempt.began >= RESERVE_SECONDS, attempt
        assert attempt.began + RESERVE_SECONDS < back_at + POOLS_BACK_SECONDS, (attempt, back_at)


def _check_strangers(told: Answers) -> None:
    """Check that a valid key is never called invalid, and that aicli reports the problem in one line."""
    # 504 if auth died while it handled the request.
    assert set(told.statuses) <= {200, 503, 504}, told.statuses
    assert told.statuses[0] == 200
    for status, said in told.commands:
        assert status in {exit_codes.ExitCode.OK, exit_codes.ExitCode.FAILED, exit_codes.ExitCode.NOTHING_SERVES}, said
        # aicli also prints one line for each loss that it recovers from.
        others = [line for line in said.splitlines() if not line.endswith(RESUMING)]
        assert len(others) == (status != 0), said


async def _when(probe: Probe, stack: RunningStack, person: Person, what: str) -> float:
    await until(lambda: probe(stack, person), seconds=USED_WITHIN_SECONDS, what=what, ignoring=_NOT_YET)
    return time.monotonic()


async def _new_process(stack: RunningStack, program: str, old: int) -> float:
    """Return when the new process runs."""

    async def runs() -> bool:
        return (await stack.pids()).get(program) not in {None, old}

    await until(runs, seconds=RESTARTED_WITHIN_SECONDS, what=f"the supervisor starts {program} again")
    return time.monotonic()


def _report(program: str, history: History, killed_at: float, restarted_at: float, used_at: float) -> None:
    """Print the figures of the run for `pytest -rP`."""
    last = history.last_failure()
    failing = f"failing until {last - killed_at:.2f} s" if last > killed_at else "nothing failed"
    longest = max(attempt.ended - attempt.began for attempt in history.attempts)
    print(
        f"CHAOS {program}: new process after {restarted_at - killed_at:.2f} s, used {used_at - restarted_at:.2f} s later; {failing}; "
        f"{len(history.attempts)} requests, the longest {longest:.2f} s: {history.outcomes()}"
    )
