"""1,000 streams at once through one gateway, its memory during and after them, and the rejections with twice as many."""

import asyncio
import sys
from collections import Counter
from contextlib import AsyncExitStack, suppress

from bench import http_load, report, tenants
from bench.http_load import Burst, Load, Outcome
from shared.types import Credential
from tests.stacks import RunningStack, stack

STREAMS = 1_000
TOKEN_MS = 100.0
WORDS = 100
#: They arrive within this time.
ARRIVAL_SECONDS = 3.0
WATCH_SECONDS = 0.5
#: Each echo worker has 256 slots, the stack's own included.
MORE_WORKERS = 3
QUEUE = 0
#: In the gateway, in addition to running requests: a crowd that fits may wait a little.
WAITING = 64
#: Within this time the gateway releases memory after a burst.
REST_SECONDS = 15.0
#: An answer takes its words' time; in a crowd it may take half as long again.
PACE_ALLOWED = 1.5
MOST_MB, MOST_GROWTH, MOST_REFUSAL_MS = 600.0, 1.1, 100.0
REFUSALS = frozenset({429, 503})


async def measure(rows: list[report.Row], streams: int = STREAMS, words: int = WORDS) -> None:
    async with AsyncExitStack() as opened:
        settings = {
            **tenants.UNREACHED,
            "AIMESH_ECHO": "1",
            "ECHO_TOKEN_MS": str(TOKEN_MS),
            "ENGINE_QUEUE": str(QUEUE),
            "QUEUE_MOST": str(WAITING),
            "LOG_LEVEL": "warning",
        }
        # The first worker is not used; with this backend it starts no engine either.
        upstream_port = await opened.enter_async_context(tenants.upstream())
        running = await opened.enter_async_context(stack(**settings, **tenants.served_by(upstream_port)))
        await opened.enter_async_context(tenants.echo_workers(running, MORE_WORKERS, TOKEN_MS, ENGINE_QUEUE=str(QUEUE)))
        keys = await tenants.register(running)
        rows += await _fitting(running, keys, streams, words)
        rows += await _excess(running, keys, streams, words)


async def _ask(running: RunningStack, keys: tuple[Credential, ...], count: int, words: int) -> tuple[Outcome, float]:
    """Return the outcome, and the gateway's maximum memory meanwhile, in MB."""
    body = tenants.chat_body("echo", "tok " * words, words, stream=True)
    pace = Burst(count, ARRIVAL_SECONDS)
    load = Load(port=tenants.gateway_port(running), path="/v1/chat/completions", keys=tuple(map(str, keys)), body=body, pace=pace)
    pid = await tenants.gateway_pid(running)
    most, over = 0.0, asyncio.Event()

    async def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, tenants.resident_mb(pid))
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS):
                    await over.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        outcome = await http_load.make(load)
        over.set()
    return outcome, most


async def _fitting(running: RunningStack, keys: tuple[Credential, ...], streams: int, words: int) -> list[report.Row]:
    pid = await tenants.gateway_pid(running)
    new = tenants.resident_mb(pid)
    # What the first crowd allocates once, such as the allocator's arenas, is not growth.
    await _ask(running, keys, streams, words)
    await asyncio.sleep(REST_SECONDS)
    before = tenants.resident_mb(pid)
    outcome, most = await _ask(running, keys, streams, words)
    await asyncio.sleep(REST_SECONDS)
    after = tenants.resident_mb(pid)
    complete = [answer for answer in outcome.good if answer.pieces == words]
    claim = f"{streams:,} streams of 10 tokens/s"
    nominal = words * TOKEN_MS
    assert complete, outcome.statuses
    _tell(outcome)
    return [
        report.alone(f"{claim}: complete", len(complete), "streams", at_least=streams),
        report.against(f"{claim}: time, p99", outcome.percentile(0.99), "ms", "their words", nominal, at_most=PACE_ALLOWED),
        report.alone(f"{claim}: first token, p50", outcome.percentile(0.5, "first") - TOKEN_MS, "ms"),
        report.alone(f"{claim}: first token, p99", outcome.percentile(0.99, "first") - TOKEN_MS, "ms"),
        report.alone(f"{claim}: the gateway holds", most, "MB", at_most=MOST_MB),
        report.against(f"{claim}: the gateway afterwards", after, "MB", "after a crowd before", before, at_most=MOST_GROWTH),
        report.against(f"{claim}: the gateway afterwards", after, "MB", "new", new),
    ]


def _tell(outcome: Outcome) -> None:
    """Print what happened to the streams that were not served whole."""
    odd = Counter((answer.status, answer.pieces) for answer in outcome.answers if not (answer.status == 200 and answer.whole))
    for (status, pieces), times in odd.most_common(5):
        print(f"{times} ended with status {status} after {pieces} pieces", file=sys.stderr)


async def _excess(running: RunningStack, keys: tuple[Credential, ...], streams: int, words: int) -> list[report.Row]:
    """Send twice as many: those that fit are served, all others are rejected immediately."""
    outcome, _ = await _ask(running, keys, 2 * streams, words)
    refused = [answer for answer in outcome.answers if answer.status in REFUSALS]
    other = [answer for answer in outcome.answers if answer.status not in REFUSALS and not answer.whole]
    _tell(outcome)
    claim = f"{2 * streams:,} offered"
    rows = [
        report.alone(f"{claim}: complete", len(outcome.good), "streams", at_least=streams),
        report.alone(f"{claim}: neither served nor refused", len(other), "streams", at_most=0),
        report.alone(f"{claim}: refused", len(refused), "streams"),
    ]
    if refused:
        taken = [1000 * answer.took for answer in refused]
        rows.append(report.alone(f"{claim}: refused within, p50", report.percentile(taken, 0.5), "ms"))
        rows.append(report.alone(f"{claim}: refused within, p99", report.percentile(taken, 0.99), "ms", at_most=MOST_REFUSAL_MS))
    return rows
