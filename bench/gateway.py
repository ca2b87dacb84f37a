"""The gateway's speed and size with its whole pipeline: keys, limits and ledger, with real PostgreSQL, Valkey and NATS.

first_token  what gateway and mesh add to the time to first token, at 100 requests a second of 50 tenants
rates        requests a second against LiteLLM's proxy in front of the same instant upstream, and of one hot tenant alone
crowd        1,000 streams at once and their memory, and 2,000 of which half must be rejected
flood        5,000 requests of one tenant at once, and their effect on ten others
rpc          calls and streams at /rpc against the same ones at /api and /v1
routes       a route of four targets with conditions against an alias
guard        streams with guardrails for prompts and answers against streams without

Everything shares one machine, including the load generator, so compare ratios of one run rather than figures.
"""

import asyncio
import itertools
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from bench import http_load, processes, report, rivals, tenants
from bench.http_load import Client, Load, Outcome, Spread, Steady
from bench.report import Options, Rows
from bench.tenants import REFUSALS
from shared.api import gateway
from shared.types import ModelName
from tests.stacks import RunningStack, until

FIRST_TOKEN_RATE = 100.0
#: The maximum added milliseconds, by percentile.
ALLOWED = ((0.5, 5.0), (0.99, 20.0))
BLOCK_SECONDS = 2.5
#: A prompt of ordinary length; the echo backend answers with its words.
PROMPT = "Explain in two sentences why the sea is salty and the rivers that feed it are not."
MAX_TOKENS = 16

#: Sends a request and returns the seconds to its first token.
Way = Callable[[], Awaitable[float]]


def _over_http(port: int, requests: Sequence[str]) -> Way:
    client, turns = Client(port), itertools.cycle([request.encode() for request in requests])

    async def ask() -> float:
        answer, _ = await client.ask(next(turns))
        assert answer.status == 200, answer
        assert answer.first, "no event with content"
        return answer.first

    return ask


async def _block(ask: Way, seconds: float) -> list[float]:
    """Ask at the rate, however long each answer takes."""
    took: list[float] = []

    async def one() -> None:
        took.append(await ask())

    async with asyncio.TaskGroup() as tasks:
        await http_load.spread(tasks, one, int(FIRST_TOKEN_RATE * seconds), seconds)
    return took


async def _measure_first_token(rows: Rows, _shared: None, options: Options) -> None:
    """Measure each way for ``seconds``: by the gateway over HTTP and RPC, and by calling the worker directly.

    Requests start at a fixed rate whether or not earlier ones have ended; the ways alternate in blocks. "Added" is a percentile minus that
    of the direct way.
    """
    async with tenants.stack() as running, running.client() as client:
        worker = (await running.programs())["inference-echo"].url
        assert worker is not None
        token = (running.home / "secrets" / "service_token").read_text().strip()
        direct = json.dumps({"model": "echo", "prompt": PROMPT, "max_tokens": MAX_TOKENS, "stream": True})
        keys = await tenants.register(running)
        credentials = itertools.cycle(keys)
        asked = gateway.ProcessInferenceRequest(gateway.InferenceRequest(prompt=PROMPT, model=ModelName("echo"), max_tokens=MAX_TOKENS))

        async def over_rpc() -> float:
            start = time.perf_counter()
            async with client.rpc.stream(gateway.process_inference_request, asked, credential=next(credentials)) as answer:
                await anext(answer)
                first = time.perf_counter() - start
                async for _ in answer:
                    pass
            return first

        chats = tenants.chats(keys, "echo", PROMPT, MAX_TOKENS, stream=True)
        ways = {
            "direct": _over_http(int(worker.rsplit(":", 1)[1]), [http_load.post("/infer", direct, f"authorization: Bearer {token}")]),
            "HTTP": _over_http(tenants.gateway_port(running), chats),
            "RPC": over_rpc,
        }
        for ask in ways.values():
            await _block(ask, 1)  # connections, caches
        took: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(max(1, round(options.seconds / BLOCK_SECONDS))):
            for name, ask in ways.items():
                took[name] += await _block(ask, BLOCK_SECONDS)
    for share, limit in ALLOWED:
        base = report.percentile(took["direct"], share) * 1000
        for way in ("HTTP", "RPC"):
            whole = report.percentile(took[way], share) * 1000
            rows.against(f"first token over {way}, p{share * 100:.0f}, {FIRST_TOKEN_RATE:.0f}/s", whole, "ms", "worker's /infer", base)
            rows.alone(f"  added by gateway and mesh, p{share * 100:.0f}", whole - base, "ms", at_most=limit)


LEVELS = (1, 16, 64)
PROMPT_WORDS = 20
#: For one tenant alone.
HOT_RATE = 300.0


class Form(NamedTuple):
    what: str
    #: Words of an answer.
    words: int
    stream: bool
    #: The wanted multiple of the rival's rate.
    wanted: float


FORMS = (Form("plain", 2, stream=False, wanted=10.0), Form("streams of 20", 20, stream=True, wanted=15.0))


class Contender(NamedTuple):
    name: str
    port: int
    keys: Sequence[str]
    model: str

    async def ask(self, form: Form, at_once: int, seconds: float) -> Outcome:
        """Raises AssertionError if a request fails, because then the figures are invalid."""
        pace = Steady(at_once, seconds)
        outcome = await tenants.load(
            self.port, self.keys, pace, form.words, prompt_words=PROMPT_WORDS, model=self.model, stream=form.stream
        )
        assert len(outcome.good) == len(outcome.answers), f"{self.name}: {outcome.statuses}"
        return outcome


async def _measure_rates(rows: Rows, _shared: None, options: Options) -> None:
    """In each round, each contender gets ``seconds`` at every level."""
    async with AsyncExitStack() as opened:
        upstream_port = await opened.enter_async_context(tenants.upstream())
        running = await opened.enter_async_context(tenants.stack(**tenants.served_by(upstream_port)))
        proxy = await opened.enter_async_context(rivals.litellm(upstream_port))
        keys = await tenants.register(running)
        port = tenants.gateway_port(running)
        ours = Contender("aimesh", port, keys, tenants.MODEL)
        echo = Contender("aimesh, echo worker", port, keys, "echo")
        rival = Contender("LiteLLM", proxy.port, (rivals.LITELLM_KEY,), tenants.MODEL)
        upstream = Contender("upstream", upstream_port, ("none",), tenants.MODEL)
        for form in FORMS:
            await _compare(rows, (ours, echo, rival, upstream), form, options)
        hot = Contender("one hot tenant", port, keys[:1], "echo")
        for form in FORMS:
            rate = (await hot.ask(form, 64, options.seconds)).rate()
            rows.alone(f"{hot.name}, {form.what}, 64 at once", rate, "req/s", at_least=None if form.stream else HOT_RATE)
        held = processes.resident_mb(await tenants.pid_of(running, "gateway"))
        rows.against("the gateway's memory afterwards", held, "MB", "LiteLLM", processes.resident_mb(proxy.pid))


async def _compare(rows: Rows, everyone: Sequence[Contender], form: Form, options: Options) -> None:
    *contenders, upstream = everyone
    *ours, rival = contenders
    rates, added = defaultdict[tuple[str, int], list[float]](list), defaultdict[str, list[float]](list)
    for number in range(options.rounds):
        alone: dict[str, float] = {}
        for level in LEVELS:
            for one in report.in_turn(contenders, number):
                outcome = await one.ask(form, level, options.seconds)
                rates[one.name, level].append(outcome.rate())
                if level == 1:
                    alone[one.name] = outcome.percentile(0.5)
        direct = (await upstream.ask(form, 1, 1.0)).percentile(0.5)
        for name, took in alone.items():
            added[name].append(took - direct)
    for one in ours:
        for level in LEVELS:
            claim, at_least = f"{one.name}, {form.what}, {level} at once", form.wanted if level > 1 else None
            rows.paired(claim, rates[one.name, level], "req/s", rival.name, rates[rival.name, level], at_least=at_least)
    for one in ours:
        rows.paired(f"{one.name}, {form.what}: added at 1 at once", added[one.name], "ms", rival.name, added[rival.name])


CROWD, CROWD_WORDS, TOKEN_MS = 1_000, 100, 100.0
#: The streams arrive within this time.
ARRIVAL_SECONDS = 3.0
WATCH_SECONDS = 0.5
#: Each echo worker has 256 slots, the stack's own included.
MORE_WORKERS = 3
#: In the gateway, in addition to running requests: a crowd that fits may wait a little.
WAITING = 64
#: Within this time the gateway releases memory after a burst.
REST_SECONDS = 15.0
#: An answer takes its words' time; in a crowd it may take half as long again.
PACE_ALLOWED = 1.5
MOST_MB, MOST_GROWTH, MOST_REFUSAL_MS = 600.0, 1.1, 100.0

#: All of them start within this time, which is as fast as one process can send them.
FLOOD, FLOOD_SECONDS = 5_000, 5
#: About as much text as fits into the context of a small model.
FLOOD_WORDS = 8_000
AT_ONCE = 20
#: The other tenants: a request now and then, each with an answer of a second.
CALM_RATE, FEW_WORDS = 20, 10
CALM_SECONDS = 10
#: The p95 of the others' time to first token, with the flood compared to without it.
SLOWER_ALLOWED = 1.5


async def _measure_crowd(rows: Rows, _shared: None, _options: Options) -> None:
    # The first worker is not used; with the backend of an upstream it starts no engine either.
    queues = {"ENGINE_QUEUE": "0", "QUEUE_MOST": WAITING, "ECHO_TOKEN_MS": TOKEN_MS}
    async with AsyncExitStack() as opened:
        upstream_port = await opened.enter_async_context(tenants.upstream())
        running = await opened.enter_async_context(tenants.stack(**tenants.served_by(upstream_port), **queues))
        for _ in range(MORE_WORKERS):
            await opened.enter_async_context(tenants.echo_worker(running, ECHO_TOKEN_MS=str(TOKEN_MS), ENGINE_QUEUE="0"))
        keys = await tenants.register(running)
        port, pid = tenants.gateway_port(running), await tenants.pid_of(running, "gateway")
        new = processes.resident_mb(pid)
        # What the first crowd allocates once, such as the allocator's arenas, is not growth.
        await tenants.load(port, keys, Spread(CROWD, ARRIVAL_SECONDS), CROWD_WORDS)
        await asyncio.sleep(REST_SECONDS)
        before = processes.resident_mb(pid)
        async with processes.watching_memory(pid, WATCH_SECONDS) as held:
            fitting = await tenants.load(port, keys, Spread(CROWD, ARRIVAL_SECONDS), CROWD_WORDS)
        await asyncio.sleep(REST_SECONDS)
        after = processes.resident_mb(pid)
        _add_fitting(rows, fitting)
        claim = f"{CROWD:,} streams of 10 tokens/s"
        rows.alone(f"{claim}: the gateway holds", max(held), "MB", at_most=MOST_MB)
        rows.against(f"{claim}: the gateway afterwards", after, "MB", "after a crowd before", before, at_most=MOST_GROWTH)
        rows.against(f"{claim}: the gateway afterwards", after, "MB", "new", new)
        _add_excess(rows, await tenants.load(port, keys, Spread(2 * CROWD, ARRIVAL_SECONDS), CROWD_WORDS))


def _add_fitting(rows: Rows, outcome: Outcome) -> None:
    _tell(outcome)
    claim = f"{CROWD:,} streams of 10 tokens/s"
    complete = sum(answer.pieces == CROWD_WORDS for answer in outcome.good)
    assert complete, outcome.statuses
    rows.alone(f"{claim}: complete", complete, "streams", at_least=CROWD)
    rows.against(f"{claim}: time, p99", outcome.percentile(0.99), "ms", "their words", CROWD_WORDS * TOKEN_MS, at_most=PACE_ALLOWED)
    for share in (50, 99):
        rows.alone(f"{claim}: first token, p{share}", outcome.percentile(share / 100, "first") - TOKEN_MS, "ms")


def _add_excess(rows: Rows, outcome: Outcome) -> None:
    """Those that fit are served, all others are rejected immediately."""
    _tell(outcome)
    claim = f"{2 * CROWD:,} offered"
    refused = [1000 * answer.took for answer in outcome.answers if answer.status in REFUSALS]
    rows.alone(f"{claim}: complete", len(outcome.good), "streams", at_least=CROWD)
    rows.alone(f"{claim}: neither served nor refused", _odd(outcome), "streams", at_most=0)
    rows.alone(f"{claim}: refused", len(refused), "streams")
    if refused:
        rows.alone(f"{claim}: refused within, p50", report.percentile(refused, 0.5), "ms")
        rows.alone(f"{claim}: refused within, p99", report.percentile(refused, 0.99), "ms", at_most=MOST_REFUSAL_MS)


def _odd(outcome: Outcome) -> int:
    return sum(answer.status not in REFUSALS and not answer.is_good for answer in outcome.answers)


def _tell(outcome: Outcome) -> None:
    """Print what happened to the streams that were not served whole."""
    odd = Counter((answer.status, answer.pieces) for answer in outcome.answers if not answer.is_good)
    for (status, pieces), times in odd.most_common(5):
        print(f"{times} ended with status {status} after {pieces} pieces", file=sys.stderr)


async def _measure_flood(rows: Rows, _shared: None, _options: Options) -> None:
    limited = tenants.UNREACHED["TIER_FREE"].replace("concurrency=1000000000", f"concurrency={AT_ONCE}")
    async with tenants.stack(TIER_FREE=limited, ECHO_TOKEN_MS=TOKEN_MS) as running:
        port, (flooding, *others) = tenants.gateway_port(running), await tenants.register(running, 11)
        await tenants.load(port, others, Spread(2 * CALM_RATE, 2), FEW_WORDS)  # connections, caches
        calm = await tenants.load(port, others, Spread(CALM_SECONDS * CALM_RATE, CALM_SECONDS), FEW_WORDS)
        beside, flood = await asyncio.gather(
            tenants.load(port, others, Spread(FLOOD_SECONDS * CALM_RATE, FLOOD_SECONDS), FEW_WORDS),
            tenants.load(port, (flooding,), Spread(FLOOD, FLOOD_SECONDS), FEW_WORDS, prompt_words=FLOOD_WORDS),
        )
    claim = f"{FLOOD:,} requests of {FLOOD_WORDS:,} words by one tenant"
    # A request certainly runs from its first text to its end.
    served = [(answer.began + answer.first, answer.began + answer.took) for answer in flood.good]
    at_once = max((sum(began <= at < ended for began, ended in served) for at, _ in served), default=0)
    rows.alone(f"{claim}: at once of those served", at_once, "requests", at_most=AT_ONCE)
    rows.alone(f"{claim}: served", len(served), "requests")
    rows.alone(f"{claim}: neither served nor refused", _odd(flood), "requests", at_most=0)
    rows.alone("the others meanwhile: complete", len(beside.good), "requests", at_least=len(beside.answers))
    first, calm_first = (outcome.percentile(0.95, "first") for outcome in (beside, calm))
    rows.against("the others meanwhile: first token, p95", first, "ms", "without the flood", calm_first, at_most=SLOWER_ALLOWED)


RPC_AT_ONCE, RPC_WORDS = 16, 100
#: A method -> the route that does the same; the gateway runs the first itself and forwards the second to auth.
RPC_CALLS = {"gateway.listRequests": "/api/requests", "auth.listApiKeys": "/api/auth/api-keys"}


async def _measure_rpc(rows: Rows, _shared: None, options: Options) -> None:
    """The routes take turns. Processor time is the gateway's, for one request."""
    async with tenants.stack() as running:
        keys, port, pid = await tenants.register(running), tenants.gateway_port(running), await tenants.pid_of(running, "gateway")
        bearers, prompt = [f"authorization: Bearer {key}" for key in keys], "tok " * RPC_WORDS
        asked = json.dumps({"request": {"model": "echo", "messages": [{"role": "user", "content": prompt}], "maxTokens": RPC_WORDS}})
        loads: dict[str, Sequence[str]] = {"/v1": tenants.chats(keys, "echo", prompt, RPC_WORDS, stream=True)}
        loads["streams over /rpc"] = [http_load.post("/rpc/gateway.processInferenceRequest", asked, bearer) for bearer in bearers]
        for method, route in RPC_CALLS.items():
            loads[route] = [http_load.get(route, bearer) for bearer in bearers]
            loads[method] = [http_load.post(f"/rpc/{method}", "{}", bearer) for bearer in bearers]
        spent, tokens = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
        for number in range(options.rounds):
            for name, requests in report.in_turn(list(loads.items()), number):
                before = processes.spent_ms(pid)
                load = Load(port=port, requests=tuple(requests), pace=Steady(RPC_AT_ONCE, options.seconds))
                outcome = await http_load.make(load)
                assert len(outcome.good) == len(outcome.answers), f"{name}: {outcome.statuses}"
                spent[name].append(1000 * (processes.spent_ms(pid) - before) / len(outcome.good))
                tokens[name].append(sum(answer.pieces for answer in outcome.good) / outcome.seconds)
    for method, route in RPC_CALLS.items():
        rows.paired(f"{method} over /rpc: processor", spent[method], "µs", route, spent[route], at_most=1.2)
    rows.paired("streams over /rpc", tokens["streams over /rpc"], "tokens/s", "/v1", tokens["/v1"], at_least=0.9)


#: Two public names for the same model.
ROUTES = """
routes:
  alias:
    targets: [{name: main, model: echo}]
  routed:
    spill_after_seconds: 5
    targets:
      - {name: a, model: echo, share: 60, when: {max_prompt_tokens: 100000, tiers: [free, pro]}}
      - {name: b, model: echo, share: 40}
      - {name: c, model: smollm2, order: 1, when: {min_prompt_tokens: 0}}
      - {name: d, model: away, order: 2}
"""


class Turn(NamedTuple):
    """What is measured in turn with others."""

    model: str
    #: Called before each turn, with a key.
    prepare: Callable[[str], Awaitable[None]] | None = None


async def _take_turns(
    running: RunningStack, turns: Mapping[str, Turn], options: Options, *, stream: bool
) -> tuple[Mapping[str, list[float]], Mapping[str, list[float]]]:
    """Return the rates, and the gateway's processor time for one request, by turn."""
    keys, port, pid = await tenants.register(running), tenants.gateway_port(running), await tenants.pid_of(running, "gateway")
    rates, spent = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for number in range(options.rounds):
        for name in report.in_turn(list(turns), number):
            model, prepare = turns[name]
            if prepare is not None:
                await prepare(keys[0])
            before = processes.spent_ms(pid)
            requests = tenants.chats(keys, model, PROMPT, MAX_TOKENS, stream=stream)
            outcome = await http_load.make(Load(port=port, requests=requests, pace=Steady(RPC_AT_ONCE, options.seconds)))
            assert len(outcome.good) == len(outcome.answers), f"{name}: {outcome.statuses}"
            spent[name].append(1000 * (processes.spent_ms(pid) - before) / len(outcome.good))
            rates[name].append(len(outcome.good) / outcome.seconds)
    return rates, spent


async def _measure_routes(rows: Rows, _shared: None, options: Options) -> None:
    async with tenants.stack() as running:
        applied = await running.aicli("admin", "config", "apply", "-f", "-", stdin=ROUTES)
        assert applied.status == 0, applied
        rates, spent = await _take_turns(running, {"alias": Turn("alias"), "routed": Turn("routed")}, options, stream=False)
    rows.paired("a route of four targets", rates["routed"], "requests/s", "an alias", rates["alias"], at_least=0.97)
    rows.paired("a route of four targets: processor", spent["routed"], "µs", "an alias", spent["alias"])


#: Every kind that needs no pattern of its own.
GUARDS = dict.fromkeys(("secret", "card", "iban", "national_id", "email", "phone", "ip"), "mask")


async def _measure_guard(rows: Rows, _shared: None, options: Options) -> None:
    async with tenants.stack() as running:
        turns = {
            "on": Turn("echo", lambda key: _set_guard(running, key, GUARDS)),
            "off": Turn("echo", lambda key: _set_guard(running, key, {})),
        }
        rates, spent = await _take_turns(running, turns, options, stream=True)
    rows.paired("streams with guardrails", rates["on"], "requests/s", "without", rates["off"], at_least=0.9)
    rows.paired("streams with guardrails: processor", spent["on"], "µs", "without", spent["off"])


async def _set_guard(running: RunningStack, key: str, actions: dict[str, str]) -> None:
    """Return when the gateway uses it."""
    policy = {"policies": {"mesh": {"guard": {"prompt": actions, "answer": actions, "countries": ["US", "DE"]}}}}
    applied = await running.aicli("admin", "config", "apply", "-f", "-", stdin=json.dumps(policy))
    assert applied.status == 0, applied
    expected = "[card]" if actions else "4111111111111111"
    async with running.http(key) as client:

        async def is_used() -> bool:
            body = {"model": "echo", "messages": [{"role": "user", "content": "4111111111111111"}]}
            answer = await client.post("/v1/chat/completions", json=body)
            return bool(answer.json()["choices"][0]["message"]["content"] == expected)

        await until(is_used, seconds=10, what="the guardrails are in use")


def _prepare(options: Options) -> str:
    if "rates" not in options.only:
        return ""
    rivals.ensure_litellm()
    return rivals.litellm_version()


if __name__ == "__main__":
    parts: dict[str, report.Part] = {
        "first_token": _measure_first_token,
        "rates": _measure_rates,
        "crowd": _measure_crowd,
        "flood": _measure_flood,
        "rpc": _measure_rpc,
        "routes": _measure_routes,
        "guard": _measure_guard,
    }
    report.run(__doc__, parts, limits=(1800.0, 600.0), before=_prepare, rounds=(3, 1), seconds=(10.0, 3.0))
