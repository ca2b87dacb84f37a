"""Three callers, each with one model and 20 requests, and real engines whose memory is enough for one model."""

import asyncio
import statistics
import time
from dataclasses import dataclass, field, replace

from bench.report import Options, Rows
from services.inference import jobs
from services.inference.backend_interface import CollectedChunks
from services.inference.backends import llama
from services.inference.engine.engine_messages import LoadCommand
from services.inference.models import catalog, memory, model_discovery
from shared.api.generation import Sampling
from shared.api.inference import Chunk
from shared.types import ModelName
from tests.services.inference.standins import Watch, until

MODELS, REQUESTS = ("one", "two", "three"), 20
PAUSE_SECONDS, SWAP_SECONDS = 0.2, 30.0
MAX_LOADS = 8
#: Declared for each model; they are one small file.
NEED_BYTES = 2**28


@dataclass(slots=True)
class _Run:
    loads: int = 0
    seconds: float = 0.0
    #: Until the first token of each request.
    waits: list[float] = field(default_factory=list)


class _FirstToken(CollectedChunks):
    """Earlier chunks say why the caller waits."""

    at = 0.0

    async def send(self, item: Chunk) -> None:
        if item.token_ids and not self.at:
            self.at = time.monotonic()
        await super().send(item)


async def _run(swap_seconds: float) -> _Run:
    found = model_discovery.find({}, defaults=catalog.Defaults(slots=2, context_tokens=512))
    one, run, watch = found.entries[0], _Run(), Watch()
    entries = tuple(replace(one, name=ModelName(name), aliases=(), preload=False, memory_bytes=NEED_BYTES) for name in MODELS)
    budget = memory.MemoryBudget(NEED_BYTES + 2**20, "bench")
    load = LoadCommand(path="", slots=2, context_tokens=512, threads=1, gpu_layers=-1)
    async with llama.opened(replace(found, entries=entries), load, 8, budget, watch, swap_seconds=swap_seconds) as backend:
        await until(lambda: all(status.digest for status in backend.models()))

        async def call(name: str) -> None:
            for _ in range(REQUESTS):
                asked, chunks = Sampling(max_tokens=16, ignore_eos=True), _FirstToken()
                job = jobs.check_prompt(ModelName(name), "Say hello.", asked, context_tokens=512, draw_seed=lambda: 1)
                at = time.monotonic()
                await backend.generate(job, chunks)
                run.waits.append(chunks.at - at)
                await asyncio.sleep(PAUSE_SECONDS)

        began = time.monotonic()
        async with asyncio.TaskGroup() as callers:
            for name in MODELS:
                callers.create_task(call(name))
        run.seconds = time.monotonic() - began
    # The first load of all makes room for nobody.
    run.loads = len(watch.swaps) + 1
    return run


async def measure(rows: Rows, _shared: None, _options: Options) -> None:
    collated, other = await _run(SWAP_SECONDS), await _run(0.0)
    what = f"{len(MODELS)} models in turn, {len(collated.waits)} requests"
    # A wait is bounded by the setting, and the loads and answers of the others.
    bound = SWAP_SECONDS + len(MODELS) * other.seconds / other.loads
    rows.alone(f"{what}: loads with MODEL_SWAP_SECONDS={SWAP_SECONDS:g}", collated.loads, "loads", at_most=MAX_LOADS)
    rows.alone(f"{what}: loads without collation", other.loads, "loads")
    rows.alone(f"{what}: longest wait for a first token", max(collated.waits), "s", at_most=bound)
    first, unfirst = statistics.median(collated.waits), statistics.median(other.waits)
    rows.against(f"{what}: median wait for a first token", first, "s", "without collation", unfirst)
    rows.against(f"{what}: all answers", collated.seconds, "s", "without collation", other.seconds)
