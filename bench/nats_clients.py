"""Processor time of a request and its reply in the caller's process: our NATS client against nats-py.

    python -m bench.nats_clients [--quick] [--rounds 5] [--json FILE]

Both send 100 bytes to the same echo in another process, over the same nats-server, with uvloop. The rounds alternate and each
figure is its median. ``bench.mesh`` measures what the mesh adds.
"""

import asyncio
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import uvloop

from bench import report
from shared.identity import node_keys
from shared.node.lifecycle import background
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats.nats_protocol import NatsMessage
from tests.testnet import NatsServer

BODY = b"x" * 100
CALLS = 4_000
QUICK_ROUNDS = 3
IN_FLIGHT = (1, 16)

One = Callable[[], Awaitable[object]]


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
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def _requests_of(client: NatsClient) -> One:
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


async def _spent_us(one: One, in_flight: int) -> float:
    """Microseconds of processor time for one call."""

    async def many() -> None:
        for _ in range(CALLS // in_flight):
            await one()

    await one()
    start = time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(in_flight):
            tasks.create_task(many())
    return (time.process_time() - start) * 1e6 / CALLS


async def _measure(url: str, rounds: int) -> list[report.Row]:
    theirs = await nats.connect(url)
    async with _connected(url) as ours:
        clients: dict[str, One] = {"ours": _requests_of(ours), "nats-py": lambda: theirs.request("echo", BODY, timeout=10)}
        spent: dict[tuple[str, int], list[float]] = {}
        for _ in range(rounds):
            for in_flight in IN_FLIGHT:
                for name, one in clients.items():
                    spent.setdefault((name, in_flight), []).append(await _spent_us(one, in_flight))
    await theirs.close()
    middle = {key: statistics.median(values) for key, values in spent.items()}
    return [
        report.against(f"processor time of a call, {count} in flight", middle["ours", count], "us", "nats-py", middle["nats-py", count])
        for count in IN_FLIGHT
    ]


def main() -> None:
    parser = report.arguments(__doc__, limits=(300.0, 120.0), quick=f"{QUICK_ROUNDS} rounds")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with report.opened(options) as table, tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        (Path(folder) / "nats.conf").write_text(f'listen: "127.0.0.1:{server.port}"\n', encoding="utf-8")
        # Without authorization: nats-py has no key here.
        server.start()
        echo = subprocess.Popen(
            [sys.executable, "-m", "bench.nats_clients", "--serve", server.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert echo.stdout is not None
            assert echo.stdout.readline() == b"ready\n"
            table.add(table.run(_measure(server.url, QUICK_ROUNDS if options.quick else options.rounds)))
        finally:
            echo.terminate()
            echo.wait()
            server.kill()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        uvloop.run(_serve(sys.argv[2]))
    else:
        main()
