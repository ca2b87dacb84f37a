"""The engine against llama.cpp's own programs, in one run and on the same threads.

throughput     tokens a second of SmolLM2-135M, 64 new tokens each, temperature 0.7
first_token    the time to the first token
constrained    the throughput of answers that follow a JSON schema, against that of free ones
shared_prefix  the same after a cached prefix and after a new one
reuse          chats that begin with one of a few pages: the total time
long_prompt    the time to the first token behind a long prompt, with nobody else
page_prompt    the same behind a shorter one
contexts       tokens a second behind contexts that were read before, also with f16 keys and bf16 values
gaps           the time between two tokens of running streams while another prompt is read, and the wait for that prompt
image_gaps     the same time while images are encoded and read, by a projector of the size of CLIP's (ViT-B/16) with random weights
lookup         answers that copy, with drafts and without: the tokens a second after the first one; and stories, which copy nothing
sampling       drawing the tokens of 64 answers from a large vocabulary with two threads
worker         the memory of a worker and its engine, and the engine's own time
gpu            only on a GPU: tokens a second and first tokens of a model of Llama-8B's shape, with random weights in Q8_0

All contenders take turns in each round, one at a time. A ratio is the median of the rounds' ratios, with its range behind it. Our engine is
called through its backend and the socketpair, as by a worker; llama-server over HTTP, as by its users. The short form measures one round of
the parts that take less than a minute.

The first run builds llama.cpp's programs, which takes 10 minutes; python -m bench.rivals does it in advance.
"""

import asyncio
import itertools
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, TypeVar, cast

import msgspec
import numpy as np

from bench import calls, contenders, processes, report, rivals, tenants
from bench.contenders import (
    CONSTRAINED,
    EVERYONE,
    F16_KEYS,
    LLAMA_SERVER,
    MODES,
    OURS,
    Contender,
    Generate,
    GenerateChat,
    Shape,
)
from bench.report import Options, Rows
from services.inference import numerics
from services.inference.engine.engine_messages import KvMode
from services.inference.engine.sampling import Parameters
from services.inference.engine.token_sampler import StepSampler, TokenSampler
from services.inference.engine.vocabulary import ModelVocabulary
from services.inference.models import model_discovery
from shared import model_folder
from shared.api.generation import ChatMessage, ImagePart
from tests import gguf_files
from tests.services.inference.images import vision_models
from tools.engine import wheel

T = TypeVar("T")

#: llama.cpp's own server, in all comparisons.
RIVAL = LLAMA_SERVER.name
PROMPT = "Write a long story number {} about a lighthouse keeper and the sea, with many details."
#: Three digits, so that all prompts have the same length.
STORIES = range(100, 1000)
NEW_TOKENS = 64
LEVELS = (1, 8, 16, 32)
SLOTS, SLOT_TOKENS = 32, 1024
CONSTRAINED_LEVEL = 8
BATCHED_BENCH = "llama-batched-bench"


class Rate(NamedTuple):
    """Tokens per second."""

    #: From the first request to the last token, prompts included.
    whole: float
    #: While all streams generate: no prompt is read, and none has ended.
    answering: float


async def measure_rate(generate: Generate, prompts: Sequence[str], level: int, new_tokens: int = NEW_TOKENS) -> Rate:
    """Run ``level`` prompts at a time."""
    tokens, together, seconds = 0, 0, 0.0

    async def answer(prompt: str, came: list[float]) -> None:
        nonlocal tokens
        counts = await generate(prompt, new_tokens, lambda: came.append(time.perf_counter()))
        tokens += counts.completion_tokens

    start = time.perf_counter()
    for first in range(0, len(prompts), level):
        came: list[list[float]] = [[] for _ in range(level)]
        async with asyncio.TaskGroup() as tasks:
            for stream, prompt in enumerate(prompts[first : first + level]):
                tasks.create_task(answer(prompt, came[stream]))
        begin, end = max(times[0] for times in came), min(times[-1] for times in came)
        together += sum(begin < moment <= end for times in came for moment in times)
        seconds += max(0.0, end - begin)
    return Rate(tokens / (time.perf_counter() - start), together / seconds if seconds else math.nan)


async def _measure_levels(contender: Contender, shape: Shape) -> dict[int, Rate]:
    """Measure it at each level; no prompt comes twice."""
    stories = map(PROMPT.format, STORIES)
    async with contenders.opened(contender, shape) as generate:
        # One stream is done in half a second, so it runs several times.
        return {level: await measure_rate(generate, list(itertools.islice(stories, max(level, 4))), level) for level in LEVELS}


async def measure_throughput(rows: Rows, _shared: None, options: Options) -> None:
    others, began, shape = processes.others_seconds(), time.perf_counter(), Shape(SLOTS, SLOT_TOKENS, options.threads)
    ways = {contender.name: partial(_measure_levels, contender, shape) for contender in EVERYONE}
    ways[BATCHED_BENCH] = partial(decode_rates, options.threads)

    def keep(found: Mapping[str, Sequence[Mapping[int, Rate]]]) -> None:
        rows[:] = throughput_rows(found)

    # A run that runs out of time keeps its rows.
    await report.take_turns(ways, options.rounds, keep)
    # llama.cpp's threads wait for each other after every operation: with more than this, the figures are about other processes.
    taken = (processes.others_seconds() - others) / (time.perf_counter() - began) / (os.cpu_count() or 1)
    rows.alone("processor time that others took meanwhile", 100 * taken, "%", at_most=5)


def throughput_rows(found: Mapping[str, Sequence[Mapping[int, Rate]]]) -> Rows:
    """Compare what has been measured so far; a round counts once both sides have run."""
    rows = Rows()
    for (mode, (name, _)), level in itertools.product(OURS.items(), LEVELS):
        # The mode that is not the default may be a tenth slower.
        share = 1.0 if mode == MODES[0] else 0.9
        claim = f"{name}: {level} stream{'s' if level > 1 else ''}"
        # llama-batched-bench measures decoding with all prompts read, so the target is for answers alone.
        for what, figure, rival, its_figure, least in (
            (claim, "whole", RIVAL, "whole", share * (1.0 if level > 1 else 0.95)),
            (claim, "whole", BATCHED_BENCH, "answering", None),
            (claim.replace(":", ", answers alone:"), "answering", BATCHED_BENCH, "answering", share * 0.9 if level > 1 else None),
        ):
            if both := list(zip(found[name], found[rival], strict=False)):
                ours, theirs = [getattr(one[level], figure) for one, _ in both], [getattr(one[level], its_figure) for _, one in both]
                rows.paired(what, ours, "tokens/s", rival, theirs, at_least=least)
    return rows


async def decode_rates(threads: int) -> dict[int, Rate]:
    """Measure llama_decode alone, without sampling and clients, by batch size."""
    words = (
        # The stories' prompts have 40 tokens.
        rivals.ensure().batched_bench, "-m", model_discovery.packaged(), "-c", SLOTS * SLOT_TOKENS, "-npp", 40,
        "-ntg", NEW_TOKENS, "-npl", ",".join(map(str, LEVELS)), "-t", threads, "-tb", threads, "--output-format", "jsonl",
    )  # fmt: skip
    pipe = asyncio.subprocess.PIPE
    async with processes.started(*words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
        out, err = await process.communicate()
    # Parallel sequences, and tokens per second of text generation.
    found = {
        each["pl"]: Rate(math.nan, each["speed_tg"])
        for each in map(json.loads, (line for line in out.splitlines() if line.startswith(b"{")))
    }
    assert list(found) == list(LEVELS), err[-2000:].decode(errors="replace")
    return found


# --- how long a caller waits ---------------------------------------------------------------------------------------------

#: Words that are one token each.
WORDS = ("the", "sea", "light", "was", "over", "and", "under", "old", "house", "with", "long", "night", "many", "small", "stone", "water")
#: The tokens that SmolLM2's chat template adds to a message.
TEMPLATE_TOKENS = 30
SHARED_PREFIX, LONG_PROMPT = 1000, 4000
#: Tokens that were read before, as a coding agent has.
CONTEXTS, CONTEXT_LEVELS = (1500, 6000), (1, 8)
#: The tokens of a prompt behind the page, and of an answer: llama-server takes seconds for one of eight behind 6,000.
CONTEXT_END, CONTEXT_NEW = 24, 24
#: Many prompts, each of which begins with one of a few pages, as in a company.
CHATS, CHATS_AT_ONCE, PAGES, PAGE, CHAT_PROMPT, CHAT_TOKENS = 200, 16, 10, 192, 256, 32
#: Streams that run while another prompt is read.
STREAMS, LONG_CONTEXT = 4, 8192
#: At 30 steps a second, 700 gaps of four streams: enough for a 99th percentile.
GAP_SECONDS = 6.0
#: Of 196 rows for SmolLM2.
PROJECTOR = gguf_files.ProjectorShape(kind="mlp", width=576, image=224, patch=16, embedding=768, heads=12, layers=12)


def message(tokens: int, source: random.Random) -> str:
    """Return a prompt of this length that shares no prefix with another."""
    return " ".join(source.choice(WORDS) for _ in range(tokens))


async def first_token(generate: Generate, prompt: str, new_tokens: int = 4) -> tuple[float, int]:
    """Return the milliseconds to the first token, and the tokens of the prompt."""
    came: list[float] = []
    start = time.perf_counter()
    counts = await generate(prompt, new_tokens, lambda: came.append(time.perf_counter()))
    return (came[0] - start) * 1000, counts.prompt_tokens


async def _in_turns(
    measure: Callable[[Generate], Awaitable[T]], shape: Shape, rounds: int, everyone: Sequence[Contender] = EVERYONE
) -> dict[str, list[T]]:
    """Measure each contender once in each round, newly started and alone. Return the figures of all rounds, by name."""

    async def measure_one(contender: Contender) -> T:
        async with contenders.opened(contender, shape) as generate:
            return await measure(generate)

    return await report.take_turns({contender.name: partial(measure_one, contender) for contender in everyone}, rounds)


async def measure_wait(
    rows: Rows, _shared: None, options: Options, *, shape: Shape, tokens: int, prompts: int, at_most: Sequence[float | None]
) -> None:
    """Measure the time to the first token of prompts of this length, one at a time. ``at_most``: for each of our modes."""
    lengths = set[int]()

    async def wait(generate: Generate) -> float:
        # The same prompts for all, each used once.
        source = random.Random(1)
        found = [await first_token(generate, message(tokens - TEMPLATE_TOKENS, source)) for _ in range(prompts)]
        lengths.update(counted for _, counted in found)
        return statistics.median(milliseconds for milliseconds, _ in found)

    took = await _in_turns(wait, shape._replace(threads=options.threads), options.rounds)
    for contender, most in zip(OURS.values(), at_most, strict=True):
        claim = f"{contender.name}: first token, prompt of {min(lengths)} to {max(lengths)} tokens"
        rows.paired(claim, took[contender.name], "ms", RIVAL, took[RIVAL], at_most=most)


async def measure_contexts(rows: Rows, _shared: None, options: Options) -> None:
    """Measure all contenders beside each other, one at a time: reading the contexts again each time would take hours. They share a page,
    which we read once."""
    for length, level in itertools.product(CONTEXTS, CONTEXT_LEVELS):
        page = message(length - TEMPLATE_TOKENS - CONTEXT_END, random.Random(length))
        prompts = [f"{page} {message(CONTEXT_END, random.Random(number))}" for number in range(level)]
        async with AsyncExitStack() as stack:
            ways = dict[str, Callable[[], Awaitable[Rate]]]()
            for contender in (OURS[KvMode.EXACT], F16_KEYS, LLAMA_SERVER):
                shape = Shape(level, length + 2 * CONTEXT_NEW, options.threads)
                generate = await stack.enter_async_context(contenders.opened(contender, shape))
                ways[contender.name] = partial(measure_rate, generate, prompts * (4 // level or 1), level, CONTEXT_NEW)
                await ways[contender.name]()
            found = await report.take_turns(ways, options.rounds)
        ours, tried, theirs = ([rate.answering for rate in found[name]] for name in ways)
        claim = f"{OURS[KvMode.EXACT].name}: {level} stream{'s' if level > 1 else ''} behind {length} tokens"
        rows.paired(claim, ours, "tokens/s", RIVAL, theirs, at_least=0.95)
        rows.paired(claim, ours, "tokens/s", F16_KEYS.name, tried)


async def measure_constrained(rows: Rows, _shared: None, options: Options) -> None:
    async def rate(generate: Generate) -> float:
        prompts = [PROMPT.format(number) for number in STORIES[: 2 * CONSTRAINED_LEVEL]]
        return (await measure_rate(generate, prompts, CONSTRAINED_LEVEL)).answering

    shape = Shape(CONSTRAINED_LEVEL, SLOT_TOKENS, options.threads)
    free, bound = (await _in_turns(rate, shape, options.rounds, (OURS[MODES[0]], CONSTRAINED))).values()
    rows.paired(f"with a JSON schema: {CONSTRAINED_LEVEL} streams", bound, "tokens/s", "free", free, at_least=0.9)


async def measure_shared_prefix(rows: Rows, _shared: None, options: Options) -> None:
    for contender in EVERYONE:
        first, second = list[float](), list[float]()
        async with contenders.opened(contender, Shape(2, 2048, options.threads)) as generate:
            # A measurement that a neighbor delayed must not be the median.
            for number in range(max(options.rounds, 3)):
                source = random.Random(number)
                prefix = message(SHARED_PREFIX, source)
                for took in (first, second):
                    took.append((await first_token(generate, f"{prefix} {message(20, source)}"))[0])
        claim = f"{contender.name}: first token behind a known prefix of {SHARED_PREFIX} tokens"
        rows.paired(claim, second, "ms", "unknown", first, at_most=None if contender.name == RIVAL else 0.15)


async def measure_reuse(rows: Rows, _shared: None, options: Options) -> None:
    async def seconds(generate: Generate) -> float:
        source = random.Random(7)
        pages = [message(PAGE, source) for _ in range(PAGES)]
        chats = deque(f"{pages[number % PAGES]} {message(CHAT_PROMPT - PAGE - TEMPLATE_TOKENS, source)}" for number in range(CHATS))

        async def ask() -> None:
            await generate(chats.popleft(), CHAT_TOKENS, lambda: None)

        return await calls.keep_running(ask, CHATS_AT_ONCE, lambda: bool(chats))

    took = await _in_turns(seconds, Shape(CHATS_AT_ONCE, 512, options.threads), 1)
    theirs = took.pop(RIVAL)
    claim = f"{CHATS} prompts of {CHAT_PROMPT} tokens that begin with one of {PAGES} pages of {PAGE}, {CHAT_TOKENS} new tokens each"
    for name, ours in took.items():
        rows.paired(f"{name}: {claim}", ours, "s", RIVAL, theirs, at_most=1.0)


@asynccontextmanager
async def _streams(generate: Generate) -> AsyncIterator[list[list[float]]]:
    """Enter the block when all streams generate tokens, and cancel them afterwards. Yields the times of each one's tokens."""
    came: list[list[float]] = [[] for _ in range(STREAMS)]
    run_in = asyncio.Event()

    async def run(stream: int) -> None:
        def arrived() -> None:
            came[stream].append(time.perf_counter())
            # The first tokens do not count.
            if min(map(len, came)) >= 8:
                run_in.set()

        # It runs until it is cancelled; with its prompt this fits the context.
        await generate(f"Tell the long story of ship number {stream}, with many details.", LONG_CONTEXT - 100, arrived)

    async with asyncio.TaskGroup() as tasks:
        endless = [tasks.create_task(run(stream)) for stream in range(STREAMS)]
        await run_in.wait()
        yield came
        assert not any(stream.done() for stream in endless), "a stream ended by itself, and its gaps were not measured"
        for stream in endless:
            stream.cancel()


async def _gap(came: list[list[float]], meanwhile: Awaitable[T]) -> tuple[float, T]:
    """Return the 99th percentile of the gaps that end meanwhile, in milliseconds, and what the awaited returns."""
    start = time.perf_counter()
    done = await meanwhile
    gaps = [(now - last) * 1000 for times in came for last, now in itertools.pairwise(times) if now > start]
    return report.percentile(gaps, 0.99), done


async def measure_gaps(rows: Rows, _shared: None, options: Options) -> None:
    async def gaps(generate: Generate) -> tuple[float, float, float]:
        async with _streams(generate) as came:
            quiet, _ = await _gap(came, asyncio.sleep(GAP_SECONDS))
            beside, (waited, _) = await _gap(came, first_token(generate, message(LONG_PROMPT, random.Random(1))))
        return quiet, beside, waited

    rounds = await _in_turns(gaps, Shape(STREAMS + 1, LONG_CONTEXT, options.threads), options.rounds)
    found = {name: tuple(zip(*each, strict=True)) for name, each in rounds.items()}
    for name, (quiet, beside, _) in found.items():
        claim = f"{name}: gap between tokens, p99, beside a prompt of {LONG_PROMPT} tokens"
        rows.paired(claim, beside, "ms", "quiet", quiet, at_most=None if name == RIVAL else 4)
    for mode, (name, _) in OURS.items():
        claim, at_most = f"{name}: its first token beside {STREAMS} streams", 1.75 if mode is KvMode.SHARED else 5
        rows.paired(claim, found[name][2], "ms", RIVAL, found[RIVAL][2], at_most=at_most)


async def measure_image_gaps(rows: Rows, _shared: None, options: Options) -> None:
    quiet, beside, pictures = list[float](), list[float](), itertools.count()
    shape = Shape(STREAMS + 1, LONG_CONTEXT, options.threads)

    async def look(generate: GenerateChat) -> None:
        end = time.perf_counter() + GAP_SECONDS
        while time.perf_counter() < end:
            image = ImagePart(vision_models.encoded(vision_models.picture(next(pictures), PROJECTOR.image, PROJECTOR.image)))
            await generate((ChatMessage("user", "What is this?", images=(image,)),), 1, lambda: None)

    with tempfile.TemporaryDirectory() as folder:
        projector = Path(folder) / "projector.gguf"
        gguf_files.write_projector(projector, PROJECTOR, seed=1)
        for _ in range(options.rounds):
            async with contenders.our_engine(MODES[0], shape, projector=projector) as generate, _streams(generate) as came:
                quiet.append((await _gap(came, asyncio.sleep(GAP_SECONDS)))[0])
                beside.append((await _gap(came, look(generate)))[0])
    rows.paired("gap between tokens, p99, while images are encoded and read", beside, "ms", "quiet", quiet, at_most=4)


# --- drafts ---------------------------------------------------------------------------------------------------------------

#: Half a page of source. The model is so small that it copies reliably only what comes twice, once it has begun.
COPIED = Path(numerics.__file__).read_text(encoding="utf-8")
COPY = f"{COPIED}\n\n{COPIED}\n\n{COPIED[:300]}"
COPY_TOKENS, COPIES = 160, 2
#: Words before it, for a context of 2,200 tokens.
COPY_BEHIND = 1200


async def _copy_rate(generate: Generate, prompt: str) -> float:
    async def copy() -> float:
        came: list[float] = []
        await generate(prompt, COPY_TOKENS, lambda: came.append(time.perf_counter()))
        return came[-1] - came[0]

    return COPIES * (COPY_TOKENS - 1) / sum([await copy() for _ in range(COPIES)])


async def measure_lookup(rows: Rows, _shared: None, options: Options) -> None:
    shape = Shape(8, 4096, options.threads)

    def contestants(**sampling: object) -> tuple[Contender, Contender]:
        started = partial(contenders.our_engine, MODES[0], sampling=msgspec.structs.replace(contenders.SAMPLING, **sampling))
        return Contender("drafts", started), Contender("plain", partial(started, speculates=False))

    theirs = Contender(RIVAL, contenders.copying_llama_server)
    behind = f"{message(COPY_BEHIND, random.Random(1))}\n\n{COPY}"
    for claim, prompt, temperature, least, more in (
        ("half a page of source, temperature 0", COPY, 0.0, 1.6, (theirs,)),
        ("half a page of source, temperature 0.7", COPY, 0.7, 1.15, ()),
        ("half a page of source behind 2,200 tokens, temperature 0", behind, 0.0, 1.25, ()),
    ):
        everyone = (*contestants(temperature=temperature, raw=True), *more)
        rates = await _in_turns(partial(_copy_rate, prompt=prompt), shape, options.rounds, everyone)
        rows.paired(f"copying {claim}", rates["drafts"], "tokens/s", "plain", rates["plain"], at_least=least)
        for rival in more:
            rows.paired(f"copying {claim}", rates["drafts"], "tokens/s", f"{rival.name} with its drafts", rates[rival.name])
    for level in (1, 8):

        async def story_rate(generate: Generate, level: int = level) -> float:
            return (await measure_rate(generate, [PROMPT.format(number) for number in STORIES[: max(level, 4)]], level)).answering

        rates = await _in_turns(story_rate, shape, options.rounds, contestants())
        rows.paired(f"stories, {level} at a time", rates["drafts"], "tokens/s", "plain", rates["plain"], at_least=0.97)


# --- drawing tokens ------------------------------------------------------------------------------------------------------

ROWS, VOCABULARY = 64, 152_000
#: Steps of each round; the fastest counts, because drawing takes 10 ms.
DRAWS = 30


async def measure_sampling(rows: Rows, _shared: None, options: Options) -> None:
    vocabulary = cast("ModelVocabulary", SimpleNamespace(size=VOCABULARY, end_tokens=frozenset[int]()))
    sequences = [TokenSampler(vocabulary, Parameters(0.7, 0.95, 40, seed)) for seed in range(ROWS)]
    logits = np.random.default_rng(1).normal(0, 3, (ROWS, VOCABULARY)).astype(np.float32)

    async def rate(sampler: StepSampler) -> float:
        took = list[float]()
        for step in range(DRAWS):
            start = time.perf_counter()
            sampler.draw(sequences, logits, [step] * ROWS)
            took.append(time.perf_counter() - start)
        return ROWS / min(took)

    rates = await report.take_turns({threads: partial(rate, StepSampler(VOCABULARY, threads)) for threads in (1, 2)}, options.rounds)
    claim = f"{ROWS} tokens of a vocabulary of {VOCABULARY} with two threads"
    rows.paired(claim, rates[2], "tokens/s", "one thread", rates[1], at_least=1.6)


# --- a worker ------------------------------------------------------------------------------------------------------------


async def measure_worker(rows: Rows, _shared: None, options: Options) -> None:
    """Measure a worker of a stack after 32 answers at a time: its memory, and the engine's own counters."""
    slots, tokens, model = SLOTS, 512, model_folder.PACKAGED_MODEL
    settings = {"ENGINE_SLOTS": slots, "ENGINE_CONTEXT_TOKENS": tokens, "ENGINE_THREADS": options.threads}
    async with tenants.opened(1, **settings) as stack:
        generate = contenders.chat(stack.port, {"model": model}, f"authorization: Bearer {stack.keys[0]}")
        await measure_rate(generate, [PROMPT.format(number) for number in STORIES[: 2 * slots]], slots)
        # The engine's own measurement over its last 10 s.
        overhead = await stack.running.metric("inference", "ai_platform_engine_overhead_ratio", model=model)
        worker = stack.pids["inference"]
        # Another child is the mesh's sidecar.
        (engine,) = (child for child, command in processes.children_of(worker).items() if "engine.engine_process" in command)
        held = processes.resident_mb(worker) + processes.resident_mb(engine)
    # SmolLM2-135M: 30 layers, 3 KV heads of 64, a key and a value, 2 bytes each.
    expected = model_discovery.packaged().stat().st_size / 1e6 + slots * tokens * (30 * 3 * 64 * 2 * 2) / 1e6
    claim = f"memory of worker and engine, {slots} slots of {tokens}, less model file and KV ({expected:.0f} MB)"
    rows.alone(claim, held - expected, "MB", at_most=150)
    # An engine that measures nothing meets no target.
    rows.alone(f"the engine's own time at {slots} streams", 100 * overhead if overhead > 0 else math.nan, "%", at_most=5)


# --- on a GPU ------------------------------------------------------------------------------------------------------------

LLAMA_8B = gguf_files.LlamaShape(
    layers=32, embedding=4096, heads=32, kv_heads=8, feed_forward=14_336, vocabulary=128_256, context=8192
)  # fmt: skip
GPU_LEVELS = (1, 8, 32, 128)
#: Tokens of a prompt -> of a slot.
GPU_PROMPTS = {200: 512, 8000: 8192}
#: The tokens that its chat template adds. Its vocabulary has a token for each byte.
GPU_TEMPLATE_TOKENS = 20
#: What llama.cpp needs beside the weights and the KV cache.
GPU_BUFFERS = 3 * 2**30


async def measure_gpu(rows: Rows, _shared: None, options: Options) -> None:
    gpus = await contenders.find_gpus()
    if not gpus:
        print("gpu: skipped, because llama.cpp can use no GPU here", file=sys.stderr)
        return
    print("gpu:", "; ".join(f"{gpu.name}: {gpu.description}" for gpu in gpus), file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "llama-8b.gguf"
        gguf_files.write_llama(model, LLAMA_8B, weights="q8_0", seed=1)
        cells = (min(gpu.free_bytes for gpu in gpus) - model.stat().st_size - GPU_BUFFERS) // (2 * 2 * 1024 * LLAMA_8B.layers)
        for length, context in GPU_PROMPTS.items():
            if not (levels := [level for level in GPU_LEVELS if level * context <= cells]):
                continue
            # Long prompts take minutes, so only the default mode reads them.
            everyone = EVERYONE if length == min(GPU_PROMPTS) else (OURS[MODES[0]], LLAMA_SERVER)
            shape = Shape(max(levels), context, options.threads, model)
            found = await _in_turns(partial(_rates_and_waits, length=length, levels=levels), shape, options.rounds, everyone)
            theirs = found.pop(RIVAL)
            for (name, ours), level in itertools.product(found.items(), levels):
                (rates, waits), (their_rates, their_waits) = (zip(*(each[level] for each in one), strict=True) for one in (ours, theirs))
                claim = f"{name}: {level} x {length} tokens"
                rows.paired(claim, rates, "tokens/s", RIVAL, their_rates, at_least=1.0)
                rows.paired(f"{claim}, first token", waits, "ms", RIVAL, their_waits, at_most=1.1)


async def _rates_and_waits(generate: Generate, length: int, levels: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Return the tokens per second of so many streams, and the milliseconds to the first token, the median of the streams."""
    found, source = dict[int, tuple[float, float]](), random.Random(1)
    for level in levels:
        rates, waits = list[float](), list[float]()
        for _ in range(3 if level == 1 else 1):
            start = time.perf_counter()
            prompts = ("".join(source.choices("abcdefghij ", k=length - GPU_TEMPLATE_TOKENS)) for _ in range(level))
            answers = await asyncio.gather(*(first_token(generate, prompt, NEW_TOKENS) for prompt in prompts))
            rates.append(level * NEW_TOKENS / (time.perf_counter() - start))
            waits += [wait for wait, _ in answers]
        found[level] = statistics.median(rates), statistics.median(waits)
    return found


PARTS: dict[str, report.Part] = {
    "throughput": measure_throughput,
    "first_token": partial(measure_wait, shape=Shape(1, 2048, 0), tokens=200, prompts=6, at_most=(1.1, 1.1)),
    "constrained": measure_constrained,
    "shared_prefix": measure_shared_prefix,
    "reuse": measure_reuse,
    "page_prompt": partial(measure_wait, shape=Shape(1, 2048, 0), tokens=1500, prompts=3, at_most=(1.3, None)),
    "long_prompt": partial(measure_wait, shape=Shape(STREAMS + 1, LONG_CONTEXT, 0), tokens=LONG_PROMPT, prompts=1, at_most=(None, 1.2)),
    "contexts": measure_contexts,
    "gaps": measure_gaps,
    "image_gaps": measure_image_gaps,
    "lookup": measure_lookup,
    "sampling": measure_sampling,
    "worker": measure_worker,
    "gpu": measure_gpu,
}
#: The others take a minute or more, even for one round.
QUICK_PARTS = ("throughput", "first_token", "shared_prefix")


def prepare(options: Options) -> str:
    rivals.ensure()
    return f"{options.threads} threads, llama-cpp-python {wheel.engine_version()}, {model_discovery.packaged().name}"


if __name__ == "__main__":
    limits, cores = (1800.0, 600.0), len(os.sched_getaffinity(0))
    report.run(__doc__, PARTS, limits=limits, quick_parts=QUICK_PARTS, before=prepare, rounds=(3, 1), threads=(cores, cores))
