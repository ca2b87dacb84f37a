"""Measure how long a caller of the engine waits: for the first token, with a known prefix, and between two tokens.

Part of ``bench.engine``.
"""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from bench import contenders, report, rounds
from bench.contenders import Contender, Running, Shape

#: Words that are one token each.
WORDS = ("the", "sea", "light", "was", "over", "and", "under", "old", "house", "with", "long", "night", "many", "small", "stone", "water")
#: The tokens that SmolLM2's chat template adds to a message.
TEMPLATE_TOKENS = 30
SHORT_PROMPT, SHARED_PREFIX, QUESTION, LONG_PROMPT = 200, 1000, 20, 4000
#: In one round.
FIRST_TOKENS = 6
#: Each takes a few seconds, and one that a neighbour delayed must not be the median.
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


def message(tokens: int, source: random.Random) -> str:
    """Return a prompt of this length that shares no prefix with another."""
    return " ".join(source.choice(WORDS) for _ in range(tokens))


async def first_token(running: Running, prompt: str, new_tokens: int = 4) -> tuple[float, int]:
    """Return the milliseconds to the first token, and the tokens of the prompt."""
    came: list[float] = []
    start = time.perf_counter()
    answer = await running.generate(prompt, new_tokens, lambda: came.append(time.perf_counter()))
    return (came[0] - start) * 1000, answer.prompt_tokens


async def measure_first_token(rows: list[report.Row], count: int, threads: int) -> None:
    took: dict[str, list[float]] = {}
    lengths: set[int] = set()
    for number in range(count):
        for contender in rounds.in_turn(contenders.everyone(), number):
            # The same prompts for all, each used once.
            source = random.Random(number)
            async with contender.opened(Shape(1, 2048, threads)) as running:
                prompts = [message(SHORT_PROMPT - TEMPLATE_TOKENS, source) for _ in range(FIRST_TOKENS)]
                found = [await first_token(running, prompt) for prompt in prompts]
            lengths |= {tokens for _, tokens in found}
            took.setdefault(contender.name, []).append(statistics.median(milliseconds for milliseconds, _ in found))
    rival = contenders.LlamaServer.name
    length = f"{min(lengths)} to {max(lengths)}"
    rows += [
        rounds.paired(f"{name}: first token, prompt of {length} tokens", "ms", took[name], rival, took[rival], at_most=1.1)
        for name in took
        if name != rival
    ]


async def measure_shared_prefix(rows: list[report.Row], count: int, threads: int) -> None:
    for contender in contenders.everyone():
        first: list[float] = []
        second: list[float] = []
        async with contender.opened(Shape(2, 2048, threads)) as running:
            for number in range(max(count, LEAST_PREFIXES)):
                source = random.Random(number)
                prefix = message(SHARED_PREFIX, source)
                for took in (first, second):
                    milliseconds, _ = await first_token(running, f"{prefix} {message(QUESTION, source)}")
                    took.append(milliseconds)
        claim = f"{contender.name}: first token behind a known prefix of {SHARED_PREFIX} tokens"
        is_ours = isinstance(contender, contenders.Ours)
        rows.append(rounds.paired(claim, "ms", second, "unknown", first, at_most=0.15 if is_ours else None))


async def measure_reuse(rows: list[report.Row], _count: int, threads: int) -> None:
    """Send chats that begin with one of a few pages, and measure the total time and each wait."""
    took: dict[str, float] = {}
    for contender in contenders.everyone():
        source = random.Random(7)
        pages = [message(PAGE, source) for _ in range(PAGES)]
        prompts = [f"{pages[number % PAGES]} {message(CHAT_PROMPT - PAGE - TEMPLATE_TOKENS, source)}" for number in range(CHATS)]
        async with contender.opened(Shape(CHATS_AT_ONCE, 512, threads)) as running:
            start = time.perf_counter()
            queue = iter(prompts)
            async with asyncio.TaskGroup() as tasks:
                callers = [tasks.create_task(_ask_all(running, queue)) for _ in range(CHATS_AT_ONCE)]
            waits = [wait for caller in callers for wait in caller.result()]
            took[contender.name] = time.perf_counter() - start
        rows.append(
            report.alone(f"{contender.name}: first token of {CHATS} chats, {CHATS_AT_ONCE} at a time, p50", statistics.median(waits), "ms")
        )
    rival = contenders.LlamaServer.name
    claim = f"{CHATS} prompts of {CHAT_PROMPT} tokens that begin with one of {PAGES} pages of {PAGE}, {CHAT_TOKENS} new tokens each"
    ours = [name for name in took if name != rival]
    rows += [rounds.paired(f"{name}: {claim}", "s", [took[name]], rival, [took[rival]], at_most=1.0) for name in ours]


async def _ask_all(running: Running, queue: Iterator[str]) -> list[float]:
    """Send prompts until the queue is empty. Return the milliseconds to each first token."""
    return [(await first_token(running, prompt, CHAT_TOKENS))[0] for prompt in queue]


class Streams:
    """Endless streams, and the gaps between their tokens."""

    def __init__(self) -> None:
        self._last: list[float | None] = [None] * STREAMS
        self._given = [0] * STREAMS
        self.run_in = asyncio.Event()
        #: The time at the end of a gap, and its milliseconds.
        self._gaps: list[tuple[float, float]] = []

    def came(self, stream: int) -> None:
        now, last = time.perf_counter(), self._last[stream]
        if last is not None:
            self._gaps.append((now, (now - last) * 1000))
        self._last[stream] = now
        self._given[stream] += 1
        if min(self._given) >= RUNNING_IN:
            self.run_in.set()

    def since(self, start: float) -> list[float]:
        """Return the gaps that ended after ``start``."""
        return [gap for end, gap in self._gaps if end > start]


@asynccontextmanager
async def _streams(running: Running) -> AsyncIterator[Streams]:
    """Enter the block when all streams generate tokens, and cancel them afterwards."""
    streams = Streams()

    async def run(stream: int) -> None:
        prompt = f"Tell the long story of ship number {stream}, with many details."
        await running.generate(prompt, ENDLESS, lambda: streams.came(stream))

    async with asyncio.TaskGroup() as tasks:
        endless = [tasks.create_task(run(stream)) for stream in range(STREAMS)]
        await streams.run_in.wait()
        yield streams
        assert not any(stream.done() for stream in endless), "a stream ended by itself, and its gaps were not measured"
        for stream in endless:
            stream.cancel()


async def _gaps(contender: Contender, number: int, threads: int) -> tuple[float, float, float]:
    """Return the 99th percentile of the gaps, quiet and beside a long prompt, in milliseconds; and the duration of the prompt."""
    async with contender.opened(Shape(STREAMS + 1, LONG_CONTEXT, threads)) as running, _streams(running) as streams:
        start = time.perf_counter()
        await asyncio.sleep(QUIET_SECONDS)
        quiet = streams.since(start)
        start = time.perf_counter()
        milliseconds, _ = await first_token(running, message(LONG_PROMPT, random.Random(number)))
        beside = streams.since(start)
        return report.percentile(quiet, 0.99), report.percentile(beside, 0.99), milliseconds


async def measure_gaps(rows: list[report.Row], count: int, threads: int) -> None:
    for contender in contenders.everyone():
        found = [await _gaps(contender, number, threads) for number in range(count)]
        quiet, beside, took = ([each[column] for each in found] for column in range(3))
        claim = f"{contender.name}: gap between tokens, p99, beside a prompt of {LONG_PROMPT} tokens"
        is_ours = isinstance(contender, contenders.Ours)
        rows.append(rounds.paired(claim, "ms", beside, "quiet", quiet, at_most=3 if is_ours else None))
        rows.append(report.alone("  its first token", statistics.median(took), "ms"))
