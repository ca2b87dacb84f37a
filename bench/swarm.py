"""Hyperswarm from Python: the cost and memory of the sidecars between two Python processes, against asyncio TCP and Node alone.

    python -m bench.swarm [--quick] [--rounds 3] [--json FILE]

Everything runs on a private DHT on loopback. The other side of each path is a separate process. Rounds alternate and each figure is a
median, because the speed of shared cores drifts. Hyperswarm runs on uvloop, as all services do; TCP on plain asyncio at both ends.
"""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import struct
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench import calls, processes, report
from bench.calls import Figures
from shared.node.lifecycle import background
from shared.transports.hyperswarm import PeerAddress, PeerConnection, Swarm, find_node
from tests.dht import dht

IN_FLIGHT, EACH = 32, 400
BIG, FLOOD_BYTES = 64 * 1024, 128 * 1024 * 1024
JOINS, CROWD = 7, 50
#: In this time the bare library passed 505 MB.
DEAF_SECONDS = 2.0
#: A message's first byte: send it back, count it, report the count, or stop reading.
ECHO, COUNT, REPORT, DEAFEN = 0x45, 0x53, 0x51, 0x44
BODY = bytes([ECHO]) * 100
SWARMS = Path(__file__).parent / "hyperswarm" / "swarms.js"
PACKAGES = Path(__file__).parent.parent / "shared" / "transports" / "hyperswarm" / "sidecar" / "node_modules"
LENGTH = struct.Struct("<I")

median = statistics.median


# --- the other side ------------------------------------------------------------------------------------------------------


class _Counter:
    """Answers a message by its first byte; None for no answer."""

    def __init__(self) -> None:
        self._counted = 0

    def answer(self, message: bytes) -> bytes | None:
        if message[0] == ECHO:
            return message
        if message[0] == COUNT:
            self._counted += len(message)
            return None
        counted, self._counted = self._counted, 0
        return str(counted).encode()


async def _serve_tcp() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counter = _Counter()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                answer = counter.answer(await _read(reader))
                if answer is not None:
                    writer.write(LENGTH.pack(len(answer)) + answer)
                    await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    _say({"port": server.sockets[0].getsockname()[1]})
    await _end_of_input()


async def _serve_swarm(bootstrap: Sequence[str], topic: str) -> None:
    async with _swarm([PeerAddress.parse(each) for each in bootstrap]) as swarm:
        await swarm.join(bytes.fromhex(topic))
        await swarm.flush()
        _say({"ready": True})
        kept = []

        async def accept() -> None:
            async for connection in swarm:
                kept.append(connection)
                connection.open_window()
                connection.on_message = _answering(connection)

        async with background() as tasks:
            tasks.create_task(accept())
            await _end_of_input()


def _answering(connection: PeerConnection) -> Callable[[bytes], None]:
    counter = _Counter()

    def take(message: bytes) -> None:
        if message[0] == DEAFEN:
            connection.on_message = None
            return
        answer = counter.answer(message)
        if answer is not None and connection.closed is None:
            connection.send(answer)

    return take


def _say(what: dict[str, object]) -> None:
    print(json.dumps(what), flush=True)


async def _end_of_input() -> None:
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


# --- this side -----------------------------------------------------------------------------------------------------------


def _swarm(bootstrap: Sequence[PeerAddress]) -> Swarm:
    return Swarm(bootstrap=bootstrap, host="127.0.0.1")


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = LENGTH.unpack(await reader.readexactly(4))
    return await reader.readexactly(length)


@dataclass(slots=True)
class Other:
    """A process that speaks JSON lines."""

    process: asyncio.subprocess.Process

    async def hear(self) -> dict[str, float]:
        assert self.process.stdout is not None
        async with asyncio.timeout(120):
            line = await self.process.stdout.readline()
        assert line, "the other process ended"
        answer: dict[str, float] = json.loads(line)
        return answer

    async def ask(self) -> dict[str, float]:
        """Ask for another round."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        return await self.hear()


@asynccontextmanager
async def _other(*words: str) -> AsyncIterator[Other]:
    environment = {**os.environ, "NODE_PATH": str(PACKAGES)}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, env=environment)
    try:
        yield Other(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _python(role: str, **options: object) -> contextlib.AbstractAsyncContextManager[Other]:
    return _other(sys.executable, "-m", "bench.swarm", "--other", role, json.dumps(options))


def _node(role: str, *flags: str, **options: object) -> contextlib.AbstractAsyncContextManager[Other]:
    return _other(str(find_node()), *flags, str(SWARMS), role, json.dumps(options))


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

    async def __call__(self, message: bytes) -> bytes:
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.append(answer)
        self._connection.send(message)
        return await answer

    async def flood(self) -> float:
        """Big messages per second."""
        message = bytes([COUNT]) * BIG
        start = time.perf_counter()
        for _ in range(FLOOD_BYTES // BIG):
            await self._connection.write(message)
        assert int(await self(bytes([REPORT]))) == FLOOD_BYTES
        return FLOOD_BYTES / BIG / (time.perf_counter() - start)


# --- what is measured ----------------------------------------------------------------------------------------------------


async def _measure_messages(bootstrap: list[PeerAddress], rounds: int) -> list[report.Row]:
    topic, node_topic = os.urandom(32), os.urandom(32)
    nodes = [{"host": each.host, "port": each.port} for each in bootstrap]
    ours, tcp, node = Figures(), Figures(), Figures()
    async with AsyncExitStack() as stack:
        echo = await stack.enter_async_context(_python("echo", bootstrap=[str(each) for each in bootstrap], topic=topic.hex()))
        await echo.hear()
        node_echo = await stack.enter_async_context(_node("echo", bootstrap=nodes, topic=node_topic.hex()))
        await node_echo.hear()
        ask = _node("ask", bootstrap=nodes, topic=node_topic.hex(), size=BIG, total=FLOOD_BYTES)
        node_ask = await stack.enter_async_context(ask)
        await node_ask.hear()
        port = int((await (await stack.enter_async_context(_python("tcp"))).hear())["port"])
        swarm = await stack.enter_async_context(_swarm(bootstrap))
        await swarm.join(topic)
        caller = Caller(await _first(swarm))
        for _ in range(rounds):
            tcp.add_latencies(await asyncio.to_thread(asyncio.run, _ask_tcp(port)))
            ours.add_latencies(await calls.one_by_one(lambda: caller(BODY)))
            ours.rate.append(await calls.rate_of_many(lambda: caller(BODY), IN_FLIGHT, EACH))
            ours.stream.append(await caller.flood())
            answer = await node_ask.ask()
            node.p50.append(answer["echo_us"])
            node.stream.append(answer["messages_per_second"])
    return [
        calls.compare("echo 100 B, p50", ours.p50, "us", "asyncio TCP", tcp.p50, at_most=4),
        report.alone("echo 100 B, p99", median(ours.p99), "us", at_most=3000),
        calls.compare("echo 100 B, p50", ours.p50, "us", "Node alone", node.p50),
        report.alone("raw echoes, 32 in flight", median(ours.rate), "messages/s", at_least=30_000),
        calls.compare("64 KiB messages", ours.stream, "messages/s", "Node alone", node.stream, at_least=0.8),
    ]


async def _ask_tcp(port: int) -> list[float]:
    """Runs in an event loop of asyncio, not of uvloop."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def call(message: bytes) -> bytes:
        writer.write(LENGTH.pack(len(message)) + message)
        return await _read(reader)

    took = await calls.one_by_one(lambda: call(BODY))
    writer.close()
    await writer.wait_closed()
    return took


async def _measure_joins(bootstrap: list[PeerAddress]) -> report.Row:
    took = []
    for _ in range(JOINS):
        topic = os.urandom(32)
        async with _swarm(bootstrap) as first, _swarm(bootstrap) as second:
            await first.join(topic)
            await first.flush()
            start = time.perf_counter()
            await second.join(topic)
            await _first(second)
            took.append((time.perf_counter() - start) * 1e3)
    return report.alone("join to first connection", median(took), "ms", at_most=100)


async def _measure_crowd(bootstrap: list[PeerAddress]) -> list[report.Row]:
    nodes = [{"host": each.host, "port": each.port} for each in bootstrap]
    topic = os.urandom(32)
    async with _node("bare", "--expose-gc") as bare:
        bare_bytes = (await bare.hear())["rss"]
    async with _swarm(bootstrap) as swarm, _node("crowd", bootstrap=nodes, topic=topic.hex(), count=CROWD) as crowd:
        await swarm.join(topic)
        await swarm.flush()
        await crowd.hear()
        idle = (await swarm.stats()).rss_bytes
        start = time.perf_counter()
        assert crowd.process.stdin is not None
        crowd.process.stdin.write(b"\n")
        kept: list[PeerConnection] = []
        async for connection in swarm:
            connection.open_window()
            kept.append(connection)
            if len(kept) == CROWD:
                break
        took = time.perf_counter() - start
        full = (await swarm.stats()).rss_bytes
    return [
        report.against("memory of a sidecar", idle / 1e6, "MB", "Node and the library", bare_bytes / 1e6, at_most=1.15),
        report.alone("memory of a connection", max(0, full - idle) / CROWD / 1e6, "MB", at_most=0.3),
        report.alone(f"{CROWD} swarms of one Node process connect", took, "s", at_most=1),
    ]


async def _measure_deaf(bootstrap: list[PeerAddress], *, greedy: bool) -> report.Row:
    """With ``greedy``, the peer grants the largest window and is stopped; otherwise it stops reading."""
    topic = os.urandom(32)
    nodes = [{"host": each.host, "port": each.port} for each in bootstrap]
    texts = [str(each) for each in bootstrap]
    other = _node("greedy", bootstrap=nodes, topic=topic.hex()) if greedy else _python("echo", bootstrap=texts, topic=topic.hex())
    async with _swarm(bootstrap) as swarm, other as peer:
        await peer.hear()
        await swarm.join(topic)
        connection = await _first(swarm)
        if greedy:
            peer.process.send_signal(signal.SIGSTOP)
        else:
            # The first messages allocate what later ones reuse.
            first = Caller(connection)
            await calls.one_by_one(lambda: first(BODY))
            connection.send(bytes([DEAFEN]))
        before = processes.resident_bytes() + (await swarm.stats()).rss_bytes
        message = bytes([COUNT]) * BIG
        end = time.monotonic() + DEAF_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + DEAF_SECONDS):
                while True:
                    await connection.write(message)
        after = processes.resident_bytes() + (await swarm.stats()).rss_bytes
        assert time.monotonic() >= end, "the connection ended before the measurement"
        if greedy:
            peer.process.send_signal(signal.SIGCONT)
    who = "a peer that grants all and is stopped" if greedy else "a peer that never reads"
    return report.alone(f"memory that {who} costs", (after - before) / 1e6, "MB", at_most=4)


async def _measure(table: report.Table, rounds: int) -> None:
    table.expect(("messages", "joins", "crowd", "deaf peers"))
    async with dht() as bootstrap:
        with table.part("messages") as rows:
            rows.extend(await _measure_messages(bootstrap, rounds))
        with table.part("joins") as rows:
            rows.append(await _measure_joins(bootstrap))
        with table.part("crowd") as rows:
            rows.extend(await _measure_crowd(bootstrap))
        with table.part("deaf peers") as rows:
            for greedy in (False, True):
                rows.append(await _measure_deaf(bootstrap, greedy=greedy))


def _be_other(role: str, text: str) -> None:
    options = json.loads(text)
    if role == "tcp":
        asyncio.run(_serve_tcp())
    else:
        uvloop.run(_serve_swarm(options["bootstrap"], options["topic"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--other"]:
        _be_other(*sys.argv[2:])
    else:
        report.run(__doc__, _measure, limits=(600.0, 180.0), rounds=(3, 1))
