"""How many API keys are checked a second, and how 500 logins at once affect running streams.

uncached  validateApiKey at auth over NATS, which looks up each key in PostgreSQL
cached    keys that the gateway knows already: the lookup alone, and with a whole GET /v1/models. ``--rival`` installs LiteLLM's proxy and
          measures the same there; it compares a key with the one master key of its settings
storm     500 users log in at once with the right password, each from its own address (one address has 30 attempts in 15 minutes),
          beside 20 streams of the echo worker: how evenly their tokens arrive

Clients and stack share one machine.
"""

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import msgspec

from bench import calls, http_load, processes, report, rivals, tenants
from bench.http_load import Client, Load, Outcome, Spread
from bench.report import Options, Rows
from bench.tenants import REFUSALS, Tenants
from services.gateway.callers import Callers
from shared.api import auth
from shared.types import Credential
from tests.people import ApiClient
from tests.services.gateway.fakes import OWNER, FakeRpc
from tests.stacks import MESH

AT_ONCE = 32
LEAST_UNCACHED, LEAST_CACHED = 800.0, 3000.0
#: For one answer.
PATIENCE_SECONDS = 30.0

STORMS = 3
STREAMS, TOKEN_MS, WORDS = 20, 20.0, 500
#: Between the storms, and before a measurement.
REST_SECONDS = 1.0
#: Between two readings of memory.
LOOK_SECONDS = 0.05
SLOWER_ALLOWED, MOST_GROWTH_MB = 1.2, 1024**3 / 1e6

#: The time of a piece of text, and the seconds since the one before.
Gap = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Accounts:
    stack: Tenants
    #: Memory of auth when it was new.
    new_mb: float


@asynccontextmanager
async def _accounts(_options: Options) -> AsyncIterator[Accounts]:
    async with tenants.opened(0, ECHO_TOKEN_MS=TOKEN_MS) as stack:
        new_mb = processes.resident_mb(stack.pids["auth"])
        yield Accounts(replace(stack, keys=await tenants.register(stack.running)), new_mb)


async def _measure_uncached(rows: Rows, accounts: Accounts, options: Options) -> None:
    bodies = itertools.cycle([msgspec.msgpack.encode({"apiKey": key}) for key in accounts.stack.keys])
    async with accounts.stack.running.operator() as connection:

        async def validate() -> None:
            answer = await connection.request(f"aimesh.{MESH}.rpc.auth.validateApiKey", next(bodies), timeout=PATIENCE_SECONDS)
            assert b"keyId" in answer.data, answer.data

        await calls.for_seconds(validate, AT_ONCE, 0.5)  # connections, plans of the database
        rate, took = await calls.for_seconds(validate, AT_ONCE, options.seconds)
    claim = "validateApiKey at auth"
    rows.alone(claim, rate, "calls/s", at_least=LEAST_UNCACHED)
    rows.waits(claim, took)


async def _measure_cached(rows: Rows, accounts: Accounts, options: Options) -> None:
    port, keys = accounts.stack.port, accounts.stack.keys
    took = await _remembered(keys)
    claim = "a known key at the gateway, its memory alone"
    rows.alone(claim, len(took) / sum(took), "calls/s", at_least=LEAST_CACHED)
    rows.waits(claim, took)
    rate, took = await _models(port, keys, options.seconds, status=200)
    bare, _ = await _models(port, (), options.seconds, status=401)
    claim = "a known key at the gateway, with GET /v1/models"
    rows.alone(claim, rate, "req/s", at_least=LEAST_CACHED)
    rows.waits(claim, took)
    rows.against(claim, rate, "req/s", "refused for want of a key", bare)
    if options.rival:
        async with tenants.upstream() as upstream_port, rivals.litellm(upstream_port) as proxy:
            theirs, _ = await _models(proxy.port, (rivals.LITELLM_KEY,), options.seconds, status=200)
        rows.against(claim, rate, "req/s", "LiteLLM, its master key", theirs)


async def _remembered(keys: Sequence[Credential]) -> list[float]:
    """Return the seconds of each lookup in the gateway's cache."""
    rpc, turns = FakeRpc(), itertools.cycle(keys)

    async def validate(_request: auth.ValidateApiKey) -> auth.Principal:
        return OWNER

    rpc.answers["auth.validateApiKey"] = validate
    callers = Callers(rpc, clock=lambda: 0.0)
    took = await calls.one_by_one(lambda: callers.identify(next(turns)), 100_000)
    assert len(rpc.called) == len(keys), "auth was asked for a key that is known"
    return [microseconds / 1e6 for microseconds in took]


async def _models(port: int, keys: Sequence[str], seconds: float, *, status: int) -> tuple[float, list[float]]:
    """Send GET /v1/models with each key in turn, or without a key. Return the answers a second, and the seconds that each took."""
    asked = [http_load.get("/v1/models", f"authorization: Bearer {key}") for key in keys] or [http_load.get("/v1/models")]
    client, requests = Client(port), itertools.cycle([each.encode() for each in asked])

    async def ask() -> None:
        answer, _ = await client.ask(next(requests))
        assert answer.status == status, answer

    await calls.for_seconds(ask, AT_ONCE, 0.5)  # the gateway validates each key once
    found = await calls.for_seconds(ask, AT_ONCE, seconds)
    client.close()
    return found


async def _measure_storm(rows: Rows, accounts: Accounts, options: Options) -> None:
    """Before each storm, the gaps between tokens are measured for ``seconds`` without one."""
    stack, count, rest = accounts.stack, options.logins, REST_SECONDS + options.seconds
    logins = tuple(await tenants.register_each(stack.running, count, _register))
    gaps, storms, broken = list[Gap](), list[Outcome](), list[int]()
    async with processes.watching_memory(stack.pids["auth"], LOOK_SECONDS) as held, asyncio.TaskGroup() as tasks:
        reading = [tasks.create_task(_read(stack.port, key, gaps, broken)) for key in stack.keys[:STREAMS]]
        for number in range(STORMS):
            addresses = tuple(f"127.{10 + number}.{each // 250}.{1 + each % 250}" for each in range(count))
            load = Load(port=stack.port, requests=logins, pace=Spread(count, 0), addresses=addresses, rest_seconds=rest)
            storms.append(await http_load.make(load))
        for task in reading:
            task.cancel()
    quiet = [gap for at, gap in gaps if any(storm.start - options.seconds <= at < storm.start for storm in storms)]
    loud = [gap for at, gap in gaps if any(storm.start <= at < storm.start + storm.seconds for storm in storms)]
    claim = f"{STREAMS} streams beside {count} logins"
    for share in (50, 99):
        beside, without = (1000 * report.percentile(each, share / 100) for each in (loud, quiet))
        at_most = SLOWER_ALLOWED if share == 99 else None
        rows.against(f"{claim}: between two tokens, p{share}", beside, "ms", "without the logins", without, at_most=at_most)
    rows.alone(f"{claim}: between two tokens, tokens counted beside them", len(loud), "tokens")
    rows.alone(f"{claim}: ended early", len(broken), "streams", at_most=0)
    _add_logins(rows, storms, count)
    # It keeps the memory of its first hashes.
    rows.alone(f"{count} logins at once: auth holds more than new", max(held) - accounts.new_mb, "MB", at_most=MOST_GROWTH_MB)


async def _register(api_client: ApiClient, number: int) -> str:
    """Register a user. Return the request that logs in."""
    username, password = f"storm{number}-{secrets.token_hex(4)}", secrets.token_urlsafe(18)
    wanted = auth.UserData(username, f"{username}@example.org", password)
    await api_client.mesh.rpc.call(auth.register_user, auth.RegisterUser(wanted))
    return http_load.post("/api/auth/login", json.dumps({"username": username, "password": password}))


async def _read(port: int, key: Credential, gaps: list[Gap], broken: list[int]) -> None:
    """Read one stream after the other, and collect the gaps between pieces of text."""
    client, (request,) = Client(port), tenants.chats((key,), "echo", "tok " * WORDS, WORDS, stream=True)
    while True:
        last: float | None = None

        def arrived() -> None:
            nonlocal last
            now = time.perf_counter()
            if last is not None:
                gaps.append((now, now - last))
            last = now

        answer, _ = await client.ask(request.encode(), arrived)
        if not answer.whole:
            broken.append(answer.status)


def _add_logins(rows: Rows, storms: Sequence[Outcome], count: int) -> None:
    answers = [answer for storm in storms for answer in storm.answers]
    good = [answer.took for answer in answers if answer.status == 200]
    claim = f"{count} logins at once"
    rows.alone(f"{claim}: let in, of {STORMS} times", len(good), "logins")
    for status in sorted(REFUSALS):
        rows.alone(f"{claim}: told {status}, of {STORMS} times", sum(answer.status == status for answer in answers), "logins")
    rows.alone(f"{claim}: neither", sum(answer.status not in {200, *REFUSALS} for answer in answers), "logins", at_most=0)
    rows.alone(f"{claim}: until the last answer", max(storm.seconds for storm in storms), "s")
    if good:
        rows.waits(f"{claim}: let in", good)


def _prepare(options: Options) -> str:
    if options.rival:
        rivals.ensure_litellm()
    return ""


PARTS: dict[str, report.Part] = {"uncached": _measure_uncached, "cached": _measure_cached, "storm": _measure_storm}

if __name__ == "__main__":
    limits, logins = (600.0, 240.0), (500, 150)
    report.run(__doc__, PARTS, limits=limits, setting=_accounts, before=_prepare, seconds=(5.0, 2.0), logins=logins, rival=(False, False))
