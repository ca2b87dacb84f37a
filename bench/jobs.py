"""Measure what live requests notice of flex requests beside them, and what these lose: rounds with and without them take turns.

Live requests come one at a time and take about a fifth of the time. Twice as many flex requests as slots always wait. Everything shares one
machine, so read the ratios to the rounds without the others.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from bench import http_load, report, tenants
from bench.http_load import Load, Outcome, Pace, Spread, Steady
from bench.report import Options, Rows
from bench.tenants import Tenants

#: Model -> words of an answer, and live requests a second.
LOADS = {"echo": (20, 1.0), "smollm2": (24, 1.0)}
SLOTS = 4
TOKEN_MS = 10.0
#: Until the flex requests run.
BEGINNING_SECONDS = 3.0
PROMPT = "Write about rivers and the towns beside them, about their bridges, ships and floods. "


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


async def _measure(stack: Tenants, model: str, seconds: float, *, live: bool, flex: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    async with asyncio.TaskGroup() as tasks:
        pace = Steady(2 * SLOTS, BEGINNING_SECONDS + seconds)
        batch = tasks.create_task(_load(stack, model, pace, flex=True)) if flex else None
        await asyncio.sleep(BEGINNING_SECONDS)
        if live:
            count = max(2, round(LOADS[model][1] * seconds))
            answers = await _load(stack, model, Spread(count, seconds), flex=False)
            figures["failed"] = len(answers.answers) - len(answers.good)
            figures |= {"took": answers.percentile(0.95), "first": answers.percentile(0.95, "first")}
    if batch is not None:
        outcome = batch.result()
        figures["flex failed"] = len(outcome.answers) - len(outcome.good)
        figures["tokens"] = sum(answer.pieces for answer in outcome.good) / outcome.seconds
    return figures


async def _compare(rows: Rows, stack: Tenants, options: Options, *, model: str) -> None:
    ways: dict[str, Callable[[float], Awaitable[dict[str, float]]]] = {
        "live alone": partial(_measure, stack, model, live=True, flex=False),
        "live beside flex": partial(_measure, stack, model, live=True, flex=True),
        "flex alone": partial(_measure, stack, model, live=False, flex=True),
    }
    found = report.by_name(await report.take_turns({name: partial(way, options.seconds) for name, way in ways.items()}, options.rounds))
    alone, beside, flex = (found[name] for name in ways)
    rows.paired(f"{model}: live beside flex: whole answer, p95", beside["took"], "ms", "live alone", alone["took"], at_most=1.1)
    rows.paired(f"{model}: live beside flex: first token, p95", beside["first"], "ms", "live alone", alone["first"])
    rows.alone(
        f"{model}: live beside flex: first token, p95, of 1.1 x or + 40 ms", _of_allowed(beside["first"], alone["first"]), "x", at_most=1
    )
    rows.paired(f"{model}: flex beside live: tokens", beside["tokens"], "tok/s", "flex alone", flex["tokens"], at_least=0.5)
    failed = sum(sum(figures[name]) for figures in (alone, beside, flex) for name in ("failed", "flex failed") if name in figures)
    rows.alone(f"{model}: requests that failed", failed, "requests", at_most=0)


def _of_allowed(values: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(value / max(1.1 * other, other + 40) for value, other in zip(values, others, strict=True))


if __name__ == "__main__":
    report.run(
        __doc__,
        {model: partial(_compare, model=model) for model in LOADS},
        setting=lambda _options: tenants.opened(2, ECHO_TOKEN_MS=TOKEN_MS, ECHO_SLOTS=SLOTS, ENGINE_SLOTS=SLOTS),
        limits=(1200.0, 300.0),
        seconds=(20.0, 5.0),
        rounds=(5, 1),
    )
