"""Serves /api/inference and /api/infer: runs prompts in this project's own format, and cancels them."""

import msgspec

from services.gateway.deduplicated_inference import DeduplicatedInference
from services.gateway.http_api import answer_delivery, request_bodies, response_formats
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.response_formats import AnswerFacts, ErrorBody, ServerSentEvent
from services.gateway.prompt_admission import BadField
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.generation import ChatMessage, Usage
from shared.api.inference import Chunk
from shared.types import FinishReason, ModelName, RequestId


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str


class PayloadBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to generate, and how. Requires ``prompt`` or ``messages``, but not both."""

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: str | tuple[str, ...] | None = None
    seed: int | None = None
    #: Stream server-sent events.
    stream: bool = False


class InferenceBody(PayloadBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: ModelName | None = None


class InferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: An object, or just a prompt.
    payload: PayloadBody | str
    model: ModelName | None = None


class UsageView(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "UsageView":
        return cls(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


class InferenceAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    request_id: RequestId
    model: ModelName
    finish_reason: FinishReason
    usage: UsageView
    response_time_ms: int
    #: Omitted at the end of a stream.
    response: str | None = None


class WithdrawnAnswer(msgspec.Struct, frozen=True):
    """The request under this key is canceled, if it was still running."""

    idempotency_key: str


class TextEvent(msgspec.Struct, frozen=True):
    """A piece of the text of a streamed answer."""

    text: str


class RestFormat:
    """Formats the answer to one request."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def begin(self, about: AnswerFacts) -> None:
        """Do nothing: the facts are at the end of the answer."""

    def gather(self, chunk: Chunk) -> None:
        self._texts.append(chunk.text)

    def events(self, chunk: Chunk) -> tuple[ServerSentEvent, ...]:
        return (ServerSentEvent(TextEvent(chunk.text)),) if chunk.text else ()

    def last_events(self, result: InferenceResult) -> tuple[ServerSentEvent, ...]:
        return ServerSentEvent(_answer(result, None)), response_formats.DONE

    def failed(self, error: ErrorBody) -> tuple[ServerSentEvent, ...]:
        return (ServerSentEvent(error),)

    def whole(self, result: InferenceResult) -> InferenceAnswer:
        return _answer(result, "".join(self._texts))


class RestInference:
    """Handlers for prompts."""

    def __init__(self, deduplicated: DeduplicatedInference, *, request_seconds: float) -> None:
        self._deduplicated = deduplicated
        self._request_seconds = request_seconds

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute(
                verb="POST", path="/api/inference", handler=self._inference, method="processInferenceRequest",
                summary="Run a prompt", body=InferenceBody, answer=InferenceAnswer,
                streams=True, events=(TextEvent, InferenceAnswer),
            ),
            HttpRoute(
                verb="POST", path="/api/infer", handler=self._infer, method="processInferenceRequest",
                summary="Run a prompt, given as a model and a payload", body=InferBody, answer=InferenceAnswer,
                streams=True, events=(TextEvent, InferenceAnswer),
            ),
            HttpRoute(
                verb="DELETE", path="/api/inference", handler=self._withdraw, method="cancelInference",
                summary="Cancel the request under an Idempotency-Key", answer=WithdrawnAnswer,
            ),
        )  # fmt: skip

    async def _withdraw(self, call: HttpCall) -> None:
        key = call.idempotency_key
        if key is None:
            raise BadField("Idempotency-Key", "is missing; it names the request to cancel")
        await self._deduplicated.withdraw(call.caller, key)
        await call.answer(WithdrawnAnswer(key))

    async def _inference(self, call: HttpCall) -> None:
        body = request_bodies.read_either_case(call.body, InferenceBody)
        await self._run(call, body, body.model)

    async def _infer(self, call: HttpCall) -> None:
        found = request_bodies.snake_names(request_bodies.read_object(call.body))
        if isinstance(payload := found.get("payload"), dict):
            found["payload"] = request_bodies.snake_names(payload)
        body = request_bodies.convert(found, InferBody)
        payload = PayloadBody(prompt=body.payload) if isinstance(body.payload, str) else body.payload
        await self._run(call, payload, body.model)

    async def _run(self, call: HttpCall, body: PayloadBody, model: ModelName | None) -> None:
        request = to_request(body, model)
        await answer_delivery.answer(call, self._deduplicated, request, RestFormat(), stream=body.stream, seconds=self._request_seconds)


def to_request(body: PayloadBody, model: ModelName | None) -> InferenceRequest:
    if body.prompt is not None and body.messages:
        raise BadField("prompt", "and messages exclude each other; send only one")
    return InferenceRequest(
        prompt=body.prompt,
        messages=tuple(ChatMessage(message.role, message.content) for message in body.messages or ()),
        system=body.system,
        model=model,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=(body.stop,) if isinstance(body.stop, str) else body.stop or (),
        seed=body.seed,
    )


def _answer(result: InferenceResult, response: str | None) -> InferenceAnswer:
    return InferenceAnswer(
        result.request_id, result.model, result.finish_reason, UsageView.of(result.usage), result.response_time_ms, response
    )
