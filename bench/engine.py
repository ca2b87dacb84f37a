"""The engine against llama.cpp's own programs, in one run and on the same threads.

    python -m bench.engine [--quick] [--rounds 3] [--only throughput …] [--time-limit SECONDS] [--json FILE] [--save FILE]

SmolLM2-135M, 64 new tokens each, temperature 0.7. All contenders take turns in each round, one at a time. A ratio is the median of the
rounds' ratios, with its range behind the claim. Our engine is called through its backend and the socketpair, as by a worker; llama-server
over HTTP, as by its users.

The first run builds llama.cpp's programs, which takes 10 minutes; python -m bench.rivals does it in advance.
"""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench import contenders, report, rivals, rounds, waiting
from bench.contenders import ChatRequest, HttpChat, Running, Shape
from services.inference.engine.kv_slots import KvMode
from services.inference.models import model_discovery
from tests.stacks import stack
from tools import setup

PROMPT = "Write a long story number {} about a lighthouse keeper and the sea, with many details."
#: Three digits, so that all prompts have the same length.
FIRST_STORY, LAST_STORY = 100, 999
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
#: The time limits of a whole run.
FULL_SECONDS, QUICK_SECONDS = 30 * 60, 10 * 60

#: SmolLM2-135M: 30 layers, 3 KV heads of 64, a key and a value, 2 bytes each.
KV_BYTES_A_TOKEN = 30 * 3 * 64 * 2 * 2
#: The memory of a worker and its engine, without the model's file and the KV cache.
ALLOWED_MB = 150.0
#: 32 slots, because the overhead of a step is specified for 32 streams.
WORKER_SLOTS, WORKER_SLOT_TOKENS = 32, 512
#: The engine's own measurement over its last 10 s.
ENGINE_OVERHEAD = "ai_platform_engine_overhead_ratio"


@dataclass(slots=True)
class Stories:
    """Prompts that were not used yet."""

    told: int = 0

    def next(self, count: int) -> list[str]:
        numbers = range(self.told, self.told + count)
        self.told += count
        return [PROMPT.format(FIRST_STORY + number % (LAST_STORY - FIRST_STORY + 1)) for number in numbers]


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second."""

    #: From the first request to the last token, prompts included.
    whole: float
    #: While all streams generate: no prompt is read, and none has ended.
    answering: float


@dataclass(slots=True)
class Rates:
    """Tokens per second of each round, by contender and number of streams."""

    found: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def add(self, name: str, level: int, rate: float) -> None:
        self.found.setdefault((name, level), []).append(rate)


async def measure_rate(running: Running, prompts: Sequence[str], level: int) -> Rate:
    """Run ``level`` prompts at a time."""
    tokens, together, seconds = 0, 0, 0.0
    start = time.perf_counter()
    for first in range(0, len(prompts), level):
        came: list[list[float]] = [[] for _ in range(level)]
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(running.generate(prompt, NEW_TOKENS, _noting(came[stream])))
                for stream, prompt in enumerate(prompts[first : first + level])
            ]
        tokens += sum(task.result().completion_tokens for task in asked)
        begin, end = max(times[0] for times in came), min(times[-1] for times in came)
        together += sum(begin < moment <= end for times in came for moment in times)
        seconds += max(0.0, end - begin)
    return Rate(tokens / (time.perf_counter() - start), together / seconds if seconds else math.nan)


def _noting(came: list[float]) -> contenders.OnToken:
    return lambda: came.append(time.perf_counter())


async def measure_throughput(rows: list[report.Row], count: int, threads: int) -> None:
    rates, stories, neighbours = Rates(), Stories(), rounds.Neighbours()
    for number in range(count):
        for level in LEVELS:
            # The same for all contenders of a round.
            prompts = stories.next(SINGLES if level == 1 else level)
            for contender in rounds.in_turn(contenders.everyone(), number):
                async with contender.opened(Shape(SLOTS, SLOT_TOKENS, threads)) as running:
                    rate = await measure_rate(running, prompts, level)
                rates.add(contender.name, level, rate.whole)
                rates.add(_answering(contender.name), level, rate.answering)
            rows[:] = throughput_rows(rates)
        for level, decoded in (await decode_rates(threads)).items():
            rates.add(BATCHED_BENCH, level, decoded)
        rows[:] = throughput_rows(rates)
        server = contenders.PythonServer()
        async with server.opened(Shape(1, SLOT_TOKENS, threads)) as running:
            prompts = stories.next(PYTHON_SERVER_LEVEL)
            rates.add(server.name, PYTHON_SERVER_LEVEL, (await measure_rate(running, prompts, PYTHON_SERVER_LEVEL)).whole)
        rows[:] = throughput_rows(rates)
    rows.append(report.alone("processor time that others took meanwhile", 100 * neighbours.share(), "%", at_most=MOST_NOISE_PERCENT))


def throughput_rows(rates: Rates) -> list[report.Row]:
    """Compare what has been measured so far; a round counts once both sides have run."""
    return [row for mode in contenders.MODES for row in _rows_of_mode(mode, rates)]


def _rows_of_mode(mode: KvMode, rates: Rates) -> Iterator[report.Row]:
    name = contenders.Ours(mode).name
    # The mode that is not the default may be a tenth slower.
    share = 1.0 if mode == contenders.MODES[0] else 0.9
    # llama-batched-bench measures decoding with all prompts read, so the target is for that.
    wanted: list[tuple[str, int, str, float | None]] = [
        *((name, level, contenders.LlamaServer.name, share * (0.95 if level == 1 else 1.0)) for level in LEVELS),
        *((name, level, BATCHED_BENCH, None) for level in LEVELS),
        *((_answering(name), level, BATCHED_BENCH, None if level == 1 else share * 0.9) for level in LEVELS),
        (name, PYTHON_SERVER_LEVEL, contenders.PythonServer.name, 5.0),
    ]
    for who, level, rival, at_least in wanted:
        ours, theirs = rates.found.get((who, level), []), rates.found.get((rival, level), [])
        if both := min(len(ours), len(theirs)):
            streams = "1 stream" if level == 1 else f"{level} streams"
            yield rounds.paired(f"{who}: {streams}", "tokens/s", ours[:both], rival, theirs[:both], at_least=at_least)


def _answering(name: str) -> str:
    return f"{name}, answers alone"


class _Decoded(msgspec.Struct, frozen=True):
    """A line of llama-batched-bench."""

    #: Parallel sequences.
    pl: int
    #: Tokens per second of text generation.
    speed_tg: float


async def decode_rates(threads: int) -> dict[int, float]:
    """Return the tokens per second of llama_decode alone, without sampling and clients, by batch size."""
    words = [str(rivals.ensure().batched_bench), "-m", str(model_discovery.packaged()), "-c", str(SLOTS * SLOT_TOKENS)]
    words += ["-npp", str(BATCHED_PROMPT_TOKENS), "-ntg", str(NEW_TOKENS), "-npl", ",".join(map(str, LEVELS))]
    words += ["-t", str(threads), "-tb", str(threads), "--output-format", "jsonl"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        out, err = await process.communicate()
    finally:
        await contenders.stop(process)
    found = [msgspec.json.decode(line, type=_Decoded) for line in out.splitlines() if line.startswith(b"{")]
    assert [each.pl for each in found] == list(LEVELS), err[-2000:].decode(errors="replace")
    return {each.pl: each.speed_tg for each in found}


# --- a whole worker ------------------------------------------------------------------------------------------------------


async def measure_worker(rows: list[report.Row], _count: int, threads: int) -> None:
    """Measure a worker of a stack after 32 answers at a time: its memory, and the engine's own counters."""
    settings = {
        "ENGINE_SLOTS": WORKER_SLOTS,
        "ENGINE_CONTEXT_TOKENS": WORKER_SLOT_TOKENS,
        "ENGINE_THREADS": threads,
        "TIER_PRO": "requests_per_hour=unlimited,requests_per_minute=unlimited,concurrency=unlimited",
        "RESPONSE_CACHE": "off",
    }
    async with stack(**{name: str(value) for name, value in settings.items()}) as running:
        port = int(running.environment["GATEWAY_SERVICE_PORT"])
        chat = HttpChat(port, ChatRequest(model=model_discovery.DEFAULT_MODEL), (f"authorization: Bearer {running.api_key}",))
        await measure_rate(chat, Stories().next(2 * WORKER_SLOTS), WORKER_SLOTS)
        overhead = await running.metric("inference", ENGINE_OVERHEAD, model=model_discovery.DEFAULT_MODEL)
        worker = (await running.pids())["inference"]
        assert worker is not None
        held = sum(map(_resident_mb, (worker, _engine_of(worker))))
    expected = model_discovery.packaged().stat().st_size / 1e6 + WORKER_SLOTS * WORKER_SLOT_TOKENS * KV_BYTES_A_TOKEN / 1e6
    # An engine that measures nothing meets no target.
    share = 100 * overhead if overhead > 0 else math.nan
    claim = f"memory of worker and engine, {WORKER_SLOTS} slots of {WORKER_SLOT_TOKENS}, less model file and KV ({expected:.0f} MB)"
    rows += [
        report.alone(claim, held - expected, "MB", at_most=ALLOWED_MB),
        report.alone(f"the engine's own time at {WORKER_SLOTS} streams", share, "%", at_most=5),
    ]


def _engine_of(worker: int) -> int:
    """Return the worker's child that is the engine; another child is the mesh's sidecar."""
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text(encoding="ascii").split()
    (engine,) = (int(child) for child in children if b"engine.process" in Path(f"/proc/{child}/cmdline").read_bytes())
    return engine


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# --- the run -------------------------------------------------------------------------------------------------------------

#: A section adds its rows as soon as it has them; it gets the number of rounds and of threads.
Section = Callable[[list[report.Row], int, int], Awaitable[None]]
SECTIONS: dict[str, Section] = {
    "throughput": measure_throughput,
    "first_token": waiting.measure_first_token,
    "shared_prefix": waiting.measure_shared_prefix,
    "reuse": waiting.measure_reuse,
    "gaps": waiting.measure_gaps,
    "worker": measure_worker,
}
#: The others take a minute or more, even for one round.
QUICK_SECTIONS = ("throughput", "first_token", "shared_prefix")


async def measure(table: report.Table, names: Sequence[str], count: int, threads: int) -> None:
    table.expect(names)
    for name in names:
        with table.part(name) as rows:
            await SECTIONS[name](rows, count, threads)


def main() -> None:
    quick = f"one round of {', '.join(QUICK_SECTIONS)}, under 3 minutes"
    parser = report.arguments(__doc__, limits=(FULL_SECONDS, QUICK_SECONDS), quick=quick)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="measure only these")
    options = parser.parse_args()
    # before the time limit starts
    rivals.ensure()
    rivals.ensure_python_server()
    threads = len(os.sched_getaffinity(0))
    count, names = (1, QUICK_SECTIONS) if options.quick else (options.rounds, tuple(SECTIONS))
    heading = f"{threads} threads, llama-cpp-python {setup.engine_version()}, {model_discovery.packaged().name}"
    with report.opened(options, heading) as table:
        table.run(measure(table, options.only or names, count, threads))


if __name__ == "__main__":
    main()
