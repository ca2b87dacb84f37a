"""Serve the playground, a chat with a model. Only the page holds the chat; each request carries all of it."""

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import answer_events
from services.web.http.event_response import EventResponse
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import accounts, gateway, usage_report
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage
from shared.types import ModelName, RequestId

#: More than the context of most models can hold.
MOST_MESSAGES = 200
MAX_BODY_BYTES = 256 * 1024
#: Enough to upload a pasted text over a slow connection.
_QUESTION_SECONDS = 60.0


class Speaker(StrEnum):
    USER = "user"
    ASSISTANT = "assistant"


class ChatTurn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Speaker
    content: str


class ChatQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A chat that ends with a user message. The gateway validates the parameters."""

    model: str
    messages: tuple[ChatTurn, ...]
    system: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None


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
    chosen: ModelName | None
    #: The API's URL, for "view as code".
    address: str


@get("/playground")
async def show_playground(page_request: NamedDependency[PageRequest], model: FromQuery[str] = "") -> Page:
    served, account = await asyncio.gather(
        page_request.fetch(gateway.list_models, gateway.ListModels()), page_request.fetch(accounts.get_account, accounts.GetAccount())
    )
    preferred = None if account is None else account.preferences.default_model
    view = PlaygroundPage(
        models=None if served is None else tuple(each.name for each in served.models if not each.only_embeds),
        chosen=None if served is None else choose(served, ModelName(model), preferred),
        address=page_request.address,
    )
    return page_request.page("playground.html", view, here="playground")


def choose(served: gateway.ServedModels, *wanted: ModelName | None) -> ModelName | None:
    """Return the first wanted model that is served, by name or alias, else the mesh default."""
    names = {name: each.name for each in served.models if not each.only_embeds for name in (each.name, *map(ModelName, each.aliases))}
    return next((names[name] for name in wanted if name in names), next(iter(names.values()), None))


@post("/playground/answer", request_max_body_size=MAX_BODY_BYTES)
async def answer(page_request: NamedDependency[PageRequest]) -> EventResponse:
    """Stream an answer. An invalid request gets an error status; later errors are events."""
    request = read_question(await page_request.read_json(ChatQuestion, seconds=_QUESTION_SECONDS))
    caller = answer_events.UserCaller(page_request.app.caller, page_request.person.access_token)
    slot = page_request.app.answers.one_more(str(page_request.person.user.id), answer_events.refusal())
    return EventResponse(lambda: answer_events.events(caller, request, slot))


def read_question(question: ChatQuestion) -> InferenceRequest:
    """Convert a question to a request. Raises BadRequest."""
    if len(question.messages) > MOST_MESSAGES:
        raise errors.BadRequest(f"the chat is longer than {MOST_MESSAGES} messages", hint="start a new chat")
    if not question.messages or question.messages[-1].role is not Speaker.USER:
        raise errors.BadRequest("the chat does not end with a message from you", hint="type a message and send it")
    system = (ChatMessage("system", question.system),) if question.system else ()
    return InferenceRequest(
        messages=(*system, *(ChatMessage(each.role.value, each.content) for each in question.messages)),
        model=ModelName(question.model) if question.model else None,
        temperature=question.temperature,
        max_tokens=question.max_tokens,
        top_p=question.top_p,
        seed=question.seed,
    )


@post("/playground/feedback", status_code=HTTPStatus.NO_CONTENT)
async def rate(page_request: NamedDependency[PageRequest]) -> None:
    """Store a rating in the request log, without the chat."""
    rating = await page_request.read_json(Rating)
    thumb = 1 if rating.rating is Thumb.UP else -1
    await page_request.call(usage_report.give_feedback, usage_report.GiveFeedback(rating.request_id, thumb))


ROUTES = (show_playground, answer, rate)
