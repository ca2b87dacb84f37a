"""How many API keys are checked a second, and how 500 logins at once affect running streams.

    python -m bench.accounts [--quick] [--rival] [--seconds 5] [--only SECTION …] [--json FILE]

uncached  validateApiKey at auth over NATS, which looks up each key in PostgreSQL
cached    keys that the gateway knows already: the lookup alone, and with a whole GET /v1/models. ``--rival`` installs LiteLLM's proxy and
          measures the same there; it compares a key with the one master key of its settings
storm     500 users log in at once with the right password, each from its own address (one address has 30 attempts in 15 minutes),
          beside 20 streams of the echo worker: how evenly their tokens arrive

Clients and stack share one machine.
"""

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import uvloop

from bench import calls, litellm, report, tenants
from bench.pages import PATIENCE_SECONDS, visitors
from services.gateway.admission.callers import Callers
from shared.api import auth
from shared.types import Credential
from tests import people
from tests.services.gateway.fakes import OWNER, FakeRpc
from tests.stacks import MESH, RunningStack, stack

AT_ONCE = 32
SECONDS, QUICK_SECONDS = 5.0, 2.0
MOST_SECONDS, QUICK_MOST_SECONDS = 600.0, 240.0
LEAST_UNCACHED, LEAST_CACHED = 800.0, 3000.0

LOGINS, QUICK_LOGINS, STORMS = 500, 150, 3
STREAMS, TOKEN_MS, WORDS = 20, 20.0, 500
#: Between the storms, and before a measurement.
REST_SECONDS = 1.0
#: Between two readings of memory.
LOOK_SECONDS = 0.05
SLOWER_ALLOWED, MOST_GROWTH_MB = 1.2, 1024**3 / 1e6
REFUSALS = frozenset({429, 503})
_HEAD_END = b"\r\n\r\n"


# --- keys ------------------------------------------------------------------------------------------------------------------


async def _uncached(running: RunningStack, keys: Sequence[Credential], seconds: float) -> list[report.Row]:
    subject = f"aimesh.{MESH}.rpc.auth.validateApiKey"
    bodies = [msgspec.msgpack.encode({"apiKey": key}) for key in keys]
    async with running.operator() as connection:

        async def one(number: int) -> None:
            answer = await connection.request(subject, bodies[number % len(bodies)], timeout=PATIENCE_SECONDS)
            assert b"keyId" in answer.data, answer.data

        await calls.for_seconds(one, AT_ONCE, 0.5)  # connections, plans of the database
        rate, took = await calls.for_seconds(one, AT_ONCE, seconds)
    claim = "validateApiKey at auth"
    return [report.alone(claim, rate, "calls/s", at_least=LEAST_UNCACHED), *calls.latency_rows(claim, took)]


async def _cached(running: RunningStack, keys: Sequence[Credential], seconds: float, *, rival: bool) -> list[report.Row]:
    took = await _remembered(keys)
    alone = "a known key at the gateway, its memory alone"
    whole = "a known key at the gateway, with GET /v1/models"
    rate, waits = await _models(tenants.gateway_port(running), keys, seconds, status=200)
    bare, _ = await _models(tenants.gateway_port(running), (Credential(""),), seconds, status=401)
    rows = [
        report.alone(alone, len(took) / sum(took), "calls/s", at_least=LEAST_CACHED),
        *calls.latency_rows(alone, took),
        report.alone(whole, rate, "req/s", at_least=LEAST_CACHED),
        *calls.latency_rows(whole, waits),
        report.against(whole, rate, "req/s", "refused for want of a key", bare),
    ]
    if rival:
        async with tenants.upstream() as upstream_port, litellm.running(upstream_port) as proxy:
            theirs, _ = await _models(proxy.port, (Credential(litellm.KEY),), seconds, status=200)
        rows.append(report.against(whole, rate, "req/s", "LiteLLM, its master key", theirs))
    return rows


async def _remembered(keys: Sequence[Credential]) -> list[float]:
    """Return the seconds of each lookup in the gateway's cache."""
    rpc = FakeRpc()

    async def validate(_request: auth.ValidateApiKey) -> auth.Principal:
        return OWNER

    rpc.answers["auth.validateApiKey"] = validate
    callers = Callers(rpc, clock=lambda: 0.0)
    for key in keys:
        await callers.identify(key)
    took = []
    for number in range(100_000):
        start = time.perf_counter()
        await callers.identify(keys[number % len(keys)])
        took.append(time.perf_counter() - start)
    assert len(rpc.called) == len(keys), "auth was asked for a key that is known"
    return took


async def _models(port: int, keys: Sequence[Credential], seconds: float, *, status: int) -> tuple[float, list[float]]:
    """Send GET /v1/models with each key in turn; an empty one is not sent."""
    lines = [(f"authorization: Bearer {key}",) if key else () for key in keys]
    with visitors(port, [lines[number % len(lines)] for number in range(AT_ONCE)]) as everyone:

        async def one(number: int) -> None:
            seen = await everyone[number].get("/v1/models")
            assert seen.status == status, seen

        await calls.for_seconds(one, AT_ONCE, 0.5)  # the gateway validates each key once
        return await calls.for_seconds(one, AT_ONCE, seconds)


# --- 500 logins in a separate process -------------------------------------------------------------------------------


class Login(msgspec.Struct, frozen=True):
    username: str
    password: str
    #: An address in 127.0.0.0/8.
    address: str


class Answer(msgspec.Struct, frozen=True, array_like=True):
    #: 0 if the connection broke.
    status: int
    took: float


class Storm(msgspec.Struct, frozen=True):
    port: int
    logins: tuple[Login, ...]


async def _log_in(port: int, login: Login, begun: asyncio.Event) -> Answer:
    body = json.dumps({"username": login.username, "password": login.password})
    head = f"POST /api/auth/login HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(login.address, 0))
    try:
        await begun.wait()
        start = time.perf_counter()
        writer.write((head + body).encode())
        answer = await reader.readuntil(_HEAD_END)
        return Answer(int(answer[9:12]), time.perf_counter() - start)
    except (OSError, EOFError):
        return Answer(0, 0.0)
    finally:
        writer.close()


async def _storm(storm: Storm) -> list[Answer]:
    """Print that all are connected, and log them in when a line arrives on stdin."""
    begun = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(_log_in(storm.port, login, begun)) for login in storm.logins]
        await asyncio.sleep(REST_SECONDS)
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        begun.set()
    return [task.result() for task in waiting]


@asynccontextmanager
async def _prepared(storm: Storm) -> AsyncIterator[Callable[[], Awaitable[list[Answer]]]]:
    """Connect all clients in another process. Yields a function that starts the logins."""
    with tempfile.TemporaryDirectory(prefix="aimesh-storm-") as folder:
        wanted, made = Path(folder) / "storm", Path(folder) / "answers"
        wanted.write_bytes(msgspec.json.encode(storm))
        words = [sys.executable, "-m", "bench.accounts", "--storm", str(wanted), str(made)]
        process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None

        async def start_logins() -> list[Answer]:
            await process.communicate(b"go\n")
            return msgspec.json.decode(made.read_bytes(), type=list[Answer])

        try:
            async with asyncio.timeout(30):
                assert await process.stdout.readline() == b"ready\n"
            yield start_logins
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


# --- beside streams ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Streams:
    """Endless readers of streams, and the gaps between pieces of text."""

    port: int
    keys: Sequence[Credential]
    #: The time of a piece, and the seconds since the one before.
    gaps: list[tuple[float, float]] = field(default_factory=list)
    broken: int = 0

    async def read(self, number: int) -> None:
        key = self.keys[number % len(self.keys)]
        body = tenants.chat_body("echo", "tok " * WORDS, WORDS, stream=True)
        lines = ("POST /v1/chat/completions HTTP/1.1", "host: 127.0.0.1", f"authorization: Bearer {key}", "content-type: application/json")
        request = "\r\n".join([*lines, f"content-length: {len(body)}"]) + "\r\n\r\n" + body
        while True:
            await self._read_one(request.encode())

    async def _read_one(self, request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            last: float | None = None
            while line := await reader.readline():
                if line.startswith(b"data: [DONE]"):
                    return
                if line.startswith(b"data: {") and b'"content":"tok' in line.replace(b" ", b""):
                    now = time.perf_counter()
                    if last is not None:
                        self.gaps.append((now, now - last))
                    last = now
            self.broken += 1
        finally:
            writer.close()

    def within(self, windows: Sequence[tuple[float, float]]) -> list[float]:
        return [gap for at, gap in self.gaps if any(began <= at < ended for began, ended in windows)]


async def _most_memory(pid: int, over: asyncio.Event) -> float:
    most = 0.0
    while not over.is_set():
        most = max(most, tenants.resident_mb(pid))
        await asyncio.sleep(LOOK_SECONDS)
    return most


async def _beside(running: RunningStack, keys: Sequence[Credential], count: int, seconds: float, new_mb: float) -> list[report.Row]:
    people_of_all = await _register(running, count)
    streams = _Streams(tenants.gateway_port(running), keys)
    pid, over = await tenants.pid_of(running, "auth"), asyncio.Event()
    calm: list[tuple[float, float]] = []
    stormy: list[tuple[float, float]] = []
    answers: list[Answer] = []
    async with asyncio.TaskGroup() as tasks:
        reading = [tasks.create_task(streams.read(number)) for number in range(STREAMS)]
        memory = tasks.create_task(_most_memory(pid, over))
        for round_number in range(STORMS):
            logins = [Login(*one, _address(round_number, number)) for number, one in enumerate(people_of_all)]
            async with _prepared(Storm(streams.port, tuple(logins))) as start_logins:
                await asyncio.sleep(REST_SECONDS)
                started = time.perf_counter()
                await asyncio.sleep(seconds)
                calm.append((started, loose := time.perf_counter()))
                answers += await start_logins()
                stormy.append((loose, time.perf_counter()))
        over.set()
        for task in reading:
            task.cancel()
    quiet, loud = streams.within(calm), streams.within(stormy)
    return [*_evenness(quiet, loud, streams, count), *_of_logins(answers, stormy, count), *_growth(new_mb, memory.result(), count)]


def _address(round_number: int, number: int) -> str:
    return f"127.{10 + round_number}.{number // 250}.{1 + number % 250}"


async def _register(running: RunningStack, count: int) -> list[tuple[str, str]]:
    """Register users. Return their names and passwords."""
    turn = asyncio.Semaphore(tenants.AT_ONCE)
    async with people.api_client(running) as api_client:

        async def one(number: int) -> tuple[str, str]:
            username, password = f"storm{number}-{secrets.token_hex(4)}", secrets.token_urlsafe(18)
            async with turn:
                wanted = auth.UserData(username, f"{username}@example.org", password)
                await api_client.mesh.rpc.call(auth.register_user, auth.RegisterUser(wanted))
            return username, password

        return list(await asyncio.gather(*map(one, range(count))))


def _evenness(quiet: list[float], loud: list[float], streams: _Streams, count: int) -> list[report.Row]:
    claim = f"{STREAMS} streams beside {count} logins: between two tokens"
    rows = [
        report.against(
            f"{claim}, p{share}", 1000 * report.percentile(loud, share / 100), "ms", "without the logins",
            1000 * report.percentile(quiet, share / 100), at_most=SLOWER_ALLOWED if share == 99 else None,
        )
        for share in (50, 99)
    ]  # fmt: skip
    return [
        *rows,
        report.alone(f"{claim}, tokens counted beside them", len(loud), "tokens"),
        report.alone(f"{STREAMS} streams beside {count} logins: ended early", streams.broken, "streams", at_most=0),
    ]


def _of_logins(answers: list[Answer], stormy: list[tuple[float, float]], count: int) -> list[report.Row]:
    good = [answer.took for answer in answers if answer.status == 200]
    claim = f"{count} logins at once"
    took = [ended - began for began, ended in stormy]
    rows = [
        report.alone(f"{claim}: let in, of {STORMS} times", len(good), "logins"),
        *(
            report.alone(f"{claim}: told {status}, of {STORMS} times", sum(answer.status == status for answer in answers), "logins")
            for status in sorted(REFUSALS)
        ),
        report.alone(f"{claim}: neither", sum(one.status not in {200, *REFUSALS} for one in answers), "logins", at_most=0),
        report.alone(f"{claim}: until the last answer", max(took), "s"),
    ]
    return rows + (calls.latency_rows(f"{claim}: let in", good) if good else [])


def _growth(new_mb: float, most: float, count: int) -> list[report.Row]:
    """Compare with auth at its start, because it keeps the memory of its first hashes."""
    return [report.alone(f"{count} logins at once: auth holds more than new", most - new_mb, "MB", at_most=MOST_GROWTH_MB)]


SECTIONS = ("uncached", "cached", "storm")


async def _measure(table: report.Table, options: argparse.Namespace) -> None:
    seconds, count = (QUICK_SECONDS, QUICK_LOGINS) if options.quick else (options.seconds, LOGINS)
    sections = options.only or SECTIONS
    table.expect(sections)
    async with AsyncExitStack() as opened:
        settings = {**tenants.UNREACHED, "AIMESH_ECHO": "1", "ECHO_TOKEN_MS": str(TOKEN_MS), "LOG_LEVEL": "warning"}
        running = await opened.enter_async_context(stack(**settings))
        new_mb = tenants.resident_mb(await tenants.pid_of(running, "auth"))
        keys = await tenants.register(running)
        if "uncached" in sections:
            with table.part("uncached") as rows:
                rows.extend(await _uncached(running, keys, seconds))
        if "cached" in sections:
            with table.part("cached") as rows:
                rows.extend(await _cached(running, keys, seconds, rival=options.rival))
        if "storm" in sections:
            with table.part("storm") as rows:
                rows.extend(await _beside(running, keys, count, seconds, new_mb))


def main() -> None:
    if sys.argv[1:2] == ["--storm"]:
        wanted, made = map(Path, sys.argv[2:])
        answers = uvloop.run(_storm(msgspec.json.decode(wanted.read_bytes(), type=Storm)))
        made.write_bytes(msgspec.json.encode(answers))
        return
    quick = f"{QUICK_SECONDS:g} s each, and {QUICK_LOGINS} logins"
    parser = report.arguments(__doc__, limits=(MOST_SECONDS, QUICK_MOST_SECONDS), quick=quick)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one measurement")
    parser.add_argument("--rival", action="store_true", help="also LiteLLM's proxy; installs it where it is not yet")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="measure only these")
    options = parser.parse_args()
    if options.rival:
        litellm.ensure()  # outside the time of the run
    with report.opened(options) as table:
        table.run(_measure(table, options))


if __name__ == "__main__":
    main()
