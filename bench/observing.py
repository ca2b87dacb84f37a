"""What the metrics service holds in memory, and how long a scrape of everybody takes, with 200 workers on a real mesh.

    python -m bench.observing [--quick] [--workers 200] [--minutes 3] [--json FILE]

The service is the real one, in a process of its own behind a real NATS server, with its history in a real PostgreSQL; it looks, judges
alerts, reads spans and keeps the history as it always does. The workers are nodes of one other process, and have what `bench.scrape` gives
them. A scrape is GET /metrics by HTTP, with all that the nodes do for it: here 200 workers share a core, which 200 machines do not.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import ClassVar

import httpx
import uvloop

from bench import processor, report
from bench.footprint import resident_mib
from bench.scrape import work
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared.api.gateway import Check
from shared.node.member import Node, member
from shared.node.settings import NodeSettings
from shared.types import Role
from tests.servers import PostgresServer
from tests.testnet import MESH, NatsServer, free_port

#: Workers, and minutes.
QUICK = (20, 0.5)
#: Between two scrapes, as Prometheus has it.
EVERY_SECONDS = 15.0
MOST_START_SECONDS = 300.0


class Machine:
    """A worker that answers nobody but the metrics service."""

    role: ClassVar[Role] = Role.WORKER

    async def checks(self) -> tuple[Check, ...]:
        return ()

    def asgi(self) -> None:
        return None


@asynccontextmanager
async def workers(url: str, key_files: list[Path]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for number, key_file in enumerate(key_files):
            settings = NodeSettings(mesh=MESH, nats_url=url, node_key_file=key_file)
            node: Node = await stack.enter_async_context(member(settings, Role.WORKER))
            work(node.metrics, number)
            await node.serve(Machine())
        yield


async def serve(nats: str, key_file: Path, port: int) -> None:
    """The other process: the service, until its stdin ends."""
    settings = MetricsSettings(
        mesh=MESH, nats_url=nats, node_key_file=key_file, port=0, prometheus_port=port, database_url=os.environ["DATABASE_URL"]
    )
    async with member(settings, Role.METRICS) as node, MetricsService.open(settings, node) as service:
        await node.serve(service)
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@contextmanager
def service_process(database: str, *arguments: str) -> Iterator[int]:
    """Its process id."""
    command = [sys.executable, "-m", "bench.observing", "--serve", *arguments]
    other = subprocess.Popen(command, env={**os.environ, "DATABASE_URL": database}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        yield other.pid
    finally:
        other.terminate()
        other.communicate()


async def _scrape(http: httpx.AsyncClient) -> tuple[float, int]:
    """Milliseconds, and how many workers told theirs."""
    began = time.perf_counter()
    text = (await http.get("/metrics")).text
    took = (time.perf_counter() - began) * 1000
    return took, sum(line.startswith("ai_platform_build_info{") and 'service="inference"' in line for line in text.splitlines())


async def measure(pid: int, port: int, nats: str, key_files: list[Path], minutes: float) -> list[report.Row]:
    count = len(key_files)
    async with workers(nats, key_files), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        give_up_at = time.monotonic() + MOST_START_SECONDS
        seen = 0
        while seen < count:
            assert time.monotonic() < give_up_at, f"only {seen} of {count} workers answer"
            await asyncio.sleep(1)
            seen = (await _scrape(http))[1]
        took, worked, held, ends_at = list[float](), list[float](), list[float](), time.monotonic() + minutes * 60
        while time.monotonic() < ends_at:
            await asyncio.sleep(EVERY_SECONDS)
            before = processor.spent_ms(pid)
            milliseconds, seen = await _scrape(http)
            worked.append(processor.spent_ms(pid) - before)
            assert seen == count, f"{seen} of {count} workers answered"
            took.append(milliseconds)
            held.append(resident_mib(pid))
    what = f"{count} workers, {len(took)} scrapes in {minutes:g} min"
    return [
        report.alone(f"a scrape, {what}: median", statistics.median(took), "ms", at_most=300),
        report.alone(f"a scrape, {what}: slowest", max(took), "ms"),
        report.alone(f"a scrape, {what}: processor time of the metrics service, median", statistics.median(worked), "ms", at_most=300),
        report.alone(f"memory of the metrics service, {what}: most", max(held), "MiB", at_most=200),
    ]


def run(table: report.Table, count: int, minutes: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nats", "postgres"):
            Path(folder, name).mkdir()
        nats, postgres = NatsServer(Path(folder, "nats")), PostgresServer(Path(folder, "postgres"))
        keys = [nats.key(f"worker-{number}", Role.WORKER) for number in range(count)]
        own, port = nats.key("metrics", Role.METRICS), free_port()
        nats.start()
        postgres.start()
        try:
            with service_process(postgres.url(), nats.url, str(own), str(port)) as pid:
                table.add(table.run(measure(pid, port, nats.url, keys, minutes)))
        finally:
            postgres.stop()
            nats.kill()


def main() -> None:
    parser: argparse.ArgumentParser = report.arguments(__doc__, limits=(1200.0, 240.0), quick=f"{QUICK[0]} workers, {QUICK[1]:g} minutes")
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--serve", nargs=3, metavar=("NATS", "KEY", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        nats, key_file, port = options.serve
        uvloop.run(serve(nats, Path(key_file), int(port)))
        return
    with report.opened(options) as table:
        run(table, *(QUICK if options.quick else (options.workers, options.minutes)))


if __name__ == "__main__":
    main()
