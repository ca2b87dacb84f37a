"""Check that tenants get the same service from any gateway: one, two and three gateways over one pool of 8 slots, in turn.

    python -m bench.fairness [--quick] [--seconds 30] [--json FILE]

Three tenants always have requests waiting, with answers of two lengths, and a light one sends a request now and then. With several gateways
they use different ones, if there are enough. The pool is one echo worker with 8 slots. Everything shares one machine, so read the ratios to
the single gateway of the same run.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import httpx

from bench import http_load, report, tenants
from bench.http_load import Load, Outcome, Paced, Steady
from shared.types import Credential
from stack import settings as stack_settings
from stack import stack_plan
from tests.stacks import RunningStack, stack, until
from tests.testnet import free_port

GATEWAYS = (1, 2, 3)
SLOTS = 8
#: Few slow tokens, because the turns are measured, on a machine that runs everything else, too.
TOKEN_MS = 250.0
#: Words in an answer of each heavy tenant.
WORDS = (10, 10, 5)
#: Requests that each of them keeps in flight.
AT_ONCE = 24
LIGHT_WORDS, LIGHT_RATE = 4, 1.5
SECONDS, QUICK_SECONDS = 30.0, 10.0
#: The time until the queues are full, and the first requests of all tenants are done.
BEGINNING_SECONDS = 8.0
MOST_SECONDS, QUICK_MOST_SECONDS = 900.0, 300.0
MOST_SHARE, MOST_MEDIAN, MOST_WORST = 1.2, 1.5, 3.0


@dataclass(frozen=True, slots=True)
class Found:
    #: Tokens of the heavy tenants.
    tokens: tuple[float, ...]
    #: The light tenant's milliseconds to the first token, without the token itself; None if none of its requests succeeded.
    median: float | None
    worst: float | None
    #: Requests of others that began while one of the light tenant waited, on average: a busy machine changes it little.
    passed_by: float | None
    failed: int


@asynccontextmanager
async def more_gateway(running: RunningStack, number: int) -> AsyncIterator[int]:
    """Run one more gateway of the stack. Yields its port."""
    made = (await running.aicli("stack", "add-node", f"gateway-{number}", "gateway", "--json")).json()
    recorded = stack_settings.read_recorded(running.place)
    environment = stack_plan.service_environment(running.place, stack_settings.load(recorded), recorded, "gateway")
    port = free_port()
    environment |= {"GATEWAY_SERVICE_PORT": str(port), "NODE_KEY_FILE": made["key_file"], "PATH": os.environ["PATH"]}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.gateway", env=environment)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:

            async def is_ready() -> bool:
                return (await http.get("/readyz")).status_code == 200

            await until(is_ready, seconds=60, what=f"gateway {number} is ready", ignoring=(httpx.HTTPError,))
        yield port
    finally:
        # If it has exited itself, the error of the block says more.
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _compare(ports: list[int], keys: tuple[Credential, ...], seconds: float) -> Found:
    """``ports`` are those of the participating gateways."""

    def load(number: int, at: int, words: int, pace: Steady | Paced) -> Load:
        body = tenants.chat_body("echo", "tok " * words, words, stream=True)
        return Load(port=ports[at % len(ports)], path="/v1/chat/completions", keys=(str(keys[number]),), body=body, pace=pace)

    async with asyncio.TaskGroup() as tasks:
        heavy = [
            tasks.create_task(http_load.make(load(number, number, words, Steady(AT_ONCE, BEGINNING_SECONDS + seconds))))
            for number, words in enumerate(WORDS)
        ]
        await asyncio.sleep(BEGINNING_SECONDS)
        # Never at the first tenant's gateway, if there are two.
        light = await http_load.make(load(len(WORDS), 1, LIGHT_WORDS, Paced(LIGHT_RATE, seconds)))
    outcomes = [one.result() for one in heavy]
    tokens = tuple(_tokens(one, words, seconds) for one, words in zip(outcomes, WORDS, strict=True))
    answers = sum(len(one.answers) - len(one.good) for one in (*outcomes, light))
    firsts = [1000 * answer.first - TOKEN_MS for answer in light.good]
    if not firsts:
        return Found(tokens, None, None, None, answers)
    return Found(tokens, report.percentile(firsts, 0.5), max(firsts), _passed_by(light, outcomes), answers)


def _passed_by(light: Outcome, others: list[Outcome]) -> float:
    begins = [one.start + answer.began + answer.first for one in others for answer in one.good]
    waits = [(light.start + answer.began, light.start + answer.began + answer.first) for answer in light.good]
    return sum(begin < at < end for at in begins for begin, end in waits) / len(waits)


def _tokens(outcome: Outcome, words: int, seconds: float) -> float:
    """Return the tokens within the measured time; of an answer that overlaps its ends, the share within it."""
    begin, end = BEGINNING_SECONDS, BEGINNING_SECONDS + seconds
    found = 0.0
    for answer in outcome.good:
        first, last = answer.began + answer.first, answer.began + answer.took
        found += words * max(0.0, min(last, end) - max(first, begin)) / max(1e-3, last - first)
    return found


def _rows(found: dict[int, Found]) -> list[report.Row]:
    """Return the rows. If no request of a tenant succeeded, some are missing, and the row of failed requests says why."""
    rows, one = [], found[1]
    for gateways, each in found.items():
        claim = f"{gateways} gateway{'s' if gateways > 1 else ''}"
        if min(each.tokens) > 0:
            share = max(each.tokens) / min(each.tokens)
            rows.append(report.alone(f"{claim}: most over least tokens of those that always wait", share, "x", at_most=MOST_SHARE))
        rows.append(report.alone(f"{claim}: tokens of all of them", sum(each.tokens), "tokens"))
        rows.append(report.alone(f"{claim}: requests that failed", each.failed, "requests", at_most=0))
        if each.passed_by is not None:
            claim_turns = f"{claim}: others that began while one of the light tenant waited, mean"
            rows.append(report.alone(claim_turns, each.passed_by, "requests"))
        firsts = (("median", each.median, one.median, MOST_MEDIAN), ("worst", each.worst, one.worst, MOST_WORST))
        for which, value, alone, at_most in firsts:
            claim_first = f"{claim}: light tenant's first token, {which}"
            if value is None:
                continue
            if gateways == 1 or alone is None:
                rows.append(report.alone(claim_first, value, "ms"))
            else:
                rows.append(report.against(claim_first, value, "ms", "1 gateway", alone, at_most=at_most))
    return rows


async def measure(seconds: float) -> list[report.Row]:
    settings = {
        **tenants.UNREACHED,
        "AIMESH_ECHO": "1",
        "ECHO_TOKEN_MS": str(TOKEN_MS),
        "ECHO_SLOTS": str(SLOTS),
        "QUEUE_SECONDS": "300",
        "LOG_LEVEL": "warning",
    }
    async with AsyncExitStack() as opened:
        running = await opened.enter_async_context(stack(**settings))
        keys = await tenants.register(running, len(WORDS) + 1)
        more = [await opened.enter_async_context(more_gateway(running, number)) for number in GATEWAYS[1:]]
        ports = [tenants.gateway_port(running), *more]
        return _rows({gateways: await _compare(ports[:gateways], keys, seconds) for gateways in GATEWAYS})


def main() -> None:
    parser = report.arguments(__doc__, limits=(MOST_SECONDS, QUICK_MOST_SECONDS), quick=f"{QUICK_SECONDS:g} s each")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one measurement")
    options = parser.parse_args()
    with report.opened(options) as table:
        table.add(table.run(measure(QUICK_SECONDS if options.quick else options.seconds)))


if __name__ == "__main__":
    main()
