"""The gateway's speed and size as it is deployed: keys, limits and ledger, with real PostgreSQL, Valkey and NATS.

first_token  what gateway and mesh add to the time to first token, at 100 requests a second of 50 tenants
rates        requests a second against LiteLLM's proxy and SMG in front of the same instant upstream, and of one hot tenant alone
relay        the tokens that one core of the gateway relays, of 256 streams of 100 tokens a second
crowd        1,000 streams at once and their memory, and 2,000 of which half must be rejected
flood        5,000 requests of one tenant at once, and their effect on ten others
rpc          calls and streams at /rpc against the same ones at /api and /v1
localhost    what `aicli serve` over the mesh adds to the time to first token, and the tokens of 16 streams, against the gateway's port
routes       a route of four targets with conditions against an alias
guard        streams with guardrails for prompts and answers against streams without
cache        the answers from the response cache, of common questions: of all requests and of repeated ones
tolerant     an agent's chats with fields that have no effect, in each message, against the same ones without
tracing      requests and processor time of stacks that make no traces, keep 1 of 100, and keep all; the metrics service reads the spans,
             and only export by OTLP is left out

Everything shares one machine, including the load generator, so compare ratios of one run rather than figures.
"""

import asyncio
import itertools
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

from bench import calls, http_load, processes, report, rivals, tenants
from bench.http_load import Load, Outcome, Spread
from bench.report import Options, Rows
from bench.tenants import REFUSALS, Tenants, Turn
from shared.api import gateway
from shared.types import ModelName
from tests.stacks import until
from tests.testnet import free_port

#: Of first tokens.
A_SECOND, BLOCK = 100, Spread(250, 2.5)
#: A prompt of ordinary length; the echo backend answers with its words.
PROMPT = "Explain in two sentences why the sea is salty and the rivers that feed it are not."
MAX_TOKENS = 16


def _turn(stack: Tenants, requests: Sequence[str], prepare: Callable[[], Awaitable[None]] | None = None, *, at_once: int = 16) -> Turn:
    return Turn(stack.port, requests, at_once, {"gateway": stack.pids["gateway"]}, prepare)


async def _in_blocks(ways: Mapping[str, Callable[[], Awaitable[list[float]]]], options: Options, block: Spread) -> dict[str, list[float]]:
    """Return the seconds of each way, whose blocks take turns for ``seconds`` each."""
    await report.take_turns(ways, 1)  # connections, caches
    blocks = await report.take_turns(ways, max(1, round(options.seconds / block.seconds)))
    return {way: list(itertools.chain(*each)) for way, each in blocks.items()}


async def _first_tokens(port: int, requests: Sequence[str], block: Spread = BLOCK) -> list[float]:
    """Return the seconds to each first token of a block."""
    # Connections that are opened before the start do not count.
    outcome = await http_load.run(Load(port=port, requests=tuple(requests), pace=block, connections=8))
    firsts = [answer.first for answer in outcome.good if answer.first]
    assert len(firsts) == block.count, outcome.statuses
    return firsts


async def _measure_first_token(rows: Rows, _shared: None, options: Options) -> None:
    """Measure each way for ``seconds``: by the gateway over HTTP and RPC, and by calling the worker directly.

    Requests start at a fixed rate whether or not earlier ones have ended; the ways alternate in blocks. "Added" is a percentile minus that
    of the direct way.
    """
    async with tenants.opened() as stack, stack.running.client() as client:
        worker = (await stack.running.programs())["inference-echo"].url
        assert worker is not None
        token = (stack.running.home / "secrets" / "service_token").read_text().strip()
        body = json.dumps({"model": "echo", "prompt": PROMPT, "max_tokens": MAX_TOKENS, "stream": True})
        asked_directly = http_load.post("/infer", body, f"authorization: Bearer {token}")
        credentials = itertools.cycle(stack.keys)
        asked = gateway.ProcessInferenceRequest(gateway.InferenceRequest(prompt=PROMPT, model=ModelName("echo"), max_tokens=MAX_TOKENS))

        async def over_rpc() -> list[float]:
            took = list[float]()

            async def ask() -> None:
                start = time.perf_counter()
                async with client.rpc.stream(gateway.process_inference_request, asked, credential=next(credentials)) as answer:
                    await anext(answer)
                    took.append(time.perf_counter() - start)
                    async for _ in answer:
                        pass

            await calls.spread(ask, BLOCK.count, BLOCK.seconds)
            return took

        requests = tenants.chats(stack.keys, "echo", PROMPT, MAX_TOKENS, stream=True)
        ways: dict[str, Callable[[], Awaitable[list[float]]]] = {
            "direct": partial(_first_tokens, int(worker.rsplit(":", 1)[1]), [asked_directly]),
            "HTTP": partial(_first_tokens, stack.port, requests),
            "RPC": over_rpc,
        }
        took = await _in_blocks(ways, options, BLOCK)
    for share, most_added in ((50, 5.0), (99, 20.0)):
        direct, *others = (1000 * report.percentile(took[way], share / 100) for way in ways)
        for way, whole in zip(("HTTP", "RPC"), others, strict=True):
            rows.against(f"first token over {way}, p{share}, {A_SECOND}/s", whole, "ms", "worker's /infer", direct)
            rows.alone(f"  added by gateway and mesh, p{share}", whole - direct, "ms", at_most=most_added)


LEVELS = (1, 16, 64)
RIVAL, ROUTER = "LiteLLM", "SMG"


class Form(NamedTuple):
    what: str
    #: Words of an answer.
    words: int
    stream: bool
    #: The wanted multiple of the rival's rate.
    wanted: float

    def turn(self, port: int, keys: Sequence[str], model: str, at_once: int, pids: Mapping[str, int] | None = None) -> Turn:
        requests = tenants.chats(keys, model, "tok " * 20, self.words, stream=self.stream)
        return Turn(port, requests, at_once, pids or {})


FORMS = (Form("plain", 2, stream=False, wanted=10.0), Form("streams of 20", 20, stream=True, wanted=15.0))


async def _measure_rates(rows: Rows, _shared: None, options: Options) -> None:
    async with (
        tenants.upstream() as upstream,
        tenants.opened(**tenants.served_by(upstream)) as stack,
        rivals.litellm(upstream) as proxy,
        rivals.smg(upstream) as router,
    ):
        for form in FORMS:
            contenders: dict[str, Callable[[int], Turn]] = {
                "aimesh": partial(form.turn, stack.port, stack.keys, tenants.MODEL),
                "aimesh, echo worker": partial(form.turn, stack.port, stack.keys, "echo"),
                RIVAL: partial(form.turn, proxy.port, (rivals.LITELLM_KEY,), tenants.MODEL),
                ROUTER: partial(form.turn, router.port, ("none",), tenants.MODEL),
            }
            turns = {(name, level): turn(level) for level in LEVELS for name, turn in contenders.items()}
            direct = form.turn(upstream, ("none",), tenants.MODEL, 1)
            _compare(rows, form, await tenants.take_turns({**turns, ("upstream", 1): direct}, options))
        hot = await FORMS[0].turn(stack.port, stack.keys[:1], "echo", 64).measure("one hot tenant", options.seconds)
        rows.alone("one hot tenant, plain, 64 at once", hot["rate"], "req/s", at_least=300)
        rows.against("the gateway's memory afterwards", stack.memory_mb(), "MB", RIVAL, processes.resident_mb(proxy.pid))


def _compare(rows: Rows, form: Form, figures: Mapping[tuple[str, int], Mapping[str, list[float]]]) -> None:
    for name in ("aimesh", "aimesh, echo worker"):
        for level in LEVELS:
            claim, at_least = f"{name}, {form.what}, {level} at once", form.wanted if level > 1 else None
            rows.paired(claim, figures[name, level]["rate"], "req/s", RIVAL, figures[RIVAL, level]["rate"], at_least=at_least)
            if level > 1:
                rows.paired(claim, figures[name, level]["rate"], "req/s", ROUTER, figures[ROUTER, level]["rate"])
    added = {
        name: [took - direct for took, direct in zip(figures[name, 1]["p50"], figures["upstream", 1]["p50"], strict=True)]
        for name, level in figures
        if level == 1
    }
    for name in ("aimesh", "aimesh, echo worker"):
        rows.paired(f"{name}, {form.what}: added at 1 at once", added[name], "ms", RIVAL, added[RIVAL])


RELAYED, RELAYED_WORDS, RELAYED_MS = 256, 200, 10


async def _measure_relay(rows: Rows, _shared: None, options: Options) -> None:
    async with tenants.opened(ECHO_TOKEN_MS=RELAYED_MS) as stack:
        requests = tenants.chats(stack.keys, "echo", "tok " * RELAYED_WORDS, RELAYED_WORDS, stream=True)
        figures = await tenants.take_turns({"relay": _turn(stack, requests, at_once=RELAYED)}, options)
    spent = statistics.median(figures["relay"]["gateway"])
    rows.alone(f"{RELAYED} streams, 100 tokens/s each: relayed", statistics.median(figures["relay"]["tokens"]), "tokens/s")
    rows.alone("  by a second of the gateway's processor", RELAYED_WORDS / spent * 1e6, "tokens/s")


CROWD, CROWD_WORDS, TOKEN_MS = 1_000, 100, 100.0
#: Within this time the gateway releases memory after a burst.
REST_SECONDS = 15.0


async def _measure_crowd(rows: Rows, _shared: None, _options: Options) -> None:
    # The first worker is not used; with the backend of an upstream it starts no engine either. A crowd that fits may wait a little.
    queues = {"ENGINE_QUEUE": "0", "QUEUE_MOST": 64, "ECHO_TOKEN_MS": TOKEN_MS}
    async with AsyncExitStack() as opened:
        upstream = await opened.enter_async_context(tenants.upstream())
        stack = await opened.enter_async_context(tenants.opened(0, **tenants.served_by(upstream), **queues))
        # Each echo worker has 256 slots, the stack's own included.
        for _ in range(3):
            await opened.enter_async_context(tenants.echo_worker(stack.running, ECHO_TOKEN_MS=str(TOKEN_MS), ENGINE_QUEUE="0"))
        keys, new = await tenants.register(stack.running), stack.memory_mb()

        async def arrive(count: int) -> Outcome:
            outcome = await tenants.load(stack.port, keys, Spread(count, 3.0), CROWD_WORDS)
            odd = Counter((answer.status, answer.pieces) for answer in outcome.answers if not answer.is_good)
            for (status, pieces), times in odd.most_common(5):
                print(f"{times} ended with status {status} after {pieces} pieces", file=sys.stderr)
            return outcome

        # What the first crowd allocates once, such as the allocator's arenas, is not growth.
        await arrive(CROWD)
        await asyncio.sleep(REST_SECONDS)
        before = stack.memory_mb()
        async with processes.watching_memory(stack.pids["gateway"], 0.5) as held:
            fitting = await arrive(CROWD)
        await asyncio.sleep(REST_SECONDS)
        claim, after = f"{CROWD:,} streams of 10 tokens/s", stack.memory_mb()
        complete = sum(answer.pieces == CROWD_WORDS for answer in fitting.good)
        rows.alone(f"{claim}: complete", complete, "streams", at_least=CROWD)
        # An answer takes its words' time; in a crowd it may take half as long again.
        rows.against(f"{claim}: time, p99", fitting.percentile(0.99), "ms", "their words", CROWD_WORDS * TOKEN_MS, at_most=1.5)
        rows.alone(f"{claim}: the gateway holds", max(held), "MB", at_most=600)
        rows.against(f"{claim}: the gateway afterwards", after, "MB", "after a crowd before", before, at_most=1.1)
        rows.against(f"{claim}: the gateway afterwards", after, "MB", "new", new)
        # Those that fit are served, all others are rejected immediately.
        outcome, claim = await arrive(2 * CROWD), f"{2 * CROWD:,} offered"
        refused = [1000 * answer.took for answer in outcome.answers if answer.status in REFUSALS]
        rows.alone(f"{claim}: complete", len(outcome.good), "streams", at_least=CROWD)
        rows.alone(f"{claim}: neither served nor refused", _odd(outcome), "streams", at_most=0)
        if refused:
            rows.alone(f"{claim}: refused within, p99", report.percentile(refused, 0.99), "ms", at_most=100)


def _odd(outcome: Outcome) -> int:
    return sum(answer.status not in REFUSALS and not answer.is_good for answer in outcome.answers)


#: All of them start within this time, which is as fast as one process can send them. A prompt about fills the context of a small model.
FLOOD, FLOOD_SECONDS, FLOOD_WORDS = 5_000, 5, 8_000
FLOOD_AT_ONCE = 20


async def _measure_flood(rows: Rows, _shared: None, _options: Options) -> None:
    limited = tenants.UNREACHED["TIER_FREE"].replace("concurrency=1000000000", f"concurrency={FLOOD_AT_ONCE}")
    async with tenants.opened(11, TIER_FREE=limited, ECHO_TOKEN_MS=TOKEN_MS) as stack:
        flooding, *others = stack.keys

        async def ask_now_and_then(seconds: int) -> Outcome:
            """Let the others ask, each for an answer of a second."""
            return await tenants.load(stack.port, others, Spread(20 * seconds, seconds), 10)

        await ask_now_and_then(2)  # connections, caches
        calm = await ask_now_and_then(10)
        beside, flood = await asyncio.gather(
            ask_now_and_then(FLOOD_SECONDS),
            tenants.load(stack.port, (flooding,), Spread(FLOOD, FLOOD_SECONDS), 10, prompt_words=FLOOD_WORDS),
        )
    claim = f"{FLOOD:,} requests of {FLOOD_WORDS:,} words by one tenant"
    # A request certainly runs from its first text to its end.
    served = [(answer.began + answer.first, answer.began + answer.took) for answer in flood.good]
    at_once = max((sum(began <= at < ended for began, ended in served) for at, _ in served), default=0)
    rows.alone(f"{claim}: at once of those served", at_once, "requests", at_most=FLOOD_AT_ONCE)
    rows.alone(f"{claim}: neither served nor refused", _odd(flood), "requests", at_most=0)
    rows.alone("the others meanwhile: complete", len(beside.good), "requests", at_least=len(beside.answers))
    first, calm_first = (outcome.percentile(0.95, "first") for outcome in (beside, calm))
    rows.against("the others meanwhile: first token, p95", first, "ms", "without the flood", calm_first, at_most=1.5)


RPC_WORDS = 100
#: A method -> the route that does the same; the gateway runs the first itself and forwards the second to auth.
RPC_CALLS = {"gateway.listRequests": "/api/requests", "auth.listApiKeys": "/api/auth/api-keys"}


async def _measure_rpc(rows: Rows, _shared: None, options: Options) -> None:
    """The routes take turns. Processor time is the gateway's, for one request."""
    async with tenants.opened() as stack:
        bearers, prompt = [f"authorization: Bearer {key}" for key in stack.keys], "tok " * RPC_WORDS
        asked = json.dumps({"request": {"model": "echo", "messages": [{"role": "user", "content": prompt}], "maxTokens": RPC_WORDS}})
        loads: dict[str, Sequence[str]] = {"/v1": tenants.chats(stack.keys, "echo", prompt, RPC_WORDS, stream=True)}
        loads["streams over /rpc"] = [http_load.post("/rpc/gateway.processInferenceRequest", asked, bearer) for bearer in bearers]
        for method, route in RPC_CALLS.items():
            loads[route] = [http_load.get(route, bearer) for bearer in bearers]
            loads[method] = [http_load.post(f"/rpc/{method}", "{}", bearer) for bearer in bearers]
        figures = await tenants.take_turns({name: _turn(stack, requests) for name, requests in loads.items()}, options)
    for method, route in RPC_CALLS.items():
        claim = f"{method} over /rpc: processor"
        rows.paired(claim, figures[method]["gateway"], "µs", route, figures[route]["gateway"], at_most=1.2)
    streams, rival = figures["streams over /rpc"]["tokens"], figures["/v1"]["tokens"]
    rows.paired("streams over /rpc", streams, "tokens/s", "/v1", rival, at_least=0.9)


@asynccontextmanager
async def _served(stack: Tenants) -> AsyncIterator[tuple[int, int]]:
    """Run `aicli serve` with the first tenant's key. Yields its port and process ID."""
    port = free_port()
    process = await stack.running.start_aicli("serve", "--port", str(port), AICLI_API_KEY=stack.keys[0])
    try:
        assert process.stdout is not None
        assert await process.stdout.readline(), "aicli serve ended"
        client = http_load.Client(port)

        async def answers() -> bool:
            answer, _ = await client.ask(http_load.get("/v1/models").encode())
            return answer.is_good

        await until(answers, seconds=60, what="the mesh answers at localhost")
        yield port, process.pid
    finally:
        process.terminate()
        await process.communicate()


#: One request after another has no queue.
LOCAL_AT_ONCE, LOCAL_WORDS = 16, 100
#: One user's requests, who may have only some in the queue.
LOCAL_BLOCK = Spread(50, 2.5)


async def _measure_localhost(rows: Rows, _shared: None, options: Options) -> None:
    async with tenants.opened(1) as stack, _served(stack) as (port, pid):
        requests = tenants.chats(stack.keys, "echo", PROMPT, MAX_TOKENS, stream=True)
        ways = {name: partial(_first_tokens, at, requests, LOCAL_BLOCK) for name, at in (("gateway", stack.port), ("localhost", port))}
        took = await _in_blocks(ways, options, LOCAL_BLOCK)
        for share, most_added in ((50, 5.0), (95, None)):
            local, direct = (1000 * report.percentile(took[way], share / 100) for way in ("localhost", "gateway"))
            rows.against(f"first token at localhost, p{share}, 20/s", local, "ms", "the gateway", direct)
            rows.alone(f"  added by aicli serve, p{share}", local - direct, "ms", at_most=most_added)
        streams = tenants.chats(stack.keys, "echo", "tok " * LOCAL_WORDS, LOCAL_WORDS, stream=True)
        turns = {
            "gateway": _turn(stack, streams, at_once=LOCAL_AT_ONCE),
            "localhost": Turn(port, streams, LOCAL_AT_ONCE, {"serve": pid, "gateway": stack.pids["gateway"]}),
        }
        figures = await tenants.take_turns(turns, options)
    ours, direct_rates = figures["localhost"]["tokens"], figures["gateway"]["tokens"]
    rows.paired(f"{LOCAL_AT_ONCE} streams at localhost", ours, "tokens/s", "the gateway", direct_rates, at_least=0.8)
    claim, spent = f"  processor for one stream of {LOCAL_WORDS} tokens", {way: statistics.median(figures[way]["gateway"]) for way in turns}
    rows.against(f"{claim}, gateway", spent["localhost"], "µs", "its own port", spent["gateway"])
    rows.alone(f"{claim}, serve", statistics.median(figures["localhost"]["serve"]), "µs")


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


async def _measure_routes(rows: Rows, _shared: None, options: Options) -> None:
    async with tenants.opened() as stack:
        await stack.configure(ROUTES)
        turns = {name: _turn(stack, tenants.chats(stack.keys, name, PROMPT, MAX_TOKENS, stream=False)) for name in ("alias", "routed")}
        figures = await tenants.take_turns(turns, options)
    routed, alias = figures["routed"]["rate"], figures["alias"]["rate"]
    rows.paired("a route of four targets", routed, "requests/s", "an alias", alias, at_least=0.97)


#: Every kind that needs no configured pattern.
GUARDS = dict.fromkeys(("secret", "card", "iban", "national_id", "email", "phone", "ip"), "mask")


async def _measure_guard(rows: Rows, _shared: None, options: Options) -> None:
    async with tenants.opened() as stack:
        requests = tenants.chats(stack.keys, "echo", PROMPT, MAX_TOKENS, stream=True)
        turns = {name: _turn(stack, requests, partial(_set_guard, stack, guards)) for name, guards in (("on", GUARDS), ("off", {}))}
        figures = await tenants.take_turns(turns, options)
    rows.paired("streams with guardrails", figures["on"]["rate"], "requests/s", "without", figures["off"]["rate"], at_least=0.9)


async def _set_guard(stack: Tenants, actions: dict[str, str]) -> None:
    """Return when the gateway uses it."""
    guard = {"prompt": actions, "answer": actions, "countries": ["US", "DE"]}
    await stack.configure(json.dumps({"policies": {"mesh": {"guard": guard}}}))
    expected = "[card]" if actions else "4111111111111111"
    async with stack.running.http(stack.keys[0]) as client:

        async def is_used() -> bool:
            body = {"model": "echo", "messages": [{"role": "user", "content": "4111111111111111"}]}
            answer = await client.post("/v1/chat/completions", json=body)
            return bool(answer.json()["choices"][0]["message"]["content"] == expected)

        await until(is_used, seconds=10, what="the guardrails are in use")


#: Zipf's law: the second most common question comes half as often as the first.
QUESTIONS, QUESTIONS_ASKED = 300, 2_000


async def _measure_cache(rows: Rows, _shared: None, _options: Options) -> None:
    """As `aicli report cost` counts them."""
    weights, dice = [1 / rank for rank in range(1, QUESTIONS + 1)], random.Random(1)
    trace = iter(dice.choices(range(QUESTIONS), weights, k=QUESTIONS_ASKED))
    async with tenants.opened(1, RESPONSE_CACHE="on") as stack, stack.running.http(stack.keys[0]) as client:

        async def ask() -> None:
            for number in trace:
                messages = [{"role": "user", "content": f"{PROMPT} ({number})"}]
                body = {"model": "echo", "temperature": 0, "max_tokens": MAX_TOKENS, "messages": messages}
                (await client.post("/v1/chat/completions", json=body)).raise_for_status()

        await asyncio.gather(*(ask() for _ in range(16)))
        counted: dict[str, Any] = {}

        async def is_counted() -> bool:
            counted.update((await stack.running.aicli("report", "cost", "--json")).json())
            return bool(counted["total"]["succeeded"] >= QUESTIONS_ASKED)

        await until(is_counted, seconds=30, what="all requests are in the report")
    cached, claim = counted["total"]["cached"], f"{QUESTIONS_ASKED:,} requests with {QUESTIONS} questions"
    rows.alone(f"{claim}: from the cache, of all", 100 * cached / QUESTIONS_ASKED, "%", at_least=50)
    rows.alone(f"{claim}: of repeated ones", 100 * cached / counted["repeated"], "%", at_least=95)


#: An agent's conversation: turns of a question, a call and its result, and tools.
AGENT_TURNS, AGENT_TOOLS, AGENT_WORDS = 30, 20, 100


async def _measure_tolerant(rows: Rows, _shared: None, options: Options) -> None:
    bodies = {"tolerant": _agents_chat({"cache_control": {"type": "ephemeral"}, "newer": 1}), "strict": _agents_chat({})}
    async with tenants.opened() as stack:
        turns = {
            name: _turn(stack, [http_load.post("/v1/chat/completions", body, f"authorization: Bearer {key}") for key in stack.keys])
            for name, body in bodies.items()
        }
        figures = await tenants.take_turns(turns, options)
    tolerant, strict = figures["tolerant"]["gateway"], figures["strict"]["gateway"]
    rows.paired("chats of agents with unknown fields: processor, gateway", tolerant, "µs", "without", strict, at_most=1.02)


def _agents_chat(hints: Mapping[str, object]) -> str:
    """Return the body of a streamed chat; ``hints`` are in each message and tool, and at the top."""
    words, call = "tok " * AGENT_WORDS, {"id": "c", "type": "function", "function": {"name": "f1", "arguments": "{}"}}
    turn = (
        {"role": "user", "content": [{"type": "text", "text": words}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": words},
    )
    schema = {"type": "object", "properties": {"path": {"type": "string", "description": words}}}
    tools = [{"type": "function", "function": {"name": f"f{number}", "parameters": schema}} for number in range(AGENT_TOOLS)]
    messages = [{**message, **hints} for message in (*turn * AGENT_TURNS, {"role": "user", "content": PROMPT})]
    body = {"model": "echo", "stream": True, "max_tokens": MAX_TOKENS, "messages": messages, "tools": [{**tool, **hints} for tool in tools]}
    return json.dumps({**body, **hints})


OFF = "no traces"
#: Settings, and the share of the rate without traces that has to be left.
TRACING = {
    OFF: ({"OTEL_SDK_DISABLED": "true"}, 1.0),
    "1 % kept": ({"OTEL_TRACES_SAMPLER_ARG": "0.01"}, 0.97),
    "all kept": ({"OTEL_TRACES_SAMPLER_ARG": "1"}, 0.92),
}


async def _measure_tracing(rows: Rows, _shared: None, options: Options) -> None:
    """Processor time says more than the rate if the machine has other guests."""
    async with AsyncExitStack() as opened:
        stacks = {name: await opened.enter_async_context(tenants.opened(**settings)) for name, (settings, _) in TRACING.items()}
        turns = {(form, name): form.turn(one.port, one.keys, "echo", 16, one.pids) for form in FORMS for name, one in stacks.items()}
        figures = await tenants.take_turns(turns, options)
    for form, (name, (_, left)) in itertools.product(FORMS, TRACING.items()):
        if name == OFF:
            continue
        claim, kept, off, at_most = f"{name}, {form.what}", figures[form, name], figures[form, OFF], round(1 / left, 3)
        rows.paired(f"{claim}, 16 at once", kept["rate"], "req/s", OFF, off["rate"], at_least=left)
        rows.paired(f"{claim}: processor, gateway", kept["gateway"], "µs", OFF, off["gateway"], at_most=at_most)
        rows.paired(f"{claim}: processor, all programs", kept["everywhere"], "µs", OFF, off["everywhere"])


def _prepare(options: Options) -> str:
    if "rates" not in options.only:
        return ""
    for lock in (locks := (rivals.LITELLM_LOCK, rivals.SMG_LOCK)):
        rivals.ensure_command(lock)
    return ", ".join(map(rivals.version_of, locks))


if __name__ == "__main__":
    parts: dict[str, report.Part] = {
        "first_token": _measure_first_token,
        "rates": _measure_rates,
        "relay": _measure_relay,
        "crowd": _measure_crowd,
        "flood": _measure_flood,
        "rpc": _measure_rpc,
        "localhost": _measure_localhost,
        "routes": _measure_routes,
        "guard": _measure_guard,
        "cache": _measure_cache,
        "tolerant": _measure_tolerant,
        "tracing": _measure_tracing,
    }
    report.run(__doc__, parts, limits=(2400.0, 720.0), before=_prepare, rounds=(3, 1), seconds=(10.0, 3.0))
