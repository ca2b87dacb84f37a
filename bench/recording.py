"""How many samples a second the metrics service records in batches, over the mesh and in process.

    python -m bench.recording [--rounds 5] [--seconds 3] [--quick] [--json FILE]

The real service runs in a process of its own behind a real NATS server; a worker's node in this process sends. In process, the same batches
go to the same rules without msgpack, links and a second process. Both take turns.
"""

import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench import calls, processes, report, rounds
from bench.scrape import WorkerNode
from services.metrics.collection.recorded_metrics import RecordedMetricSet
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared.api import metrics
from shared.api.metrics import RecordMetric, RecordMetrics
from shared.node.member import Node, member
from shared.node.settings import NodeSettings
from shared.types import Role
from tests.testnet import MESH, NatsServer

ASKED_PER_SECOND = 20_000
#: Samples in a message, and messages in flight.
BATCH, AT_ONCE = 500, 4
#: The series of one node: half of them counters, all with two labels.
SERIES = 200


def _batch() -> RecordMetrics:
    names = ("custom_bench_jobs_total", "custom_bench_load")
    samples = (RecordMetric(names[number % 2], 1.5, {"team": "a", "job": str(number % SERIES)}) for number in range(BATCH))
    return RecordMetrics(tuple(samples))


def _rate_in_process(batch: RecordMetrics, seconds: float) -> float:
    """Return the samples a second."""
    recorded, began, taken = RecordedMetricSet(), time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        taken += recorded.record_all(batch.samples, ("inference", "bench"), datetime.now(UTC)).taken
    return taken / took


async def _rate_over_mesh(node: Node, batch: RecordMetrics, seconds: float) -> float:
    async def send(_number: int) -> None:
        answer = await node.rpc.call(metrics.record_metrics, batch)
        assert (answer.taken, answer.refused) == (BATCH, 0), answer.problems

    rate, _ = await calls.for_seconds(send, AT_ONCE, seconds)
    return BATCH * rate


async def _measure_rates(settings: NodeSettings, count: int, seconds: float) -> list[report.Row]:
    batch, mesh, alone = _batch(), list[float](), list[float]()
    async with member(settings, Role.WORKER) as node:
        await node.serve(WorkerNode())
        await _rate_over_mesh(node, batch, seconds / 4)  # warm up
        for number in range(count):
            for is_mesh in rounds.in_turn((True, False), number):
                if is_mesh:
                    mesh.append(await _rate_over_mesh(node, batch, seconds))
                else:
                    alone.append(_rate_in_process(batch, seconds))
    what = f"recordMetrics, {BATCH} samples each, {AT_ONCE} at once"
    return [
        report.alone(f"{what}: over the mesh", statistics.median(mesh), "samples/s", at_least=ASKED_PER_SECOND),
        rounds.paired(f"{what}: over the mesh", "samples/s", mesh, "in process", alone),
    ]


async def _serve(url: str, key_file: str) -> None:
    settings = MetricsSettings(mesh=MESH, nats_url=url, node_key_file=Path(key_file), port=0, prometheus_port=0)
    async with member(settings, Role.METRICS) as node, MetricsService.open(settings, node) as service:
        await node.serve(service)
        await processes.serve_until_stdin_ends()


async def _measure(table: report.Table, rounds: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        keys = {role: server.key(role, role) for role in (Role.METRICS, Role.WORKER)}
        server.start()
        try:
            with processes.serving("recording", server.url, keys[Role.METRICS]):
                settings = NodeSettings(mesh=MESH, nats_url=server.url, node_key_file=keys[Role.WORKER])
                table.add(await _measure_rates(settings, rounds, seconds))
        finally:
            server.kill()


if __name__ == "__main__":
    report.run(__doc__, _measure, limits=(300.0, 120.0), serve=_serve, rounds=(5, 3), seconds=(3.0, 1.0))
