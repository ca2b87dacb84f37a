"""Measure batches and flex requests: what live requests notice of them, and how fast they are. Rounds with and without them take turns.

Live requests beside others come one at a time and take about a fifth of the time. Twice as many flex requests as slots always wait, or a
batch that doesn't end. Everything shares one machine, so read the ratios to the rounds without the others.
"""

import asyncio
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import psutil

from bench import batches, http_load, processes, report, tenants, timed_gateway
from bench.batches import Batches
from bench.http_load import Load, Outcome, Pace, Spread, Steady
from bench.report import Options, Rows
from bench.tenants import Tenants
from tests import replicas
from tests.replicas import Replica
from tests.stacks import until

#: Model -> words of an answer, and live requests a second.
LOADS = {"echo": (20, 1.0), "smollm2": (24, 0.5)}
SLOTS = 4
TOKEN_MS = 10.0
#: Until the flex requests or lines run.
BEGINNING_SECONDS = 3.0
PROMPT = "Write about rivers and the towns beside them, about their bridges, ships and floods. "
#: Lines of a batch that doesn't end before its round.
ENDLESS = 3000
#: Callers of an instant model, and its slots.
CLIENTS, MANY_SLOTS = 32, 64
#: Words of a system prompt of about 1,000 tokens, the lines that share it, and the slots of the worker, which keeps no other prompt.
PROMPT_WORDS, LINES_EACH, FEW_SLOTS = 850, 8, 2
LARGE_BYTES = 200 * 1000 * 1000
MAX_MEMORY_MB, MAX_STALL_MS = 64, 50
MAX_STARTED_SECONDS = 1.0

#: Runs requests at batch priority, until the block ends.
Beside = Callable[[], AbstractAsyncContextManager[None]]


# --- live requests beside others -----------------------------------------------------------------------------------------


async def _load(stack: Tenants, model: str, pace: Pace, *, flex: bool) -> Outcome:
    words, _ = LOADS[model]
    keys = stack.keys[:1] if flex else stack.keys[1:]
    # Different prompts, so that none is read from a cache alone.
    requests = tuple(
        request
        for number in range(50)
        for request in tenants.chats(keys, model, f"{number} {PROMPT * 3}", words, stream=True, service_tier="flex" if flex else "default")
    )
    return await http_load.make(Load(port=stack.port, requests=requests, pace=pace))


async def _measure_live(stack: Tenants, model: str, seconds: float) -> dict[str, float]:
    answers = await _load(stack, model, Spread(max(2, round(LOADS[model][1] * seconds)), seconds), flex=False)
    failed = len(answers.answers) - len(answers.good)
    return {"failed": failed, "took": answers.percentile(0.95), "first": answers.percentile(0.95, "first")}


async def _measure(stack: Tenants, model: str, seconds: float, *, live: bool, flex: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    async with asyncio.TaskGroup() as tasks:
        pace = Steady(2 * SLOTS, BEGINNING_SECONDS + seconds)
        others = tasks.create_task(_load(stack, model, pace, flex=True)) if flex else None
        await asyncio.sleep(BEGINNING_SECONDS)
        if live:
            figures |= await _measure_live(stack, model, seconds)
    if others is not None:
        outcome = others.result()
        figures["failed beside"] = len(outcome.answers) - len(outcome.good)
        figures["tokens"] = sum(answer.pieces for answer in outcome.good) / outcome.seconds
    return figures


async def _measure_batch(stack: Tenants, model: str, seconds: float, *, live: bool, batch: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    async with batches.opened(stack.running, stack.keys[0]) as jobs:
        words = LOADS[model][0]
        running = await jobs.order(batches.chat(model, f"{number} {PROMPT * 3}", words) for number in range(ENDLESS)) if batch else None
        await asyncio.sleep(BEGINNING_SECONDS)
        began, before = time.monotonic(), await jobs.count_tokens()
        if live:
            figures |= await _measure_live(stack, model, seconds)
        await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
        if running is not None:
            figures["tokens"] = (await jobs.count_tokens() - before) / (time.monotonic() - began)
            await jobs.cancel(running)
            figures["failed beside"] = (await jobs.read()).failed
    return figures


async def _compare(rows: Rows, stack: Tenants, options: Options, *, model: str, name: str) -> None:
    """``name``: of what runs beside live requests."""
    measure = partial(_measure_batch, stack, model) if name == "a batch" else partial(_measure, stack, model)
    other = "batch" if name == "a batch" else "flex"
    ways: dict[str, Callable[[float], Awaitable[dict[str, float]]]] = {
        "live alone": partial(measure, live=True, **{other: False}),
        f"live beside {name}": partial(measure, live=True, **{other: True}),
        f"{name} alone": partial(measure, live=False, **{other: True}),
    }
    found = report.by_name(await report.take_turns({way: partial(run, options.seconds) for way, run in ways.items()}, options.rounds))
    alone, beside, others = (found[way] for way in ways)
    rows.paired(f"{model}: live beside {name}: whole answer, p95", beside["took"], "ms", "live alone", alone["took"], at_most=1.1)
    rows.paired(f"{model}: live beside {name}: first token, p95", beside["first"], "ms", "live alone", alone["first"])
    rows.alone(
        f"{model}: live beside {name}: first token, p95, of 1.1 x or + 40 ms", _of_allowed(beside["first"], alone["first"]), "x", at_most=1
    )
    rows.paired(f"{model}: {name} beside live: tokens", beside["tokens"], "tok/s", f"{name} alone", others["tokens"], at_least=0.5)
    failed = sum(sum(figures[each]) for figures in (alone, beside, others) for each in ("failed", "failed beside") if each in figures)
    rows.alone(f"{model}: requests that failed, with {name}", failed, "requests", at_most=0)


def _of_allowed(values: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(value / max(1.1 * other, other + 40) for value, other in zip(values, others, strict=True))


@asynccontextmanager
async def _slow() -> AsyncIterator[Tenants]:
    async with tenants.opened(2, ECHO_TOKEN_MS=TOKEN_MS, ECHO_SLOTS=SLOTS, ENGINE_SLOTS=SLOTS) as stack:
        yield stack


def _beside(model: str, name: str) -> report.Part:
    async def part(rows: Rows, _shared: None, options: Options) -> None:
        async with _slow() as stack:
            await _compare(rows, stack, options, model=model, name=name)

    return part


# --- speed on an idle machine --------------------------------------------------------------------------------------------


async def _measure_lines(rows: Rows, _shared: None, options: Options) -> None:
    """Compare lines with live requests of an instant model, and real answers with those of as many clients as slots."""
    async with tenants.opened(2, ECHO_SLOTS=MANY_SLOTS) as stack, batches.opened(stack.running, stack.keys[0]) as jobs:
        count = round(300 * options.seconds)
        bodies = [batches.chat("echo", f"{number} one two three four five six seven", 20) for number in range(count)]
        requests = tuple(batches.as_request(body, stack.keys[1]) for body in bodies[:500])

        async def run_lines() -> float:
            phases = await jobs.run(bodies)
            assert phases.failed == 0, phases
            return phases.lines_per_second

        async def run_live() -> float:
            outcome = await http_load.make(Load(port=stack.port, requests=requests, pace=Steady(CLIENTS, options.seconds)))
            assert len(outcome.good) == len(outcome.answers), outcome.statuses
            return outcome.rate()

        found = await report.take_turns({"lines": run_lines, "live": run_live}, options.rounds)
    rows.paired("echo: lines of a batch", found["lines"], "lines/s", f"requests of {CLIENTS} clients", found["live"], at_least=0.7)


async def _measure_tokens(rows: Rows, _shared: None, options: Options) -> None:
    async with tenants.opened(2, ENGINE_SLOTS=SLOTS) as stack, batches.opened(stack.running, stack.keys[0]) as jobs:
        bodies = [batches.chat("smollm2", f"{number} {PROMPT}", 32, temperature=0) for number in range(round(5 * options.seconds))]
        ways = {"batch": partial(_tokens_of_batch, jobs, bodies), "live": partial(_tokens_of_clients, jobs, bodies)}
        found = await report.take_turns(ways, options.rounds)
    rows.paired("smollm2: batch on an idle machine", found["batch"], "tok/s", f"{SLOTS} live clients", found["live"], at_least=0.95)


async def _tokens_of_batch(jobs: Batches, bodies: Sequence[Mapping[str, object]]) -> float:
    phases = await jobs.run(bodies)
    assert phases.failed == 0, phases
    return phases.tokens_per_second


async def _tokens_of_clients(jobs: Batches, bodies: Sequence[Mapping[str, object]]) -> float:
    waiting, tokens, began = list(bodies), 0, time.monotonic()

    async def client() -> None:
        nonlocal tokens
        while waiting:
            answer = (await jobs.http.post(batches.CHATS, json=waiting.pop(0))).raise_for_status().json()
            tokens += answer["usage"]["completion_tokens"]

    async with asyncio.TaskGroup() as tasks:
        for _ in range(SLOTS):
            tasks.create_task(client())
    return tokens / (time.monotonic() - began)


async def _measure_prompts(rows: Rows, _shared: None, options: Options) -> None:
    """Lines are sorted by their system prompts. The same texts as prompts of users run in the order of the file, which is shuffled."""
    settings = {"ENGINE_SLOTS": FEW_SLOTS, "PROMPT_CACHE_RAM": "0"}
    async with tenants.opened(2, **settings) as stack, batches.opened(stack.running, stack.keys[0]) as jobs:

        async def run(number: int, *, is_sorted: bool) -> float:
            lines = [(prompt, line) for prompt in range(options.prompts) for line in range(LINES_EACH)]
            random.Random(number).shuffle(lines)
            phases = await jobs.run([_begins_alike(number, *line, is_sorted=is_sorted) for line in lines])
            assert phases.failed == 0, phases
            return phases.lines_per_second

        rounds: dict[str, list[float]] = {"sorted": [], "shuffled": []}
        for number in range(options.rounds):
            # Other texts each time, so that nothing is left in a cache.
            rounds["sorted"].append(await run(2 * number, is_sorted=True))
            rounds["shuffled"].append(await run(2 * number + 1, is_sorted=False))
    what = f"smollm2: lines of {options.prompts} system prompts of about 1,000 tokens"
    rows.paired(what, rounds["sorted"], "lines/s", "in shuffled order", rounds["shuffled"], at_least=1.5)


def _begins_alike(run: int, prompt: int, line: int, *, is_sorted: bool) -> dict[str, object]:
    words = random.Random(1000 * run + prompt).choices(PROMPT.split(), k=PROMPT_WORDS)
    text, question = " ".join(words), f"Question {line}: what is written above?"
    if is_sorted:
        messages = [{"role": "system", "content": text}, {"role": "user", "content": question}]
    else:
        messages = [{"role": "user", "content": f"{text} {question}"}]
    return {"model": "smollm2", "messages": messages, "max_tokens": 8, "temperature": 0}


# --- large files ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _only_gateway(stack: Tenants) -> AsyncIterator[tuple[Replica, Path]]:
    """Run a gateway that measures its event loop, while the stack's own is stopped. Yields its file, too."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "stalls"
        words, settings = ("-m", timed_gateway.__name__), {timed_gateway.FILE: str(file)}
        async with replicas.replica(stack.running, "gateway", folder=folder, name="timed", settings=settings, words=words) as gateway:
            await gateway.ready()
            own = await stack.running.signal("gateway", signal.SIGSTOP)
            # It would restart a silent program.
            supervisor = psutil.Process(own).ppid()
            os.kill(supervisor, signal.SIGSTOP)
            try:
                yield gateway, file
            finally:
                os.kill(own, signal.SIGCONT)
                os.kill(supervisor, signal.SIGCONT)


async def _measure_large(rows: Rows, _shared: None, options: Options) -> None:
    async with (
        tenants.opened(2, ECHO_SLOTS=MANY_SLOTS) as stack,
        _only_gateway(stack) as (gateway, file),
        batches.opened(stack.running, stack.keys[0], gateway.url) as jobs,
    ):
        # What is made once, exists.
        await jobs.run([batches.chat("echo", "one two three", 20)] * 200)
        before, since = processes.resident_mb(gateway.process.pid), time.time()
        async with processes.watching_memory(gateway.process.pid, 0.1) as readings:
            phases = await jobs.run(batches.chat("echo", f"{number} one two three four five", 20) for number in range(options.lines))
        of_batch, stalls = max(readings) - before, timed_gateway.read(file, since)
        before, since = processes.resident_mb(gateway.process.pid), time.time()
        async with processes.watching_memory(gateway.process.pid, 0.1) as readings:
            uploaded = await jobs.upload(os.urandom(LARGE_BYTES), "user_data")
            assert await jobs.download(uploaded) == LARGE_BYTES
        of_files, more_stalls = max(readings) - before, timed_gateway.read(file, since)
    assert phases.failed == 0, phases
    of = f"{phases.lines:,} lines"
    rows.alone(f"{of}: validated", phases.validated, "s", at_most=20)
    rows.alone(f"{of}: run", phases.lines_per_second, "lines/s")
    rows.alone(f"{of}: files assembled", phases.assembled, "s", at_most=40)
    rows.alone(f"{of}: memory of the gateway", of_batch, "MB", at_most=MAX_MEMORY_MB)
    rows.alone(f"{of}: longest hold of the event loop", max(stall.held_ms for stall in stalls), "ms", at_most=MAX_STALL_MS)
    rows.alone(f"{of}: the same with waits for a processor", max(stall.late_ms for stall in stalls), "ms")
    rows.alone("200 MB up and down: memory of the gateway", of_files, "MB", at_most=MAX_MEMORY_MB)
    rows.alone(
        "200 MB up and down: longest hold of the event loop", max(stall.held_ms for stall in more_stalls), "ms", at_most=MAX_STALL_MS
    )


# --- ends ----------------------------------------------------------------------------------------------------------------


async def _measure_ends(rows: Rows, _shared: None, options: Options) -> None:
    """Measure until when lines start after a cancel."""
    settings = {"ECHO_TOKEN_MS": TOKEN_MS, "ECHO_SLOTS": MANY_SLOTS}
    started = []
    async with tenants.opened(2, **settings) as stack, batches.opened(stack.running, stack.keys[0]) as jobs:

        async def started_after() -> float | None:
            async with stack.running.database("gateway") as database:
                found: float | None = await database.fetchval(
                    "SELECT extract(epoch FROM (SELECT max(created_at) FROM reservations WHERE job_id = newest.id) - cancelling_at)::float8"
                    " FROM (SELECT * FROM jobs ORDER BY created_at DESC LIMIT 1) AS newest WHERE ended_at IS NOT NULL"
                )
            return found

        for _ in range(options.rounds):
            batch = await jobs.order(batches.chat("echo", f"{number} {PROMPT}", 20) for number in range(ENDLESS))
            await asyncio.sleep(BEGINNING_SECONDS)
            await jobs.cancel(batch)
            started.append(await until(started_after, seconds=30, what="the batch ends"))
    rows.alone("the last line starts after a cancel", max(started), "s", at_most=MAX_STARTED_SECONDS)


if __name__ == "__main__":
    report.run(
        __doc__,
        {
            "lines": _measure_lines,
            "tokens": _measure_tokens,
            "prompts": _measure_prompts,
            "large": _measure_large,
            "ends": _measure_ends,
            **{f"{model}-{name.split()[-1]}": _beside(model, name) for name in ("a batch", "flex") for model in LOADS},
        },
        limits=(3600.0, 900.0),
        seconds=(20.0, 5.0),
        rounds=(5, 1),
        lines=(50_000, 2000),
        prompts=(8, 4),
    )
