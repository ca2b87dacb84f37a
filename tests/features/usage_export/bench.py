"""Measure what the usage export costs at 1,000 settled requests a second.  python -m tests.features.usage_export.bench

The gateway's own store settles batches of 20 requests; the export reads, writes and sends them in the same process, as in the gateway. The
receiver of CloudEvents is another process. A request takes the gateway about 1,500 µs in all (bench/results/tracing.txt).
"""

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import msgspec

from bench import report
from bench.report import Options, Rows
from features.usage_export.gateway.file_sink import FileSink
from features.usage_export.gateway.sinks import CloudEventsSink, Sink
from features.usage_export.gateway.store import OutboxStore
from services.gateway import store
from services.gateway.store import GatewayStore
from shared.stores.database import Database
from shared.types import RequestId, UserId
from tests.features.usage_export.gateway import exports
from tests.servers import PostgresServer, running
from tests.services.gateway.billing import test_ledger_store

RATE, BATCH, TENANTS, ROUNDS = 1000, 20, 50, 5
REQUEST_US = 1500.0
#: Answers each batch, and prints its port first.
RECEIVER = """
import asyncio
async def answer(reader, writer):
    head = (await reader.readuntil(b"\\r\\n\\r\\n")).lower()
    await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\\r\\n")[0]))
    writer.write(b"HTTP/1.1 204 No Content\\r\\nconnection: close\\r\\n\\r\\n")
    await writer.drain()
    writer.close()
async def serve():
    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(serve())
"""


@asynccontextmanager
async def _receiver() -> AsyncIterator[str]:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", RECEIVER, stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None
        yield f"http://127.0.0.1:{int(await child.stdout.readline())}/"
    finally:
        child.kill()
        await child.wait()


async def _settle(requests: GatewayStore, count: int, rate: float = float("inf")) -> None:
    """Settle so many requests, at most so many a second."""
    owners, began = itertools.cycle([UserId(uuid4()) for _ in range(TENANTS)]), time.monotonic()
    for done in range(0, count, BATCH):
        rows = [test_ledger_store.row(next(owners), RequestId(uuid4()), 0) for _ in range(BATCH)]
        await requests.write_requests([msgspec.structs.replace(row, prompt_tokens=100, completion_tokens=20) for row in rows])
        await asyncio.sleep(max(0.0, began + (done + BATCH) / rate - time.monotonic()))


async def _spent_us(opened: Database, sink: Sink | None, seconds: float) -> float:
    """Return the processor time of this process for a request."""
    outbox, count = OutboxStore(opened, "/bench"), int(RATE * seconds)
    if sink is not None:
        # A new one begins with what is settled from now on.
        sink.name = f"sink {uuid4().hex[:8]}"
        await outbox.add_sinks([sink.name])
    async with asyncio.TaskGroup() as tasks:
        export = None if sink is None else tasks.create_task(exports.new_export(outbox, sink).run())
        await _settle(GatewayStore(opened, exports_usage=sink is not None), RATE)
        before = time.process_time()
        await _settle(GatewayStore(opened, exports_usage=sink is not None), count, RATE)
        spent = time.process_time() - before
        if sink is not None and export is not None:
            (state,) = await outbox.list_sinks([sink.name])
            assert state.waiting < 4 * RATE, f"the export fell behind by {state.waiting} requests: {state.error}"
            export.cancel()
    return 1e6 * spent / count


async def _rate(opened: Database, count: int, *, exports_usage: bool) -> float:
    began = time.perf_counter()
    await _settle(GatewayStore(opened, exports_usage=exports_usage), count)
    return count / (time.perf_counter() - began)


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    with running(partial(PostgresServer, durable=True)) as postgres, TemporaryDirectory() as folder:
        async with postgres.plain_role(postgres.url()) as url, store.opened(url) as opened, _receiver() as receiver:
            sinks: dict[str, Sink] = {
                "a file": FileSink(Path(folder) / "usage.jsonl"), "CloudEvents": CloudEventsSink(receiver, None),
            }  # fmt: skip
            await OutboxStore(opened, "/bench").add_sinks(["first"])
            kinds = {"none": partial(_spent_us, opened, None, options.seconds)}
            kinds |= {name: partial(_spent_us, opened, sink, options.seconds) for name, sink in sinks.items()}
            spent = await report.take_turns(kinds, ROUNDS)
            for name in sinks:
                cost = statistics.median(with_ - without for with_, without in zip(spent[name], spent["none"], strict=True))
                rows.alone(f"export to {name}: processor time for a request", cost, "us")
                rows.alone(f"export to {name}: share of a request's {REQUEST_US:,.0f} us", 100 * cost / REQUEST_US, "%", at_most=3)
            count = int(500 * options.seconds)
            pair = {name: partial(_rate, opened, count, exports_usage=name == "on") for name in ("off", "on")}
            rates = await report.take_turns(pair, ROUNDS)
            rows.paired("settle batches of 20 with an outbox", rates["on"], "requests/s", "without", rates["off"], at_least=0.9)


if __name__ == "__main__":
    report.run(__doc__, {"export": _measure}, limits=(300.0, 90.0), seconds=(8.0, 3.0))
