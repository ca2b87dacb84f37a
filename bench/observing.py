"""The memory of the metrics service, and how long a scrape of the whole mesh takes, with 200 workers on a real mesh.

The real service runs in a separate process behind a real NATS server, with its history in a real PostgreSQL; it polls, evaluates alerts,
reads spans and writes the history as usual. The workers are nodes of one other process, with the metrics that `bench.scrape` gives them.
A scrape is GET /metrics over HTTP with everything that the nodes do for it. Here 200 workers share a core; 200 machines would not.
"""

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from typing import NamedTuple

from bench import http_load, nodes, processes, report
from bench.http_load import Client
from bench.nodes import IdleService
from bench.processes import MIB
from bench.report import Options, Rows
from bench.scrape import fill_worker
from shared.node.member import member
from shared.types import Role
from tests.servers import PostgresServer, running
from tests.testnet import free_port

#: Between two scrapes, as with Prometheus.
EVERY_SECONDS = 15.0
MAX_START_SECONDS = 300.0


class Scrape(NamedTuple):
    milliseconds: float
    #: How many workers answered.
    workers: int


async def _scrape(client: Client) -> Scrape:
    answer, text = await client.ask(http_load.get("/metrics").encode())
    lines = [line for line in text.decode().splitlines() if line.startswith("ai_platform_build_info{")]
    return Scrape(1000 * answer.took, sum('service="inference"' in line for line in lines))


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    count, port = options.workers, free_port()
    took, worked, held = list[float](), list[float](), list[float]()
    with (
        nodes.nats_server(Role.METRICS, *[Role.WORKER] * count) as (url, (own, *keys)),
        running(PostgresServer) as postgres,
    ):
        async with AsyncExitStack() as opened:
            environment = {"BENCH_DATABASE_URL": postgres.url()}
            service = await opened.enter_async_context(processes.serving("observing", url, own, port, environment=environment))
            for number, key in enumerate(keys):
                node = await opened.enter_async_context(member(nodes.settings_of(url, key), Role.WORKER))
                fill_worker(node.metrics, number)
                await node.serve(IdleService())
            client, give_up_at = Client(port), time.monotonic() + MAX_START_SECONDS
            while (seen := (await _scrape(client)).workers) < count:
                assert time.monotonic() < give_up_at, f"only {seen} of {count} workers answer"
                await asyncio.sleep(1)
            ends_at = time.monotonic() + options.minutes * 60
            while time.monotonic() < ends_at:
                await asyncio.sleep(EVERY_SECONDS)
                before = processes.spent_ms(service.pid)
                scrape = await _scrape(client)
                worked.append(processes.spent_ms(service.pid) - before)
                assert scrape.workers == count, f"{scrape.workers} of {count} workers answered"
                took.append(scrape.milliseconds)
                held.append(processes.resident_mb(service.pid) / MIB)
    what = f"{count} workers, {len(took)} scrapes in {options.minutes:g} min"
    rows.alone(f"a scrape, {what}: median", statistics.median(took), "ms", at_most=300)
    rows.alone(f"a scrape, {what}: slowest", max(took), "ms")
    rows.alone(f"a scrape, {what}: processor time of the metrics service, median", statistics.median(worked), "ms", at_most=300)
    rows.alone(f"memory of the metrics service, {what}: most", max(held), "MiB", at_most=200)


if __name__ == "__main__":
    limits = (1200.0, 240.0)
    report.run(__doc__, {"scrapes": _measure}, limits=limits, serve=nodes.serve_metrics, workers=(200, 20), minutes=(3.0, 0.5))
