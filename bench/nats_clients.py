"""Processor time of a request and its reply in the caller's process: our NATS client against nats-py.

Both send 100 bytes to the same echo in another process, over the same nats-server, with uvloop. Rounds alternate and each figure is a
median. ``bench.mesh`` measures what the mesh adds.
"""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats

from bench import calls, nodes, processes, report
from bench.calls import Call
from bench.report import Options, Rows
from shared.identity import node_keys
from shared.node.lifecycle import background
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats.nats_protocol import NatsMessage

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

    async def request() -> object:
        reply = f"_INBOX.bench.{next(numbers)}"
        future = waiting[reply.encode()] = loop.create_future()
        client.publish("echo", BODY, reply=reply)
        async with asyncio.timeout(10):
            return await future

    return request


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    spent = defaultdict[tuple[str, int], list[float]](list)
    with nodes.nats_server() as (url, _):
        async with processes.serving("nats_clients", url), _connected(url) as ours, await nats.connect(url) as theirs:
            clients: dict[str, Call] = {"ours": _requests_of(ours), "nats-py": lambda: theirs.request("echo", BODY, timeout=10)}
            for _ in range(options.rounds):
                for in_flight in IN_FLIGHT:
                    for name, call in clients.items():
                        await call()
                        start = time.process_time()
                        await calls.many_at_once(call, in_flight, CALLS // in_flight)
                        spent[name, in_flight].append((time.process_time() - start) * 1e6 / CALLS)
    for count in IN_FLIGHT:
        claim = f"processor time of a call, {count} in flight"
        rows.medians(claim, spent["ours", count], "us", "nats-py", spent["nats-py", count])


if __name__ == "__main__":
    report.run(__doc__, {"calls": _measure}, limits=(300.0, 120.0), serve=_serve, rounds=(5, 3))
