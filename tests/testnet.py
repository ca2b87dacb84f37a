"""Real nodes on loopback: a real NATS server with authorization, and real links between nodes in this process.

    async with testnet() as net:
        await net.start(EchoService)
        caller = await net.client()
        reply = await caller.rpc.call(...)

``net.server.kill()`` is kill -9 of NATS; ``node.cut()`` stops a node without a shutdown message.
"""

import asyncio
import contextlib
import fcntl
import functools
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from shared import addresses, errors
from shared.api.gateway import Check
from shared.identity import node_keys
from shared.identity.enrollment_list import EnrolledNode
from shared.node.client_node import ClientNode, ClientSettings, client
from shared.node.lifecycle import background
from shared.node.member import Node, Service, member
from shared.node.settings import NodeSettings
from shared.types import MeshName, NodeId, Role
from stack import ports
from stack.servers import nats_server
from tests import stopwatch

MESH = MeshName("test")
#: Time for running calls to end when a node stops. A test in which this time must not run out sets a longer one.
DRAIN_SECONDS = 5.0


#: Has a byte for each port; the process that locks the byte owns the port.
_PORTS_FILE = Path(tempfile.gettempdir()) / f"aimesh-test-ports-{os.getuid()}"
#: Ports of this process, whose locks don't exclude each other.
_given: set[int] = set()


@functools.cache
def _ports_file() -> int:
    # Closing any descriptor of the file would release the locks.
    return os.open(_PORTS_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


def free_port(*, is_udp: bool = False) -> int:
    """Return a port that no other call gets until this process ends, not even in other test processes: its server starts later.

    The system does not use it for an outgoing connection in the meantime, because it is below 32768.
    """
    return free_row(1, is_udp=is_udp)


def free_row(count: int, *, is_udp: bool = False) -> int:
    """Return the first of ``count`` such ports in a row."""
    while True:
        first = ports.find_free(count, is_udp=is_udp)
        row = range(first, first + count)
        if not _given.isdisjoint(row):
            continue
        with contextlib.suppress(OSError):
            fcntl.lockf(_ports_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)
            _given.update(row)
            return first


class IdleService:
    """A service without methods; others add theirs."""

    role: ClassVar[Role] = Role.WORKER

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: NodeSettings, node: Node) -> AsyncIterator[Self]:
        yield cls()

    async def checks(self) -> tuple[Check, ...]:
        return ()

    def asgi(self) -> None:
        return None


class NodeService(IdleService):
    """A service that knows its node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: NodeSettings, node: Node) -> AsyncIterator[Self]:
        yield cls(node)


class NatsServer:
    """A real nats-server in its own folder; nodes may be added while it runs."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.host = host
        self.port = free_port()
        self.url = f"nats://{addresses.host_port(host, self.port)}"
        #: For our own clients.
        self.our_url = self.url
        self.web_port = free_port()
        self.web_url = f"ws://{addresses.host_port(host, self.web_port)}/mesh"
        self._process: subprocess.Popen[bytes] | None = None
        self._nodes: list[EnrolledNode] = []
        # The server refuses an empty list of users.
        self.key("operator", Role.OPERATOR)
        rendered = nats_server.render_server(self.port, web_port=self.web_port)
        (folder / "nats.conf").write_text(rendered.replace("127.0.0.1", f"[{host}]" if ":" in host else host), encoding="utf-8")

    def key(self, name: str, role: Role) -> Path:
        """Create a node key that the server accepts."""
        path = self.folder / f"{name}.nk"
        path.touch(mode=0o600)
        path.write_bytes(node_keys.new_seed())
        self._nodes.append(EnrolledNode(name, role, node_keys.load(path).id))
        self._write_users()
        if self._process is not None:
            self.reload()
        return path

    def remove(self, node: NodeId) -> None:
        """Make the server reject this key and close its connections."""
        self._nodes = [each for each in self._nodes if each.node != node]
        self._write_users()
        self.reload()

    def reload(self) -> None:
        """Make the server reload its files. Meanwhile it may disconnect a client that has just logged in with a new key."""
        before = self._reloads()
        self.signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while self._reloads() == before:
            assert time.monotonic() < deadline, "nats-server did not read its files again within 60 s"
            time.sleep(0.002)

    def _write_users(self) -> None:
        (self.folder / "users.conf").write_text(nats_server.render_users(MESH, self._nodes), encoding="utf-8")

    def _reloads(self) -> int:
        return (self.folder / "nats.log").read_bytes().count(b"Reloaded server configuration")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @staticmethod
    def binary() -> str:
        return str(nats_server.binary())

    def start(self) -> None:
        with (self.folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen([self.binary(), "-c", str(self.folder / "nats.conf")], stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None, (self.folder / "nats.log").read_text()
                assert time.monotonic() < deadline, "nats-server did not start within 60 s"
                time.sleep(0.01)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@dataclass
class RunningNode:
    node: Node
    service: Service
    key_file: Path
    _task: "asyncio.Task[None]"
    _stop: asyncio.Event

    async def stop(self) -> None:
        """Stop the node cleanly: drain it and notify its peers."""
        self._stop.set()
        await self._task

    async def cut(self) -> None:
        """Stop the node without another message, like a killed process."""
        nats, swarm = self.node.node_transports.nats, self.node.node_transports.swarm
        if nats is not None:
            nats._links.clear()
            nats.nats.publish = lambda *_, **__: None  # type: ignore[method-assign]
        for link in [] if swarm is None else swarm.links():
            link._says_goodbye = False
            link.close(errors.LinkLost("this node has stopped sending"))
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@dataclass
class TestNet:
    __test__ = False

    server: NatsServer
    _tasks: asyncio.TaskGroup
    _stack: AsyncExitStack
    nodes: list[RunningNode] = field(default_factory=list)
    _count: int = 0

    async def start(self, service: type[Service], settings: NodeSettings | None = None) -> RunningNode:
        """Start a serving node; its ``open`` gets ``settings`` (by default NodeSettings with a new key)."""
        self._count += 1
        if settings is None:
            key_file = self.server.key(f"{service.role}-{self._count}", service.role)
            settings = NodeSettings(mesh=MESH, nats_url=self.server.url, node_key_file=key_file)
        running = await start_node(self._tasks, service, settings)
        self.nodes.append(running)
        return running

    async def client(self) -> ClientNode:
        """Open a calling node, as `aicli` does."""
        self._count += 1
        key_file = self.server.key(f"client-{self._count}", Role.CLIENT)
        settings = ClientSettings(mesh=MESH, nats_url=self.server.url, node_key_file=key_file)
        return await self._stack.enter_async_context(client(settings))

    def settings_of(self, node: RunningNode) -> NodeSettings:
        """Return the node's settings, to start it again with the same key."""
        return NodeSettings(mesh=MESH, nats_url=self.server.url, node_key_file=node.key_file)


async def start_node(tasks: asyncio.TaskGroup, service: type[Service], settings: Any) -> RunningNode:
    """Start a node. Raises the error that ends it before it serves."""
    started: asyncio.Future[tuple[Node, Service]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = tasks.create_task(live(service, settings, started, stop))
    both: set[asyncio.Future[Any]] = {task, started}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not started.done():
        await task
    return RunningNode(*started.result(), settings.node_key_file, task, stop)


async def live(service: type[Service], settings: Any, started: "asyncio.Future[tuple[Node, Service]]", stop: asyncio.Event) -> None:
    async with member(settings, service.role) as node, service.open(settings, node) as running:
        await node.serve(running)
        started.set_result((node, running))
        await stop.wait()
        await node.drain(DRAIN_SECONDS)


@asynccontextmanager
async def testnet(host: str = "127.0.0.1") -> AsyncIterator[TestNet]:  # noqa: PT028 - not a test, despite its name
    with tempfile.TemporaryDirectory(prefix="testnet-") as folder:
        server = NatsServer(Path(folder), host)
        server.start()
        try:
            async with background() as tasks, AsyncExitStack() as stack:
                yield TestNet(server, tasks, stack)
        finally:
            server.kill()


testnet.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it by its name


async def until(condition: Any, *, seconds: float = 5.0) -> None:
    """Wait until the condition is true; fail if it isn't in time. ``seconds`` are those of ``tests.stopwatch``."""
    seconds = stopwatch.patience(seconds)
    deadline = stopwatch.now() + seconds
    while not condition():
        assert stopwatch.now() < deadline, f"did not happen within {seconds} s"
        await asyncio.sleep(0.01)


__all__ = ["MESH", "IdleService", "NatsServer", "NodeId", "RunningNode", "TestNet", "free_port", "start_node", "testnet", "until"]
