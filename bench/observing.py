"""The metrics service on a real mesh: its memory, a scrape of all nodes, and the samples a second that it records in batches.

scrapes    how long GET /metrics takes with 200 workers, in both formats, with everything that the nodes do for it. The workers are nodes
           of one other process that share a core, with the metrics of an hour of work; 200 machines would not share one
recording  samples a second over the mesh; in process, the same batches go to the same rules without msgpack, links and a second process

The real service runs in a separate process behind a real NATS server, for the scrapes with its history in a real PostgreSQL; it polls,
evaluates alerts, reads spans and writes the history as usual.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench import calls, http_load, nodes, processes, report
from bench.http_load import Client
from bench.processes import MIB
from bench.report import Options, Rows
from services.metrics.collection.recorded_metrics import RecordedMetricSet
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared import context
from shared.api import metrics as contract
from shared.api.metrics import RecordMetric, RecordMetrics
from shared.node.member import Node, member
from shared.telemetry import Metrics, host_instruments, instruments
from shared.telemetry.answer_metrics import MeasuredAnswer, WorkerAnswers
from shared.telemetry.tracing import Traces
from shared.types import ModelName, Role
from tests.servers import PostgresServer, running
from tests.testnet import MESH, IdleService, free_port

#: Between two scrapes, as with Prometheus.
EVERY_SECONDS = 15.0
FORMATS = {"Prometheus text": "text/plain", "OpenMetrics": "application/openmetrics-text"}
MODELS = tuple(ModelName(f"model-{number}:8b-instruct-q4") for number in range(20))
MODELS_OF_A_WORKER, ANSWERS = 3, 60
METHODS = ("readMetrics", "readHealth", "processPrompt")
OF_A_WORKER = (
    *host_instruments.ALL, instruments.REQUESTS, instruments.REQUEST_DURATION, instruments.WORKER_UP, instruments.WORKER_SLOTS,
    instruments.QUEUE_DEPTH, instruments.ENGINE_RESTARTS, instruments.ENGINE_OVERHEAD, instruments.ENGINE_STEP_SECONDS,
    instruments.ENGINE_TOKENS_PER_SECOND,
)  # fmt: skip

#: Samples in a message, and messages in flight.
BATCH, AT_ONCE = 500, 4
#: The series of one node: half of them counters, all with two labels.
SERIES = 200


async def _serve(url: str, key_file: str, port: str = "0", database_url: str | None = None) -> None:
    """Run the metrics service until stdin ends, with GET /metrics on this port, and with a history if there is a database."""
    settings = MetricsSettings(
        mesh=MESH, nats_url=url, node_key_file=Path(key_file), port=0, prometheus_port=int(port), database_url=database_url
    )
    async with member(settings, Role.METRICS) as node, MetricsService.open(settings, node) as service:
        await node.serve(service)
        await processes.serve_until_stdin_ends()


# --- an hour of work -----------------------------------------------------------------------------------------------------


def fill_worker(metrics: Metrics, number: int) -> None:
    """Record answers of three models, one of twenty with a trace, and a number in all other series of a worker."""
    draw, traces, answers = random.Random(number), Traces(ratio=0), WorkerAnswers(metrics, "llama_cpp")
    models = draw.sample(MODELS, MODELS_OF_A_WORKER)
    for model in ANSWERS * models:
        parent = f"00-{draw.getrandbits(128) or 1:032x}-{1:016x}-{draw.random() < 0.05:02x}"
        serving, seconds, tokens = traces.join("chat", parent, context.new_request_id()), draw.expovariate(0.3), draw.randrange(2, 400)
        assert serving is not None
        with serving:
            answer = MeasuredAnswer(
                operation="chat", method="processPrompt", model=model, seconds=seconds, first_text_seconds=seconds * draw.random(),
                input_tokens=10 * tokens, output_tokens=tokens, chunks=tokens, error=draw.choice((*5 * ("",), "cancelled", "overloaded")),
            )  # fmt: skip
            answers.ended(answer)
    values = {
        "machine": (f"machine-{number}",), "gpu": ("0",), "disk": ("root",), "service": (metrics.service,), "method": METHODS,
        "model": models, "status": ("success",), "state": ("busy", "free"),
    }  # fmt: skip
    for attribute, measured in vars(Metrics).items():
        instrument = getattr(measured, "instrument", None)
        if instrument in OF_A_WORKER:
            for labels in itertools.product(*(values[label] for label in instrument.labels)):
                series = getattr(metrics, attribute).labels(*labels)
                (series.observe if instrument.buckets else series.inc)(draw.random())


# --- scrapes -------------------------------------------------------------------------------------------------------------


class Scrape(NamedTuple):
    milliseconds: float
    #: How many workers answered.
    workers: int
    #: Series that the service left out.
    dropped: float


async def _scrape(client: Client, content_type: str) -> Scrape:
    answer, text = await client.ask(http_load.get("/metrics", f"accept: {content_type}").encode())
    lines = text.decode().splitlines()
    workers = sum(line.startswith("ai_platform_build_info{") and 'service="inference"' in line for line in lines)
    dropped = sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("ai_platform_scrape_dropped_series{"))
    return Scrape(1000 * answer.took, workers, dropped)


async def _measure_scrapes(rows: Rows, _shared: None, options: Options) -> None:
    count, port, held, dropped = options.workers, free_port(), list[float](), list[float]()
    took, worked = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    async with AsyncExitStack() as opened:
        url, (own, *keys) = opened.enter_context(nodes.nats_server(Role.METRICS, *[Role.WORKER] * count))
        database_url = opened.enter_context(running(PostgresServer)).url()
        service = await opened.enter_async_context(processes.serving("observing", url, own, port, database_url))
        for number, key in enumerate(keys):
            node = await opened.enter_async_context(member(nodes.settings_of(url, key), Role.WORKER))
            fill_worker(node.metrics, number)
            await node.serve(IdleService())
        client, give_up_at = Client(port), time.monotonic() + 300
        while (seen := (await _scrape(client, "text/plain")).workers) < count:
            assert time.monotonic() < give_up_at, f"only {seen} of {count} workers answer"
            await asyncio.sleep(1)
        ends_at, formats = time.monotonic() + options.minutes * 60, itertools.cycle(FORMATS.items())
        while time.monotonic() < ends_at:
            await asyncio.sleep(EVERY_SECONDS)
            name, content_type = next(formats)
            before = processes.spent_ms(service.pid)
            scrape = await _scrape(client, content_type)
            worked[name].append(processes.spent_ms(service.pid) - before)
            assert scrape.workers == count, f"{scrape.workers} of {count} workers answered"
            took[name].append(scrape.milliseconds)
            dropped.append(scrape.dropped)
            held.append(processes.resident_mb(service.pid) / MIB)
    for name in FORMATS:
        what = f"{name}, {count} workers, {len(took[name])} scrapes in {options.minutes:g} min"
        rows.alone(f"a scrape, {what}: median", statistics.median(took[name]), "ms", at_most=300)
        rows.alone(f"a scrape, {what}: processor time of the service, median", statistics.median(worked[name]), "ms", at_most=300)
    rows.alone("series left out of the scrapes", max(dropped), "", at_most=0)
    rows.alone(f"memory of the metrics service, {count} workers: most", max(held), "MiB", at_most=200)


# --- recording -----------------------------------------------------------------------------------------------------------


def _batch() -> RecordMetrics:
    names = ("custom_bench_jobs_total", "custom_bench_load")
    samples = (RecordMetric(names[number % 2], 1.5, {"team": "a", "job": str(number % SERIES)}) for number in range(BATCH))
    return RecordMetrics(tuple(samples))


async def _rate_in_process(batch: RecordMetrics, seconds: float) -> float:
    """Return the samples a second."""
    recorded, began, taken = RecordedMetricSet(), time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        taken += recorded.record_all(batch.samples, ("inference", "bench"), datetime.now(UTC)).taken
    return taken / took


async def _rate_over_mesh(node: Node, batch: RecordMetrics, seconds: float) -> float:
    async def send() -> None:
        answer = await node.rpc.call(contract.record_metrics, batch)
        assert (answer.taken, answer.refused) == (BATCH, 0), answer.problems

    rate, _ = await calls.for_seconds(send, AT_ONCE, seconds)
    return BATCH * rate


async def _measure_recording(rows: Rows, _shared: None, options: Options) -> None:
    with nodes.nats_server(Role.METRICS, Role.WORKER) as (url, (key, own)):
        async with processes.serving("observing", url, key), member(nodes.settings_of(url, own), Role.WORKER) as node:
            await node.serve(IdleService())
            batch = _batch()
            await _rate_over_mesh(node, batch, options.seconds / 4)  # warm up
            mesh, alone = partial(_rate_over_mesh, node, batch, options.seconds), partial(_rate_in_process, batch, options.seconds)
            rates = await report.take_turns({"mesh": mesh, "alone": alone}, options.rounds)
    claim = f"recordMetrics, {BATCH} samples each, {AT_ONCE} at once: over the mesh"
    rows.alone(claim, statistics.median(rates["mesh"]), "samples/s", at_least=20_000)
    rows.paired(claim, rates["mesh"], "samples/s", "in process", rates["alone"])


if __name__ == "__main__":
    parts: dict[str, report.Part] = {"scrapes": _measure_scrapes, "recording": _measure_recording}
    limits, workers, minutes = (1500.0, 300.0), (200, 20), (3.0, 0.5)
    report.run(__doc__, parts, limits=limits, serve=_serve, workers=workers, minutes=minutes, rounds=(5, 3), seconds=(3.0, 1.0))
