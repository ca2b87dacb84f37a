"""A whole stack, as `aicli stack up` creates it: real servers and five service processes, in its own folder and on its own ports.

    async with stack(AIMESH_ECHO="1") as running:
        await running.aicli("infer", "hello")
        await running.kill("gateway")

``OfFolders`` shares one stack between all tests of some folders. It stops before another folder's tests begin.

A stack ends with the process that started it, also when that is killed.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import httpx
import msgspec
import nats
import pytest
from nats.aio.client import Client as NatsClient
from prometheus_client.parser import text_string_to_metric_families

from cli import profile
from shared.node.client_node import ClientNode, ClientSettings, client
from shared.types import Credential, MeshName, UserId
from stack import stack_home as homes
from stack import stack_plan, status_overview
from stack.processes import dies_with_parent
from stack.stack_home import StackHome
from tests import stopwatch
from tests.testnet import free_port, free_row

REPOSITORY = Path(__file__).resolve().parent.parent
PORTS = (
    "AUTH_SERVICE_PORT",
    "GATEWAY_SERVICE_PORT",
    "INFERENCE_SERVICE_PORT",
    "METRICS_SERVICE_PORT",
    "WEB_SERVICE_PORT",
    "NATS_PORT",
    "NATS_WEB_PORT",
    "PROMETHEUS_PORT",
    "DHT_PORT",
)
#: The programs of a stack with AIMESH_ECHO.
PROGRAMS = ("postgres", "valkey", "nats", "dht", "auth", "inference", "metrics", "gateway", "web", "inference-echo")
MESH = MeshName("home")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a command."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.status == 0, self.err
        return msgspec.json.decode(self.out)


async def outcome_of(process: asyncio.subprocess.Process, stdin: str = "", *, seconds: float) -> Outcome:
    """Wait for the end of a process, and kill it if it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate(stdin.encode() if process.stdin else None)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())


@dataclass(frozen=True, slots=True)
class Release:
    """A version of aimesh that can be run."""

    python: str
    folder: Path


HEAD = Release(sys.executable, REPOSITORY)


@dataclass(frozen=True, slots=True)
class RunningStack:
    home: Path
    environment: dict[str, str]
    release: Release = HEAD
    #: It stops and removes the stack if we end without doing so.
    caretaker: "subprocess.Popen[bytes] | None" = None

    @property
    def place(self) -> StackHome:
        """The stack's home, with the paths of its files by name."""
        return homes.locate({"AIMESH_HOME": str(self.home)})

    # --- the command line --------------------------------------------------------------------------------------------

    async def aicli(self, *arguments: str, stdin: str = "", deadline_seconds: float = 120, **variables: str) -> Outcome:
        """Run `aicli` as a user would."""
        process = await self.start_aicli(*arguments, has_input=True, **variables)
        return await outcome_of(process, stdin, seconds=deadline_seconds)

    async def start_aicli(self, *arguments: str, has_input: bool = False, **variables: str) -> asyncio.subprocess.Process:
        """Start `aicli` without waiting; its output goes to pipes."""
        return await asyncio.create_subprocess_exec(
            self.release.python, "-m", "cli.main", *arguments,
            stdin=asyncio.subprocess.PIPE if has_input else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=self.release.folder, env={**self.environment, **variables}, preexec_fn=dies_with_parent(signal.SIGKILL, os.getpid()),
        )  # fmt: skip

    @property
    def api_key(self) -> Credential:
        """The admin's key."""
        return Credential(tomllib.loads(self.place.profile.read_text(encoding="utf-8"))["api_key"])

    # --- the programs ------------------------------------------------------------------------------------------------

    async def programs(self) -> dict[str, status_overview.StatusRow]:
        """Return what the supervisor runs, by name; empty if no supervisor runs."""
        return {row.name: row for row in await status_overview.collect(self.place)}

    async def pids(self) -> dict[str, int | None]:
        return {row.name: row.pid for row in (await self.programs()).values()}

    async def signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal to one program and return its process ID."""
        pid = (await self.programs())[name].pid
        assert pid is not None, f"{name} does not run"
        os.kill(pid, number)
        return pid

    async def kill(self, name: str) -> int:
        """Kill one program with SIGKILL and return the process ID it had."""
        return await self.signal(name, signal.SIGKILL)

    async def restarted(self, name: str, old_pid: int, *, seconds: float = 15) -> status_overview.StatusRow:
        """Wait until a new process of this program is ready."""

        async def find() -> status_overview.StatusRow | None:
            row = (await self.programs()).get(name)
            return row if row is not None and row.pid not in {None, old_pid} and row.ready else None

        return await until(find, seconds=seconds, what=f"{name} is ready again")

    # --- clients -----------------------------------------------------------------------------------------------------

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.environment[f'{service.upper()}_SERVICE_PORT']}"

    def http(self, key: str | None = None, *, service: str = "gateway", timeout_seconds: float = 60) -> httpx.AsyncClient:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        return httpx.AsyncClient(base_url=self.url(service), headers=headers, timeout=timeout_seconds, trust_env=False, limits=limits)

    def client(self) -> AbstractAsyncContextManager[ClientNode]:
        """Open a client node, as `aicli` does."""
        found = profile.read(self.place.profile)
        return client(ClientSettings(mesh=found.mesh, nats_url=found.nats_url, node_key_file=found.node_key_file))

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[NatsClient]:
        """Connect a stock NATS client with the operator's key."""
        url = f"nats://127.0.0.1:{self.environment['NATS_PORT']}"
        connection = await nats.connect(url, nkeys_seed=str(self.place.key("operator")), allow_reconnect=False)
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def database(self, service: str) -> AsyncIterator[asyncpg.Connection]:
        """Connect to PostgreSQL as a service's role; the session sees all tenants."""
        url = stack_plan.database_url_file(self.place, service).read_text(encoding="utf-8").strip()
        connection = await asyncpg.connect(url, timeout=30, server_settings={"search_path": service, "aimesh.tenant": "*"})
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    async def recorded(self, user: UserId, requests: int) -> None:
        """Wait until PostgreSQL has this many requests of a user.

        The gateway waits 0.25 s for the row; if PostgreSQL takes longer, it answers the caller with the row only in its journal.
        """

        async def is_written() -> bool:
            async with self.database("gateway") as database:
                count: int = await database.fetchval("SELECT count(*) FROM request_logs WHERE user_id = $1", user)
            return count >= requests

        await until(is_written, what=f"{requests} requests are in PostgreSQL")

    async def knows_its_models(self) -> None:
        """Wait until the gateway calls a model unknown. Just after its start it says instead that no worker has been found yet."""
        async with self.http(self.api_key) as http:

            async def is_unknown() -> bool:
                return (await http.post("/api/inference", json={"prompt": "x", "model": "nobody-has-it"})).status_code == 404

            await until(is_unknown, what="the gateway knows which models there are")

    async def metric(self, program: str, name: str, /, **labels: str) -> float:
        """Return the sum of the samples with these labels in a service's /metrics."""
        async with self.http(service=program) as http:
            return total((await http.get("/metrics")).text, name, **labels)

    def log(self, name: str) -> str:
        path = self.place.log(name)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    # --- start and stop ----------------------------------------------------------------------------------------------

    async def up(self) -> Outcome:
        """Run `aicli stack up`; on failure, show its whole output."""
        done = await self.aicli("stack", "up", deadline_seconds=300)
        assert done.status == 0, done.out + done.err
        return done

    async def down(self) -> None:
        done = await self.aicli("stack", "down", deadline_seconds=200)
        if self.caretaker is not None:
            self.caretaker.kill()
            self.caretaker.communicate()
        # A restore with --replace moves the previous home aside.
        for each in (self.home, *self.home.parent.glob(f"{self.home.name}.before-restore-*")):
            shutil.rmtree(each, ignore_errors=True)
        assert done.status == 0, done.out + done.err


async def until(
    condition: Callable[[], Awaitable[T | None]],
    *,
    seconds: float = 10,
    what: str = "the condition",
    ignoring: tuple[type[Exception], ...] = (),
    clock: Callable[[], float] = stopwatch.now,
) -> T:
    """Wait until the result of ``condition`` is true, and return it; fail with the last result if it never is."""
    seconds = stopwatch.patience(seconds)
    deadline = clock() + seconds
    seen: object = None
    while True:
        try:
            found = await condition()
            if found:
                return found
            seen = found
        except ignoring as error:
            seen = error
        assert clock() < deadline, f"{what}: not within {seconds} s; last seen: {seen!r}"
        await asyncio.sleep(0.05)


def total(text: str, name: str, /, **labels: str) -> float:
    """Return the sum of a metric's samples with these labels in a Prometheus text."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())


def free_ports() -> dict[str, str]:
    """Return a free port for each of PORTS."""
    # Four consecutive ports: three for DHT nodes and one for an optional relay.
    return {name: str(free_port()) for name in PORTS} | {"DHT_PORT": str(free_row(4, is_udp=True))}


def _environment(home: Path, variables: Mapping[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, **free_ports(), "AIMESH_HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), **variables}


#: Its input ends when we do. The folder goes once the stack has stopped.
_CARETAKER = 'read -r _; "$0" -m cli.main stack down && rm -rf "$AIMESH_HOME"'


def plan(variables: Mapping[str, str], release: Release = HEAD) -> RunningStack:
    home = Path(tempfile.mkdtemp(prefix="aimesh-stack-"))
    environment = _environment(home, variables)
    caretaker = subprocess.Popen(
        ["/bin/sh", "-c", _CARETAKER, release.python],
        cwd=release.folder, env=environment, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return RunningStack(home, environment, release, caretaker)


@asynccontextmanager
async def stack(release: Release = HEAD, /, **variables: str) -> AsyncIterator[RunningStack]:
    """Start a stack for the block; stop and delete it at the end."""
    running = plan(variables, release)
    try:
        await running.up()
        yield running
    finally:
        await running.down()


class OfFolders:
    """One stack for the tests of some folders: starts with the first test that requests it, stops when the next test is elsewhere.

    In a conftest, a fixture returns ``get``, and ``pytest_runtest_teardown`` calls ``leave``.
    """

    def __init__(self, folders: Collection[Path], **variables: str) -> None:
        self._folders = folders
        self._variables = variables
        self._running: RunningStack | None = None

    def get(self, config: pytest.Config) -> RunningStack:
        if self._running is None:
            # For an interrupted run, which never calls ``leave``.
            config.add_cleanup(self._down)
            self._running = plan(self._variables)
            try:
                _in_a_loop_of_its_own(self._running.up)
            except BaseException:
                # The next test tries again.
                self._down()
                raise
        return self._running

    def leave(self, next_test: pytest.Item | None) -> bool:
        """Stop the stack if the next test is elsewhere; return whether it is."""
        is_left = next_test is None or not set(self._folders) & set(next_test.path.parents)
        if is_left:
            self._down()
        return is_left

    def _down(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            _in_a_loop_of_its_own(running.down)


def _in_a_loop_of_its_own(work: Callable[[], Coroutine[None, None, object]]) -> None:
    """Run it in a thread, because the tests' event loop may already exist here."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(work())).result()
