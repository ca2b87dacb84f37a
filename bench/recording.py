"""How many samples a second the metrics service records in batches, over the mesh and in process.

The real service runs in a separate process behind a real NATS server; a worker's node in this process sends. In process, the same batches
go to the same rules without msgpack, links and a second process. Both take turns.
"""

import statistics
import time
from datetime import UTC, datetime

from bench import calls, nodes, processes, report
from bench.nodes import IdleService
from bench.report import Options, Rows
from services.metrics.collection.recorded_metrics import RecordedMetricSet
from shared.api import metrics
from shared.api.metrics import RecordMetric, RecordMetrics
from shared.node.member import Node, member
from shared.types import Role

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
    async def send() -> None:
        answer = await node.rpc.call(metrics.record_metrics, batch)
        assert (answer.taken, answer.refused) == (BATCH, 0), answer.problems

    rate, _ = await calls.for_seconds(send, AT_ONCE, seconds)
    return BATCH * rate


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    batch, mesh, alone = _batch(), list[float](), list[float]()
    with nodes.nats_server(Role.METRICS, Role.WORKER) as (url, (key, own)):
        async with processes.serving("recording", url, key), member(nodes.settings_of(url, own), Role.WORKER) as node:
            await node.serve(IdleService())
            await _rate_over_mesh(node, batch, options.seconds / 4)  # warm up
            for number in range(options.rounds):
                for is_mesh in report.in_turn((True, False), number):
                    if is_mesh:
                        mesh.append(await _rate_over_mesh(node, batch, options.seconds))
                    else:
                        alone.append(_rate_in_process(batch, options.seconds))
    claim = f"recordMetrics, {BATCH} samples each, {AT_ONCE} at once: over the mesh"
    rows.alone(claim, statistics.median(mesh), "samples/s", at_least=ASKED_PER_SECOND)
    rows.paired(claim, mesh, "samples/s", "in process", alone)


if __name__ == "__main__":
    report.run(__doc__, {"rates": _measure}, limits=(300.0, 120.0), serve=nodes.serve_metrics, rounds=(5, 3), seconds=(3.0, 1.0))
