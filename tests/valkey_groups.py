"""Real Valkey servers that replace each other: a primary with its replica and three Sentinels, and a cluster of six."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis.asyncio as redis

from stack.servers import valkey
from stack.servers.program import Program, SocketProbe
from tests.servers import Server
from tests.testnet import free_port

_SECONDS = 60
#: A server that is silent for this long is replaced. Operators set 5 s or more.
SILENT_MS = 500


class ValkeyNode(Server):
    """A Valkey on a loopback port."""

    def __init__(self, folder: Path, port: int, lines: Sequence[str], *words: str) -> None:
        socket = folder / "s"
        (folder / "conf").write_text("\n".join([f"port {port}", "bind 127.0.0.1", f"unixsocket {socket}", f"dir {folder}", *lines]) + "\n")
        self.port = port
        super().__init__(
            folder,
            Program(
                name="valkey",
                command=(str(valkey.binary()), str(folder / "conf"), *words),
                environment={},
                stage=0,
                probe=SocketProbe(port, b"PING\r\n", b"+PONG"),
            ),
        )

    async def ask(self, *words: str | int) -> Any:
        async with redis.Redis(port=self.port, protocol=2) as client:
            client.response_callbacks.clear()
            return await client.execute_command(*words)


@dataclass(frozen=True, slots=True)
class Watched:
    """A primary and a replica, and the Sentinels that watch them under the name ``main``."""

    servers: tuple[ValkeyNode, ...]
    sentinels: tuple[ValkeyNode, ...]

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels) + "/main?db=0"

    async def primary(self) -> ValkeyNode:
        found = await self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        return next(each for each in self.servers if each.port == int(found[1]))

    async def settle(self) -> None:
        """Wait until each Sentinel knows the other two, the primary and the replica."""

        async def is_settled() -> bool:
            infos = []
            for server in self.servers:
                async with redis.Redis(port=server.port) as client:
                    infos.append(await client.info("replication"))
            link = next((info["master_link_status"] for info in infos if info["role"] == "slave"), None)
            primaries = [server.port for server, info in zip(self.servers, infos, strict=True) if info["role"] == "master"]
            views = [await each.ask("SENTINEL", "MASTER", "main") for each in self.sentinels]
            known = [dict(zip(view[::2], view[1::2], strict=True)) for view in views]
            return (
                link == "up"
                and len(primaries) == 1
                and all(int(view[b"port"]) == primaries[0] for view in known)
                and all(view[b"num-other-sentinels"] == b"2" and view[b"num-slaves"] == b"1" for view in known)
            )

        await until(is_settled)


@dataclass(frozen=True, slots=True)
class Cluster:
    servers: tuple[ValkeyNode, ...]
    #: The first server's cluster port, for the other servers.
    first_bus: int

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{each.port}" for each in self.servers[:3])

    async def form(self) -> None:
        """Form three primaries, each with a third of the slots and a replica."""
        bounds = (0, 5461, 10923, 16384)
        for number, server in enumerate(self.servers[:3]):
            await server.ask("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        for server in self.servers[1:]:
            await server.ask("CLUSTER", "MEET", "127.0.0.1", self.servers[0].port, self.first_bus)
        await until(lambda: self._agrees(b"cluster_known_nodes:6"))
        for number, server in enumerate(self.servers[3:]):
            await server.ask("CLUSTER", "REPLICATE", await self.id_of(self.servers[number]))
        await self.settle()

    async def settle(self) -> None:
        """Wait until every key has a primary, and every primary a replica."""
        await until(lambda: self._agrees(b"cluster_state:ok"))
        await until(self._is_paired)

    async def id_of(self, server: ValkeyNode) -> str:
        found = await server.ask("CLUSTER", "MYID")
        return str(found.decode())

    async def owner(self, key: str) -> ValkeyNode:
        """Return the primary of the key."""
        for server in self.servers:
            if server.running:
                try:
                    await server.ask("EXISTS", key)
                except redis.ResponseError:
                    continue
                else:
                    role = await server.ask("ROLE")
                    if role[0] == b"master":
                        return server
        raise AssertionError(f"nobody has {key}")

    async def _agrees(self, line: bytes) -> bool:
        return all([line in await each.ask("CLUSTER", "INFO") for each in self.servers])

    async def _is_paired(self) -> bool:
        roles = [await each.ask("ROLE") for each in self.servers]
        return sum(role[0] == b"master" for role in roles) == 3 == sum(b"connected" in role for role in roles)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(_SECONDS):
        while not await condition():  # noqa: ASYNC110 - the servers send no events
            await asyncio.sleep(0.05)


@contextmanager
def watched() -> Iterator[Watched]:
    with ExitStack() as stack:
        first = _started(stack, ["repl-diskless-sync-delay 0"])
        replica = _started(stack, ["repl-diskless-sync-delay 0", f"replicaof 127.0.0.1 {first.port}"])
        lines = [
            f"sentinel monitor main 127.0.0.1 {first.port} 2",
            f"sentinel down-after-milliseconds main {SILENT_MS}",
            "sentinel failover-timeout main 3000",
        ]
        yield Watched((first, replica), tuple(_started(stack, lines, "--sentinel") for _ in range(3)))


@contextmanager
def cluster() -> Iterator[Cluster]:
    lines = ["cluster-enabled yes", f"cluster-node-timeout {2 * SILENT_MS}", "repl-diskless-sync-delay 0"]
    with ExitStack() as stack:
        buses = [free_port() for _ in range(6)]
        yield Cluster(tuple(_started(stack, [*lines, f"cluster-port {bus}"]) for bus in buses), buses[0])


def _started(stack: ExitStack, lines: Sequence[str], *words: str) -> ValkeyNode:
    folder = stack.enter_context(TemporaryDirectory(prefix="aimesh-", ignore_cleanup_errors=True))
    node = ValkeyNode(Path(folder), free_port(), lines, *words)
    node.start()
    stack.callback(node.stop)
    return node
