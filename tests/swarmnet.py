"""Real nodes that meet over Hyperswarm on a private DHT on loopback, each with its own sidecar and a certificate from the test's CA.

    async with swarmnet() as net:
        worker = await net.start(EchoService)
        caller = await net.client()
        reply = await caller.rpc.call(...)

With ``nats`` the nodes also use a NATS server. ``net.revoke`` gives the next revocation list to one node, as auth would. All tests of
this process share the DHT, on which each mesh has its own topics; a test that stops its DHT sets ``own_dht``.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyhyperswarm import PeerAddress, dht

from shared.api.membership import TopicSecret
from shared.identity import certificates, node_keys
from shared.identity.certificates import Subject
from shared.identity.node_keys import Authority
from shared.node import membership_file
from shared.node.client_node import ClientNode, ClientSettings, client
from shared.node.lifecycle import background
from shared.node.member import Service
from shared.node.settings import NodeSettings
from shared.protocol import topics
from shared.types import NodeId, Role
from tests.testnet import MESH, NatsServer, RunningNode, live


@dataclass
class SwarmNet:
    __test__ = False

    folder: Path
    bootstrap: Sequence[PeerAddress]
    #: Stops the nodes of the test's own DHT permanently.
    end_dht: Callable[[], Awaitable[None]]
    server: NatsServer | None
    _tasks: asyncio.TaskGroup
    _stack: AsyncExitStack
    ca: Authority = field(default_factory=lambda: Authority(node_keys.new_authority_seed()))
    epoch: int = 1
    number: int = 1
    revoked: set[NodeId] = field(default_factory=set)
    nodes: list[RunningNode] = field(default_factory=list)
    _count: int = 0

    def join(self, name: str, role: Role, *, age_seconds: float = 0, labels: dict[str, str] | None = None) -> Path:
        """Make a key and, next to it, the file of a node that has joined; ``age_seconds`` backdates its certificate."""
        key_file = self._key(name, role)
        node = node_keys.load(key_file).id
        subject = Subject(node, role, "", tuple((labels or {}).items()))
        kept = membership_file.MembershipFile(
            MESH,
            role,
            certificates.issue(self.ca, subject, time.time() - age_seconds),
            self.list_body(),
            (self.ca.id,),
            (self.topic_secret,),
            tuple(str(address) for address in self.bootstrap),
        )
        membership_file.save(key_file.with_suffix(".mesh"), kept)
        key_file.with_suffix(".mesh").chmod(0o600)
        return key_file

    def _key(self, name: str, role: Role) -> Path:
        if self.server is not None:
            return self.server.key(name, role)
        path = self.folder / f"{name}.nk"
        path.touch(mode=0o600)
        path.write_bytes(node_keys.new_seed())
        return path

    @property
    def topic_secret(self) -> TopicSecret:
        return TopicSecret(self.epoch, topics.epoch_secret(self.ca.raw_seed, self.epoch))

    def list_body(self) -> bytes:
        return certificates.issue_list(self.ca, self.number, self.epoch, tuple(self.revoked), time.time())

    def revoke(self, node: NodeId, at: RunningNode) -> None:
        """Give the next revocation list to one node; the others must get it from there."""
        self.number += 1
        self.revoked.add(node)
        at.node.renewal.take_list(self.list_body())

    def settings(self, key_file: Path, *, nats: bool = False, bootstrap: Sequence[PeerAddress] | None = None) -> NodeSettings:
        url = self.server.url if nats and self.server is not None else "none"
        told = tuple(str(address) for address in (self.bootstrap if bootstrap is None else bootstrap))
        return NodeSettings(mesh=MESH, nats_url=url, node_key_file=key_file, dht_bootstrap=told)

    async def start(
        self, service: type[Service], *, key_file: Path | None = None, nats: bool = False, bootstrap: Sequence[PeerAddress] | None = None
    ) -> RunningNode:
        """Start a serving node, on Hyperswarm and optionally on NATS. With an empty ``bootstrap`` it uses the addresses that it saved."""
        self._count += 1
        if key_file is None:
            key_file = self.join(f"{service.role}-{self._count}", service.role)
        started: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        task = self._tasks.create_task(live(service, self.settings(key_file, nats=nats, bootstrap=bootstrap), started, stop))
        both: set[asyncio.Future[Any]] = {task, started}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            await task
        running = RunningNode(*started.result(), key_file, task, stop)
        self.nodes.append(running)
        return running

    async def client(self, key_file: Path | None = None) -> ClientNode:
        """Start a calling node outside the stack, as `aicli` does with a profile from `aicli mesh connect`."""
        self._count += 1
        if key_file is None:
            key_file = self.join(f"client-{self._count}", Role.CLIENT)
        settings = ClientSettings(mesh=MESH, nats_url=None, node_key_file=key_file, mesh_file=key_file.with_suffix(".mesh"))
        return await self._stack.enter_async_context(client(settings))


@asynccontextmanager
async def swarmnet(*, nats: bool = False, own_dht: bool = False) -> AsyncIterator[SwarmNet]:
    with tempfile.TemporaryDirectory(prefix="swarmnet-") as folder:
        async with AsyncExitStack() as opened:
            bootstrap = await opened.enter_async_context(dht.dht()) if own_dht else dht.shared()
            server = NatsServer(Path(folder)) if nats else None
            if server is not None:
                server.start()
            try:
                async with background() as tasks, AsyncExitStack() as stack:
                    yield SwarmNet(Path(folder), bootstrap, opened.aclose if own_dht else _end_shared_dht, server, tasks, stack)
            finally:
                if server is not None:
                    server.kill()


async def _end_shared_dht() -> None:
    raise AssertionError("other tests use this DHT: ask for own_dht")


swarmnet.__test__ = False  # type: ignore[attr-defined]  # as testnet
