"""Hyperswarm from Python: the cost and memory of the sidecars between two Python processes, against asyncio TCP and Node alone.

Everything runs on a private DHT on loopback. The other side of each path is a separate process. Rounds alternate, because the speed of
shared cores drifts. Hyperswarm runs on uvloop, as all services do; TCP on plain asyncio at both ends.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from statistics import median

from pyhyperswarm import PeerAddress, PeerConnection, Swarm, find_node
from pyhyperswarm.dht import dht
from pyhyperswarm.sidecar_process import SIDECAR

from bench import calls, processes, report
from bench.processes import Other
from bench.report import Options, Rows
from shared.node.lifecycle import background

BIG, FLOOD_BYTES = 64 * 1024, 128 * 1024 * 1024
CROWD = 50
#: A message's first byte: send it back, count it, report the count, or stop reading.
ECHO, COUNT, REPORT, DEAFEN = 0x45, 0x53, 0x51, 0x44
BODY = bytes([ECHO]) * 100
BIG_BODY = bytes([COUNT]) * BIG
SWARMS = Path(__file__).parent / "hyperswarm" / "swarms.js"
PACKAGES = SIDECAR / "node_modules"

Bootstrap = Sequence[PeerAddress]


def _swarm(bootstrap: Bootstrap) -> Swarm:
    return Swarm(bootstrap=bootstrap, host="127.0.0.1")


def write_options(bootstrap: Bootstrap, topic: bytes, **more: object) -> str:
    return json.dumps({"bootstrap": [{"host": each.host, "port": each.port} for each in bootstrap], "topic": topic.hex(), **more})


async def _serve(options: str = "") -> None:
    """Answer on Hyperswarm, or without options on TCP."""
    if options:
        await _serve_swarm(**json.loads(options))
    else:
        await asyncio.to_thread(asyncio.run, _serve_tcp())


async def _serve_tcp() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while message := await reader.readexactly(len(BODY)):
                writer.write(message)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    await processes.serve_until_stdin_ends(port=server.sockets[0].getsockname()[1])


def _answer_all(connection: PeerConnection) -> None:
    """Answer each message by its first byte."""
    counted = 0

    def take(message: bytes) -> None:
        nonlocal counted
        if message[0] == DEAFEN:
            connection.on_message = None
        elif message[0] == COUNT:
            counted += len(message)
        elif connection.closed is None:
            connection.send(message if message[0] == ECHO else str(counted).encode())
            counted = 0

    connection.open_window()
    connection.on_message = take


async def _serve_swarm(bootstrap: list[dict[str, object]], topic: str) -> None:
    async def accept(swarm: Swarm) -> None:
        kept = []
        async for connection in swarm:
            kept.append(connection)
            _answer_all(connection)

    async with _swarm([PeerAddress(**each) for each in bootstrap]) as swarm:  # type: ignore[arg-type]
        await swarm.join(bytes.fromhex(topic))
        await swarm.flush()
        async with background() as tasks:
            tasks.create_task(accept(swarm))
            await processes.serve_until_stdin_ends()


def run_node(role: str, options: str = "{}", *flags: str) -> AbstractAsyncContextManager[Other]:
    return processes.other(find_node(), *flags, SWARMS, role, options, environment={"NODE_PATH": str(PACKAGES)})


async def _first(swarm: Swarm) -> PeerConnection:
    async for connection in swarm:
        connection.open_window()
        return connection
    raise AssertionError("the swarm ended")


class Caller:
    """Calls over a connection whose answers arrive in order."""

    def __init__(self, connection: PeerConnection) -> None:
        self._connection = connection
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._loop = asyncio.get_running_loop()
        connection.on_message = lambda message: self._waiting.popleft().set_result(message)

    async def call(self, message: bytes = BODY) -> bytes:
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.append(answer)
        self._connection.send(message)
        return await answer

    async def flood(self) -> float:
        """Return the big messages per second."""
        start = time.perf_counter()
        for _ in range(FLOOD_BYTES // BIG):
            await self._connection.write(BIG_BODY)
        assert int(await self.call(bytes([REPORT]))) == FLOOD_BYTES
        return FLOOD_BYTES / BIG / (time.perf_counter() - start)


async def _ask_tcp(port: int) -> list[float]:
    """Run in an event loop of asyncio, not of uvloop."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def call() -> bytes:
        writer.write(BODY)
        return await reader.readexactly(len(BODY))

    took = await calls.one_by_one(call)
    writer.close()
    await writer.wait_closed()
    return took


async def _measure_messages(rows: Rows, bootstrap: Bootstrap, options: Options) -> None:
    topic, node_topic = os.urandom(32), os.urandom(32)
    async with (
        processes.serving("swarm", write_options(bootstrap, topic)),
        run_node("echo", write_options(bootstrap, node_topic)),
        run_node("ask", write_options(bootstrap, node_topic, size=BIG, total=FLOOD_BYTES)) as node,
        processes.serving("swarm") as tcp,
        _swarm(bootstrap) as swarm,
    ):
        await swarm.join(topic)
        caller = Caller(await _first(swarm))

        async def measure_tcp() -> dict[str, float]:
            took = await asyncio.to_thread(asyncio.run, _ask_tcp(int(tcp.ready["port"])))
            return {"p50": report.percentile(took, 0.5)}

        async def measure_ours() -> dict[str, float]:
            return {**await calls.figures_of(caller.call), "big": await caller.flood()}

        ways = {"tcp": measure_tcp, "ours": measure_ours, "node": node.ask}
        over_tcp, ours, alone = report.by_name(await report.take_turns(ways, options.rounds)).values()
    rows.paired("echo 100 B, p50", ours["p50"], "us", "asyncio TCP", over_tcp["p50"], at_most=4)
    rows.alone("echo 100 B, p99", median(ours["p99"]), "us", at_most=3000)
    rows.paired("echo 100 B, p50", ours["p50"], "us", "Node alone", alone["echo_us"])
    rows.alone("raw echoes, 32 in flight", median(ours["rate"]), "messages/s", at_least=30_000)
    rows.paired("64 KiB messages", ours["big"], "messages/s", "Node alone", alone["messages_per_second"], at_least=0.8)


async def _measure_joins(rows: Rows, bootstrap: Bootstrap, _options: Options) -> None:
    took = []
    for _ in range(7):
        topic = os.urandom(32)
        async with _swarm(bootstrap) as first, _swarm(bootstrap) as second:
            await first.join(topic)
            await first.flush()
            start = time.perf_counter()
            await second.join(topic)
            await _first(second)
            took.append((time.perf_counter() - start) * 1e3)
    rows.alone("join to first connection", median(took), "ms", at_most=100)


async def _measure_crowd(rows: Rows, bootstrap: Bootstrap, _arguments: Options) -> None:
    topic = os.urandom(32)
    async with run_node("bare", "{}", "--expose-gc") as bare:
        bare_bytes = bare.ready["rss"]
    async with _swarm(bootstrap) as swarm, run_node("crowd", write_options(bootstrap, topic, count=CROWD)) as crowd:
        await swarm.join(topic)
        await swarm.flush()
        idle = (await swarm.stats()).rss_bytes
        start = time.perf_counter()
        crowd.send()
        _kept = [await _first(swarm) for _ in range(CROWD)]
        took = time.perf_counter() - start
        full = (await swarm.stats()).rss_bytes
    rows.against("memory of a sidecar", idle / 1e6, "MB", "Node and the library", bare_bytes / 1e6, at_most=1.15)
    rows.alone("memory of a connection", max(0, full - idle) / CROWD / 1e6, "MB", at_most=0.3)
    rows.alone(f"{CROWD} swarms of one Node process connect", took, "s", at_most=1)


async def _measure_deaf(rows: Rows, bootstrap: Bootstrap, _arguments: Options) -> None:
    """Write to a peer that stops reading, and to a stopped peer that granted the largest window."""
    topic, greedy_topic = os.urandom(32), os.urandom(32)
    async with _swarm(bootstrap) as swarm, processes.serving("swarm", write_options(bootstrap, topic)):
        await swarm.join(topic)
        connection = await _first(swarm)
        # The first messages allocate what later ones reuse.
        await calls.one_by_one(Caller(connection).call)
        connection.send(bytes([DEAFEN]))
        rows.alone("memory that a peer that never reads costs", await _held_by(swarm, connection), "MB", at_most=4)
    async with _swarm(bootstrap) as swarm, run_node("greedy", write_options(bootstrap, greedy_topic)) as peer:
        await swarm.join(greedy_topic)
        connection = await _first(swarm)
        peer.process.send_signal(signal.SIGSTOP)
        held = await _held_by(swarm, connection)
        peer.process.send_signal(signal.SIGCONT)
        rows.alone("memory that a peer that grants all and is stopped costs", held, "MB", at_most=4)


async def _held_by(swarm: Swarm, connection: PeerConnection) -> float:
    """Return the MB that writing for some seconds adds to this process and its sidecar."""
    before = processes.resident_mb() + (await swarm.stats()).rss_bytes / 1e6
    with contextlib.suppress(TimeoutError):
        # In this time the bare library passed 505 MB.
        async with asyncio.timeout(2.0) as limit:
            while True:
                await connection.write(BIG_BODY)
    assert limit.expired(), "the connection ended before the measurement"
    return processes.resident_mb() + (await swarm.stats()).rss_bytes / 1e6 - before


if __name__ == "__main__":
    parts: dict[str, report.Part] = {
        "messages": _measure_messages,
        "joins": _measure_joins,
        "crowd": _measure_crowd,
        "deaf peers": _measure_deaf,
    }
    report.run(__doc__, parts, limits=(600.0, 180.0), setting=lambda _options: dht(), serve=_serve, rounds=(3, 1))
