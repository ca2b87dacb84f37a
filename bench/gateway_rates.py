"""Requests a second of the gateway with its whole pipeline, against LiteLLM's proxy in front of the same instant upstream."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from bench import http_load, litellm, report, rounds, tenants
from bench.http_load import Load, Outcome, Steady
from shared.types import Credential
from tests.stacks import RunningStack, stack

LEVELS = (1, 16, 64)
#: Words of an answer, whether it streams, and the wanted multiple of the rival's rate.
PLAIN, STREAMED = (2, False, 10.0), (20, True, 15.0)
PATH = "/v1/chat/completions"
#: For one tenant alone.
HOT_RATE = 300.0


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    port: int
    keys: tuple[Credential | str, ...]
    model: str

    async def asked(self, words: int, at_once: int, seconds: float, *, stream: bool) -> Outcome:
        # The echo worker repeats the prompt's words, so it needs some.
        body = tenants.chat_body(self.model, "tok " * 20, words, stream=stream)
        keys = tuple(map(str, self.keys))
        return await http_load.make(Load(port=self.port, path=PATH, keys=keys, body=body, pace=Steady(at_once, seconds)))


def check(outcome: Outcome, who: str) -> Outcome:
    """Figures with failed requests are invalid."""
    assert len(outcome.good) == len(outcome.answers), f"{who}: {outcome.statuses}"
    return outcome


async def measure(rows: list[report.Row], count: int, seconds: float) -> None:
    """Run ``count`` rounds, in which each contender gets ``seconds`` at every level."""
    async with AsyncExitStack() as opened:
        upstream_port = await opened.enter_async_context(tenants.upstream())
        settings = {**tenants.UNREACHED, **tenants.served_by(upstream_port), "AIMESH_ECHO": "1", "LOG_LEVEL": "warning"}
        running = await opened.enter_async_context(stack(**settings))
        proxy = await opened.enter_async_context(litellm.running(upstream_port))
        keys = await tenants.register(running)
        port = tenants.gateway_port(running)
        ours = Contender("aimesh", port, keys, tenants.MODEL)
        echo = Contender("aimesh, echo worker", port, keys, "echo")
        rival = Contender("LiteLLM", proxy.port, (litellm.KEY,), tenants.MODEL)
        bare = Contender("upstream", upstream_port, ("none",), tenants.MODEL)
        await _compare(rows, [ours, echo, rival, bare], count, seconds)
        rows += await _hot_tenant(echo, seconds)
        rows += await _held(running, proxy.pid)


async def _compare(rows: list[report.Row], everyone: Sequence[Contender], count: int, seconds: float) -> None:
    ours, echo, rival, bare = everyone
    for words, stream, wanted in (PLAIN, STREAMED):
        what = f"streams of {words}" if stream else "plain"
        rates: dict[tuple[str, int], list[float]] = {}
        alone: dict[str, list[float]] = {}
        for number in range(count):
            for level in LEVELS:
                for one in rounds.in_turn(everyone[:3], number):
                    outcome = check(await one.asked(words, level, seconds, stream=stream), one.name)
                    rates.setdefault((one.name, level), []).append(outcome.rate())
                    if level == 1:
                        alone.setdefault(one.name, []).append(outcome.percentile(0.5))
            direct = check(await bare.asked(words, 1, 1.0, stream=stream), bare.name)
            alone.setdefault(bare.name, []).append(direct.percentile(0.5))
        for one in (ours, echo):
            for level in LEVELS:
                claim = f"{one.name}, {what}, {level} at once"
                at_least = wanted if level > 1 else None
                rows.append(rounds.paired(claim, "req/s", rates[one.name, level], rival.name, rates[rival.name, level], at_least=at_least))
        added = {one.name: [taken - base for taken, base in zip(alone[one.name], alone[bare.name], strict=True)] for one in everyone[:3]}
        rows += [
            rounds.paired(f"{one.name}, {what}: added at 1 at once", "ms", added[one.name], rival.name, added[rival.name])
            for one in (ours, echo)
        ]


async def _hot_tenant(contender: Contender, seconds: float) -> list[report.Row]:
    hot = Contender("one hot tenant", contender.port, contender.keys[:1], contender.model)
    rows = []
    for words, stream, _ in (PLAIN, STREAMED):
        what = f"streams of {words}" if stream else "plain"
        rate = check(await hot.asked(words, 64, seconds, stream=stream), hot.name).rate()
        rows.append(report.alone(f"{hot.name}, {what}, 64 at once", rate, "req/s", at_least=None if stream else HOT_RATE))
    return rows


async def _held(running: RunningStack, rival_pid: int) -> list[report.Row]:
    ours = tenants.resident_mb(await tenants.gateway_pid(running))
    return [report.against("the gateway's memory afterwards", ours, "MB", "LiteLLM", tenants.resident_mb(rival_pid))]
