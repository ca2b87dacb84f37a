"""The cost of a scrape of the whole mesh for the metrics service: merge and render the texts of 200 workers and a gateway.

The texts are those of nodes after an hour of work: three models of twenty each, all instruments, exemplars, and the machine. The time that
nodes and mesh need to answer is not included; ``bench.observing`` has it.
"""

import random
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

from bench import report
from bench.report import Options, Rows
from services.metrics.export import openmetrics, prometheus_merge
from services.metrics.export.prometheus_merge import MetricSource
from shared import context
from shared.telemetry import Metrics, host_instruments, instruments
from shared.telemetry.answer_metrics import GatewayAnswers, MeasuredAnswer, WorkerAnswers
from shared.telemetry.tracing import ServingSpan, Traces
from shared.types import ModelName

MODELS = tuple(ModelName(f"model-{number}:8b-instruct-q4") for number in range(20))
MODELS_OF_A_WORKER = 3
ANSWERS = 60
KNOWN = {one.name: str(one.kind) for one in instruments.ALL}
WAYS: dict[str, Callable[[prometheus_merge.Merged], str]] = {
    "Prometheus text": prometheus_merge.render,
    "OpenMetrics": lambda merged: openmetrics.render(merged, KNOWN),
}


def _answer(model: ModelName, draw: random.Random) -> MeasuredAnswer:
    seconds, tokens = draw.expovariate(0.3), draw.randrange(2, 400)
    error = draw.choice(("", "", "", "", "", "cancelled", "overloaded"))
    return MeasuredAnswer(
        operation="chat",
        method="processPrompt",
        model=model,
        seconds=seconds,
        first_text_seconds=seconds * draw.random(),
        input_tokens=draw.randrange(1, 4000),
        output_tokens=tokens,
        chunks=tokens,
        error=error,
    )


def _request(traces: Traces, draw: random.Random) -> ServingSpan:
    """Trace one request of twenty."""
    trace = f"{draw.getrandbits(128) or 1:032x}"
    serving = traces.join("chat", f"00-{trace}-{1:016x}-{draw.random() < 0.05:02x}", context.new_request_id())
    assert serving is not None
    return serving


def _machine(metrics: Metrics, name: str, draw: random.Random) -> None:
    known = {"machine": name, "gpu": "0", "disk": "root"}
    for attribute, measured in vars(Metrics).items():
        instrument = getattr(measured, "instrument", None)
        if instrument in host_instruments.ALL:
            family = getattr(metrics, attribute)
            family.labels(**{label: known[label] for label in instrument.labels}).inc(draw.randrange(10**12))
    for method in ("readMetrics", "readHealth", "readSpans", "readRevocations", "processPrompt", "readReceipts", "embed"):
        metrics.requests.labels(service=metrics.service, method=method, status="success").inc(draw.randrange(10**6))
        metrics.request_duration.labels(service=metrics.service, method=method, model="").observe(draw.random())


def fill_worker(metrics: Metrics, number: int) -> None:
    """Record an hour of one worker."""
    draw, traces = random.Random(number), Traces(ratio=0)
    answers = WorkerAnswers(metrics, "llama_cpp")
    _machine(metrics, f"machine-{number}", draw)
    for model in draw.sample(MODELS, MODELS_OF_A_WORKER):
        for _ in range(ANSWERS):
            with _request(traces, draw):
                answers.ended(_answer(model, draw))
        metrics.worker_up.labels(model=model).set(1)
        metrics.queue_depth.labels(model=model).set(draw.randrange(20))
        metrics.engine_restarts.labels(model=model).inc(0)
        for state in ("busy", "free"):
            metrics.worker_slots.labels(model=model, state=state).set(draw.randrange(8))
        for gauge in (metrics.engine_overhead, metrics.engine_step_seconds, metrics.engine_tokens_per_second):
            gauge.labels(model=model).set(draw.random())


def _fill_gateway(metrics: Metrics) -> None:
    draw, traces = random.Random(0), Traces(ratio=0)
    answers = GatewayAnswers(metrics)
    _machine(metrics, "gateway", draw)
    for model in MODELS:
        for _ in range(ANSWERS):
            with _request(traces, draw):
                answers.ended(_answer(model, draw), asked=True)
        metrics.queue_wait_seconds.labels(model=model).observe(draw.random())


def _source(service: str, number: int, fill: Callable[[Metrics], None]) -> MetricSource:
    metrics = Metrics(service)
    fill(metrics)
    read = metrics.read()
    return MetricSource(read.text, {"service": service, "node": f"U{number:011d}"}, exemplars=read.exemplars)


def _milliseconds(make: Callable[[], object]) -> float:
    began = time.perf_counter()
    make()
    return (time.perf_counter() - began) * 1000


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    sources = [_source("gateway", 0, _fill_gateway)]
    sources += [_source("inference", number + 1, partial(fill_worker, number=number)) for number in range(options.workers)]
    merger = prometheus_merge.Merger(KNOWN)
    began = time.perf_counter()
    merged = merger.merge(sources)
    rows.alone("the first merge after a start, without rendering", (time.perf_counter() - began) * 1000, "ms")
    rows.alone("series left out of it", merged.dropped, "", at_most=0)
    of = f"{options.workers} workers and a gateway, {sum(family.size for family in merged.families)} series"
    for name, render in WAYS.items():
        took = [_milliseconds(lambda render=render: render(merger.merge(sources))) for _ in range(options.runs)]  # type: ignore[misc]
        rows.alone(f"merge {of}: {name}", statistics.median(took), "ms", at_most=300)
    # Linux counts the maximum in KiB.
    rows.alone("most memory of the process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB", at_most=200)


if __name__ == "__main__":
    report.run(__doc__, {"merge": _measure}, limits=(300.0, 120.0), workers=(200, 50), runs=(7, 3))
