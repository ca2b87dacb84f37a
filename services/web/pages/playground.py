"""Serve the playground, a chat with a model. Only the page holds the chat; each request carries all of it."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import ClassVar
from uuid import uuid4

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web.http.event_response import EventResponse, event
from services.web.mesh_calls import MeshCalls
from services.web.pages import quota_view
from services.web.pages.quota_view import NoticeView
from services.web.request_context import Page, PageRequest
from shared import amounts, errors
from shared.api import accounts, gateway, usage_report
from shared.api.gateway import InferenceRequest, InferenceResult, ProcessInferenceRequest
from shared.api.generation import ChatMessage, ImagePart, ReasoningEffort
from shared.api.method import End, Item, Method, Reply, Request, StreamAnswer, StreamMethod
from shared.protocol import wire
from shared.protocol.request_memory import HeldRequest
from shared.resumable_stream import StreamRequest
from shared.types import Ability, Credential, FinishReason, ModelName, NodeId, RequestId

#: More than the context of most models can hold.
MAX_MESSAGES = 200
#: As much as a message of the mesh (thoughts are sent back, too); more with images.
_TEXT_BYTES = wire.MAX_MESSAGE_BYTES
MAX_BODY_BYTES = wire.MAX_REQUEST_BYTES
#: Enough to upload a pasted text over a slow connection; the gateway's time for a body with images.
_QUESTION_SECONDS, _IMAGES_SECONDS = 60.0, 120.0
#: Long enough for a worker to load its model and write a long answer. Users can press Stop.
_ANSWER_SECONDS = 600.0


class Speaker(StrEnum):
    USER = "user"
    ASSISTANT = "assistant"


class ChatTurn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Speaker
    content: str
    #: Before the content, in base64.
    images: tuple[bytes, ...] = ()
    #: The model's thoughts before it.
    reasoning: str = ""


class ChatQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A chat that ends with a user message. The gateway validates the parameters."""

    model: str
    messages: tuple[ChatTurn, ...]
    system: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    reasoning_effort: ReasoningEffort | None = None


class Thumb(StrEnum):
    UP = "up"
    DOWN = "down"


class Rating(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    request_id: RequestId
    rating: Thumb


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaygroundPage:
    #: Their names; None if the gateway did not respond.
    models: tuple[ModelName, ...] | None
    #: Those that can see images.
    seeing: frozenset[ModelName]
    #: Why there are none, if the gateway knows.
    why_none: str
    chosen: ModelName | None
    #: Why their requests are or will be refused.
    notices: tuple[NoticeView, ...]
    efforts: ClassVar[tuple[str, ...]] = tuple(ReasoningEffort)


@get("/playground")
async def show_playground(page_request: NamedDependency[PageRequest], model: FromQuery[str] = "") -> Page:
    served, account, quota = await asyncio.gather(
        page_request.fetch(gateway.list_models, gateway.ListModels()),
        page_request.fetch(accounts.get_account, accounts.GetAccount()),
        page_request.fetch(gateway.get_user_quota, gateway.GetUserQuota()),
    )
    preferred = None if account is None else account.preferences.default_model
    view = PlaygroundPage(
        models=None if served is None else tuple(each.name for each in served.models if not each.only_embeds),
        seeing=frozenset() if served is None else frozenset(each.name for each in served.models if Ability.IMAGES in each.abilities),
        why_none="" if served is None else served.why_none,
        chosen=None if served is None else choose(served, ModelName(model), preferred),
        notices=quota_view.notices(quota, sells=page_request.sells),
    )
    return page_request.page("playground.html", view)


def choose(served: gateway.ServedModels, *wanted: ModelName | None) -> ModelName | None:
    """Return the first wanted model that is served, by name or alias, else the mesh default."""
    names = {name: each.name for each in served.models if not each.only_embeds for name in (each.name, *map(ModelName, each.aliases))}
    return next((names[name] for name in wanted if name in names), next(iter(names.values()), None))


@post("/playground/answer", request_max_body_size=MAX_BODY_BYTES)
async def answer(page_request: NamedDependency[PageRequest]) -> EventResponse:
    """Stream an answer. An invalid request gets an error status; later errors are events."""
    app, user = page_request.app, str(page_request.person.user.id)
    refusal = errors.Overloaded("you have too many running answers", hint="stop one, or wait until it ends", retry_after_seconds=5)
    announced = page_request.request.headers.get("content-length", "")
    size = min(int(announced), MAX_BODY_BYTES) if announced.isdecimal() and len(announced) < 10 else MAX_BODY_BYTES
    with app.uploads.one_more(user, refusal), app.memory.hold(size) as memory:
        seconds = _QUESTION_SECONDS if size <= _TEXT_BYTES else _IMAGES_SECONDS
        request = read_question(await page_request.read_json(ChatQuestion, seconds=seconds))
    caller = UserCaller(app.caller, page_request.person.access_token)
    slot = app.answers.one_more(user, refusal)
    return EventResponse(lambda: aclosing(answer_events(caller, request, slot, memory)))


def read_question(question: ChatQuestion) -> InferenceRequest:
    """Convert a question to a request. Raises BadRequest."""
    if len(question.messages) > MAX_MESSAGES:
        raise errors.BadRequest(f"the chat is longer than {MAX_MESSAGES} messages", hint="start a new chat")
    if not question.messages or question.messages[-1].role is not Speaker.USER:
        raise errors.BadRequest("the chat does not end with a message from you", hint="type a message and send it")
    system = (ChatMessage("system", question.system),) if question.system else ()
    return InferenceRequest(
        messages=(*system, *map(_message, question.messages)),
        model=ModelName(question.model) if question.model else None,
        temperature=question.temperature,
        max_tokens=question.max_tokens,
        top_p=question.top_p,
        seed=question.seed,
        reasoning_effort=question.reasoning_effort,
    )


def _message(turn: ChatTurn) -> ChatMessage:
    return ChatMessage(turn.role.value, turn.content, reasoning=turn.reasoning, images=tuple(map(ImagePart, turn.images)))


@post("/playground/feedback", status_code=HTTPStatus.NO_CONTENT)
async def rate(page_request: NamedDependency[PageRequest]) -> None:
    """Store a rating in the request log, without the chat."""
    rating = await page_request.read_json(Rating)
    thumb = 1 if rating.rating is Thumb.UP else -1
    await page_request.call(usage_report.give_feedback, usage_report.GiveFeedback(rating.request_id, thumb))


# An answer: it runs with the user's credential. If a gateway fails, another one resumes it (shared/resumable_stream.py).
# Closing the stream early stops the worker.


class AnswerBegan(msgspec.Struct, frozen=True):
    """Tells the page the request id with the first chunk, so that users can rate an answer that they stop."""

    request_id: RequestId


class AnswerUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """The usage of an answer, as the page shows it."""

    request_id: RequestId
    prompt_tokens: int
    completion_tokens: int
    cost: str
    #: None if the answer was too short to measure.
    tokens_per_second: float | None = None
    #: Why the answer ended, where that matters.
    note: str = ""


class AnswerFailed(msgspec.Struct, frozen=True):
    """Why an answer failed, and what to do."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class UserCaller:
    """A caller bound to one user's credential, as ``StreamRequest`` needs it."""

    caller: MeshCalls
    credential: Credential

    async def call(
        self, method: Method[Request, Reply], request: Request, *, to: NodeId | None = None, deadline_seconds: float = 10
    ) -> Reply:
        return await self.caller.call(method, request, to=to, deadline_seconds=deadline_seconds, credential=self.credential)

    def stream(
        self, method: StreamMethod[Request, Item, End], request: Request, *, deadline_seconds: float = 300
    ) -> AbstractAsyncContextManager[StreamAnswer[Item, End]]:
        return self.caller.stream(method, request, deadline_seconds=deadline_seconds, credential=self.credential)


async def answer_events(
    caller: UserCaller, request: InferenceRequest, slot: AbstractContextManager[None], memory: HeldRequest
) -> AsyncGenerator[bytes]:
    """Yield all events of one answer. Errors are events too, so this raises none."""
    wanted = ProcessInferenceRequest(request, idempotency_key=str(uuid4()))
    asking = StreamRequest(caller, random.Random())  # noqa: S311 - spreads load
    try:
        with slot, memory:
            async with asking.ask(wanted, seconds=_ANSWER_SECONDS, lost=lambda *_why: None) as answer:
                async for chunk in answer:
                    # Sent again when another gateway resumes the answer under a new id.
                    if chunk.request_id is not None:
                        yield event("began", AnswerBegan(chunk.request_id))
                    if chunk.waiting:
                        yield event("waiting", {"message": chunk.waiting})
                    if chunk.reasoning:
                        yield event("thought", {"text": chunk.reasoning})
                    if chunk.text:
                        yield event("chunk", {"text": chunk.text})
                yield event("usage", describe_usage(answer.end))
    except errors.AimeshError as error:
        yield event("problem", AnswerFailed(errors.code_of(error), error.message, error.hint))


def describe_usage(result: InferenceResult) -> AnswerUsage:
    return AnswerUsage(
        request_id=result.request_id,
        prompt_tokens=result.usage.prompt_tokens,
        completion_tokens=result.usage.completion_tokens,
        cost=amounts.written(result.cost_micro),
        tokens_per_second=_speed(result),
        note=_note(result),
    )


def _speed(result: InferenceResult) -> float | None:
    seconds = (result.response_time_ms - result.first_token_ms) / 1000
    # The measured time starts with the first token, so it covers one token less.
    made = result.usage.completion_tokens - 1
    return made / seconds if seconds > 0 and made > 0 and not result.cached else None


def _note(result: InferenceResult) -> str:
    if result.cached:
        return "Served from cache."
    if result.finish_reason is FinishReason.CONTENT_FILTER:
        return "Stopped by your policy."
    if result.finish_reason is not FinishReason.LENGTH:
        return ""
    if result.clamped_to is not None:
        return "Stopped: you’re out of credits."
    return "Stopped at the max tokens limit."
