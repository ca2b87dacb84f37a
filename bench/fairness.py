"""Check that tenants get the same service from any gateway: one, two and three gateways over one pool of 8 slots, in turn.

Three tenants always have requests waiting, with answers of two lengths, and a light one sends a request now and then. With several gateways
they use different ones, if there are enough. The pool is one echo worker with 8 slots. Everything shares one machine, so read the ratios to
the single gateway of the same run.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from bench import report, tenants
from bench.http_load import Outcome, Spread, Steady
from bench.report import Options, Rows
from tests import replicas

GATEWAYS = (1, 2, 3)
SLOTS = 8
#: Few slow tokens, because the turns are measured, on a machine that runs everything else, too.
TOKEN_MS = 250.0
#: Words in an answer of each heavy tenant.
WORDS = (10, 10, 5)
#: Requests that each of them keeps in flight.
AT_ONCE = 24
LIGHT_WORDS, LIGHT_RATE = 4, 1.5
#: Answers of a tenant that takes every slot, until the run ends; and how soon another one's first token must come.
ENDLESS_WORDS, FIRST_SECONDS = 4000, 5.0
#: The time until the queues are full, and the first requests of all tenants are done.
BEGINNING_SECONDS = 8.0


class LightTenant(NamedTuple):
    """Milliseconds to the first token of the light tenant, without the token itself."""

    median: float
    worst: float


async def _compare(rows: Rows, ports: list[int], keys: Sequence[str], seconds: float, alone: LightTenant | None) -> LightTenant | None:
    """Measure with gateways at these ports. Return how long the light tenant waited; None if none of its requests succeeded."""
    async with asyncio.TaskGroup() as tasks:
        pace = Steady(AT_ONCE, BEGINNING_SECONDS + seconds)
        heavy = [
            tasks.create_task(tenants.load(ports[number % len(ports)], keys[number : number + 1], pace, words))
            for number, words in enumerate(WORDS)
        ]
        await asyncio.sleep(BEGINNING_SECONDS)
        # Never at the first tenant's gateway, if there are two.
        light = await tenants.load(ports[1 % len(ports)], keys[-1:], Spread(int(LIGHT_RATE * seconds), seconds), LIGHT_WORDS)
    others = [one.result() for one in heavy]
    tokens = [_tokens(one, words, seconds) for one, words in zip(others, WORDS, strict=True)]
    claim = f"{len(ports)} gateway{'s' if len(ports) > 1 else ''}"
    # If no request of a tenant succeeded, some rows are missing, and the row of failed requests says why.
    if min(tokens) > 0:
        share = max(tokens) / min(tokens)
        rows.alone(f"{claim}: most over least tokens of those that always wait", share, "x", at_most=1.2)
    failed = sum(len(one.answers) - len(one.good) for one in (*others, light))
    rows.alone(f"{claim}: requests that failed", failed, "requests", at_most=0)
    if not light.good:
        return None
    firsts = [1000 * answer.first - TOKEN_MS for answer in light.good]
    found = LightTenant(report.percentile(firsts, 0.5), max(firsts))
    claim = f"{claim}: light tenant's first token"
    if alone is None:
        rows.alone(f"{claim}, median", found.median, "ms")
        rows.alone(f"{claim}, worst", found.worst, "ms")
    else:
        rows.against(f"{claim}, median", found.median, "ms", "1 gateway", alone.median, at_most=1.5)
        rows.against(f"{claim}, worst", found.worst, "ms", "1 gateway", alone.worst, at_most=3.0)
    return found


async def _take_all_slots(rows: Rows, ports: Sequence[int], keys: Sequence[str]) -> None:
    """Measure another tenant's first token while one tenant holds every slot."""
    async with asyncio.TaskGroup() as tasks:
        holders = [
            tasks.create_task(tenants.load(port, keys[:1], Steady(AT_ONCE, BEGINNING_SECONDS + 4 * FIRST_SECONDS), ENDLESS_WORDS))
            for port in ports
        ]
        await asyncio.sleep(BEGINNING_SECONDS)
        other = await tenants.load(ports[0], keys[-1:], Spread(3, 3 * FIRST_SECONDS), LIGHT_WORDS)
        for holder in holders:
            holder.cancel()
    claim = f"{len(ports)} gateway{'s' if len(ports) > 1 else ''}: one tenant holds every slot: another's"
    rows.alone(f"{claim} failed requests", len(other.answers) - len(other.good), "requests", at_most=0)
    rows.alone(f"{claim} first token, worst", max((answer.first for answer in other.good), default=0.0), "s", at_most=FIRST_SECONDS)


def _tokens(outcome: Outcome, words: int, seconds: float) -> float:
    """Return the tokens within the measured time; of an answer that overlaps its ends, the share within it."""
    begin, end = BEGINNING_SECONDS, BEGINNING_SECONDS + seconds
    found = 0.0
    for answer in outcome.good:
        first, last = answer.began + answer.first, answer.began + answer.took
        found += words * max(0.0, min(last, end) - max(first, begin)) / max(1e-3, last - first)
    return found


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    async with AsyncExitStack() as opened:
        settings = {"ECHO_TOKEN_MS": TOKEN_MS, "ECHO_SLOTS": SLOTS, "QUEUE_SECONDS": 300}
        stack = await opened.enter_async_context(tenants.opened(len(WORDS) + 1, **settings))
        folder, ports = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="aimesh-gateway-"))), [stack.port]
        for number in GATEWAYS[1:]:
            gateway = replicas.replica(stack.running, "gateway", folder=folder, name=f"gateway-{number}")
            replica = await opened.enter_async_context(gateway)
            await replica.ready()
            ports.append(int(replica.url.rpartition(":")[2]))
        found: dict[int, LightTenant | None] = {}
        for gateways in GATEWAYS:
            found[gateways] = await _compare(rows, ports[:gateways], stack.keys, options.seconds, found.get(1))
        for gateways in (1, len(ports)):
            await _take_all_slots(rows, ports[:gateways], stack.keys)


if __name__ == "__main__":
    report.run(__doc__, {"gateways": _measure}, limits=(900.0, 300.0), seconds=(30.0, 10.0))
