"""Processor time of a request and its reply in the caller's process: our NATS client against nats-py.

    python -m bench.nats_clients [--quick] [--rounds 5] [--json FILE]

Both send 100 bytes to the same echo in another process, over the same nats-server, with uvloop. Rounds alternate and each figure is a
median. ``bench.mesh`` measures what the mesh adds.
"""

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats

from bench import calls, processes, report
from bench.calls import Call
from shared.identity import node_keys
from shared.node.lifecycle import background
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats.nats_protocol import NatsMessage
from tests.testnet import NatsServer

BODY = b"x" * 100
CALLS = 4_000
IN_FLIGHT = (1, 16)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[NatsClient]:
    client = NatsClient(url, node_keys.NodeKey(node_keys.new_seed()), name="bench")
    await client.connect(deadline_seconds=10)
    async with background() as tasks:
        tasks.create_task(client.run())
        yield client
        await client.close()


async def _serve(url: str) -> None:
    async with _connected(url) as client:
        client.subscribe("echo", lambda message: client.publish(message.reply.decode(), message.payload))
        await client.flush()
        await processes.serve_until_stdin_ends()


def _requests_of(client: NatsClient) -> Call:
    waiting: dict[bytes, asyncio.Future[bytes]] = {}
    numbers = itertools.count()
    loop = asyncio.get_running_loop()

    def arrived(message: NatsMessage) -> None:
        waiting.pop(message.subject).set_result(message.payload)

    client.subscribe("_INBOX.bench.*", arrived)

    async def request() -> bytes:
        reply = f"_INBOX.bench.{next(numbers)}"
        future = waiting[reply.encode()] = loop.create_future()
        client.publish("echo", BODY, reply=reply)
        async with asyncio.timeout(10):
            return await future

    return request


async def _spent_us(call: Call, in_flight: int) -> float:
    await call()
    start = time.process_time()
    await calls.many_at_once(call, in_flight, CALLS // in_flight)
    return (time.process_time() - start) * 1e6 / CALLS


async def _measure_clients(url: str, rounds: int) -> list[report.Row]:
    theirs = await nats.connect(url)
    async with _connected(url) as ours:
        clients: dict[str, Call] = {"ours": _requests_of(ours), "nats-py": lambda: theirs.request("echo", BODY, timeout=10)}
        spent: dict[tuple[str, int], list[float]] = {}
        for _ in range(rounds):
            for in_flight in IN_FLIGHT:
                for name, call in clients.items():
                    spent.setdefault((name, in_flight), []).append(await _spent_us(call, in_flight))
    await theirs.close()
    return [
        calls.compare(f"processor time of a call, {count} in flight", spent["ours", count], "us", "nats-py", spent["nats-py", count])
        for count in IN_FLIGHT
    ]


async def _measure(table: report.Table, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        # No authorization: nats-py has no key here.
        (Path(folder) / "nats.conf").write_text(f'listen: "127.0.0.1:{server.port}"\n', encoding="utf-8")
        server.start()
        try:
            with processes.serving("nats_clients", server.url):
                table.add(await _measure_clients(server.url, rounds))
        finally:
            server.kill()


if __name__ == "__main__":
    report.run(__doc__, _measure, limits=(300.0, 120.0), serve=_serve, rounds=(5, 3))
