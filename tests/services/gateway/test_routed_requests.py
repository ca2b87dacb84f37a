"""Requests to a route: their targets, fallbacks, price and rows."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import GrantedReservation, InsufficientCredits, ReservationRequest
from services.gateway.facts import model_names, model_routes, tiers, upstream_prices, worker_requirements
from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.facts.model_routes import OpenRollout
from services.gateway.facts.placements import ANYWHERE
from services.gateway.facts.request_record import RequestRow, ReservationState, RouteUse
from services.gateway.facts.tiers import LimitRules
from services.gateway.facts.upstream_prices import TargetSpending
from services.gateway.idempotency.idempotency_keys import OrphanedKeyUse
from services.gateway.scheduling import routing
from shared import context, errors
from shared.api import inference
from shared.api.auth import Principal
from shared.api.configuration import RolloutPlan
from shared.api.embedding import EmbeddingRequest, Vectors
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.generation import ChatMessage
from shared.api.ledger import MICRO, ModelPrice
from shared.config_documents import RouteDocument, Sticky, TargetConditions, TargetDocument, UpstreamPriceDocument
from shared.protocol.directory import WorkerLoad
from shared.types import MicroCredits, ModelName, RequestId, RequestStatus, Role, TenantId, UserId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, OWNER, FakeWorker, RunningService, node_id
from tests.services.gateway.pulled import generated
from tests.services.gateway.requests.test_embedding_runs import EmbeddingWorker, packed
from tests.testnet import until

LOCAL, API = ModelName("local"), ModelName("api")
TO_LOCAL = TargetDocument(name="own", model=LOCAL, share=100)
TO_API = TargetDocument(name="paid", model=API, order=1)
#: The API costs ten times as much.
PRICES = (
    Price(1, ModelPrice(None, MicroCredits(MICRO), MicroCredits(2 * MICRO))),
    Price(2, ModelPrice(API, MicroCredits(10 * MICRO), MicroCredits(20 * MICRO))),
)


class Routed:
    """A gateway with the route `assistant`, and a worker for each of its models."""

    def __init__(self, service: RunningService) -> None:
        self.service = service
        self.local, self.api = FakeWorker(), FakeWorker(words=("Paid", " words"))
        service.add_worker(11, self.local, LOCAL)
        service.add_worker(12, self.api, API)
        self.use()

    def use(self, *targets: TargetDocument, more: dict[str, Any] | None = None, limits: LimitRules | None = None) -> None:
        document = RouteDocument(targets=targets or (TO_LOCAL, TO_API), **more or {})
        names = model_names.ModelNames({}, None, routes={"assistant": model_routes.compile_route("assistant", 4, document)})
        price = upstream_prices.compiled(UpstreamPriceDocument(input=3, output=5, request="0.000001"))
        self.service.names, self.service.config = (
            names,
            ConfigSnapshot(
                names=names,
                limits=limits or self.service.config.limits,
                upstream_prices={API: price},
                policies=self.service.config.policies,
            ),
        )

    async def ask(self, who: Principal = OWNER, seconds: float = 10, **fields: Any) -> tuple[str, InferenceResult]:
        context.start()  # as an HTTP route does
        request = InferenceRequest(**{"prompt": "hi", "model": "assistant", **fields})
        async with self.service.pulled.run(who, request, seconds=seconds) as running:
            text = "".join([chunk.text async for _, chunk in running])
        return text, running.result


@pytest.fixture
async def routed() -> AsyncIterator[Routed]:
    async with fakes.running_service(free=10_000) as service:
        service.books.prices = PRICES
        await service.admission.search.ledger.refresh_prices()
        yield Routed(service)


def row(routed: Routed) -> tuple[Any, ...]:
    found = routed.service.store.only_row
    return found.model_used, found.route, found.cost_micro


async def test_the_first_target_answers_under_the_public_name(routed: Routed) -> None:
    text, result = await routed.ask()
    assert (text, result.model) == ("Hello world!", "assistant")
    assert routed.local.received[0].model_config.model == "local"
    assert row(routed) == (LOCAL, RouteUse("assistant", 4, "own", "own"), 7 + 2 * 3)
    assert routed.api.received == []


@pytest.mark.parametrize(
    "error",
    [
        errors.Unavailable("the server refuses this worker's key"), errors.Overloaded("full"), errors.LinkLost("gone"),
        errors.ModelCrashed("segfault"), errors.UnknownModel("it does not have this model now"), errors.Draining("it stops"),
    ],
)  # fmt: skip
async def test_a_target_that_fails_before_its_first_token_is_replaced_and_billed_once(routed: Routed, error: errors.AimeshError) -> None:
    routed.local.fails_with = error
    text, result = await routed.ask()
    assert (text, result.model, result.usage.completion_tokens) == ("Paid words", "assistant", 2)
    assert row(routed) == (API, RouteUse("assistant", 4, "own", "paid"), 10 * 7 + 20 * 2)
    assert result.cost_micro == 110
    (held,) = routed.service.books.reserved
    assert (held.price.id, held.model) == (2, API), "the dearest is reserved"


# --- rollouts -------------------------------------------------------------------------------------------------------------


def roll_out(routed: Routed, share: float = 100.0) -> list[tuple[RequestRow, bytes]]:
    """Move the route's traffic to the paid target; return the list of rows that the brake gets."""
    routed.use(TO_LOCAL, msgspec.structs.replace(TO_API, order=None, share=0))
    route = routed.service.names.routes["assistant"]
    rollout = OpenRollout(UUID(int=1), RolloutPlan("paid", "own", steps=(share,)), 0)
    names = model_names.ModelNames({}, None, routes={"assistant": replace(route, rollout=rollout)})
    routed.service.names = names
    routed.service.config = replace(routed.service.config, names=names)
    seen: list[tuple[RequestRow, bytes]] = []
    routed.service.runs = routed.service.new_runs(on_compared=lambda row, unit: seen.append((row, unit)))
    return seen


async def test_the_candidate_of_a_rollout_answers_and_its_outcome_counts(routed: Routed) -> None:
    seen = roll_out(routed)
    assert (await routed.ask())[0] == "Paid words"
    ((row, unit),) = seen
    assert row.route == RouteUse("assistant", 4, "paid", "paid", is_compared=True)
    assert row.variant_failed is False
    assert row.first_token_ms is not None
    assert len(unit) > 16


async def test_the_baseline_saves_a_request_of_the_candidate_which_still_has_failed(routed: Routed) -> None:
    seen = roll_out(routed)
    routed.api.fails_with = errors.Unavailable("refused")
    assert (await routed.ask())[0] == "Hello world!"
    ((row, _),) = seen
    assert row.route == RouteUse("assistant", 4, "paid", "own", is_compared=True)
    assert (row.status, row.variant_failed) == (RequestStatus.SUCCESS, True)


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (errors.Overloaded("full"), None), (errors.LinkLost("gone"), True), (errors.BadRequest("too long"), None),
        (errors.Internal("bug"), True), (errors.Poison("twice"), True),
    ],
)  # fmt: skip
async def test_whose_fault_an_error_is(routed: Routed, error: errors.AimeshError, failed: bool | None) -> None:
    seen = roll_out(routed, share=0.01)
    routed.local.fails_with = error
    with pytest.raises(errors.AimeshError, match=error.message):
        await routed.ask(seconds=3)
    ((row, _),) = seen
    assert row.route is not None
    assert (row.route.variant, row.variant_failed) == ("own", failed)


async def test_a_caller_who_leaves_says_nothing_and_a_deadline_does(routed: Routed) -> None:
    seen = roll_out(routed)
    routed.api.hangs_after = 0
    task = asyncio.create_task(routed.ask(seconds=30))
    await routed.api.is_hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left = seen[-1][0]
    assert (left.status, left.variant_failed, left.first_token_ms) == (RequestStatus.CANCELLED, None, None)

    async def until_its_deadline() -> None:
        async with asyncio.timeout(0.2):
            await routed.ask(seconds=0.2)

    with pytest.raises(TimeoutError):
        await until_its_deadline()
    late = seen[-1][0]
    assert (late.status, late.variant_failed) == (RequestStatus.TIMEOUT, True)


async def test_claims_say_which_target_and_price_a_worker_has(routed: Routed) -> None:
    routed.local.fails_with, routed.api.hangs_after = errors.Unavailable("refused"), 1
    asking = asyncio.create_task(routed.ask())
    await routed.api.is_hanging.wait()
    await until(lambda: len(routed.service.books.claims) == 2)
    claims = routed.service.books.claims
    assert [(one.worker, one.model, one.price_id, one.route and one.route.target) for one in claims] == [
        (node_id(11), LOCAL, 1, "own"), (node_id(12), API, 2, "paid")
    ]  # fmt: skip
    asking.cancel()
    await asyncio.wait([asking])
    assert row(routed) == (API, RouteUse("assistant", 4, "own", "paid"), 10 * 7 + 20 * 1)


@pytest.mark.parametrize(
    "error",
    [errors.BadRequest("refused"), errors.ContextExceeded("too long"), errors.Cancelled("left"), errors.Poison("crashed twice")],
)  # fmt: skip
async def test_what_is_the_callers_fault_is_not_tried_elsewhere(routed: Routed, error: errors.AimeshError) -> None:
    routed.local.fails_with = error
    with pytest.raises(type(error), match=error.message):
        await routed.ask()
    assert routed.api.received == []


@pytest.mark.parametrize(
    "error", [errors.LinkLost("gone"), errors.Unavailable("the upstream fails"), errors.Overloaded("full"), errors.ModelCrashed("segfault")]
)
async def test_a_target_that_fails_in_mid_answer_is_not_replaced(routed: Routed, error: errors.AimeshError) -> None:
    routed.local.fails_with, routed.local.fails_after = error, 2
    with pytest.raises(errors.WorkerLost, match="lost"):
        await routed.ask()
    assert routed.api.received == []
    assert row(routed) == (LOCAL, RouteUse("assistant", 4, "own", "own"), 7 + 2 * 2), "what was delivered is billed"


async def test_without_another_target_the_last_error_is_the_callers(routed: Routed) -> None:
    routed.local.fails_with, routed.api.fails_with = errors.Unavailable("one"), errors.Unavailable("two")
    with pytest.raises(errors.Unavailable, match="two"):
        await routed.ask()
    assert row(routed) == (API, RouteUse("assistant", 4, "own", "paid"), 0)


async def test_fallbacks_share_the_retry_budget(routed: Routed) -> None:
    routed.local.fails_with = errors.Unavailable("down")
    budget = routed.service.workers.budget
    while budget.spend(routed.service.runs.clock()):
        pass
    with pytest.raises(errors.Unavailable, match="down"):
        await routed.ask()


async def test_a_fallback_has_the_rest_of_the_time(routed: Routed) -> None:
    spent = 0.0
    routed.service.runs.clock = lambda: time.monotonic() + spent

    class FailsSlowly(FakeWorker):
        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[Any]:
            nonlocal spent
            spent = 3
            raise errors.Unavailable("down")
            yield prompt

    routed.service.add_worker(11, FailsSlowly(), LOCAL)
    assert (await routed.ask(seconds=5))[0] == "Paid words"
    assert 0 < routed.api.deadlines[0] <= 2


async def test_a_full_target_is_replaced_at_once_or_after_its_wait(routed: Routed) -> None:
    routed.local.hangs_after = 0
    routed.service.add_worker(11, routed.local, LOCAL, load=WorkerLoad(slots=1))
    routed.use(more={"spill_after_seconds": 0})
    first = asyncio.create_task(routed.ask())
    await routed.local.is_hanging.wait()
    # The worker itself may queue one more call.
    second = asyncio.create_task(routed.ask())
    await until(lambda: len(routed.local.received) == 2 or second.done())
    assert (await routed.ask())[0] == "Paid words"
    for task in (first, second):
        task.cancel()
    await asyncio.wait([first, second])


async def test_nobody_waits_for_the_workers_of_a_target_with_an_alternative(routed: Routed) -> None:
    """Without another target, the gateway waits 3 s for a model's only worker, which may be restarting."""
    routed.local.fails_with = errors.LinkLost("gone")
    async with aclosing(generated(routed.service.workers, _prompt(LOCAL), _needs(LOCAL, has_alternative=True), seconds=10)) as items:
        with pytest.raises(errors.LinkLost, match="gone"):
            async with asyncio.timeout(2):
                _ = [item async for item in items]


async def test_embeddings_fall_back_too(routed: Routed) -> None:
    routed.service.add_worker(11, EmbeddingWorker(fails_with=errors.Unavailable("down")), LOCAL)
    routed.service.add_worker(12, EmbeddingWorker(), API)
    async with routed.service.pulled.embed(OWNER, EmbeddingRequest(("four",), ModelName("assistant")), seconds=5) as running:
        vectors = [item.vectors async for _, item in running if item.vectors]
    assert vectors == [(packed(4, 1),)]
    assert (running.result.model, row(routed)[:2]) == ("assistant", (API, RouteUse("assistant", 4, "own", "paid")))


async def test_vectors_of_two_models_are_never_mixed(routed: Routed) -> None:
    class FailsHalfway(EmbeddingWorker):
        async def run(self, prompt: Any) -> AsyncIterator[Any]:
            yield Vectors((packed(4, 1),))
            raise errors.LinkLost("gone")

    paid = EmbeddingWorker()
    routed.service.add_worker(11, FailsHalfway(), LOCAL)
    routed.service.add_worker(12, paid, API)
    with pytest.raises(errors.LinkLost, match="gone"):
        async with routed.service.pulled.embed(OWNER, EmbeddingRequest(("four", "five"), ModelName("assistant")), seconds=5) as running:
            _ = [item async for item in running]
    assert paid.received == []


def replace_target(target: TargetDocument, **when: Any) -> TargetDocument:
    return msgspec.structs.replace(target, when=TargetConditions(**when))


async def test_a_condition_moves_a_request(routed: Routed) -> None:
    routed.use(replace_target(TO_LOCAL, max_prompt_tokens=400), TO_API)
    assert (await routed.ask())[0] == "Hello world!"
    assert (await routed.ask(prompt="x" * 3000))[0] == "Paid words"


async def test_no_usable_target(routed: Routed) -> None:
    routed.use(replace_target(TO_LOCAL, tools=True), TargetDocument(name="next", model="away", order=1))
    with pytest.raises(errors.NotReachable) as refused:
        await routed.ask()
    assert refused.value.message == "no target of assistant can take this request: own (local): condition; next (away): not_served"


async def test_a_key_for_one_model_gets_only_its_target(routed: Routed) -> None:
    only_api, only_route, neither = (msgspec.structs.replace(OWNER, models=(ModelName(name),)) for name in ("api", "assistant", "other"))
    assert (await routed.ask(only_api))[0] == "Paid words"
    assert (await routed.ask(only_route))[0] == "Hello world!"
    with pytest.raises(errors.NotAllowed, match="this key may not use assistant"):
        await routed.ask(neither)


async def test_a_route_wins_over_a_model_of_its_name(routed: Routed) -> None:
    routed.service.add_worker(13, FakeWorker(words=("Wrong",)), "assistant")
    assert (await routed.ask())[0] == "Hello world!"
    assert (await routed.ask(model="assistant:latest"))[0] == "Hello world!"
    models = routing.catalogue(routed.service.directory.usable(Role.WORKER), routed.service.names)
    assert [(one.name, one.workers) for one in models] == [("assistant", 2), ("api", 1), ("local", 1), ("smollm2", 1)]


async def test_limits_of_the_route_and_of_its_first_target_apply(routed: Routed) -> None:
    plans = routed.service.config.limits.plans
    for limited in ("assistant", "local"):
        limit = replace(tiers.NO_LIMITS, requests_per_minute=1)
        routed.use(limits=LimitRules(plans, {ModelName(limited): limit}))
        await routed.ask()
        with pytest.raises(errors.Limited, match="the model's limit of 1 requests per minute"):
            await routed.ask()


# --- upstream costs ---------------------------------------------------------------------------------------------------------


def external(routed: Routed, worker: FakeWorker | None = None) -> FakeWorker:
    found = worker or routed.api
    routed.service.add_worker(12, found, API, provider="acme")
    return found


def money(routed: Routed) -> tuple[Any, ...]:
    found = routed.service.store.only_row
    return found.provider, found.attempts, found.upstream_micro, found.avoided_micro


#: The cost at the provider, in micro-credits.
def at_provider(completion_tokens: int, prompt_tokens: int = 7) -> int:
    return 3 * prompt_tokens + 5 * completion_tokens + 1


async def test_an_internal_answer_avoids_what_the_compared_target_asks(routed: Routed) -> None:
    external(routed)
    routed.use(more={"compare_cost_with": "paid"})
    await routed.ask()
    assert money(routed) == (None, 1, 0, at_provider(3))


async def test_an_external_answer_costs_what_its_provider_asks(routed: Routed) -> None:
    external(routed)
    routed.local.fails_with, routed.api.hangs_after = errors.Unavailable("down"), 1
    routed.use(more={"compare_cost_with": "paid"})
    asking = asyncio.create_task(routed.ask())
    await until(lambda: [claim.provider for claim in routed.service.books.claims] == [None, "acme"])
    asking.cancel()
    await asyncio.wait([asking])
    assert money(routed) == ("acme", 2, at_provider(1), 0)


async def test_without_a_route_the_model_is_the_target(routed: Routed) -> None:
    external(routed)
    await routed.ask(model="api")
    assert routed.service.store.only_row.spending == (TargetSpending("", "api", MicroCredits(at_provider(2))),)


async def test_a_model_without_an_upstream_price_spends_nothing(routed: Routed) -> None:
    routed.service.add_worker(11, routed.local, LOCAL, provider="acme")
    await routed.ask()
    assert (routed.service.store.only_row.spending, money(routed)) == ((), ("acme", 1, 0, 0))


async def test_a_broken_answer_of_a_provider_costs_what_it_delivered(routed: Routed) -> None:
    routed.use(msgspec.structs.replace(TO_API, share=100))
    external(routed, FakeWorker(fails_with=errors.LinkLost("gone"), fails_after=2))
    with pytest.raises(errors.WorkerLost, match="lost"):
        await routed.ask()
    assert money(routed) == ("acme", 1, at_provider(2), 0)


async def test_a_prompt_that_a_provider_read_costs_also_if_its_answer_never_came(routed: Routed) -> None:
    routed.use(msgspec.structs.replace(TO_API, share=100, order=None), TargetDocument(name="own", model=LOCAL, order=1))
    external(routed, FakeWorker(fails_with=errors.ModelCrashed("segfault")))
    await routed.ask(prompt="x" * 300)
    (spent,) = routed.service.store.only_row.spending
    assert (spent.target, spent.micro > at_provider(0)) == ("paid", True)
    assert routed.service.store.only_row.provider is None, "our own machine answered"


async def test_a_route_may_have_one_price(routed: Routed) -> None:
    named = Price(3, ModelPrice(ModelName("assistant"), MicroCredits(0), MicroCredits(MICRO)))
    routed.service.books.prices = (*PRICES, named)
    await routed.service.admission.search.ledger.refresh_prices()
    routed.use(more={"price": "route"})
    assert (await routed.ask())[1].cost_micro == 3
    routed.local.fails_with = errors.Unavailable("down")
    assert (await routed.ask())[1].cost_micro == 2


async def test_a_target_over_its_ceiling_is_left_out(routed: Routed) -> None:
    external(routed)
    ceiling = msgspec.structs.replace(TO_API, share=100, order=None, daily_ceiling="0.5")
    routed.use(ceiling, TargetDocument(name="own", model=LOCAL, order=1))
    assert (await routed.ask(max_tokens=100))[0] == "Paid words"
    (held,) = routed.service.books.reserved[-1].holds
    assert (held.route, held.target, held.ceiling_micro) == ("assistant", "paid", 500_000)
    assert held.micro >= at_provider(100)
    routed.service.books.over_ceiling = frozenset({"paid"})
    assert (await routed.ask())[0] == "Hello world!"
    routed.use(ceiling)
    before = set(routed.service.store.rows)
    with pytest.raises(errors.NotReachable, match="paid may cost no more today"):
        await routed.ask()
    (refused,) = (one for key, one in routed.service.store.rows.items() if key not in before)
    assert (refused.reservation, refused.cost_micro, refused.attempts) == (ReservationState.RELEASED, 0, 0)


# --- stickiness -------------------------------------------------------------------------------------------------------------


async def variants(routed: Routed, count: int, **fields: Any) -> set[str]:
    before = set(routed.service.store.rows)
    for number in range(count):
        await routed.ask(**{name: value(number) if callable(value) else value for name, value in fields.items()})
    rows = [one for key, one in routed.service.store.rows.items() if key not in before]
    return {one.route.variant for one in rows if one.route is not None and one.route.variant is not None}


def halves(**more: Any) -> tuple[tuple[TargetDocument, ...], dict[str, Any]]:
    return (TargetDocument(name="a", model=LOCAL, share=50), TargetDocument(name="b", model=API, share=50)), more


@pytest.mark.parametrize("sticky", list(Sticky))
async def test_each_kind_of_unit_keeps_its_target(routed: Routed, sticky: Sticky) -> None:
    targets, more = halves(sticky=sticky)
    routed.use(*targets, more=more)
    same_first_question = {
        "prompt": None,
        "messages": lambda turn: (
            ChatMessage("system", "be kind"), ChatMessage("user", "first"), *(ChatMessage("user", f"turn {turn}") for _ in range(turn))
        ),
    }  # fmt: skip
    both = {"a", "b"}
    assert (await variants(routed, 20, **same_first_question) == both) is (sticky is Sticky.REQUEST)
    assert (await variants(routed, 20, conversation_id="c", prompt=str) == both) is (sticky is Sticky.REQUEST)
    assert (await variants(routed, 20, prompt=str) == both) is (sticky in {Sticky.REQUEST, Sticky.CONVERSATION})
    people = [msgspec.structs.replace(OWNER, user_id=UserId(UUID(int=number))) for number in range(20)]
    assert (await variants(routed, 20, who=lambda number: people[number]) == both) is True
    team = [msgspec.structs.replace(person, team_id=TenantId(UUID(int=7))) for person in people]
    assert (await variants(routed, 20, who=lambda number: team[number]) == both) is (sticky in {Sticky.REQUEST, Sticky.USER})


async def first_variant(http: httpx.AsyncClient) -> str:
    answer = await http.post("/v1/chat/completions", headers={"X-Conversation-Id": "c"}, json=_chat("first"))
    return answer.headers["x-aimesh-variant"]


async def test_http_names_route_and_variant_and_takes_a_conversation(routed: Routed) -> None:
    targets, more = halves()
    routed.use(*targets, more=more)
    transport = httpx.ASGITransport(routed.service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"X-API-Key": KEY}) as http:
        seen = set()
        for number in range(20):
            answer = await http.post("/v1/chat/completions", headers={"X-Conversation-Id": "c"}, json=_chat(str(number)))
            assert (answer.json()["model"], answer.headers["x-aimesh-route"]) == ("assistant", "assistant@4")
            seen.add(answer.headers["x-aimesh-variant"])
        assert len(seen) == 1
        for path, body in (("/v1/chat/completions", _chat("other")), ("/v1/responses", {"model": "assistant", "input": "other"})):
            for conversation in ("c", *map(str, range(20))):
                answer = await http.post(path, json={**body, "metadata": {"conversation_id": conversation, "more": "x"}})
                assert answer.status_code == 200
                seen.add(answer.headers["x-aimesh-variant"])
                assert conversation != "c" or len(seen) == 1, "the header and the metadata name the same conversation"
            assert len(seen) == 2
            seen = {await first_variant(http)}
            refused = await http.post(path, json={**body, "metadata": {"conversation_id": "x" * 129}})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "metadata.conversation_id")
        for wrong in ("x" * 129, "é"):
            refused = await http.post("/v1/chat/completions", headers=[(b"X-Conversation-Id", wrong.encode())], json=_chat("hi"))
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "X-Conversation-Id")
        listed = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
        assert listed == ["assistant", "api", "local", "smollm2"]
        routed.use(TO_LOCAL, TO_API)
        for stream in (False, True):
            headers = (await http.post("/v1/chat/completions", json={**_chat("hi"), "stream": stream})).headers
            assert (headers["x-aimesh-route"], headers["x-aimesh-variant"]) == ("assistant@4", TO_LOCAL.name)


async def test_answers_and_the_last_event_name_the_target(routed: Routed) -> None:
    routed.local.fails_with = errors.LinkLost("gone")
    transport = httpx.ASGITransport(routed.service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"X-API-Key": KEY}) as http:
        for path, body in (("/v1/chat/completions", _chat("hi")), ("/v1/completions", {"model": "assistant", "prompt": "hi"})):
            assert (await http.post(path, json=body)).json()["x_aimesh"] == {"target": "paid"}
            direct = await http.post(path, json=body | {"model": "api"})
            assert "x_aimesh" not in direct.json(), "no route"
            for usage in ({}, {"stream_options": {"include_usage": True}}):
                streamed = await http.post(path, json={**body, **usage, "stream": True})
                events = [msgspec.json.decode(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
                assert [event.get("x_aimesh") for event in events] == [*[None] * (len(events) - 1), {"target": "paid"}]


def _chat(text: str) -> dict[str, Any]:
    return {"model": "assistant", "messages": [{"role": "user", "content": text}]}


# --- billing ----------------------------------------------------------------------------------------------------------------


async def test_what_the_credits_do_not_cover_is_left_out_from_the_dearest_down(routed: Routed) -> None:
    """A full answer costs 1000 * 20 + … at the API, and a tenth of that on our own machines."""
    routed.use(msgspec.structs.replace(TO_API, share=100, order=None), msgspec.structs.replace(TO_LOCAL, share=None, order=1))
    store = routed.service.books

    async def reserve(wanted: list[ReservationRequest], **_: Any) -> list[Any]:
        store.reserved += wanted
        (one,) = wanted
        cost = one.price.cost(one.prompt_tokens, one.max_tokens, one.seconds)
        if cost <= 3_000:
            return [GrantedReservation(one.max_tokens)]
        return [GrantedReservation(40) if one.least_tokens <= 40 else InsufficientCredits(3_000)]

    store.reserve = reserve  # type: ignore[method-assign, assignment]
    text, result = await routed.ask(max_tokens=1000)
    assert (text, result.clamped_to, row(routed)[:2]) == ("Hello world!", None, (LOCAL, RouteUse("assistant", 4, "paid", "own")))
    assert [(one.model, one.least_tokens) for one in store.reserved] == [(API, 1000), (LOCAL, 16)]
    store.reserved.clear()
    _, result = await routed.ask(max_tokens=4000)
    assert (result.clamped_to, [one.model for one in store.reserved]) == (40, [API, LOCAL]), "only the cheapest gets fewer tokens"


async def test_targets_of_one_price_are_kept_together(routed: Routed) -> None:
    routed.service.books.prices = PRICES[:1]
    await routed.service.admission.search.ledger.refresh_prices()
    routed.service.books.most_tokens = 40
    _, result = await routed.ask(max_tokens=1000)
    assert (result.clamped_to, len(routed.service.books.reserved)) == (40, 1)
    assert routed.service.books.reserved[0].least_tokens == 16


# --- takeovers --------------------------------------------------------------------------------------------------------------


async def test_a_takeover_asks_the_model_that_began_the_answer(routed: Routed) -> None:
    request = InferenceRequest(prompt="hi", model=ModelName("assistant"))
    for begun_by, text in ((API, "Paid words"), (LOCAL, "Hello world!"), (ModelName("gone"), "Hello world!")):
        context.start()
        async with routed.service.pulled.run(OWNER, request, seconds=10, key_use=OrphanedKeyUse(1, begun_by)) as running:
            assert "".join([chunk.text async for _, chunk in running]) == text


async def test_a_caller_with_the_beginning_of_an_answer_gets_no_other_models_rest(routed: Routed) -> None:
    request = InferenceRequest(prompt="hi", model=ModelName("assistant"))
    context.start()
    async with routed.service.pulled.run(OWNER, request, seconds=10, key_use=OrphanedKeyUse(1, API, is_resumed=True)) as running:
        assert "".join([chunk.text async for _, chunk in running]) == "Paid words"
    routed.use(TO_LOCAL)
    with pytest.raises(errors.AnswerGone, match="the model that began the answer may not continue it"):
        async with routed.service.pulled.run(OWNER, request, seconds=10, key_use=OrphanedKeyUse(1, API, is_resumed=True)):
            pass
    assert routed.local.received == []


def _needs(model: ModelName, **more: Any) -> worker_requirements.WorkerRequirements:
    return worker_requirements.WorkerRequirements(model, OWNER.tenant_id, OWNER.limited_as, 10, 10, placement=ANYWHERE, **more)


def _prompt(model: ModelName) -> inference.ProcessPrompt:
    return inference.ProcessPrompt("hi", inference.ModelConfig(model=model), RequestId(UUID(int=1)))
