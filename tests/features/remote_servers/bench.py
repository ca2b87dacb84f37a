"""Compare a worker in front of llama-server with llama-server itself.  python -m tests.features.remote_servers.bench"""

import itertools
import os
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from bench import contenders, engine, report
from bench.contenders import SAMPLING, Generate, Shape
from bench.report import Options, Rows
from features.remote_servers.worker import openai
from features.remote_servers.worker.remote_server import RemoteServer
from features.remote_servers.worker.upstreams import Upstream
from tests.testnet import until

FRONTED_LEVEL = 16
#: Of a known prompt, whose first token takes 20 ms.
FIRST_TOKENS = 40


@asynccontextmanager
async def _fronted(shape: Shape) -> AsyncIterator[tuple[Generate, Generate]]:
    """Run llama-server. Yields how to ask it directly, and by a worker's backend in front of it, with the same sampling."""
    async with contenders.running_llama_server(shape) as port:
        upstream = Upstream(name="rival", url=f"http://127.0.0.1:{port}/v1")
        async with openai.opened_all((upstream,), shape.slots, shape.slots, contenders.EngineEvents()) as backend:
            servers = [one for one in backend.servers if isinstance(one, RemoteServer)]
            await until(lambda: any(one.tokens.thinks for one in servers), seconds=contenders.START_SECONDS)
            (status,) = backend.models()
            direct = contenders.chat(port, {"ignore_eos": True, "repeat_penalty": 1.0})
            yield direct, contenders.asking(backend, status.model_id, SAMPLING)


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    stories = map(engine.PROMPT.format, itertools.cycle(engine.STORIES))

    async def rate(generate: Generate) -> float:
        return (await engine.measure_rate(generate, list(itertools.islice(stories, 2 * FRONTED_LEVEL)), FRONTED_LEVEL)).whole

    async def wait(generate: Generate) -> float:
        return (await engine.first_token(generate, "Say hello."))[0]

    async with _fronted(Shape(FRONTED_LEVEL, engine.SLOT_TOKENS, options.threads)) as ways:
        rates = await report.take_turns({generate: partial(rate, generate) for generate in ways}, options.rounds)
        took = await report.take_turns({generate: partial(wait, generate) for generate in ways}, FIRST_TOKENS)
    direct, by_worker = ways
    rows.paired(f"by a worker: {FRONTED_LEVEL} streams", rates[by_worker], "tokens/s", engine.RIVAL, rates[direct], at_least=0.97)
    added = statistics.median(took[by_worker]) - statistics.median(took[direct])
    rows.alone("what a worker adds to the first token, p50", added, "ms", at_most=5)


if __name__ == "__main__":
    cores = len(os.sched_getaffinity(0))
    report.run(__doc__, {"upstream": _measure}, limits=(1800.0, 600.0), before=engine.prepare, rounds=(3, 1), threads=(cores, cores))
