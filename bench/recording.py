"""How many samples a second the metrics service records when they come in batches, over the mesh and without it.

    python -m bench.recording [--rounds 5] [--seconds 3] [--quick] [--json FILE]

The service is the real one, in a process of its own behind a real NATS server; a worker's node in this one sends. What is done without
the mesh is the same batches given to the same rules in this process: no msgpack, no links, no second process. Both take turns.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import uvloop

from bench import report, rounds
from services.metrics.collection.recorded_metrics import RecordedMetricSet
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared.api import metrics
from shared.api.gateway import Check
from shared.api.metrics import RecordMetric, RecordMetrics
from shared.node.member import Node, member
from shared.node.settings import NodeSettings
from shared.types import Role
from tests.testnet import MESH, NatsServer

#: Of the issue.
ASKED_PER_SECOND = 20_000
#: Samples of a message, and messages that are on their way at the same time.
BATCH, AT_ONCE = 500, 4
#: What a node records: half of them counters, all with two labels.
SERIES = 200
#: Rounds, and seconds of a measurement.
QUICK = (3, 1.0)


class Sender:
    """A worker without a model."""

    role: ClassVar[Role] = Role.WORKER

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: NodeSettings, node: Node) -> AsyncIterator["Sender"]:
        yield cls()

    async def checks(self) -> tuple[Check, ...]:
        return ()

    def asgi(self) -> None:
        return None


def batch() -> RecordMetrics:
    names = ("custom_bench_jobs_total", "custom_bench_load")
    samples = (RecordMetric(names[number % 2], 1.5, {"team": "a", "job": str(number % SERIES)}) for number in range(BATCH))
    return RecordMetrics(tuple(samples))


def in_process(asked: RecordMetrics, seconds: float) -> float:
    """Samples a second."""
    recorded, began, taken = RecordedMetricSet(), time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        taken += recorded.record_all(asked.samples, ("inference", "bench"), datetime.now(UTC)).taken
    return taken / took


async def over_the_mesh(node: Node, asked: RecordMetrics, seconds: float) -> float:
    """Samples a second, from the first question to the last answer."""
    began, taken = time.perf_counter(), 0

    async def send() -> None:
        nonlocal taken
        while time.perf_counter() - began < seconds:
            answer = await node.rpc.call(metrics.record_metrics, asked)
            assert answer.refused == 0, answer.problems
            taken += answer.taken

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(send())
    return taken / (time.perf_counter() - began)


async def measure(settings: NodeSettings, count: int, seconds: float) -> list[report.Row]:
    asked, mesh, alone = batch(), list[float](), list[float]()
    async with member(settings, Role.WORKER) as node:
        await node.serve(Sender())
        await over_the_mesh(node, asked, seconds / 4)  # warm
        for number in range(count):
            for is_mesh in rounds.in_turn((True, False), number):
                if is_mesh:
                    mesh.append(await over_the_mesh(node, asked, seconds))
                else:
                    alone.append(in_process(asked, seconds))
    what = f"recordMetrics, {BATCH} samples each, {AT_ONCE} at once"
    return [
        report.alone(f"{what}: over the mesh", statistics.median(mesh), "samples/s", at_least=ASKED_PER_SECOND),
        rounds.paired(f"{what}: over the mesh", "samples/s", mesh, "in process", alone),
    ]


async def serve(url: str, key_file: Path) -> None:
    """The other process: the service, until its stdin ends."""
    settings = MetricsSettings(mesh=MESH, nats_url=url, node_key_file=key_file, port=0, prometheus_port=0)
    async with member(settings, Role.METRICS) as node, MetricsService.open(settings, node) as service:
        await node.serve(service)
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def run(table: report.Table, count: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        keys = {role: server.key(role, role) for role in (Role.METRICS, Role.WORKER)}
        server.start()
        command = [sys.executable, "-m", "bench.recording", "--serve", server.url, str(keys[Role.METRICS])]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            settings = NodeSettings(mesh=MESH, nats_url=server.url, node_key_file=keys[Role.WORKER])
            table.add(table.run(measure(settings, count, seconds)))
        finally:
            other.terminate()
            other.communicate()
            server.kill()


def main() -> None:
    parser: argparse.ArgumentParser = report.arguments(__doc__, limits=(300.0, 120.0), quick=f"{QUICK[0]} rounds of {QUICK[1]:g} s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of one measurement")
    parser.add_argument("--serve", nargs=2, metavar=("URL", "KEY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        url, key_file = options.serve
        uvloop.run(serve(url, Path(key_file)))
        return
    with report.opened(options) as table:
        run(table, *(QUICK if options.quick else (options.rounds, options.seconds)))


if __name__ == "__main__":
    main()
