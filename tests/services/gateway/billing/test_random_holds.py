"""Random answer lengths without max_tokens, small balances and plans, callers who leave, and gateways that die: no hold remains, and no
answer exceeds its hold."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import msgspec

from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import NO_PLAN
from services.gateway.facts import tiers as limit_tiers
from services.gateway.facts.tiers import LimitRules
from services.gateway.requests.hold import STEP_TOKENS
from shared import context, errors
from shared.api import inference
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest
from shared.api.generation import GenerationEnd, Usage
from shared.types import FinishReason, MicroCredits, ModelName, RequestId, UserId
from tests import tiers
from tests.services.gateway.billing.test_random_money import Gateway, Stub, running_gateway
from tests.services.gateway.fakes import PERSON

PER_MINUTE = 30_000
PROMPT = 7
#: What the walk must produce, as ended reservations: extended ones, ones extended by part of a step, and ones of dead gateways.
HAPPENED = (
    f"completion_tokens > {STEP_TOKENS}",
    f"completion_tokens > {STEP_TOKENS} AND completion_tokens % {STEP_TOKENS} > 0",
    "cardinality(workers) > 0",
)


class LongStub(Stub):
    """Writes ``length`` tokens in chunks of random size."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.length = 0

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        written, most = 0, min(self.length, prompt.model_config.max_tokens or 0)
        while written < most:
            count = min(self.rng.randint(1, 300), most - written)
            written += count
            self.sent[prompt.request_id] = written
            yield inference.Chunk("a" * count, tuple(range(count)))
        reason = FinishReason.STOP if most == self.length else FinishReason.LENGTH
        yield GenerationEnd(reason, Usage(PROMPT, written))


async def walk(gateway: Gateway, stub: LongStub, rng: random.Random) -> None:
    """Run one request of a new owner."""
    owner: Principal = msgspec.structs.replace(PERSON, user_id=UserId(uuid4()))
    stub.length = rng.choice([rng.randint(1, 300), rng.randint(3000, 5000), rng.randint(1, 14_000)])
    # An output token costs 2 micro-credits; the bound on the prompt is reserved, too.
    balance = rng.choice([None, rng.randint(300, 8000), rng.randint(8500, 26_000)])
    if balance is not None:
        await LedgerStore(gateway.database).top_up(RequestId(uuid4()), owner.tenant_id, MicroCredits(balance), "", NO_PLAN)
    included = 0 if balance is None else rng.choice([0, 0, rng.randint(100, 9000)])
    overage = None if balance is None else MicroCredits(0)
    per_minute = rng.choice([None, PER_MINUTE, rng.randint(300, 9000)])
    plan = replace(limit_tiers.NO_LIMITS, tokens_per_minute=per_minute, included_tokens=included, overage_micro=overage)
    gateway.service.config = replace(gateway.service.config, limits=LimitRules({owner.tier: plan}))
    leaves_after, dies = rng.choice([None, None, rng.randint(1, 9000)]), rng.random() < 0.4
    context.start()
    read, running, run = 0, None, None
    with suppress(errors.AimeshError, asyncio.CancelledError):
        request = InferenceRequest(prompt="hi", model=ModelName("long"))
        more = {"streamed": rng.random() < 0.7, "continues_elsewhere": lambda: dies}
        async with gateway.service.pulled.run(owner, request, seconds=600, **more) as running:  # type: ignore[arg-type]
            (run,) = gateway.service.runs.running
            async for _, chunk in running:
                read += len(chunk.text)
                assert read <= run.admission.held.max_tokens, "past its hold"
                if leaves_after is not None and read > leaves_after:
                    if dies:
                        await gateway._wait_for_claim(running.request_id)
                    raise asyncio.CancelledError
    if running is None or run is None:
        return
    if run.answer.is_complete:
        expected = FinishReason.STOP if read == stub.length else FinishReason.LENGTH
        assert running.result.finish_reason is expected
        assert read == stub.length or per_minute or balance, "nothing stopped it"
    usage = run.usage
    assert usage.completion_tokens == read
    if per_minute is not None:
        (left,) = await gateway.service.quotas.read(owner)
        assert left.remaining == per_minute - (usage.total_tokens if read else left.limit - left.remaining)


async def test_after_a_long_walk_nothing_is_held_and_the_books_balance(plain_url: str) -> None:
    rng, rounds = random.Random(tiers.seed("HOLDS_SEED")), tiers.volume(300)
    async with running_gateway(plain_url) as gateway:
        stub = LongStub(rng)
        gateway.stubs["long"] = stub
        gateway.service.admission.search.ledger.has_plans = True
        gateway.service.add_worker(40, stub, "long", context_tokens=131_072)
        for _ in range(rounds):
            await walk(gateway, stub, rng)
        await gateway.settle_dead_requests()
        shares = [await gateway.number(f"SELECT 100 * count(*) / {rounds} FROM reservations WHERE {which}") for which in HAPPENED]
        assert min(shares) >= 3, shares
        assert await gateway.number("SELECT count(*) FROM reservations WHERE covered_tokens > 0 AND settled_micro > 0") > 0
        sums = "SELECT sum(abs(reserved_micro) + abs(held_tokens)) FROM accounts"
        assert (await gateway.number(sums), await gateway.number("SELECT count(*) FROM reservations WHERE state = 'reserved'")) == (0, 0)
        report = await gateway.service.admission.search.ledger.verify(full=True)
        assert report.findings == ()
