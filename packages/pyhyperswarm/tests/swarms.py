"""Swarms on a private DHT on loopback, for the tests of this folder."""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import nacl.signing
from pyhyperswarm import Event, PeerAddress, PeerConnection, SidecarLost, Swarm, dht

#: For programs that import this package, also where it is not installed.
VARIABLES = {**os.environ, "PYTHONPATH": str(Path(dht.__file__).parents[1])}
#: Longer than any test here takes on a slow machine.
PATIENCE_SECONDS = 60

E = TypeVar("E")


def new_topic() -> bytes:
    return secrets.token_bytes(32)


def public_key(seed: bytes) -> bytes:
    return bytes(nacl.signing.SigningKey(seed).verify_key)


@dataclass(eq=False)
class EventRecorder:
    """Records the events of a swarm, and lets a test wait for one."""

    events: list[Event] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    async def of(self, kind: type[E], accepts: Callable[[E], bool] = lambda event: True) -> E:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                for event in self.events:
                    if isinstance(event, kind) and accepts(event):
                        return event
                self._news.clear()
                await self._news.wait()


async def take(swarm: Swarm, of: Swarm | None = None) -> PeerConnection:
    """Return the next connection that opens."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for connection in swarm:
            if of is None or connection.key == of.public_key:
                return connection
    raise AssertionError("the swarm was closed")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def meet(one: Swarm, other: Swarm, topic: bytes | None = None) -> tuple[PeerConnection, PeerConnection]:
    """Connect two swarms; return both ends, with open windows."""
    chosen = topic or new_topic()
    await one.join(chosen)
    await one.flush()
    await other.join(chosen)
    ends = (await take(one, of=other), await take(other, of=one))
    for end in ends:
        end.open_window()
    return ends


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Swarm, Swarm]]:
    """Two swarms that are not connected yet."""
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(local_swarm(dht.shared()))
        other = await stack.enter_async_context(local_swarm(dht.shared()))
        yield one, other


async def kill_sidecar(swarm: Swarm) -> None:
    """Kill the sidecar with SIGKILL, and wait for the next one."""
    restarts = (await swarm.stats()).restarts
    os.kill((await swarm.stats()).pid, signal.SIGKILL)

    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                if (await swarm.stats()).restarts > restarts:
                    return
            except SidecarLost:
                await asyncio.sleep(0.01)


def local_swarm(nodes: list[PeerAddress], **options: object) -> Swarm:
    return Swarm(bootstrap=nodes, host=dht.HOST, **options)  # type: ignore[arg-type]
