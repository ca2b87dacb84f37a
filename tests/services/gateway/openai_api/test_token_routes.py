"""Conversions of texts, chats and tokens: which callers may use them, which workers run them, and that they cost nothing."""

import asyncio
import base64
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import msgspec
import pytest

from services.gateway.facts import model_names, model_routes, tiers
from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.facts.policies import Policies
from services.gateway.facts.tiers import LimitRules
from shared import context, errors
from shared.api.generation import MAX_PROMPT_BYTES, ChatMessage
from shared.api.inference import MAX_CONVERTED_BYTES, TOKEN_BYTES, Converted, ConvertedPart, Detokenize, RenderChat, Tokenize
from shared.config_documents import PolicyDocument, RouteDocument
from shared.protocol.directory import WorkerLoad
from shared.types import ModelName, RequestStatus, Tier
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, OWNER, FakeWorker, RunningService
from tests.services.gateway.guard.test_guarded_requests import CARD
from tests.services.gateway.images.pictures import png

CHAT = [{"role": "user", "content": "hi"}]


@dataclass
class ConversionWorker(FakeWorker):
    """Its tokens are characters. A test can make it lie, or fail between two parts."""

    parts: list[ConvertedPart] | None = None
    received: list[Any] = field(default_factory=list)

    async def run(self, prompt: Any) -> AsyncIterator[Any]:
        if self.hangs_after is not None:
            self.is_hanging.set()
            await asyncio.Event().wait()
        parts = self.parts
        if parts is None:
            content = convert(prompt)
            parts = [ConvertedPart(0, content[:8]), ConvertedPart(8, content[8:])] if len(content) > 8 else [ConvertedPart(0, content)]
        for number, part in enumerate(parts):
            if self.fails_with is not None and number == self.fails_after:
                raise self.fails_with
            yield part
        yield Converted(2048)


def convert(request: Any) -> bytes:
    if isinstance(request, Detokenize):
        return "".join(map(chr, array("i", request.token_ids))).encode()
    text = "\n".join(message.content for message in request.messages)
    return array("i", map(ord, text)).tobytes() if isinstance(request, Tokenize) else text.encode()


@dataclass
class Converting:
    service: RunningService
    http: httpx.AsyncClient
    one: ConversionWorker = field(default_factory=ConversionWorker)
    two: ConversionWorker = field(default_factory=ConversionWorker)

    def __post_init__(self) -> None:
        # Replaces the worker that answers prompts.
        self.service.add_worker(1, self.one, "smollm2")

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return await self.http.post(f"/v1/{path}", json=body, headers=headers)

    async def tokens(self, **body: Any) -> list[int]:
        answer = await self.post("tokenize", {"model": "smollm2", **body})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["tokens"])

    def configure(self, routes: dict[str, list[dict[str, Any]]] | None = None, limits: LimitRules | None = None, **policies: Any) -> None:
        compiled = {
            name: model_routes.compile_route(name, 3, msgspec.convert({"targets": targets}, RouteDocument))
            for name, targets in (routes or {}).items()
        }
        names = model_names.ModelNames({}, ModelName("smollm2"), routes=compiled)
        allowing = {"external": ["*"]}
        documents = {"mesh": allowing | policies, "default": allowing}
        self.service.names, self.service.config = (
            names,
            ConfigSnapshot(
                names=names,
                route_names=model_names.ModelNames({}, None, only_routes=True, routes=compiled),
                limits=limits or self.service.config.limits,
                policies=Policies({name: msgspec.convert(rules, PolicyDocument) for name, rules in documents.items()}),
            ),
        )


@pytest.fixture
async def converting() -> AsyncIterator[Converting]:
    async with fakes.running_service() as service:
        transport = httpx.ASGITransport(service.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"authorization": f"Bearer {KEY}"}) as client:
            yield Converting(service, client)


# --- requests and answers -------------------------------------------------------------------------------------------------


async def test_a_text_is_tokenized_for_nothing_and_counted_as_a_request(converting: Converting) -> None:
    answer = await converting.post("tokenize", {"model": "llama3", "prompt": "héllo"})
    assert answer.json() == {"count": 5, "max_model_len": 2048, "tokens": list(map(ord, "héllo"))}
    assert answer.headers["x-ratelimit-remaining-requests"] == "99"
    row = converting.service.store.only_row
    assert (row.status, row.model_used, row.tokens_used, row.cost_micro, row.attempts) == (RequestStatus.SUCCESS, "smollm2", 0, 0, 1)
    assert converting.service.books.reserved == []
    assert converting.one.received == [Tokenize(ModelName("smollm2"), (ChatMessage("user", "héllo"),), raw=True)]
    assert converting.service.dispatch.in_flight == 0
    assert 'aimesh_model_requests_total{model="smollm2"' not in converting.service.metrics.render(), "it is no demand for slots"


async def test_a_chat_is_tokenized_and_rendered(converting: Converting) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    body = {"messages": CHAT, "tools": [tool], "add_generation_prompt": False}
    assert await converting.tokens(**body, add_special_tokens=False) == [104, 105]
    rendered = await converting.post("apply-template", {"model": "smollm2", **body})
    assert rendered.json() == {"prompt": "hi"}
    tokenized, render = converting.one.received
    assert (tokenized.raw, tokenized.add_special_tokens, tokenized.add_generation_prompt) == (False, False, False)
    assert type(render) is RenderChat
    assert (render.messages, render.tools, render.add_generation_prompt) == (tokenized.messages, tokenized.tools, False)
    assert render.tools[0].name == "add"


async def test_tokens_become_text(converting: Converting) -> None:
    answer = await converting.post("detokenize", {"model": "smollm2", "tokens": [104, 233, 0x1F600]})
    assert answer.json() == {"prompt": "hé😀"}
    assert (await converting.post("detokenize", {"model": "smollm2", "tokens": []})).json() == {"prompt": ""}


async def test_an_empty_text_has_no_tokens(converting: Converting) -> None:
    assert await converting.tokens(prompt="") == []
    assert await converting.tokens(prompt=" ") == [32]


async def test_the_default_model_and_null_fields(converting: Converting) -> None:
    answer = await converting.post("tokenize", {"model": None, "prompt": "a", "messages": None, "tools": None})
    assert answer.json()["count"] == 1


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "messages"),
        ("tokenize", {"prompt": "a", "messages": CHAT}, "prompt"),
        ("tokenize", {"prompt": ["a"]}, "prompt"),
        ("tokenize", {"prompt": "a", "model": "m" * 201}, "model"),
        ("tokenize", {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ("tokenize", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url"),
        ("apply-template", {"messages": []}, "messages"),
        ("apply-template", {"prompt": "a"}, "messages"),
        ("detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("detokenize", {"tokens": [2**31]}, "tokens[0]"),
        ("detokenize", {"tokens": "a"}, "tokens"),
        ("detokenize", {}, "tokens"),
    ],
)
async def test_bad_input_names_its_field(converting: Converting, path: str, body: dict[str, Any], param: str) -> None:
    answer = await converting.post(path, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] in {param, f"{param[:-3]}[...]"}
    assert converting.one.received == []


async def test_input_is_bounded_as_prompts_are(converting: Converting) -> None:
    for path, body in (
        ("tokenize", {"prompt": "x" * (MAX_PROMPT_BYTES + 1)}),
        ("tokenize", {"messages": [{"role": "user", "content": "x" * (MAX_PROMPT_BYTES + 1)}]}),
        ("detokenize", {"tokens": [1] * (MAX_PROMPT_BYTES // TOKEN_BYTES + 1)}),
    ):
        answer = await converting.post(path, {"model": "smollm2", **body})
        assert (answer.status_code, answer.json()["error"]["aimesh_code"]) == (400, "context_length_exceeded")
    longest = MAX_CONVERTED_BYTES // TOKEN_BYTES
    assert len(await converting.tokens(prompt="x" * longest)) == longest


async def test_an_idempotency_key_is_refused(converting: Converting) -> None:
    answer = await converting.post("tokenize", {"prompt": "x"}, **{"idempotency-key": "k" * 16})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


# --- counts of the vendors ----------------------------------------------------------------------------------------------------

COUNTED = {
    "model": "smollm2",
    "system": [{"type": "text", "text": "Be brief."}],
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [{"name": "add", "input_schema": {"type": "object"}}],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
}


async def test_the_tokens_of_a_message_are_those_of_the_rendered_chat(converting: Converting) -> None:
    answer = await converting.post("messages/count_tokens", COUNTED)
    assert answer.json() == {"input_tokens": len("Be brief.\nhi")}
    assert answer.headers["x-ratelimit-remaining-requests"] == "99"
    row = converting.service.store.only_row
    assert (row.status, row.tokens_used, row.cost_micro) == (RequestStatus.SUCCESS, 0, 0)
    [request] = converting.one.received
    assert request.messages == (ChatMessage("system", "Be brief."), ChatMessage("user", "hi"))
    assert ([tool.name for tool in request.tools], request.add_generation_prompt, request.raw) == (["add"], True, False)


async def test_the_tokens_of_a_response_are_counted_in_openais_form(converting: Converting) -> None:
    body = {"model": "smollm2", "instructions": "Be brief.", "input": "hi", "tools": [{"type": "function", "name": "add"}]}
    answer = await converting.post("responses/input_tokens", body)
    assert answer.json() == {"object": "response.input_tokens", "input_tokens": len("Be brief.\nhi")}
    [request] = converting.one.received
    assert (request.messages, [tool.name for tool in request.tools]) == (
        (ChatMessage("system", "Be brief."), ChatMessage("user", "hi")),
        ["add"],
    )


async def test_images_count_by_their_estimate(converting: Converting) -> None:
    data = base64.b64encode(png(1568, 1568, padding=2 * 1024 * 1024)).decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [image]}
    answer = await converting.post("messages/count_tokens", {**COUNTED, "messages": [{"role": "user", "content": [result]}]})
    [request] = converting.one.received
    text = "\n".join(message.content for message in request.messages)
    assert not any(message.images for message in request.messages)
    assert answer.json() == {"input_tokens": len(text) + 112 * 112 // 4 + 16}
    only_image = {"messages": [{"role": "user", "content": [image]}]}
    assert (await converting.post("messages/count_tokens", only_image)).json()["input_tokens"] > 112 * 112 // 4


async def test_a_server_that_tells_no_tokens_gets_the_estimate_of_the_limits(converting: Converting) -> None:
    converting.one.fails_with = errors.UnknownMethod("smollm2 runs in another program, whose tokens this worker does not know")
    answer = await converting.post("messages/count_tokens", {**COUNTED, "messages": [{"role": "user", "content": "x" * 3000}]})
    assert answer.status_code == 200, answer.text
    likely = 1000 + 2 * 16 + 64
    assert likely <= answer.json()["input_tokens"] < likely + 20
    row = converting.service.store.only_row
    assert (row.status, row.error_code, row.tokens_used) == (RequestStatus.SUCCESS, None, 0)


@pytest.mark.parametrize(
    ("verb", "path", "body", "refused"),
    [
        ("POST", "messages/count_tokens", {**COUNTED, "model": "nothing"}, (404, "not_found_error")),
        ("POST", "messages/count_tokens", {**COUNTED, "messages": []}, (400, "invalid_request_error")),
        ("POST", "messages/count_tokens", {"system": "x" * 20_000_000}, (413, "request_too_large")),
        ("GET", "messages/count_tokens", None, (405, "invalid_request_error")),
        ("POST", "messages/batches", COUNTED, (404, "not_found_error")),
        ("GET", "messages", None, (405, "invalid_request_error")),
    ],
)
async def test_errors_below_messages_have_anthropics_form(
    converting: Converting, verb: str, path: str, body: Any, refused: tuple[int, str]
) -> None:
    answer = await converting.http.request(verb, f"/v1/{path}", json=body)
    found = answer.json()
    assert (answer.status_code, found["type"], found["error"]["type"]) == (refused[0], "error", refused[1])
    assert found["request_id"] == answer.headers["x-request-id"]


async def test_an_unknown_key_gets_anthropics_form_too(converting: Converting) -> None:
    answer = await converting.post("messages/count_tokens", COUNTED, authorization="Bearer nobody")
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


# --- callers --------------------------------------------------------------------------------------------------------------


async def test_the_limit_on_requests_counts_and_that_on_tokens_does_not(converting: Converting) -> None:
    plans = {tier: replace(tiers.NO_LIMITS, requests_per_hour=2, tokens_per_minute=1) for tier in Tier}
    converting.configure(limits=LimitRules(plans))
    for _ in range(2):
        assert len(await converting.tokens(prompt="x" * 100)) == 100
    answer = await converting.post("tokenize", {"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["aimesh_code"]) == (429, "rate_limited")
    assert len(converting.one.received) == 2


async def test_a_key_must_be_allowed_to_use_the_model(converting: Converting) -> None:
    converting.service.add_worker(2, converting.two, "other")
    bound = msgspec.structs.replace(OWNER, models=(ModelName("other"),))
    for request in (Tokenize(ModelName("smollm2"), (ChatMessage("user", "x"),)), Detokenize(ModelName("smollm2"), b"")):
        context.start()
        with pytest.raises(errors.NotAllowed, match="this key may not use smollm2"):
            async with converting.service.pulled.convert(bound, request, seconds=10, forbids_external=False):
                pass
    assert converting.one.received == []


async def test_policies_and_placement_apply(converting: Converting) -> None:
    converting.configure(external=[])
    converting.service.add_worker(1, converting.one, "smollm2", provider="acme")
    answer = await converting.post("tokenize", {"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["aimesh_code"]) == (403, "policy_forbidden")
    converting.configure()
    assert (await converting.post("tokenize", {"prompt": "x"}, **{"x-aimesh-external": "forbid"})).status_code == 403
    assert converting.one.received == []
    assert await converting.tokens(prompt="x") == [120]


async def test_guardrails_see_what_is_tokenized(converting: Converting) -> None:
    converting.configure(guard={"prompt": {"card": "mask"}})
    assert (await converting.post("apply-template", {"messages": [{"role": "user", "content": f"pay {CARD}"}]})).json() == {
        "prompt": "pay [card]"
    }
    converting.configure(guard={"prompt": {"card": "refuse"}})
    answer = await converting.post("tokenize", {"prompt": f"pay {CARD}"})
    assert (answer.status_code, answer.json()["error"]["aimesh_code"]) == (400, "content_filter")


# --- workers --------------------------------------------------------------------------------------------------------------


async def test_two_at_once_need_no_slot_beside_running_answers(converting: Converting) -> None:
    converting.service.add_worker(1, converting.one, "smollm2", load=WorkerLoad(slots=1, running=1, queued=50))
    converting.one.hangs_after = 0
    waiting = asyncio.create_task(converting.tokens(prompt="a"))
    await converting.one.is_hanging.wait()
    converting.one.hangs_after = None
    assert await asyncio.gather(converting.tokens(prompt="b"), converting.tokens(prompt="c")) == [[98], [99]]
    assert converting.service.dispatch.in_flight == converting.service.dispatch.waiting == 0
    waiting.cancel()
    await asyncio.wait([waiting])
    assert converting.one.left_early == 1


async def test_no_worker_and_an_unknown_model(converting: Converting) -> None:
    answer = await converting.post("tokenize", {"model": "nothing", "prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["aimesh_code"]) == (404, "unknown_model")
    converting.service.directory.worker(1)
    answer = await converting.post("tokenize", {"model": "smollm2", "prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["aimesh_code"]) == (503, "not_reachable")


async def test_a_refusal_of_the_worker_is_passed_on(converting: Converting) -> None:
    converting.service.add_worker(2, converting.two, "smollm2")
    converting.one.fails_with = converting.two.fails_with = errors.BadRequest("tokens: the ids of this model are from 0 to 9")
    answer = await converting.post("detokenize", {"model": "smollm2", "tokens": [10]})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "tokens: the ids of this model are from 0 to 9")
    assert len(converting.one.received + converting.two.received) == 1


@pytest.mark.parametrize("fails_after", [0, 1])
@pytest.mark.parametrize("error", [errors.LinkLost("gone"), errors.Draining("bye"), errors.UnknownMethod("an older worker")])
async def test_the_next_worker_answers_if_one_fails(converting: Converting, error: errors.AimeshError, fails_after: int) -> None:
    converting.service.add_worker(2, converting.two, "smollm2")
    failing = []
    for worker in (converting.one, converting.two):
        # The worker that is asked first fails.
        worker.fails_with, worker.fails_after = error, fails_after
        worker.run = _once(worker, failing)  # type: ignore[method-assign]
    assert await converting.tokens(prompt="hello") == list(map(ord, "hello")), "whole, and nothing twice"
    assert len(failing) == 1
    assert converting.service.store.only_row.attempts == 2


def _once(worker: ConversionWorker, failing: list[ConversionWorker]) -> Any:
    run = ConversionWorker.run

    async def only_first(request: Any) -> AsyncIterator[Any]:
        if failing:
            worker.fails_with = None
        else:
            failing.append(worker)
        async for item in run(worker, request):
            yield item

    return only_first


async def test_the_first_usable_target_of_a_route_answers(converting: Converting) -> None:
    converting.service.add_worker(2, converting.two, "upstream")
    converting.two.fails_with = errors.UnknownMethod("upstream runs in another program")
    routes = {"assistant": [{"name": "a", "model": "upstream", "share": 100}, {"name": "b", "model": "smollm2", "order": 1}]}
    converting.configure(routes)
    answer = await converting.post("tokenize", {"model": "assistant", "prompt": "x"})
    assert (answer.status_code, answer.json()["tokens"]) == (200, [120])
    row = converting.service.store.only_row
    assert (row.model_used, row.variant_failed) == ("smollm2", None)


async def test_a_backend_without_tokens_is_one_clear_error(converting: Converting) -> None:
    converting.one.fails_with = errors.UnknownMethod("smollm2 runs in another program, whose tokens this worker does not know")
    answer = await converting.post("tokenize", {"model": "smollm2", "prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["aimesh_code"]) == (404, "unknown_method")
    assert "another program" in answer.text
    assert len(converting.one.received) == 1


@pytest.mark.parametrize(
    "parts",
    [
        [ConvertedPart(0, b"abcd"), ConvertedPart(8, b"efgh")],
        [ConvertedPart(0, b"abcd"), ConvertedPart(2, b"efgh")],
        [ConvertedPart(4, b"abcd")],
        [ConvertedPart(0, b"x" * (MAX_CONVERTED_BYTES + 1))],
    ],
)
async def test_parts_that_do_not_fit_are_refused(converting: Converting, parts: list[ConvertedPart]) -> None:
    converting.one.parts = parts
    answer = await converting.post("tokenize", {"model": "smollm2", "prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["aimesh_code"]) == (503, "protocol_violation")
