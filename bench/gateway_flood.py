"""One tenant sends thousands of large requests at once: the effect on other tenants, and how many are admitted."""

import asyncio

from bench import http_load, report, tenants
from bench.http_load import Burst, Load, Outcome, Paced
from shared.types import Credential
from tests.stacks import RunningStack, stack

FLOOD = 5_000
#: All of them start within this time, which is as fast as one process can send them.
FLOOD_SECONDS = 5.0
AT_ONCE = 20
#: About as much text as fits into the context of a small model.
FLOOD_WORDS = 8_000
#: The other tenants: a request now and then, each with an answer of a second.
RATE, WORDS, TOKEN_MS = 20.0, 10, 100.0
CALM_SECONDS = 10.0
#: The p95 of the others' time to first token, with the flood compared to without it.
SLOWER_ALLOWED = 1.5
REFUSALS = frozenset({429, 503})


async def measure() -> list[report.Row]:
    limited = tenants.UNREACHED["TIER_FREE"].replace("concurrency=1000000000", f"concurrency={AT_ONCE}")
    settings = {**tenants.UNREACHED, "TIER_FREE": limited, "AIMESH_ECHO": "1", "ECHO_TOKEN_MS": str(TOKEN_MS), "LOG_LEVEL": "warning"}
    async with stack(**settings) as running:
        flooding, *others = await tenants.register(running, 11)
        await _others(running, others, 2)  # connections, caches
        calm = await _others(running, others, CALM_SECONDS)
        async with asyncio.TaskGroup() as tasks:
            beside = tasks.create_task(_others(running, others, FLOOD_SECONDS))
            flood = tasks.create_task(_flood(running, flooding))
    return _rows(calm, beside.result(), flood.result())


async def _others(running: RunningStack, keys: list[Credential], seconds: float) -> Outcome:
    return await _ask(running, tuple(keys), WORDS, Paced(RATE, seconds))


async def _flood(running: RunningStack, key: Credential) -> Outcome:
    return await _ask(running, (key,), FLOOD_WORDS, Burst(FLOOD, FLOOD_SECONDS))


async def _ask(running: RunningStack, keys: tuple[Credential, ...], words: int, pace: Paced | Burst) -> Outcome:
    body = tenants.chat_body("echo", "tok " * words, WORDS, stream=True)
    load = Load(port=tenants.gateway_port(running), path="/v1/chat/completions", keys=tuple(map(str, keys)), body=body, pace=pace)
    return await http_load.make(load)


def _rows(calm: Outcome, beside: Outcome, flood: Outcome) -> list[report.Row]:
    claim = f"{FLOOD:,} requests of {FLOOD_WORDS:,} words by one tenant"
    odd = [answer for answer in flood.answers if answer.status not in REFUSALS and not answer.whole]
    # A request certainly runs from its first text to its end.
    served = [(answer.began + answer.first, answer.began + answer.took) for answer in flood.good]
    at_once = max((sum(began <= at < ended for began, ended in served) for at, _ in served), default=0)
    return [
        report.alone(f"{claim}: at once of those served", at_once, "requests", at_most=AT_ONCE),
        report.alone(f"{claim}: served", len(served), "requests"),
        report.alone(f"{claim}: neither served nor refused", len(odd), "requests", at_most=0),
        report.alone("the others meanwhile: complete", len(beside.good), "requests", at_least=len(beside.answers)),
        report.against(
            "the others meanwhile: first token, p95", beside.percentile(0.95, "first"), "ms", "without the flood",
            calm.percentile(0.95, "first"), at_most=SLOWER_ALLOWED,
        ),
    ]  # fmt: skip
