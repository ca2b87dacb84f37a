"""How many API keys are checked a second, and how 500 logins at once affect running streams.

uncached  validateApiKey at auth over NATS, which looks up each key in PostgreSQL
cached    GET /v1/models with keys that the gateway knows already
storm     500 users log in at once with the right password, each from its own address (one address has 30 attempts in 15 minutes),
          beside 20 streams of the echo worker: how evenly their tokens arrive. tests/integration/test_login_storm.py bounds auth's memory

Clients and stack share one machine.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Sequence

import msgspec

from bench import calls, http_load, report, tenants
from bench.http_load import Client, Load, Outcome, Spread, Steady
from bench.report import Options, Rows
from bench.tenants import REFUSALS, Tenants
from shared.types import Credential
from tests.people import ApiClient
from tests.stacks import MESH

AT_ONCE = 32
STORMS, STREAMS, WORDS = 3, 20, 500

#: The time of a piece of text, and the seconds since the one before.
Gap = tuple[float, float]


async def _measure_uncached(rows: Rows, stack: Tenants, options: Options) -> None:
    bodies = itertools.cycle([msgspec.msgpack.encode({"apiKey": key}) for key in stack.keys])
    async with stack.running.operator() as connection:

        async def validate() -> None:
            answer = await connection.request(f"aimesh.{MESH}.rpc.auth.validateApiKey", next(bodies), timeout=30)
            assert b"keyId" in answer.data, answer.data

        await calls.for_seconds(validate, AT_ONCE, 0.5)  # connections, plans of the database
        rate, _ = await calls.for_seconds(validate, AT_ONCE, options.seconds)
    rows.alone("validateApiKey at auth", rate, "calls/s", at_least=800)


async def _measure_cached(rows: Rows, stack: Tenants, options: Options) -> None:
    known, bare = await _rate(stack, stack.keys, options.seconds, status=200), await _rate(stack, (), options.seconds, status=401)
    claim = "a known key at the gateway, with GET /v1/models"
    rows.alone(claim, known, "req/s", at_least=3000)
    rows.against(claim, known, "req/s", "refused for want of a key", bare)


async def _rate(stack: Tenants, keys: Sequence[str], seconds: float, *, status: int) -> float:
    """Send GET /v1/models with each key in turn, or without a key. Return the answers a second."""
    requests = tuple(http_load.get("/v1/models", f"authorization: Bearer {key}") for key in keys) or (http_load.get("/v1/models"),)
    await http_load.make(Load(port=stack.port, requests=requests, pace=Steady(AT_ONCE, 0.5)))  # the gateway validates each key once
    outcome = await http_load.make(Load(port=stack.port, requests=requests, pace=Steady(AT_ONCE, seconds)))
    assert set(outcome.statuses) == {status}, outcome.statuses
    return len(outcome.answers) / outcome.seconds


async def _measure_storm(rows: Rows, stack: Tenants, options: Options) -> None:
    """Before each storm, the gaps between tokens are measured for ``seconds`` without one, after a second of rest."""
    logins = tuple(await tenants.register_each(stack.running, options.logins, _register))
    gaps, storms, broken = list[Gap](), list[Outcome](), list[int]()
    async with asyncio.TaskGroup() as tasks:
        reading = [tasks.create_task(_read(stack.port, key, gaps, broken)) for key in stack.keys[:STREAMS]]
        for number in range(STORMS):
            addresses = tuple(f"127.{10 + number}.{each // 250}.{1 + each % 250}" for each in range(len(logins)))
            pace, rest = Spread(len(logins), 0), 1.0 + options.seconds
            storms.append(await http_load.make(Load(port=stack.port, requests=logins, pace=pace, addresses=addresses, rest_seconds=rest)))
        for task in reading:
            task.cancel()
    quiet = [gap for at, gap in gaps if any(storm.start - options.seconds <= at < storm.start for storm in storms)]
    loud = [gap for at, gap in gaps if any(storm.start <= at < storm.start + storm.seconds for storm in storms)]
    claim = f"{STREAMS} streams beside {len(logins)} logins"
    for share, at_most in ((50, None), (99, 1.2)):
        beside, without = (1000 * report.percentile(each, share / 100) for each in (loud, quiet))
        rows.against(f"{claim}: between two tokens, p{share}", beside, "ms", "without the logins", without, at_most=at_most)
    rows.alone(f"{claim}: ended early", len(broken), "streams", at_most=0)
    claim, answers = f"{len(logins)} logins at once", [answer for storm in storms for answer in storm.answers]
    rows.alone(f"{claim}: let in, of {STORMS} times", sum(answer.status == 200 for answer in answers), "logins")
    rows.alone(f"{claim}: neither", sum(answer.status not in {200, *REFUSALS} for answer in answers), "logins", at_most=0)
    rows.alone(f"{claim}: until the last answer", max(storm.seconds for storm in storms), "s")


async def _register(api_client: ApiClient, number: int) -> str:
    """Register a user. Return the request that logs in."""
    person = await api_client.register(f"storm{number}")
    return http_load.post("/api/auth/login", json.dumps({"username": person.username, "password": person.password}))


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


if __name__ == "__main__":
    report.run(
        __doc__,
        {"uncached": _measure_uncached, "cached": _measure_cached, "storm": _measure_storm},
        limits=(600.0, 240.0),
        setting=lambda _options: tenants.opened(ECHO_TOKEN_MS=20),
        seconds=(5.0, 2.0),
        logins=(500, 150),
    )
