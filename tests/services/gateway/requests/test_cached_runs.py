"""The response cache in the pipeline, on a real Valkey."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest

from services.gateway.billing.prices import Price
from services.gateway.facts import model_names, model_routes, tiers, upstream_prices
from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.facts.policies import Policies
from services.gateway.facts.tiers import LimitRules
from services.gateway.idempotency.cache_keys import CacheRequest
from services.gateway.idempotency.idempotency_keys import KeyUse, NewKeyUse, OrphanedKeyUse
from services.gateway.idempotency.recorder import Recorders
from services.gateway.idempotency.response_cache import CacheBounds, ResponseCache
from services.gateway.requests.runs import Runs
from shared import context, errors
from shared.api import inference
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.generation import GenerationEnd, Usage
from shared.api.ledger import ModelPrice
from shared.config_documents import PolicyDocument, RouteDocument, Sticky, TargetDocument, UpstreamPriceDocument
from shared.stores.cache import Cache
from shared.types import FinishReason, MicroCredits, ModelName, UserId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, OWNER, FakeWorker, RunningService
from tests.services.gateway.pulled import PulledRuns
from tests.testnet import until


class Upstream(FakeWorker):
    """A server that sends no token ids."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        for word in self.words:
            yield inference.Chunk(word, (), finish=FinishReason.STOP if word == self.words[-1] else None)
        yield GenerationEnd(FinishReason.STOP, Usage(7, len(self.words)))


class Asker:
    def __init__(self, running_service: RunningService, runs: Runs) -> None:
        self.running_service, self.pulled = running_service, PulledRuns(runs)

    async def ask(
        self,
        who: Principal = OWNER,
        *,
        cache: CacheRequest = CacheRequest.NOTHING,
        key_use: KeyUse | None = None,
        **fields: Any,
    ) -> tuple[str, InferenceResult]:
        context.start()
        request = InferenceRequest(**{"prompt": "hi", "temperature": 0.0, **fields})
        async with self.pulled.run(who, request, seconds=10, cache=cache, key_use=key_use) as running:
            text = "".join([chunk.text async for _, chunk in running])
        return text, running.result

    @property
    def runs(self) -> int:
        return len(self.running_service.worker.received)


@pytest.fixture
async def asker(valkey_url: str) -> AsyncIterator[Asker]:
    bounds = CacheBounds(keep_seconds=60, most_bytes=2**20, most_seconds=10)
    async with fakes.running_service() as running_service, Cache.open(valkey_url) as values, Recorders().running() as recorders:
        responses = ResponseCache(values, recorders, running_service.metrics, bounds, secret="s" * 16)
        yield Asker(running_service, running_service.new_runs(responses=responses))


async def test_a_cache_hit_has_a_row_that_says_so(asker: Asker) -> None:
    (first, computed), (again, hit) = await asker.ask(), await asker.ask()
    assert first == again == "Hello world!"
    assert (computed.cached, hit.cached) == (False, True)
    assert computed.request_id != hit.request_id
    assert computed.usage == hit.usage
    assert [row.cached for row in asker.running_service.store.rows.values()] == [False, True]
    assert asker.runs == 1


async def test_a_hit_has_all_tokens_of_an_answer_that_took_several_steps(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was cut to the first step of its own request, which a hit does not use."""
    monkeypatch.setattr("services.gateway.requests.request_admission.STEP_TOKENS", 2)
    asker.running_service.add_worker(1, Upstream(words=tuple("abcde")), "smollm2")
    _, computed = await asker.ask()
    extended = len(asker.running_service.books.extended)
    _, hit = await asker.ask()
    assert (computed.cached, hit.cached) == (False, True)
    assert len(asker.running_service.books.extended) == extended > 0, "a hit holds nothing more"
    assert computed.usage.completion_tokens == hit.usage.completion_tokens == 5


async def test_a_hit_that_its_caller_leaves_has_saved_nothing(asker: Asker) -> None:
    await asker.ask()
    context.start()
    async with asker.pulled.run(OWNER, InferenceRequest(prompt="hi", temperature=0.0), seconds=10) as running:
        await anext(running)
    row = list(asker.running_service.store.rows.values())[-1]
    assert (row.cached, row.status, row.completion_tokens, row.saved_micro) == (True, "cancelled", 1, 0)


async def test_a_hit_uses_nothing_of_its_callers_limit(asker: Asker) -> None:
    service, left = asker.running_service, []
    plans = {OWNER.tier: replace(tiers.NO_LIMITS, tokens_per_minute=100_000)}
    service.config = replace(service.config, limits=LimitRules(plans))
    for _ in range(2):
        _, result = await asker.ask()
        (limit,) = await service.quotas.read(OWNER)
        left.append(limit.remaining)
    assert result.cached
    assert left == [100_000 - result.usage.total_tokens] * 2


@pytest.mark.parametrize(
    "fields", [{"temperature": 1.0}, {"temperature": None}, {"cache": CacheRequest.OFF}, {"cache": CacheRequest.FRESH}]
)
async def test_which_requests_are_not_answered_from_the_cache(asker: Asker, fields: dict[str, Any]) -> None:
    await asker.ask(**fields)
    assert not (await asker.ask(**fields))[1].cached
    assert asker.runs == 2


async def test_other_tenants_are_not_answered_from_the_cache(asker: Asker) -> None:
    await asker.ask()
    other = Principal(UserId(fakes.KEY_ID), "bob", OWNER.role, OWNER.tier)
    assert not (await asker.ask(other))[1].cached


async def test_a_seed_makes_a_request_cacheable(asker: Asker) -> None:
    await asker.ask(temperature=1.0, seed=5)
    assert (await asker.ask(temperature=1.0, seed=5))[1].cached
    assert not (await asker.ask(temperature=1.0, seed=6))[1].cached


ROUTE = {"model": "assistant", "temperature": 1.0}


def use_route(asker: Asker, policies: Policies | None = None, **fields: Any) -> None:
    """Serve `assistant` with smollm2; ``fields`` are those of the route."""
    document = RouteDocument(targets=(TargetDocument(name="own", model="smollm2"),), **fields)
    config = asker.running_service.config
    names = model_names.ModelNames({}, None, routes={"assistant": model_routes.compile_route("assistant", 4, document)})
    asker.running_service.config = ConfigSnapshot(names=names, limits=config.limits, policies=policies or config.policies)


async def test_a_route_answers_equal_requests_of_a_tenant_from_the_cache(asker: Asker) -> None:
    use_route(asker, sticky=Sticky.USER)
    await asker.ask(**ROUTE)
    assert not (await asker.ask(**ROUTE))[1].cached, "off by default"
    use_route(asker, cache="same_request", cache_seconds=60)
    await asker.ask(**ROUTE)
    text, hit = await asker.ask(**ROUTE)
    assert (text, hit.cached, hit.cost_micro, hit.target) == ("Hello world!", True, 0, "own")
    assert not (await asker.ask(**ROUTE, prompt="ho"))[1].cached
    assert not (await asker.ask(**{**ROUTE, "temperature": 0.9}))[1].cached
    assert not (await asker.ask(Principal(UserId(fakes.KEY_ID), "bob", OWNER.role, OWNER.tier), **ROUTE))[1].cached
    assert not (await asker.ask(**ROUTE, cache=CacheRequest.OFF))[1].cached
    assert not (await asker.ask(**{**ROUTE, "model": "smollm2"}))[1].cached, "the route says so, not its model"


async def test_a_cached_answer_obeys_the_policy_of_the_request_that_gets_it(asker: Asker) -> None:
    use_route(asker, cache="same_request")
    asker.running_service.worker.words = ("Ask ", "ada@example.org", " then.")
    await asker.ask(**ROUTE)
    mask = msgspec.convert({"external": ["*"], "guard": {"answer": {"email": "mask"}}}, PolicyDocument)
    use_route(asker, Policies({"mesh": mask, "default": PolicyDocument(external=("*",))}), cache="same_request")
    text, hit = await asker.ask(**ROUTE)
    assert (text, hit.cached) == ("Ask [email] then.", True)
    assert [(count.kind, count.matches) for count in list(asker.running_service.store.rows.values())[-1].guard] == [("email", 1)]
    forbids = PolicyDocument(external=("*",), models=("other",))
    use_route(asker, Policies({"mesh": forbids, "default": PolicyDocument(external=("*",))}), cache="same_request")
    with pytest.raises(errors.UnknownModel, match="no worker serves the model 'assistant'"):
        await asker.ask(**ROUTE)
    assert asker.runs == 1


async def test_a_request_of_a_dead_gateway_is_not_answered_with_another_answer(asker: Asker) -> None:
    """Its answer was sampled with the seed of its key, and the caller may have the beginning."""
    use_route(asker, cache="same_request")
    await asker.ask(**ROUTE, key_use=NewKeyUse(5))
    assert (await asker.ask(**ROUTE, key_use=NewKeyUse(6)))[1].cached, "a new key may get it"
    assert not (await asker.ask(**ROUTE, key_use=OrphanedKeyUse(7, ModelName("smollm2"), is_resumed=True)))[1].cached
    assert [prompt.model_config.seed for prompt in asker.running_service.worker.received] == [5, 7]
    assert (await asker.ask(**ROUTE, key_use=OrphanedKeyUse(8)))[1].cached, "the caller has nothing of it yet"
    with pytest.raises(errors.AnswerGone, match="the cached answer may have changed"):
        await asker.ask(**ROUTE, key_use=OrphanedKeyUse(9, is_resumed=True))
    assert (await asker.ask(**{**ROUTE, "temperature": 0.0}, key_use=OrphanedKeyUse(9, is_resumed=True)))[0] == "Hello world!", (
        "always the same"
    )


# --- upstream money of an answer with several readers ---------------------------------------------------------------------

WORDS = ("One", " two", " three", " four", " five")
#: In micro-credits.
PROMPT_MICRO, TOKEN_MICRO = 7 * 3, 5


class Paced(FakeWorker):
    """Writes each word when the test allows it."""

    def __init__(self) -> None:
        super().__init__(words=WORDS)
        self.may_write = asyncio.Semaphore(0)

    async def run(self, prompt: inference.ProcessPrompt | inference.Conversion) -> AsyncIterator[Any]:
        async for item in super().run(prompt):
            await self.may_write.acquire()
            yield item


class Reading:
    """A caller that reads an answer at its own pace."""

    def __init__(self, asker: Asker) -> None:
        self.has, self.wants, self._grew = 0, asyncio.Semaphore(0), asyncio.Event()
        self.task = asyncio.create_task(self._read(asker))

    async def _read(self, asker: Asker) -> None:
        context.start()
        request = InferenceRequest(prompt="hi", model=ModelName("paid"), temperature=0.0)
        async with asker.pulled.run(OWNER, request, seconds=10) as running:
            async for number, _ in running:
                self.has = max(self.has, number)
                await self.wants.acquire()

    async def read(self, words: int) -> None:
        while self.has < words:
            self.wants.release()
            await until(lambda has=self.has: self.has > has)

    async def finish(self) -> None:
        for _ in range(100):
            self.wants.release()
        await self.task

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@pytest.fixture
def paid(asker: Asker) -> Paced:
    """A model of a provider."""
    worker, config = Paced(), asker.running_service.config
    asker.running_service.add_worker(21, worker, "paid", provider="acme")
    price = upstream_prices.compiled(UpstreamPriceDocument(input=3, output=5))
    asker.running_service.config = replace(config, upstream_prices={ModelName("paid"): price})
    return worker


def spent(asker: Asker) -> list[int]:
    """Return the upstream money of each row, in the order in which they were written."""
    return [row.upstream_micro for row in asker.running_service.store.rows.values()]


async def two_readers(asker: Asker, paid: Paced) -> tuple[Reading, Reading]:
    starter = Reading(asker)
    await until(lambda: paid.received)
    joined = Reading(asker)
    for _ in range(len(WORDS) + 1):
        paid.may_write.release()
    await until(lambda: starter.has and joined.has)
    return starter, joined


async def test_the_starter_of_a_shared_answer_pays_its_provider(asker: Asker, paid: Paced) -> None:
    starter, joined = await two_readers(asker, paid)
    await joined.finish()
    await starter.finish()
    assert spent(asker) == [0, PROMPT_MICRO + 5 * TOKEN_MICRO]
    assert asker.runs == 0
    assert len(paid.received) == 1


async def test_who_joined_pays_for_what_comes_after_the_starter_has_left(asker: Asker, paid: Paced) -> None:
    """No row counted these tokens, so a ceiling for a provider allowed more than it said."""
    starter, joined = await two_readers(asker, paid)
    await starter.read(2)
    await starter.leave()
    await joined.finish()
    assert spent(asker) == [PROMPT_MICRO + 2 * TOKEN_MICRO, 3 * TOKEN_MICRO]
    assert [row.provider for row in asker.running_service.store.rows.values()] == ["acme", None]


async def test_a_starter_that_reads_slowly_pays_for_what_another_has_read(asker: Asker, paid: Paced) -> None:
    starter, joined = await two_readers(asker, paid)
    await joined.finish()
    await starter.leave()
    assert spent(asker) == [0, PROMPT_MICRO + 5 * TOKEN_MICRO]


async def test_who_joined_pays_for_the_seconds_of_its_own_answer(asker: Asker, paid: Paced) -> None:
    now, books = 0.0, asker.running_service.books
    books.prices = (Price(1, ModelPrice(None, MicroCredits(0), MicroCredits(0), compute_second_micro=MicroCredits(1000))),)
    await asker.running_service.ledger.refresh_prices()
    asker.pulled.runs.clock = lambda: now
    starter, joined = await two_readers(asker, paid)
    now = 5.0
    await joined.finish()
    assert asker.running_service.store.only_row.cost_micro == 5000
    await starter.finish()


async def test_a_header_says_that_an_answer_comes_from_the_cache(asker: Asker) -> None:
    use_route(asker, cache="same_request")
    service = asker.running_service
    service.runs = asker.pulled.runs
    transport = httpx.ASGITransport(service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"X-API-Key": KEY}) as http:
        for path, content in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
            ("/v1/completions", {"prompt": "y"}),
        ):
            said = []
            for number, more in enumerate(({}, {}, {"stream": True}, {"stream": True})):
                keyed = {"Idempotency-Key": f"{path} {number}"} if number == 3 else {}
                answer = await http.post(path, json={"model": "assistant", **content, **more}, headers=keyed)
                assert answer.status_code == 200
                assert "world" in answer.text
                said.append(answer.headers.get("x-aimesh-cache"))
            assert said == [None, "hit", "hit", "hit"], path
        off = await http.post("/v1/completions", json={"model": "assistant", "prompt": "y"}, headers={"X-Cache": "off"})
        assert "x-aimesh-cache" not in off.headers
