"""Serves the /v1 routes, which are compatible with OpenAI's and Anthropic's clients."""

import time
from collections.abc import Callable
from functools import partial
from typing import get_args

import msgspec

from services.gateway.facts import line_run
from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import answer_delivery, http_errors
from services.gateway.http_api.answer_delivery import HttpReader
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.response_formats import AnswerFacts, AnthropicErrorBody
from services.gateway.idempotency import idempotency_keys
from services.gateway.idempotency.stored_items import StoredItems
from services.gateway.openai_api import anthropic_request, chat_format, response_references
from services.gateway.openai_api import chat_request as openai_chat
from services.gateway.openai_api import completion_request as openai_completions
from services.gateway.openai_api import response_request as openai_responses
from services.gateway.openai_api.anthropic_format import AnthropicMessage, MessagesEvent, MessagesFormat
from services.gateway.openai_api.anthropic_request import MessagesBody
from services.gateway.openai_api.background_responses import Background
from services.gateway.openai_api.chat_format import ChatChunk, ChatCompletion, ChatFormat, Model, Models
from services.gateway.openai_api.chat_request import ChatBody
from services.gateway.openai_api.completion_format import Completion, CompletionFormat
from services.gateway.openai_api.completion_request import CompletionBody
from services.gateway.openai_api.response_events import ErrorEvent, Response, StreamEvent
from services.gateway.openai_api.response_format import ResponsesFormat
from services.gateway.openai_api.response_request import ResponseBody
from services.gateway.requests.repeated_request import RepeatedRequest
from services.gateway.requests.runs import Runs
from shared import context, errors
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest, ServedModel
from shared.protocol import public_ids
from shared.types import ModelName

_METHOD = "processInferenceRequest"


class DeletedResponse(msgspec.Struct, frozen=True):
    id: str
    object: str = "response"
    deleted: bool = True


class OpenAiRoutes:
    """The handlers of /v1. ``served`` returns the models that a caller may use, the default first."""

    def __init__(
        self,
        runs: Runs,
        served: Callable[[Principal], tuple[ServedModel, ...]],
        items: StoredItems,
        background: Background,
    ) -> None:
        self._runs = runs
        self._background = background
        self._served = served
        self._items = items
        self._answer = partial(answer_delivery.answer, runs)
        self._started_at = int(time.time())

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            # Claude Code asks this of its base URL.
            *(HttpRoute(verb, "/", self._greet, "root", "Whether the gateway answers") for verb in ("HEAD", "GET")),
            HttpRoute("POST", "/v1/chat/completions", self._chat, _METHOD, "OpenAI's chat completions",
                      body=ChatBody, answer=ChatCompletion, streams=True, takes_prompts=True, events=(ChatChunk,)),
            HttpRoute("POST", "/v1/completions", self._complete, _METHOD,
                      "OpenAI's older completions, which continue a text without a chat template",
                      body=CompletionBody, answer=Completion, streams=True, takes_prompts=True, events=(Completion,)),
            HttpRoute("POST", "/v1/responses", self._respond, _METHOD, "OpenAI's responses, also in the background",
                      body=ResponseBody, answer=Response, streams=True, takes_prompts=True, events=(*get_args(StreamEvent), ErrorEvent)),
            HttpRoute("POST", "/v1/responses/{response}", self._miss, _METHOD, "Refused; only /cancel exists"),
            HttpRoute("DELETE", "/v1/responses/{response}", self._delete, "cancelJob",
                      "Delete a response and its stored conversation, and cancel it if it runs", answer=DeletedResponse),
            HttpRoute("POST", "/v1/messages", self._message, _METHOD, "Anthropic's messages",
                      body=MessagesBody, answer=AnthropicMessage, streams=True, takes_prompts=True,
                      events=(MessagesEvent, AnthropicErrorBody)),
            HttpRoute("GET", "/v1/models", self._models, "listModels", "List the served models, the default first", answer=Models),
            HttpRoute("GET", "/v1/models/{model}", self._model, "listModels", "Get a served model by its name or alias", answer=Model),
        )  # fmt: skip

    async def _greet(self, call: HttpCall) -> None:
        await call.answer_bytes(b"", b"text/plain")

    async def _chat(self, call: HttpCall) -> None:
        body = await call.read(openai_chat.DIALECT)
        await self._answer(call, await call.convert(openai_chat.to_request, body), ChatFormat(body), stream=body.stream)

    async def _respond(self, call: HttpCall) -> None:
        body = await response_references.read(call, self._items)
        if body.background:
            await self._background.begin(call, body)
            return
        form = ResponsesFormat(body, is_stored=body.store and self._items.allows(call.caller))

        async def store() -> None:
            answer = form.stored_items()
            form.is_stored = await self._items.keep(call.caller, answer)
            if form.is_stored and self._items.allows_prompts(call.caller):
                line = line_run.of(call.request_id)
                name = form.response_id if line is None else public_ids.encode("resp", line.job_id, "_")
                # The images of a long body are not in it.
                form.is_stored = not call.images and await self._items.keep_conversation(
                    call.caller, name, body.conversation(answer.values())
                )

        try:
            request = await call.convert(openai_responses.to_request, body)
            await self._answer(call, request, form, stream=body.stream, before_end=store if form.is_stored else None)
        except errors.ContextExceeded as error:
            if body.stream and not call.started:
                # Codex compacts its conversation if a stream fails with this code, but not for a status.
                if not form.has_begun:
                    form.begin(AnswerFacts(call.request_id, body.model or ModelName(""), int(time.time())))
                call.expect_events(form.failed)
                await call.send_comment(error.message)
            raise

    async def _miss(self, call: HttpCall) -> None:
        raise http_errors.route_missing(f"/v1/responses/{call.rest_of_path}", call.origin, lambda _path: False)

    async def _delete(self, call: HttpCall) -> None:
        # First: if the rest fails, the caller can try again.
        had_conversation = await self._items.drop_conversation(call.caller, call.rest_of_path)
        try:
            await self._background.delete(call)
        except errors.NotFound:
            if not had_conversation:
                raise
        await call.answer(DeletedResponse(call.rest_of_path))

    async def _message(self, call: HttpCall) -> None:
        body = await call.read(anthropic_request.DIALECT)
        await self._answer(call, await call.convert(anthropic_request.to_request, body), MessagesFormat(body), stream=body.stream)

    async def _complete(self, call: HttpCall) -> None:
        body = await call.read(openai_completions.DIALECT)
        requests = openai_completions.to_requests(body)
        form = CompletionFormat(body)
        if len(requests) == 1:
            await self._answer(call, requests[0], form, stream=body.stream)
            return
        if line_run.of(call.request_id) is not None:
            # The others would be requests of their own: at the price of callers, and paid again with each attempt.
            raise BadField("prompt", "must be one text in a job: give each its own line")
        repeats = _parts(answer_delivery.read_repeat(call), requests)
        ends_at = time.monotonic() + self._runs.longest(flex=requests[0].flex)
        if body.stream:
            call.expect_events(form.failed)
        # Without ids: after a lost stream, the caller repeats the request under the same key.
        reader = HttpReader(call, form, stream=body.stream, with_ids=False)
        for number, (request, repeat) in enumerate(zip(requests, repeats, strict=True), 1):
            result = await self._runs.answer(
                call.caller,
                answer_delivery.with_call(call, request),
                reader,
                seconds=ends_at - time.monotonic(),
                repeat=repeat,
                whole=True,
                cache=call.cache_request,
                streamed=body.stream,
            )
            if number == len(requests):
                await reader.finish(result)
                return
            if body.stream:
                await call.send_events(form.end(result))
            else:
                form.close(result)
            # Each request has its own row and id.
            context.another()

    async def _models(self, call: HttpCall) -> None:
        await call.answer(Models(tuple(chat_format.show_model(model, self._started_at) for model in self._served(call.caller))))

    async def _model(self, call: HttpCall) -> None:
        served = self._served(call.caller)
        found = next((model for model in served if call.rest_of_path == model.name or call.rest_of_path in model.aliases), None)
        if found is None:
            names = ", ".join(model.name for model in served) or "none"
            raise errors.UnknownModel(
                f"the model {call.rest_of_path[:200]!r} is not served; served models: {names}", hint="see GET /v1/models"
            )
        await call.answer(chat_format.show_model(found, self._started_at))


def _parts(repeat: RepeatedRequest, requests: tuple[InferenceRequest, ...]) -> tuple[RepeatedRequest, ...]:
    """Derive a key for each of several prompts; each answer is bound to the same set of prompts. Raises BadRequest for Last-Event-ID."""
    if repeat.rest is not None:
        raise BadField("Last-Event-ID", "works with one prompt only; repeat a request with several prompts from its start")
    if repeat.key is None:
        return (repeat,) * len(requests)
    key, together = repeat.key, idempotency_keys.digest(requests)
    return tuple(RepeatedRequest(key=idempotency_keys.part(key, number), together=together) for number in range(len(requests)))
