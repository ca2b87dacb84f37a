"""A Hyperswarm peer in its own process, and its observer, which records the peer's messages with their times and waits for them.

The process pings every connection ten times a second, because an open connection may never carry a byte: it reports "alive" when the
first answer arrives. Times are from the monotonic clock, which all namespaces of a machine share.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec
from pyhyperswarm import ConnectionClosed, PathChanged, PeerAddress, PeerConnection, PeerFailed, Swarm

from shared.node.lifecycle import background
from tests.nat.topology import Machine

PING_SECONDS = 0.1
PULSE_SECONDS = 0.5
PING, ANSWER = b"?", b"!"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of a peer."""

    topic: str
    bootstrap: list[str]
    relays: list[str] = []
    #: Seed of its key, in hex: the same seed makes the same peer.
    seed: str


class Said(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a peer's output."""

    at: float
    #: joining, joined, opened, alive, pulse (an answer in the last second), path, closed, failed.
    what: str
    #: The connection's number in this process.
    connection: int = 0
    path: str = ""
    remote: str = ""
    #: Why the connection closed or failed, and hyperdht's code for that.
    why: str = ""
    code: str = ""


# --- the process ---------------------------------------------------------------------------------------------------------


class _Peer:
    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._numbers: dict[PeerConnection, int] = {}
        self._alive: set[PeerConnection] = set()
        self._pulse_at = 0.0
        swarm.on_event = self._on_event

    def say(self, what: str, connection: PeerConnection | None = None, *, why: str = "", code: str = "") -> None:
        path, remote = ("", "") if connection is None else (connection.path.value, str(connection.remote))
        number = 0 if connection is None else self._numbers[connection]
        said = Said(at=time.monotonic(), what=what, connection=number, path=path, remote=remote, why=why, code=code)
        sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
        sys.stdout.buffer.flush()

    def _on_event(self, event: object) -> None:
        if isinstance(event, PeerFailed):
            self.say("failed", why=event.text, code=event.code)
        elif isinstance(event, PathChanged) and event.connection in self._numbers:
            self.say("path", event.connection)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            async for connection in self._swarm:
                self._open(connection)
                tasks.create_task(self._ping(connection))

    def _open(self, connection: PeerConnection) -> None:
        self._numbers[connection] = len(self._numbers) + 1

        def message(body: bytes) -> None:
            if body[:1] == PING:
                with suppress(ConnectionClosed):
                    connection.send(ANSWER + body[1:])
                return
            if connection not in self._alive:
                self._alive.add(connection)
                self.say("alive", connection)
            if time.monotonic() > self._pulse_at:
                self._pulse_at = time.monotonic() + PULSE_SECONDS
                self.say("pulse", connection)

        def closed(why: str) -> None:
            self._alive.discard(connection)
            self.say("closed", connection, why=why)

        self.say("opened", connection)
        connection.on_closed = closed
        connection.on_message = message
        connection.open_window()

    async def _ping(self, connection: PeerConnection) -> None:
        with suppress(ConnectionClosed):
            while connection.closed is None:
                connection.send(PING)
                await asyncio.sleep(PING_SECONDS)


async def _main(wanted: Wanted) -> None:
    bootstrap = [PeerAddress.parse(text) for text in wanted.bootstrap]
    relays = [bytes.fromhex(text) for text in wanted.relays]
    async with Swarm(seed=bytes.fromhex(wanted.seed), bootstrap=bootstrap, relays=relays) as swarm:
        peer = _Peer(swarm)
        peer.say("joining")
        await swarm.join(bytes.fromhex(wanted.topic))
        await swarm.flush()
        peer.say("joined")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(peer.run())
            await _end_of_input()
            raise SystemExit


async def _end_of_input() -> None:
    """Wait until the observer is gone."""
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


# --- the observer --------------------------------------------------------------------------------------------------------


class Watched:
    """A running peer and everything that it reported."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said: list[Said] = []
        self._more = asyncio.Event()

    async def read(self) -> None:
        """Read its output to the end."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.said.append(msgspec.json.decode(line, type=Said))
            self._more.set()
        self._more.set()

    async def hear(self, what: str, *, since: float = 0.0, seconds: float) -> Said:
        """Return the first report of that kind since ``since``; if there is none, fail with the reports that came instead."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    self._more.clear()
                    for said in self.said:
                        if said.what == what and said.at >= since:
                            return said
                    await self._more.wait()
        raise AssertionError(f"no {what!r} within {seconds} s; it said: {[line for line in self.said if line.at >= since]}")

    def heard(self, what: str, *, since: float = 0.0) -> list[Said]:
        return [said for said in self.said if said.what == what and said.at >= since]

    def kill(self) -> float:
        """Kill the process with SIGKILL and return when; its sidecar has to notice."""
        self._process.kill()
        return time.monotonic()

    async def end(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def peer(
    machine: Machine, *, topic: bytes, bootstrap: Sequence[str], relays: Sequence[str] = (), seed: bytes = b""
) -> AsyncIterator[Watched]:
    """Run a peer on this machine that has announced itself and looks for others of the topic."""
    wanted = Wanted(topic=topic.hex(), bootstrap=list(bootstrap), relays=list(relays), seed=(seed or os.urandom(32)).hex())
    process = await machine.start(sys.executable, "-m", "tests.nat.peer", msgspec.json.encode(wanted).decode())
    watched = Watched(process)
    async with background() as tasks:
        tasks.create_task(watched.read())
        try:
            await watched.hear("joined", seconds=60)
            yield watched
        finally:
            await watched.end()


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=Wanted)))
