"""Moderation requests, and prompts and answers that moderation models check for policies."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import httpx
import msgspec
import openai
import pytest

from services.gateway.facts import model_names, model_routes, tiers
from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.facts.policies import Policies
from services.gateway.facts.request_record import RequestRow
from services.gateway.facts.tiers import LimitRules
from services.gateway.guard.guard_reporting import GuardReporting
from services.gateway.requests import runs as runs_module
from services.gateway.requests.request_validation import ModerationRequest
from services.gateway.scheduling import routing
from shared import context, errors
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.generation import MAX_PROMPT_BYTES, ChatMessage, ToolCall
from shared.api.inference import Chunk, Moderate, Moderated, ModerationNotice, ModerationVerdict
from shared.config_documents import PolicyDocument, RouteDocument
from shared.types import FinishReason, KeyId, ModelName, RequestStatus
from tests.services.gateway import fakes, openai_clients
from tests.services.gateway.fakes import KEY, OWNER, FakeWorker, RunningService
from tests.services.gateway.guard.test_guarded_requests import CARD, Acts
from tests.services.gateway.thinking import Thinks
from tests.testnet import until

SAFE = ModerationVerdict(flagged=False, scores={"violence": 0.1})
HARMFUL = ModerationVerdict(flagged=True, categories=("violence",), scores={"violence": 0.8, "hate": 0.4})
ANY: dict[str, Any] = {"external": ["*"]}
TO_GUARD = {"name": "guard", "model": "guard", "task": "moderation"}
TO_CHAT = {"name": "llama", "model": "llama-guard", "task": "moderation", "format": "llama-guard"}


@dataclass
class ModerationWorker(FakeWorker):
    """Flags texts with "hurt"; a test can replace its verdicts, to make it lie."""

    verdicts: tuple[ModerationVerdict, ...] | None = None
    received: list[Any] = field(default_factory=list)

    async def run(self, prompt: Any) -> AsyncIterator[Any]:
        assert isinstance(prompt, Moderate)
        yield ModerationNotice("loading guard")
        if self.hangs_after is not None:
            self.is_hanging.set()
            await asyncio.Event().wait()
        if self.fails_with is not None:
            raise self.fails_with
        found = self.verdicts if self.verdicts is not None else tuple(HARMFUL if "hurt" in text else SAFE for text in prompt.texts)
        yield Moderated(found, self.prompt_tokens)


@dataclass
class Moderating:
    """A gateway with a moderation model, and a chat model that moderates."""

    service: RunningService
    guard: ModerationWorker = field(default_factory=ModerationWorker)
    chat: ModerationWorker = field(default_factory=ModerationWorker)
    acts: Acts = field(default_factory=Acts)

    def __post_init__(self) -> None:
        self.service.add_worker(21, self.guard, "guard", only_moderates=True)
        self.service.add_worker(22, self.chat, "llama-guard")
        self.reporting = GuardReporting(self.service.metrics, self.acts)  # type: ignore[arg-type]
        self.service.runs = self.service.new_runs(on_guarded=self.reporting.record_end)
        self.pulled = self.service.pulled
        self.use()

    def use(self, routes: dict[str, list[dict[str, Any]]] | None = None, **documents: dict[str, Any]) -> None:
        """Set the targets of each route, and the moderation of each level."""
        wanted = {"moderation": [TO_GUARD], "assistant": [{"name": "one", "model": "smollm2", "share": 100}]} if routes is None else routes
        compiled = {
            name: model_routes.compile_route(name, 3, msgspec.convert({"targets": targets}, RouteDocument))
            for name, targets in wanted.items()
        }
        allowing = msgspec.convert(ANY, PolicyDocument)
        found = {name.replace("__", ":"): msgspec.convert(ANY | rules, PolicyDocument) for name, rules in documents.items()}
        self.service.names = model_names.ModelNames({}, ModelName("smollm2"), routes=compiled)
        self.service.config = ConfigSnapshot(
            names=self.service.names,
            route_names=model_names.ModelNames({}, None, only_routes=True, routes=compiled),
            limits=self.service.config.limits,
            policies=Policies({"mesh": allowing, "default": allowing, **found}),
        )

    def check(self, **rule: Any) -> None:
        self.use(mesh={"guard": {"moderation": {"route": "moderation", **rule}}})

    async def moderate(self, *texts: str, who: Principal = OWNER, **fields: Any) -> tuple[ModerationVerdict, ...]:
        context.start()
        async with self.pulled.moderate(who, ModerationRequest(texts, **fields), seconds=10) as running:
            return await running.read()

    async def ask(self, prompt: str = "hi", who: Principal = OWNER, **fields: Any) -> tuple[str, InferenceResult]:
        context.start()
        request = InferenceRequest(**({} if "messages" in fields else {"prompt": prompt}), **fields)
        async with self.pulled.run(who, request, seconds=10) as running:
            text = "".join([chunk.text async for _, chunk in running])
        return text, running.result

    def says(self, *words: str) -> None:
        self.service.worker.words = words

    def rows(self) -> list[RequestRow]:
        return list(self.service.store.rows.values())

    @property
    def row(self) -> RequestRow:
        """Return the row of the last request, not of its checks."""
        return self.rows()[-1]

    @property
    def counts(self) -> list[tuple[str, str, str, int]]:
        return [(one.place, one.kind, one.action, one.matches) for one in self.row.guard]


@pytest.fixture
async def moderating() -> AsyncIterator[Moderating]:
    async with fakes.running_service(free=1_000_000) as service:
        yield Moderating(service)


@pytest.fixture
async def http(moderating: Moderating) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(moderating.service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client


# --- POST /v1/moderations -------------------------------------------------------------------------------------------------


async def test_texts_are_moderated_with_a_row(moderating: Moderating) -> None:
    assert await moderating.moderate("be kind", "hurt them") == (SAFE, HARMFUL)
    row = moderating.row
    assert (row.status, row.model_used, row.prompt_tokens, row.completion_tokens) == (RequestStatus.SUCCESS, "guard", 7, 0)
    assert row.cost_micro == 7
    assert row.route is not None
    assert (row.route.route, row.route.version, row.route.target) == ("moderation", 3, "guard")
    assert row.prompt_hash is not None
    (sent,) = moderating.guard.received
    assert sent.texts == ("be kind", "hurt them")
    assert str(OWNER.user_id) not in repr(sent)
    (reserved,) = moderating.service.books.reserved
    assert (reserved.max_tokens, reserved.model) == (0, "guard")
    assert 'tokens_total{model="guard",type="input"} 7.0' in moderating.service.metrics.render()


async def test_openais_client_reads_the_verdicts(moderating: Moderating) -> None:
    async with openai_clients.connected(moderating.service) as client:
        found = await client.moderations.create(input=["be kind", "hurt them"])
        assert found.id.startswith("modr-")
        assert found.model == "moderation"
        assert [(result.flagged, result.categories.violence, result.category_scores.hate) for result in found.results] == [
            (False, False, 0.0), (True, True, 0.4)
        ]  # fmt: skip
        strict = openai.AsyncOpenAI(api_key=KEY, base_url=client.base_url, max_retries=0, _strict_response_validation=True)
        async with strict:
            one = await strict.moderations.create(input="hurt them", model="moderation")
        (result,) = one.results
        assert (result.categories.self_harm_intent, result.category_scores.violence_graphic) == (False, 0.0)
        with pytest.raises(openai.NotFoundError, match="there is no moderation route 'omni-moderation-latest'"):
            await client.moderations.create(input="x", model="omni-moderation-latest")


async def test_the_answer_in_json(moderating: Moderating, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/moderations", json={"input": "hurt them"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["id"] == f"modr-{UUID(answer.headers['x-request-id']).hex}"
    (result,) = body["results"]
    assert (result["flagged"], result["categories"]["violence"], result["category_scores"]["violence"]) == (True, True, 0.8)
    assert answer.headers["x-aimesh-route"] == "moderation@3"
    assert len(result["categories"]) == 13


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": [f"text {number}" for number in range(33)]}, "input", "must have 1 to 32 entries"),
        ({"input": []}, "input", "is empty"),
        ({"input": ""}, "input", "is empty"),
        ({"input": ["a", ""]}, "input[1]", "is empty"),
        ({"input": "x" * (MAX_PROMPT_BYTES + 1)}, None, f"the texts have {MAX_PROMPT_BYTES + 1} bytes"),
        ({"input": [{"type": "image_url", "image_url": {"url": "x"}}]}, "input[0]", ""),
        ({}, "input", ""),
        ({"input": "x", "model": ""}, "model", "is empty"),
    ],
)
async def test_bad_input_is_one_clear_error(
    moderating: Moderating, http: httpx.AsyncClient, body: dict[str, Any], param: str | None, said: str
) -> None:
    answer = await http.post("/v1/moderations", json=body)
    assert answer.status_code == (400 if param else 413), answer.text
    assert answer.json()["error"]["param"] == param
    assert said in answer.json()["error"]["message"]
    assert moderating.guard.received == []


async def test_32_texts_are_allowed(moderating: Moderating) -> None:
    assert len(await moderating.moderate(*(f"text {number}" for number in range(32)))) == 32


async def test_an_idempotency_key_is_refused(moderating: Moderating, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/moderations", json={"input": "x"}, headers={"idempotency-key": "k" * 16})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


async def test_without_a_route_the_error_says_how_to_define_one(moderating: Moderating, http: httpx.AsyncClient) -> None:
    moderating.use({})
    answer = await http.post("/v1/moderations", json={"input": "x"})
    assert answer.status_code == 404
    assert "no moderation route is configured" in answer.text
    assert "task: moderation" in answer.text
    assert moderating.row.status is RequestStatus.REJECTED


async def test_which_route_moderates(moderating: Moderating) -> None:
    moderating.use({"mine": [TO_GUARD]})
    await moderating.moderate("x")
    moderating.use({"mine": [TO_GUARD], "other": [TO_CHAT]})
    with pytest.raises(errors.BadRequest, match="several moderation routes: mine, other"):
        await moderating.moderate("x")
    await moderating.moderate("x", model=ModelName("other"))
    moderating.use({"mine": [TO_GUARD], "moderation": [TO_CHAT]})
    await moderating.moderate("x")
    assert (len(moderating.guard.received), len(moderating.chat.received)) == (1, 2)
    moderating.use({"mine": [TO_GUARD], "moderation": [TO_CHAT]}, default={"models": ["mine"]})
    await moderating.moderate("x")
    assert len(moderating.guard.received) == 2
    with pytest.raises(errors.UnknownModel, match="there is no moderation route 'moderation'"):
        await moderating.moderate("x", model=ModelName("moderation"))


async def test_the_format_of_a_chat_model_is_sent_to_its_worker(moderating: Moderating) -> None:
    moderating.use({"moderation": [TO_CHAT]})
    await moderating.moderate("x")
    assert moderating.chat.received[0].format == "llama-guard"
    moderating.use()
    await moderating.moderate("x")
    assert moderating.guard.received[0].format is None


async def test_a_model_without_the_task_is_no_target(moderating: Moderating) -> None:
    moderating.service.add_worker(23, FakeWorker(), "vectors", only_embeds=True)
    for target in ({**TO_GUARD, "model": "smollm2"}, {**TO_CHAT, "model": "guard"}, {**TO_CHAT, "model": "vectors"}):
        moderating.use({"moderation": [target]})
        with pytest.raises(errors.NotReachable, match="lacks_capability"):
            await moderating.moderate("x")
    moderating.use({"assistant": [{"name": "one", "model": "guard"}, {"name": "two", "model": "guard", "order": 1}]})
    with pytest.raises(errors.NotReachable, match="lacks_capability"):
        await moderating.ask(model="assistant")


async def test_a_route_has_one_task(moderating: Moderating) -> None:
    for model, said in (("moderation", "moderation is a moderation route"), ("guard", "guard is a moderation model")):
        with pytest.raises(errors.BadRequest, match=said):
            await moderating.ask(model=ModelName(model))
        with pytest.raises(errors.BadRequest, match=said):
            async with moderating.pulled.embed(OWNER, EmbeddingRequest(("a",), ModelName(model)), seconds=10):
                pass
    with pytest.raises(errors.BadRequest, match="assistant is not a moderation route"):
        await moderating.moderate("x", model=ModelName("assistant"))
    assert moderating.guard.received == moderating.service.worker.received == []


async def test_moderation_is_no_model_for_chats(moderating: Moderating, http: httpx.AsyncClient) -> None:
    listed = {model["id"] for model in (await http.get("/v1/models")).json()["data"]}
    assert listed == {"assistant", "smollm2", "llama-guard"}
    moderating.service.names = model_names.ModelNames({}, None)
    assert routing.served(moderating.service.directory.usable(fakes.Role.WORKER), moderating.service.names)[-1] == "guard"


async def test_another_target_moderates_if_one_fails(moderating: Moderating) -> None:
    moderating.guard.fails_with = errors.Unavailable("refused")
    moderating.use({"moderation": [{**TO_GUARD, "share": 100}, {**TO_CHAT, "order": 1}]})
    assert await moderating.moderate("hurt") == (HARMFUL,)
    assert (moderating.row.model_used, moderating.row.attempts) == ("llama-guard", 2)


async def test_another_number_of_verdicts_is_refused(moderating: Moderating) -> None:
    moderating.guard.verdicts = (SAFE,)
    with pytest.raises(errors.ProtocolViolation, match="1 verdicts for 2 texts"):
        await moderating.moderate("a", "b")
    assert (moderating.row.status, moderating.row.cost_micro) == (RequestStatus.ERROR, 0)


async def test_a_worker_cant_bill_more_than_the_texts_may_have(moderating: Moderating) -> None:
    moderating.guard.prompt_tokens = 10**9
    await moderating.moderate("a")
    assert moderating.row.prompt_tokens == moderating.service.books.reserved[0].prompt_tokens < 2000


async def test_guardrails_mask_what_is_moderated(moderating: Moderating) -> None:
    moderating.use(mesh={"guard": {"prompt": {"card": "mask", "email": "refuse"}}})
    await moderating.moderate(f"pay {CARD}")
    assert moderating.guard.received[0].texts == ("pay [card]",)
    with pytest.raises(errors.ContentFiltered, match=r"^input\[1\] contains what your policy refuses: email$"):
        await moderating.moderate("fine", "a@b.example")


async def test_texts_reach_no_forbidden_provider(moderating: Moderating) -> None:
    outside = ModerationWorker()
    moderating.service.add_worker(23, outside, "paid", only_moderates=True, provider="acme")
    moderating.use({"moderation": [{**TO_GUARD, "model": "paid"}]}, default={"external": []})
    with pytest.raises(errors.PolicyForbidden, match=r"forbids moderation here: policy_external"):
        await moderating.moderate("x")
    moderating.use({"moderation": [{**TO_GUARD, "model": "paid"}]})
    with pytest.raises(errors.PolicyForbidden, match="level: request"):
        await moderating.moderate("x", forbid_external=True)
    assert outside.received == []
    await moderating.moderate("x")
    assert moderating.row.provider == "acme"


# --- prompts --------------------------------------------------------------------------------------------------------------


async def test_a_harmful_prompt_is_refused_before_anything_is_reserved(moderating: Moderating) -> None:
    moderating.check(prompt="refuse")
    messages = (ChatMessage("system", "be kind"), ChatMessage("user", "hurt them"))
    with pytest.raises(errors.ContentFiltered) as refused:
        await moderating.ask(messages=messages)
    assert refused.value.message == "messages[1].content contains what your policy refuses: moderation (violence)"
    assert moderating.service.worker.received == []
    assert [one.model for one in moderating.service.books.reserved] == ["guard"], "only the check"
    assert (moderating.row.status, moderating.row.error_code, moderating.row.cost_micro) == (RequestStatus.REJECTED, "content_filter", 0)
    assert moderating.counts == [("prompt", "moderation", "refuse", 1)]
    assert moderating.acts.found == [("guard.refuse", str(moderating.row.id), {"kinds": "moderation", "place": "prompt"})]
    rendered = moderating.service.metrics.render()
    assert 'ai_platform_guard_matches_total{action="refuse",kind="moderation",place="prompt"} 1.0' in rendered


async def test_a_check_has_its_own_row_and_no_limit(moderating: Moderating) -> None:
    moderating.check(prompt="refuse", answer="report")
    plan = replace(tiers.NO_LIMITS, requests_per_hour=1, concurrency=1)
    moderating.service.config = replace(moderating.service.config, limits=LimitRules({OWNER.tier: plan}))
    text, result = await moderating.ask("be kind")
    assert text == "Hello world!"
    first, second, asked = moderating.rows()
    assert (first.model_used, second.model_used, asked.model_used) == ("guard", "guard", "smollm2")
    assert len({first.id, second.id, asked.id}) == 3
    assert asked.id == result.request_id
    assert context.current.get() is not None
    assert context.current.get().request_id == asked.id  # type: ignore[union-attr]
    with pytest.raises(errors.Limited, match="used up"):
        await moderating.ask("be kind")


async def test_every_message_and_argument_is_checked_in_batches(moderating: Moderating) -> None:
    moderating.check(prompt="refuse")
    call = ToolCall("1", "act", '{"do": "hurt"}')
    history = tuple(ChatMessage("user", f"text {number}") for number in range(40))
    messages = (*history, ChatMessage("assistant", "", (call,)), ChatMessage("tool", " ", (), "1"), ChatMessage("user", "go"))
    with pytest.raises(errors.ContentFiltered, match=r"^messages\[40\].tool_calls\[0\] contains"):
        await moderating.ask(messages=messages)
    assert [len(sent.texts) for sent in moderating.guard.received] == [32, 10]


async def test_a_report_only_counts(moderating: Moderating) -> None:
    moderating.check(prompt="report", answer="report")
    moderating.says("I will", " hurt you")
    text, result = await moderating.ask("hurt them")
    assert (text, result.finish_reason) == ("I will hurt you", FinishReason.STOP)
    assert moderating.counts == [("prompt", "moderation", "report", 1), ("answer", "moderation", "report", 1)]


async def test_moderation_sees_masked_texts(moderating: Moderating) -> None:
    rule = {"route": "moderation", "prompt": "report", "answer": "report"}
    moderating.use(mesh={"guard": {"prompt": {"card": "mask"}, "answer": {"card": "mask"}, "moderation": rule}})
    moderating.says("Pay ", CARD, ".")
    await moderating.ask(f"pay {CARD}")
    assert [sent.texts for sent in moderating.guard.received] == [("pay [card]",), ("Pay [card].",)]


@pytest.mark.parametrize(
    ("rule", "refused"),
    [
        ({}, True),
        ({"categories": ["violence"]}, True),
        ({"categories": ["hate"]}, False),
        ({"threshold": 0.8}, True),
        ({"threshold": 0.81}, False),
        ({"categories": ["hate"], "threshold": 0.4}, True),
    ],
)
async def test_categories_and_threshold(moderating: Moderating, rule: dict[str, Any], refused: bool) -> None:
    moderating.check(prompt="refuse", **rule)
    if refused:
        with pytest.raises(errors.ContentFiltered, match="moderation"):
            await moderating.ask("hurt them")
    else:
        await moderating.ask("hurt them")


# --- answers --------------------------------------------------------------------------------------------------------------


async def test_a_harmful_answer_is_never_sent_and_is_billed(moderating: Moderating) -> None:
    moderating.check(answer="refuse")
    moderating.says("I will", " hurt", " you")
    text, result = await moderating.ask()
    assert (text, result.finish_reason, result.usage.completion_tokens) == ("", FinishReason.CONTENT_FILTER, 3)
    assert moderating.guard.received[0].texts == ("I will hurt you",)
    assert (moderating.row.status, moderating.row.completion_tokens) == (RequestStatus.SUCCESS, 3)
    assert moderating.row.cost_micro > 0
    assert moderating.counts == [("answer", "moderation", "refuse", 1)]


async def test_a_harmful_thought_is_never_sent(moderating: Moderating) -> None:
    moderating.check(answer="refuse")
    chunks = (Chunk("", (1,), reasoning="I will"), Chunk("", (2,), reasoning=" hurt you."), Chunk("Hello", (3,)))
    moderating.service.add_worker(1, Thinks(chunks=chunks), "smollm2")
    text, result = await moderating.ask()
    assert (text, result.finish_reason) == ("", FinishReason.CONTENT_FILTER)
    assert moderating.guard.received[0].texts == ("I will hurt you.\nHello",)
    moderating.check(prompt="refuse")
    with pytest.raises(errors.ContentFiltered, match=r"messages\[0\].reasoning"):
        await moderating.ask(messages=(ChatMessage("assistant", "hi", reasoning="hurt"), ChatMessage("user", "hi")))


async def test_an_answer_is_released_after_its_check(moderating: Moderating) -> None:
    moderating.check(answer="refuse")
    moderating.guard.hangs_after = 0
    context.start()
    async with moderating.pulled.run(OWNER, InferenceRequest(prompt="hi"), seconds=10) as running:
        first = asyncio.ensure_future(anext(running))
        await moderating.guard.is_hanging.wait()
        assert not first.done()
        assert moderating.service.dispatch.in_flight == 1, "the check; the answer's worker is free"
        first.cancel()
    moderating.guard.hangs_after = None
    text, result = await moderating.ask()
    assert (text, result.finish_reason) == ("Hello world!", FinishReason.STOP)
    assert not moderating.service.worker.received[0].streamed
    moderating.check(answer="report")
    await moderating.ask()
    assert moderating.service.worker.received[-1].streamed


async def test_what_guardrails_leave_of_an_answer_is_checked_too(moderating: Moderating) -> None:
    rules = {"answer": {"card": "refuse"}, "moderation": {"route": "moderation", "answer": "refuse"}}
    moderating.use(mesh={"guard": rules})
    moderating.says("Pay ", CARD, " or hurt")
    text, result = await moderating.ask()
    assert (text, result.finish_reason) == ("Pay ", FinishReason.CONTENT_FILTER)
    moderating.says("hurt ", CARD)
    assert (await moderating.ask())[0] == ""
    assert moderating.counts == [("answer", "card", "refuse", 1), ("answer", "moderation", "refuse", 1)]


# --- faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [errors.Unavailable("it is down"), errors.BadRequest("too long"), errors.LinkLost("gone")])
async def test_without_its_model_a_prompt_is_refused_or_allowed(moderating: Moderating, fault: errors.AimeshError) -> None:
    moderating.guard.fails_with = fault
    moderating.check(prompt="refuse")
    with pytest.raises(errors.Unavailable, match="your policy refuses prompts that can't be checked: "):
        await moderating.ask()
    assert moderating.service.worker.received == []
    assert (moderating.row.status, moderating.row.error_code) == (RequestStatus.ERROR, "unavailable")
    moderating.check(prompt="refuse", on_error="allow")
    assert (await moderating.ask())[0] == "Hello world!"
    moderating.check(prompt="report")
    assert (await moderating.ask())[0] == "Hello world!", "a report refuses nothing"


async def test_without_its_model_an_answer_is_refused_or_allowed(moderating: Moderating) -> None:
    moderating.guard.fails_with = errors.Unavailable("it is down")
    moderating.check(answer="refuse")
    with pytest.raises(errors.Unavailable, match="your policy refuses answers that can't be checked: it is down"):
        await moderating.ask()
    assert (moderating.row.status, moderating.row.cost_micro) == (RequestStatus.ERROR, 0), "the caller got nothing"
    with pytest.raises(errors.Unavailable, match="can't be checked"):
        await moderating.ask(model=ModelName("assistant"))
    assert moderating.row.route is not None
    assert (moderating.row.route.variant, moderating.row.variant_failed) == ("one", None), "its target has done its part"
    moderating.check(answer="refuse", on_error="allow")
    assert (await moderating.ask())[0] == "Hello world!"
    moderating.check(answer="report")
    assert (await moderating.ask())[0] == "Hello world!"


async def test_a_slow_model_is_one_that_fails(moderating: Moderating, monkeypatch: pytest.MonkeyPatch) -> None:
    # Long enough to reach the model on a busy machine.
    monkeypatch.setattr(runs_module, "CHECK_SECONDS", 0.5)
    moderating.guard.hangs_after = 0
    moderating.check(prompt="refuse")
    with pytest.raises(errors.Unavailable, match="moderation took more than"):
        await moderating.ask()
    assert moderating.rows()[0].status is RequestStatus.TIMEOUT
    await until(lambda: moderating.guard.left_early == 1)


async def test_a_missing_route_is_a_check_that_fails(moderating: Moderating) -> None:
    moderating.use({}, mesh={"guard": {"moderation": {"route": "moderation", "prompt": "refuse"}}})
    with pytest.raises(errors.Unavailable, match="there is no moderation route 'moderation'"):
        await moderating.ask()


async def test_a_caller_may_be_checked_by_a_route_that_it_may_not_name(moderating: Moderating) -> None:
    moderating.use(mesh={"models": ["assistant"], "guard": {"moderation": {"route": "moderation", "prompt": "refuse"}}})
    bound = msgspec.structs.replace(OWNER, models=(ModelName("assistant"),))
    assert (await moderating.ask(who=bound, model=ModelName("assistant")))[0] == "Hello world!"
    with pytest.raises(errors.ContentFiltered, match="violence"):
        await moderating.ask("hurt them", who=bound, model=ModelName("assistant"))
    with pytest.raises(errors.UnknownModel, match="no moderation route is configured"):
        await moderating.moderate("x", who=bound)


async def test_a_check_reaches_no_forbidden_provider(moderating: Moderating) -> None:
    outside = ModerationWorker()
    moderating.service.add_worker(23, outside, "paid", only_moderates=True, provider="acme")
    routes = {"moderation": [{**TO_GUARD, "model": "paid"}]}
    for place in ("prompt", "answer"):
        rules = {"guard": {"moderation": {"route": "moderation", place: "refuse"}}}
        moderating.use(routes, mesh=rules, default={"external": []})
        with pytest.raises(errors.PolicyForbidden, match="forbids moderation here: policy_external"):
            await moderating.ask()
        moderating.use(routes, mesh=rules)
        with pytest.raises(errors.PolicyForbidden, match="level: request"):
            await moderating.ask(forbid_external=True)
        assert outside.received == []
    assert (await moderating.ask())[0] == "Hello world!"
    assert len(outside.received) == 1


# --- levels ---------------------------------------------------------------------------------------------------------------


async def test_the_checks_of_all_levels_apply(moderating: Moderating) -> None:
    keyed = msgspec.structs.replace(OWNER, key_id=KeyId(UUID(int=77)))
    mesh = {"guard": {"moderation": {"route": "moderation", "prompt": "refuse", "categories": ["violence"]}}}
    key = {"guard": {"moderation": {"route": "moderation", "prompt": "report", "on_error": "allow"}}}
    moderating.use(mesh=mesh, **{f"key__{keyed.key_id}": key})
    with pytest.raises(errors.ContentFiltered, match=r"moderation \(violence\)"):
        await moderating.ask("hurt them", keyed)
    assert len(moderating.guard.received) == 1, "one call for both"
    assert moderating.counts == [("prompt", "moderation", "refuse", 1)]
    moderating.guard.fails_with = errors.Unavailable("it is down")
    with pytest.raises(errors.Unavailable, match="can't be checked"):
        await moderating.ask("hi", keyed)
    # The key's own check, by another model, applies as well.
    moderating.guard.fails_with = None
    routes = {"moderation": [TO_GUARD], "own": [TO_CHAT]}
    moderating.chat.verdicts = (HARMFUL,)
    moderating.use(routes, mesh=mesh, **{f"key__{keyed.key_id}": {"guard": {"moderation": {"route": "own", "prompt": "refuse"}}}})
    with pytest.raises(errors.ContentFiltered, match="violence"):
        await moderating.ask("hi", keyed)
    assert (await moderating.ask("hi"))[0] == "Hello world!"
