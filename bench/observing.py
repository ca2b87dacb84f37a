"""The memory of the metrics service, and how long a scrape of the whole mesh takes, with 200 workers on a real mesh.

    python -m bench.observing [--quick] [--workers 200] [--minutes 3] [--json FILE]

The real service runs in a process of its own behind a real NATS server, with its history in a real PostgreSQL; it polls, evaluates alerts,
reads spans and writes the history as usual. The workers are nodes of one other process, with the metrics that `bench.scrape` gives them.
A scrape is GET /metrics over HTTP with everything that the nodes do for it. Here 200 workers share a core; 200 machines would not.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx

from bench import processes, report
from bench.scrape import WorkerNode, fill_worker
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared.node.member import member
from shared.node.settings import NodeSettings
from shared.types import Role
from tests.servers import PostgresServer
from tests.testnet import MESH, NatsServer, free_port

#: Between two scrapes, as with Prometheus.
EVERY_SECONDS = 15.0
MAX_START_SECONDS = 300.0
MIB = 1024 * 1024


@asynccontextmanager
async def _workers(url: str, key_files: list[Path]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for number, key_file in enumerate(key_files):
            settings = NodeSettings(mesh=MESH, nats_url=url, node_key_file=key_file)
            node = await stack.enter_async_context(member(settings, Role.WORKER))
            fill_worker(node.metrics, number)
            await node.serve(WorkerNode())
        yield


async def _serve(nats: str, key_file: str, port: str) -> None:
    settings = MetricsSettings(
        mesh=MESH, nats_url=nats, node_key_file=Path(key_file), port=0, prometheus_port=int(port), database_url=os.environ["DATABASE_URL"]
    )
    async with member(settings, Role.METRICS) as node, MetricsService.open(settings, node) as service:
        await node.serve(service)
        await processes.serve_until_stdin_ends()


async def _scrape(http: httpx.AsyncClient) -> tuple[float, int]:
    """Return the milliseconds, and how many workers answered."""
    began = time.perf_counter()
    text = (await http.get("/metrics")).text
    took = (time.perf_counter() - began) * 1000
    return took, sum(line.startswith("ai_platform_build_info{") and 'service="inference"' in line for line in text.splitlines())


async def _measure_scrapes(pid: int, port: int, nats: str, key_files: list[Path], minutes: float) -> list[report.Row]:
    count = len(key_files)
    async with _workers(nats, key_files), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        give_up_at = time.monotonic() + MAX_START_SECONDS
        while (seen := (await _scrape(http))[1]) < count:
            assert time.monotonic() < give_up_at, f"only {seen} of {count} workers answer"
            await asyncio.sleep(1)
        took, worked, held, ends_at = list[float](), list[float](), list[float](), time.monotonic() + minutes * 60
        while time.monotonic() < ends_at:
            await asyncio.sleep(EVERY_SECONDS)
            before = processes.spent_ms(pid)
            milliseconds, seen = await _scrape(http)
            worked.append(processes.spent_ms(pid) - before)
            assert seen == count, f"{seen} of {count} workers answered"
            took.append(milliseconds)
            held.append(processes.resident_bytes(pid) / MIB)
    what = f"{count} workers, {len(took)} scrapes in {minutes:g} min"
    return [
        report.alone(f"a scrape, {what}: median", statistics.median(took), "ms", at_most=300),
        report.alone(f"a scrape, {what}: slowest", max(took), "ms"),
        report.alone(f"a scrape, {what}: processor time of the metrics service, median", statistics.median(worked), "ms", at_most=300),
        report.alone(f"memory of the metrics service, {what}: most", max(held), "MiB", at_most=200),
    ]


async def _measure(table: report.Table, workers: int, minutes: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        nats, postgres = NatsServer(Path(tempfile.mkdtemp(dir=folder))), PostgresServer(Path(tempfile.mkdtemp(dir=folder)))
        keys = [nats.key(f"worker-{number}", Role.WORKER) for number in range(workers)]
        own, port = nats.key("metrics", Role.METRICS), free_port()
        nats.start()
        postgres.start()
        try:
            with processes.serving("observing", nats.url, own, port, environment={"DATABASE_URL": postgres.url()}) as pid:
                table.add(await _measure_scrapes(pid, port, nats.url, keys, minutes))
        finally:
            postgres.stop()
            nats.kill()


if __name__ == "__main__":
    report.run(__doc__, _measure, limits=(1200.0, 240.0), serve=_serve, workers=(200, 20), minutes=(3.0, 0.5))
