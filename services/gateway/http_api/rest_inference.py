"""Serves /api/inference and /api/infer: runs prompts and computes embeddings in this project's own format, and cancels them."""

from functools import partial
from typing import Annotated, cast

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import answer_delivery, chat_messages, parameters, request_bodies, tolerant_json
from services.gateway.http_api.chat_messages import OF_TOOLS, ChatBodyMessage, JsonObject, ResponseFormat, ToolBody, ToolChoiceBody
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.response_formats import AnswerToolCall, TokenChoice
from services.gateway.http_api.rest_format import InferenceAnswer, RestFormat, TextEvent, UsageView
from services.gateway.http_api.tolerant_json import BodyDialect, Ignored
from services.gateway.requests.runs import Runs
from shared.api import embedding
from shared.api.gateway import InferenceRequest
from shared.api.generation import MaxTokens, NamedModel, ReasoningEffort, Seed, Temperature, TopK, TopLogprobs, TopP
from shared.types import ModelName, RequestId


class PayloadBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to generate, and how. Requires ``prompt`` or ``messages``, but not both."""

    prompt: str | None = None
    messages: tuple[ChatBodyMessage, ...] | None = None
    system: str | None = None
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    stop: str | tuple[str, ...] | None = None
    seed: Seed | None = None
    #: The next eight are as in OpenAI's chat API.
    tools: Annotated[tuple[ToolBody, ...], OF_TOOLS] | None = None
    tool_choice: ToolChoiceBody | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: JsonObject | None = None
    #: Stream server-sent events.
    stream: bool = False


class InferenceBody(PayloadBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: NamedModel | None = None


class ModelPayload(PayloadBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt, or ``input`` for embeddings."""

    input: embedding.GivenInput | None = None
    #: Cut vectors to this many numbers and normalize them again.
    dimensions: embedding.Dimensions | None = None


class InferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: An object, or just a prompt.
    payload: ModelPayload | str
    model: NamedModel | None = None


_INFERENCE = BodyDialect("inference", InferenceBody, parameters.CHAT_MESSAGES)
_INFER = BodyDialect("infer", InferBody, parameters.CHAT_MESSAGES, root="payload")


class ModelAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of any model: a text with its reason to finish, or embeddings."""

    request_id: RequestId
    model: ModelName
    usage: UsageView
    response_time_ms: int
    finish_reason: str | None = None
    response: str | None = None
    reasoning: str = ""
    tool_calls: tuple[AnswerToolCall, ...] = ()
    logprobs: tuple[TokenChoice, ...] = ()
    #: One vector per input, in the same order.
    embeddings: tuple[tuple[float, ...], ...] | None = None


class WithdrawnAnswer(msgspec.Struct, frozen=True):
    """The request under this key is canceled, if it was still running."""

    idempotency_key: str


class RestInference:
    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute("POST", "/api/inference", self._inference, "processInferenceRequest", "Run a prompt",
                      body=InferenceBody, answer=InferenceAnswer, streams=True, takes_prompts=True, events=(TextEvent, InferenceAnswer)),
            HttpRoute("POST", "/api/infer", self._infer, "processInferenceRequest",
                      "Run a prompt or compute embeddings, given as a model and a payload",
                      body=InferBody, answer=ModelAnswer, streams=True, takes_prompts=True, events=(TextEvent, InferenceAnswer)),
            HttpRoute("DELETE", "/api/inference", self._cancel, "cancelInference", "Cancel the request under an Idempotency-Key",
                      answer=WithdrawnAnswer),
        )  # fmt: skip

    async def _cancel(self, call: HttpCall) -> None:
        key = call.idempotency_key
        if key is None:
            raise BadField("Idempotency-Key", "is missing; it names the request to cancel")
        await self._runs.cancel(call.caller, key)
        await call.answer(WithdrawnAnswer(key))

    async def _inference(self, call: HttpCall) -> None:
        body = await call.parse(_parse_inference)
        await self._run(call, body, body.model)

    async def _infer(self, call: HttpCall) -> None:
        body = await call.parse(_parse_infer)
        payload = ModelPayload(prompt=body.payload) if isinstance(body.payload, str) else body.payload
        if payload.input is not None:
            await self._embed(call, to_embedding_request(payload, body.model))
        elif payload.dimensions is not None:
            raise BadField("payload.dimensions", "requires payload.input")
        else:
            await self._run(call, payload, body.model)

    async def _embed(self, call: HttpCall, request: embedding.EmbeddingRequest) -> None:
        def encode(_index: int, vector: bytes) -> msgspec.Raw:
            return msgspec.Raw(msgspec.json.encode(embedding.decode_vector(vector)))

        vectors, result = await answer_delivery.embed(self._runs, call, request, encode)
        usage = UsageView(result.prompt_tokens, 0, result.prompt_tokens)
        embeddings = cast("tuple[tuple[float, ...], ...]", tuple(vectors))
        await call.answer(ModelAnswer(result.request_id, result.model, usage, result.response_time_ms, embeddings=embeddings))

    async def _run(self, call: HttpCall, body: PayloadBody, model: ModelName | None) -> None:
        request = await call.convert(partial(to_request, model=model), body)
        form = RestFormat(parallel_calls=body.parallel_tool_calls)
        await answer_delivery.answer(self._runs, call, request, form, stream=body.stream)


def _parse_inference(content: bytes) -> InferenceBody:
    return tolerant_json.convert(_read_payload(request_bodies.read_object(content)), _INFERENCE, Ignored(), strict=True)


def _parse_infer(content: bytes) -> InferBody:
    found = request_bodies.snake_names(request_bodies.read_object(content))
    if isinstance(payload := found.get("payload"), dict):
        found["payload"] = _read_payload(payload)
    return tolerant_json.convert(found, _INFER, Ignored(), strict=True)


def _read_payload(found: dict[str, object]) -> dict[str, object]:
    """Rename fields in camelCase. Raises BadField."""
    renamed = request_bodies.snake_names(found)
    if isinstance(messages := renamed.get("messages"), list):
        renamed["messages"] = [request_bodies.snake_names(message) if isinstance(message, dict) else message for message in messages]
    if isinstance(requested := renamed.get("response_format"), dict):
        renamed["response_format"] = request_bodies.snake_names(requested)
    return renamed


def to_request(body: PayloadBody, model: ModelName | None) -> InferenceRequest:
    if body.prompt is not None and body.messages:
        raise BadField("prompt", "and messages exclude each other; send only one")
    tools, tool_choice = chat_messages.chosen_tools(body.tools or (), body.tool_choice)
    return InferenceRequest(
        **chat_messages.shared_parameters(body) | {"model": model},
        prompt=body.prompt,
        messages=chat_messages.to_messages(body.messages) if body.messages else (),
        system=body.system,
        stop=(body.stop,) if isinstance(body.stop, str) else body.stop or (),
        format=None if body.response_format is None else chat_messages.wanted_format(body.response_format),
        tools=tools,
        tool_choice=tool_choice,
        chat_template_kwargs=chat_messages.json_text(body.chat_template_kwargs) if body.chat_template_kwargs else "",
        top_logprobs=chat_messages.wanted_logprobs(body.logprobs, body.top_logprobs),
    )


def to_embedding_request(payload: ModelPayload, model: ModelName | None) -> embedding.EmbeddingRequest:
    """Convert the request. Raises BadField for fields of prompts, and for texts among token ids."""
    nothing = PayloadBody()
    for name in PayloadBody.__struct_fields__:
        if getattr(payload, name) != getattr(nothing, name):
            raise BadField(f"payload.{name}", "is for prompts; payload.input asks for embeddings")
    assert payload.input is not None
    try:
        return embedding.EmbeddingRequest(embedding.separate_inputs(payload.input), model, payload.dimensions)
    except ValueError as error:
        raise BadField("payload.input", str(error)) from error
