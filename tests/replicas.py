"""Additional processes of a running stack's services: replicas with their own keys or with a ticket to join with, or twins that use
the same key.

async with replicas.replica(stack, "gateway") as second:
    await second.ready()
"""

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from shared.identity import node_keys
from shared.types import NodeId, Role
from stack import environment_file, stack_plan
from stack import settings as stack_settings
from stack.servers import nats_server, replica_folder
from tests.stacks import HEAD, MESH, REPOSITORY, Release, RunningStack, until
from tests.testnet import free_port

ROLES = {"auth": Role.AUTH, "gateway": Role.GATEWAY, "inference": Role.WORKER, "metrics": Role.METRICS, "web": Role.WEB}

_PAGE = REPOSITORY / "docs" / "howto" / "run-one-service.md"
#: What the client and the server log when a NATS permission is missing.
_REFUSED = re.compile(r"NATS refused|Permissions Violation")
#: What a peer logs about two processes with one key, and what the younger process logs when it stops.
_CONTESTED = re.compile(r"two processes use one node key|another process already runs as this node")

#: Time for a replica to leave the mesh.
_LEAVE_SECONDS = 15


@dataclass(slots=True)
class Replica:
    service: str
    key_file: Path
    url: str
    #: Starts it with what it had before.
    start: "Callable[[], subprocess.Popen[bytes]]"
    process: "subprocess.Popen[bytes]"
    log_file: Path

    @property
    def node(self) -> NodeId:
        return node_keys.load(self.key_file).id

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    async def ready(self) -> None:
        """Wait until /readyz succeeds."""

        async def answers() -> bool:
            assert self.process.poll() is None, self.log[-2000:]
            async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
                return (await http.get(f"{self.url}/readyz")).status_code == 200

        await until(answers, seconds=60, what=f"the second {self.service} is ready", ignoring=(httpx.HTTPError,))

    def kill(self) -> None:
        """Kill it with SIGKILL, also if it is stopped."""
        self.process.kill()
        self.process.wait()

    async def restart(self) -> None:
        """Start what was killed, and wait until it is ready."""
        self.process = self.start()
        await self.ready()

    async def ended(self) -> int:
        """Wait for the end and return the exit status."""

        async def status() -> tuple[int] | None:
            found = self.process.poll()
            return None if found is None else (found,)

        return (await until(status, seconds=60, what=f"the second {self.service} ends"))[0]


@asynccontextmanager
async def replica(
    stack: RunningStack,
    service: str,
    *,
    folder: Path,
    name: str = "",
    settings: Mapping[str, str] | None = None,
    words: Sequence[str] = (),
    release: Release = HEAD,
) -> AsyncIterator[Replica]:
    """Run one more process of a service, as the page says. ``settings`` replace those of its environment file, such as its key or ticket.
    Its files are in ``folder``. ``words`` replace the default arguments of Python."""
    name, settings = name or f"{service}-replica", settings or {}
    port_setting = f"{service.upper()}_SERVICE_PORT"
    port, log_file = settings.get(port_setting) or str(free_port()), folder / f"{name}.log"
    if service in replica_folder.SERVICES and stack.release == release == HEAD:
        environment = await _by_the_page(stack, service, folder / name, port)
    else:
        environment = await _beside(stack, service, folder, name, settings) | {port_setting: port}
    if "NODE_KEY_FILE" in settings:
        environment["MESH_STATE_FILE"] = str(folder / f"{name}.mesh")
        environment.pop("JOIN_TICKET_FILE", None)
    environment |= settings
    start = partial(_start, release, words or ("-m", f"services.{service}"), environment, log_file)
    running = Replica(service, Path(environment["NODE_KEY_FILE"]), f"http://127.0.0.1:{port}", start, start(), log_file)
    try:
        yield running
    finally:
        # Peers keep calling a killed node for a few seconds, which would fail requests of the next test.
        running.process.terminate()
        try:
            await asyncio.to_thread(running.process.wait, _LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            running.kill()


def refusals(stack: RunningStack, seconds: list[Replica]) -> list[str]:
    """Return the lines in all logs about something that NATS forbids."""
    return _lines(_REFUSED, stack, seconds)


def contests(stack: RunningStack, seconds: list[Replica]) -> list[str]:
    """Return the lines in all logs about two processes with one key."""
    return _lines(_CONTESTED, stack, seconds)


def _lines(pattern: re.Pattern[str], stack: RunningStack, seconds: list[Replica]) -> list[str]:
    logs = [stack.log(name) for name in ("nats", *ROLES)] + [second.log for second in seconds]
    return [line for log in logs for line in log.splitlines() if pattern.search(line)]


def _start(release: Release, words: Sequence[str], environment: dict[str, str], log_file: Path) -> "subprocess.Popen[bytes]":
    with log_file.open("ab") as log:
        return subprocess.Popen(
            [release.python, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=release.folder, env=environment
        )


def _of_machine() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}


async def _by_the_page(stack: RunningStack, service: str, folder: Path, port: str) -> dict[str, str]:
    """Return the environment of the file that the page's command writes, for another folder and port."""
    (shown,) = re.findall(rf"^aicli (stack replica {service} )\S+ --port \d+$", _PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    made = await stack.aicli(*shown.split(), str(folder), "--port", port, "--json")
    return _of_machine() | read_environment(Path(made.json()["environment"]))


def read_environment(file: Path) -> dict[str, str]:
    given, mistakes = environment_file.parse(file.read_text(encoding="utf-8"))
    assert mistakes == []
    return {one.name: one.value for one in given}


async def _beside(stack: RunningStack, service: str, folder: Path, name: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the supervisor's environment for a worker, or beside a stack of another release, without what two processes can't share."""
    home = stack.place
    recorded = stack_settings.read_recorded(home)
    found = stack_plan.service_environment(home, stack_settings.load(recorded), recorded, service)
    if "JOIN_TICKET_FILE" in settings:
        key_file = folder / f"{name}.nk"
    else:
        key_file = await asyncio.to_thread(nats_server.add_node, home, MESH, name, ROLES[service])
    own = {
        "auth": {"AUDIT_ANCHOR_FILE": "", "RECOVERY_LOG_DIR": ""},
        "gateway": {"RECOVERY_LOG_DIR": ""},
        "metrics": {"PROMETHEUS_PORT": "0"},
        "inference": {"INFERENCE_BACKEND": "echo", "MODELS": ""},
    }
    files = {"NODE_KEY_FILE": str(key_file), "MESH_STATE_FILE": str(folder / f"{name}.mesh")}
    return {name: value for name, value in {**_of_machine(), **found, **own.get(service, {})}.items() if value} | files
