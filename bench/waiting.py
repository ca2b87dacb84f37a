"""Measure how long a caller of the engine waits: for the first token, with a known prefix, and between two tokens.

Part of ``bench.engine``.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from bench import contenders, report
from bench.contenders import Running, Shape
from bench.report import Options, Rows

#: Words that are one token each.
WORDS = ("the", "sea", "light", "was", "over", "and", "under", "old", "house", "with", "long", "night", "many", "small", "stone", "water")
#: The tokens that SmolLM2's chat template adds to a message.
TEMPLATE_TOKENS = 30
SHORT_PROMPT, SHARED_PREFIX, QUESTION, LONG_PROMPT = 200, 1000, 20, 4000
#: In one round.
FIRST_TOKENS = 6
#: Each takes a few seconds, and a measurement that a neighbor delayed must not be the median.
LEAST_PREFIXES = 3
#: Many prompts, each of which begins with one of a few pages, as in a company.
CHATS, CHATS_AT_ONCE, PAGES, PAGE, CHAT_PROMPT, CHAT_TOKENS = 200, 16, 10, 192, 256, 32
#: Streams that run while another prompt is read.
STREAMS, LONG_CONTEXT = 4, 8192
#: At 30 steps a second, 700 gaps of four streams: enough for a 99th percentile.
QUIET_SECONDS = 6.0
#: A stream runs until it is cancelled; with its prompt this fits the context.
ENDLESS = LONG_CONTEXT - 100
#: Tokens of each stream before its gaps count.
RUNNING_IN = 8
RIVAL = contenders.LlamaServer.name


def message(tokens: int, source: random.Random) -> str:
    """Return a prompt of this length that shares no prefix with another."""
    return " ".join(source.choice(WORDS) for _ in range(tokens))


async def first_token(running: Running, prompt: str, new_tokens: int = 4) -> tuple[float, int]:
    """Return the milliseconds to the first token, and the tokens of the prompt."""
    came: list[float] = []
    start = time.perf_counter()
    counts = await running.generate(prompt, new_tokens, lambda: came.append(time.perf_counter()))
    return (came[0] - start) * 1000, counts.prompt_tokens


async def measure_first_token(rows: Rows, _shared: None, options: Options) -> None:
    took, lengths = defaultdict[str, list[float]](list), set[int]()
    for number in range(options.rounds):
        for contender in report.in_turn(contenders.everyone(), number):
            # The same prompts for all, each used once.
            source = random.Random(number)
            async with contenders.opened(contender, Shape(1, 2048, options.threads)) as running:
                prompts = [message(SHORT_PROMPT - TEMPLATE_TOKENS, source) for _ in range(FIRST_TOKENS)]
                found = [await first_token(running, prompt) for prompt in prompts]
            lengths |= {tokens for _, tokens in found}
            took[contender.name].append(statistics.median(milliseconds for milliseconds, _ in found))
    theirs, claim = took.pop(RIVAL), f"first token, prompt of {min(lengths)} to {max(lengths)} tokens"
    for name, ours in took.items():
        rows.paired(f"{name}: {claim}", ours, "ms", RIVAL, theirs, at_most=1.1)


async def measure_shared_prefix(rows: Rows, _shared: None, options: Options) -> None:
    for contender in contenders.everyone():
        first, second = list[float](), list[float]()
        async with contenders.opened(contender, Shape(2, 2048, options.threads)) as running:
            for number in range(max(options.rounds, LEAST_PREFIXES)):
                source = random.Random(number)
                prefix = message(SHARED_PREFIX, source)
                for took in (first, second):
                    milliseconds, _ = await first_token(running, f"{prefix} {message(QUESTION, source)}")
                    took.append(milliseconds)
        claim = f"{contender.name}: first token behind a known prefix of {SHARED_PREFIX} tokens"
        rows.paired(claim, second, "ms", "unknown", first, at_most=None if contender.name == RIVAL else 0.15)


async def measure_reuse(rows: Rows, _shared: None, options: Options) -> None:
    """Send chats that begin with one of a few pages, and measure the total time and each wait."""
    took: dict[str, float] = {}
    for contender in contenders.everyone():
        source = random.Random(7)
        pages = [message(PAGE, source) for _ in range(PAGES)]
        prompts = [f"{pages[number % PAGES]} {message(CHAT_PROMPT - PAGE - TEMPLATE_TOKENS, source)}" for number in range(CHATS)]
        async with contenders.opened(contender, Shape(CHATS_AT_ONCE, 512, options.threads)) as running:
            start, queue, waits = time.perf_counter(), iter(prompts), list[float]()
            async with asyncio.TaskGroup() as tasks:
                for _ in range(CHATS_AT_ONCE):
                    tasks.create_task(_ask_all(running, queue, waits))
            took[contender.name] = time.perf_counter() - start
        claim = f"{contender.name}: first token of {CHATS} chats, {CHATS_AT_ONCE} at a time, p50"
        rows.alone(claim, statistics.median(waits), "ms")
    theirs = took.pop(RIVAL)
    claim = f"{CHATS} prompts of {CHAT_PROMPT} tokens that begin with one of {PAGES} pages of {PAGE}, {CHAT_TOKENS} new tokens each"
    for name, ours in took.items():
        rows.paired(f"{name}: {claim}", [ours], "s", RIVAL, [theirs], at_most=1.0)


async def _ask_all(running: Running, queue: Iterator[str], waits: list[float]) -> None:
    for prompt in queue:
        milliseconds, _ = await first_token(running, prompt, CHAT_TOKENS)
        waits.append(milliseconds)


@asynccontextmanager
async def _streams(running: Running) -> AsyncIterator[list[list[float]]]:
    """Enter the block when all streams generate tokens, and cancel them afterwards. Yields the times of each one's tokens."""
    came: list[list[float]] = [[] for _ in range(STREAMS)]
    run_in = asyncio.Event()

    async def run(stream: int) -> None:
        def arrived() -> None:
            came[stream].append(time.perf_counter())
            if min(map(len, came)) >= RUNNING_IN:
                run_in.set()

        await running.generate(f"Tell the long story of ship number {stream}, with many details.", ENDLESS, arrived)

    async with asyncio.TaskGroup() as tasks:
        endless = [tasks.create_task(run(stream)) for stream in range(STREAMS)]
        await run_in.wait()
        yield came
        assert not any(stream.done() for stream in endless), "a stream ended by itself, and its gaps were not measured"
        for stream in endless:
            stream.cancel()


def _gap(came: list[list[float]], start: float) -> float:
    """Return the 99th percentile of the gaps that ended after ``start``, in milliseconds."""
    gaps = [(now - last) * 1000 for times in came for last, now in itertools.pairwise(times) if now > start]
    return report.percentile(gaps, 0.99)


async def measure_gaps(rows: Rows, _shared: None, options: Options) -> None:
    for contender in contenders.everyone():
        quiet, beside, took = list[float](), list[float](), list[float]()
        for number in range(options.rounds):
            shape = Shape(STREAMS + 1, LONG_CONTEXT, options.threads)
            async with contenders.opened(contender, shape) as running, _streams(running) as came:
                start = time.perf_counter()
                await asyncio.sleep(QUIET_SECONDS)
                quiet.append(_gap(came, start))
                start = time.perf_counter()
                milliseconds, _ = await first_token(running, message(LONG_PROMPT, random.Random(number)))
                beside.append(_gap(came, start))
                took.append(milliseconds)
        claim = f"{contender.name}: gap between tokens, p99, beside a prompt of {LONG_PROMPT} tokens"
        rows.paired(claim, beside, "ms", "quiet", quiet, at_most=None if contender.name == RIVAL else 3)
        rows.alone("  its first token", statistics.median(took), "ms")
