"""The engine against llama.cpp's own programs, in one run and on the same threads.

SmolLM2-135M, 64 new tokens each, temperature 0.7. All contenders take turns in each round, one at a time. A ratio is the median of the
rounds' ratios, with its range behind it. Our engine is called through its backend and the socketpair, as by a worker; llama-server over
HTTP, as by its users. The short form measures one round of the parts that take less than a minute.

The first run builds llama.cpp's programs, which takes 10 minutes; python -m bench.rivals does it in advance.
"""

import asyncio
import itertools
import json
import math
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from bench import contenders, processes, report, rivals, waiting
from bench.contenders import HttpChat, Running, Shape
from bench.report import Options, Rows
from services.inference.engine.kv_slots import KvMode
from services.inference.models import model_discovery
from tests.stacks import stack
from tools import setup

PROMPT = "Write a long story number {} about a lighthouse keeper and the sea, with many details."
#: Three digits, so that all prompts have the same length.
STORIES = range(100, 1000)
NEW_TOKENS = 64
LEVELS = (1, 8, 16, 32)
SLOTS, SLOT_TOKENS = 32, 1024
#: One stream is done in half a second, so it runs several times in a round.
SINGLES = 4
#: The length of the stories' prompts, for llama-batched-bench.
BATCHED_PROMPT_TOKENS = 40
PYTHON_SERVER_LEVEL = 16
BATCHED_BENCH = "llama-batched-bench"
#: With more than this, the figures are about other processes.
MOST_NOISE_PERCENT = 5.0

#: SmolLM2-135M: 30 layers, 3 KV heads of 64, a key and a value, 2 bytes each.
KV_BYTES_A_TOKEN = 30 * 3 * 64 * 2 * 2
#: The memory of a worker and its engine, without the model's file and the KV cache.
ALLOWED_MB = 150.0
#: 32 slots, because the overhead of a step is specified for 32 streams.
WORKER_SLOTS, WORKER_SLOT_TOKENS = 32, 512
#: The engine's own measurement over its last 10 s.
ENGINE_OVERHEAD = "ai_platform_engine_overhead_ratio"


class Rate(NamedTuple):
    """Tokens per second."""

    #: From the first request to the last token, prompts included.
    whole: float
    #: While all streams generate: no prompt is read, and none has ended.
    answering: float


class Rates(dict[tuple[str, int], list[float]]):
    """Tokens per second of each round, by contender and number of streams."""

    def add(self, name: str, level: int, rate: float) -> None:
        self.setdefault((name, level), []).append(rate)


async def measure_rate(running: Running, prompts: Sequence[str], level: int) -> Rate:
    """Run ``level`` prompts at a time."""
    tokens, together, seconds = 0, 0, 0.0

    async def generate(prompt: str, came: list[float]) -> None:
        nonlocal tokens
        counts = await running.generate(prompt, NEW_TOKENS, lambda: came.append(time.perf_counter()))
        tokens += counts.completion_tokens

    start = time.perf_counter()
    for first in range(0, len(prompts), level):
        came: list[list[float]] = [[] for _ in range(level)]
        async with asyncio.TaskGroup() as tasks:
            for stream, prompt in enumerate(prompts[first : first + level]):
                tasks.create_task(generate(prompt, came[stream]))
        begin, end = max(times[0] for times in came), min(times[-1] for times in came)
        together += sum(begin < moment <= end for times in came for moment in times)
        seconds += max(0.0, end - begin)
    return Rate(tokens / (time.perf_counter() - start), together / seconds if seconds else math.nan)


async def measure_throughput(rows: Rows, _shared: None, options: Options) -> None:
    # Each prompt is used once in a round.
    rates, stories, neighbours = Rates(), map(PROMPT.format, itertools.cycle(STORIES)), processes.Neighbours()
    for number in range(options.rounds):
        for level in LEVELS:
            # The same for all contenders of a round.
            prompts = list(itertools.islice(stories, SINGLES if level == 1 else level))
            for contender in report.in_turn(contenders.everyone(), number):
                async with contenders.opened(contender, Shape(SLOTS, SLOT_TOKENS, options.threads)) as running:
                    rate = await measure_rate(running, prompts, level)
                rates.add(contender.name, level, rate.whole)
                rates.add(_answering(contender.name), level, rate.answering)
            rows[:] = throughput_rows(rates)
        for level, decoded in (await decode_rates(options.threads)).items():
            rates.add(BATCHED_BENCH, level, decoded)
        rows[:] = throughput_rows(rates)
        server = contenders.PythonServer()
        async with contenders.opened(server, Shape(1, SLOT_TOKENS, options.threads)) as running:
            prompts = list(itertools.islice(stories, PYTHON_SERVER_LEVEL))
            rates.add(server.name, PYTHON_SERVER_LEVEL, (await measure_rate(running, prompts, PYTHON_SERVER_LEVEL)).whole)
        rows[:] = throughput_rows(rates)
    rows.alone("processor time that others took meanwhile", 100 * neighbours.share(), "%", at_most=MOST_NOISE_PERCENT)


def throughput_rows(rates: Rates) -> Rows:
    """Compare what has been measured so far; a round counts once both sides have run."""
    rows = Rows()
    for mode in contenders.MODES:
        for who, level, rival, at_least in _wanted(mode):
            ours, theirs = rates.get((who, level), []), rates.get((rival, level), [])
            if both := min(len(ours), len(theirs)):
                streams = "1 stream" if level == 1 else f"{level} streams"
                rows.paired(f"{who}: {streams}", ours[:both], "tokens/s", rival, theirs[:both], at_least=at_least)
    return rows


def _wanted(mode: KvMode) -> list[tuple[str, int, str, float | None]]:
    """Return whose rate is compared, at which level, with whose, and the least ratio."""
    name = contenders.Ours(mode).name
    # The mode that is not the default may be a tenth slower.
    share = 1.0 if mode == contenders.MODES[0] else 0.9
    # llama-batched-bench measures decoding with all prompts read, so the target is for that.
    return [
        *((name, level, contenders.LlamaServer.name, share * (0.95 if level == 1 else 1.0)) for level in LEVELS),
        *((name, level, BATCHED_BENCH, None) for level in LEVELS),
        *((_answering(name), level, BATCHED_BENCH, None if level == 1 else share * 0.9) for level in LEVELS),
        (name, PYTHON_SERVER_LEVEL, contenders.PythonServer.name, 5.0),
    ]


def _answering(name: str) -> str:
    return f"{name}, answers alone"


async def decode_rates(threads: int) -> dict[int, float]:
    """Return the tokens per second of llama_decode alone, without sampling and clients, by batch size."""
    words = (
        rivals.ensure().batched_bench, "-m", model_discovery.packaged(), "-c", SLOTS * SLOT_TOKENS, "-npp", BATCHED_PROMPT_TOKENS,
        "-ntg", NEW_TOKENS, "-npl", ",".join(map(str, LEVELS)), "-t", threads, "-tb", threads, "--output-format", "jsonl",
    )  # fmt: skip
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*map(str, words), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        out, err = await process.communicate()
    finally:
        await processes.stop(process)
    # Parallel sequences, and tokens per second of text generation.
    found = {each["pl"]: each["speed_tg"] for each in map(json.loads, (line for line in out.splitlines() if line.startswith(b"{")))}
    assert list(found) == list(LEVELS), err[-2000:].decode(errors="replace")
    return found


async def measure_worker(rows: Rows, _shared: None, options: Options) -> None:
    """Measure a worker of a stack after 32 answers at a time: its memory, and the engine's own counters."""
    settings = {
        "ENGINE_SLOTS": str(WORKER_SLOTS),
        "ENGINE_CONTEXT_TOKENS": str(WORKER_SLOT_TOKENS),
        "ENGINE_THREADS": str(options.threads),
        "TIER_PRO": "requests_per_hour=unlimited,requests_per_minute=unlimited,concurrency=unlimited",
        "RESPONSE_CACHE": "off",
    }
    async with stack(**settings) as running:
        port = int(running.environment["GATEWAY_SERVICE_PORT"])
        chat = HttpChat(port, {"model": model_discovery.DEFAULT_MODEL}, f"authorization: Bearer {running.api_key}")
        await measure_rate(chat, [PROMPT.format(number) for number in STORIES[: 2 * WORKER_SLOTS]], WORKER_SLOTS)
        overhead = await running.metric("inference", ENGINE_OVERHEAD, model=model_discovery.DEFAULT_MODEL)
        worker = (await running.pids())["inference"]
        assert worker is not None
        # Another child is the mesh's sidecar.
        (engine,) = (child for child, command in processes.children_of(worker).items() if "engine.engine_process" in command)
        held = processes.resident_mb(worker) + processes.resident_mb(engine)
    expected = model_discovery.packaged().stat().st_size / 1e6 + WORKER_SLOTS * WORKER_SLOT_TOKENS * KV_BYTES_A_TOKEN / 1e6
    claim = f"memory of worker and engine, {WORKER_SLOTS} slots of {WORKER_SLOT_TOKENS}, less model file and KV ({expected:.0f} MB)"
    rows.alone(claim, held - expected, "MB", at_most=ALLOWED_MB)
    # An engine that measures nothing meets no target.
    rows.alone(f"the engine's own time at {WORKER_SLOTS} streams", 100 * overhead if overhead > 0 else math.nan, "%", at_most=5)


PARTS: dict[str, report.Part] = {
    "throughput": measure_throughput,
    "first_token": waiting.measure_first_token,
    "shared_prefix": waiting.measure_shared_prefix,
    "reuse": waiting.measure_reuse,
    "gaps": waiting.measure_gaps,
    "worker": measure_worker,
}
#: The others take a minute or more, even for one round.
QUICK_PARTS = ("throughput", "first_token", "shared_prefix")


def _prepare(options: Options) -> str:
    rivals.ensure()
    rivals.ensure_python_server()
    return f"{options.threads} threads, llama-cpp-python {setup.engine_version()}, {model_discovery.packaged().name}"


if __name__ == "__main__":
    limits, cores = (1800.0, 600.0), len(os.sched_getaffinity(0))
    report.run(__doc__, PARTS, limits=limits, quick_parts=QUICK_PARTS, before=_prepare, rounds=(3, 1), threads=(cores, cores))
