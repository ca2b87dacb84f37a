"""The API calls: route, body and reader of each.  Pure."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NotRequired, TypedDict, TypeVar

from aimesh import answers
from aimesh.answers import Answer, Embeddings, Model, NewApiKey, Quota, Session, UsageReport, User
from aimesh.errors import BadRequest
from aimesh.json_fields import JsonFields
from aimesh.limits import NewKeyLimits

T = TypeVar("T")


#: In the form of OpenAI's chat API.
JsonObject = Mapping[str, object]


class Message(TypedDict):
    """One message of a chat, in the form of OpenAI's chat API. ``Answer.message`` is one."""

    #: system, user, assistant or tool.
    role: str
    content: NotRequired[str | None]
    #: What the model thought before an earlier answer.
    reasoning_content: NotRequired[str | None]
    #: The calls of an earlier answer.
    tool_calls: NotRequired[Sequence[JsonObject]]
    #: In a message with the result of a call: the call's id.
    tool_call_id: NotRequired[str]


class Options(TypedDict, total=False):
    """How the model answers. The platform chooses what you leave out."""

    #: A name from ``models()`` or an alias. Default: the platform's default model.
    model: str | None
    #: A system prompt; goes with ``prompt``.
    system: str | None
    #: A chat, instead of a prompt.
    messages: Sequence[Message | JsonObject] | None
    #: The maximum length of the answer, in tokens.
    max_tokens: int | None
    #: From 0 (always the likeliest token) to 2 (most varied).
    temperature: float | None
    #: Sample from the likeliest tokens that together have this probability.
    top_p: float | None
    #: Sample from this many of the likeliest tokens; 0 means all.
    top_k: int | None
    #: Stop before this text, or before the first of several.
    stop: str | Sequence[str] | None
    #: The same seed gives the same answer.
    seed: int | None
    #: Functions that the model may ask you to call: {"type": "function", "function": {"name", "description", "parameters"}}.
    tools: Sequence[JsonObject] | None
    #: auto, none, required, or {"type": "function", "function": {"name"}}.
    tool_choice: str | JsonObject | None
    #: {"type": "json_object"}, or {"type": "json_schema", "json_schema": {"name", "schema"}}.
    response_format: JsonObject | None
    #: Return the log probability of each token.
    logprobs: bool | None
    #: With ``logprobs``: also return this many likely tokens in the place of each.
    top_logprobs: int | None
    #: False: an answer has at most one call.
    parallel_tool_calls: bool | None
    #: How long a model that can think does so: none, minimal, low, medium, high or xhigh.
    reasoning_effort: str | None
    #: Further variables of the model's chat template, at most 4 KiB.
    chat_template_kwargs: JsonObject | None


class KeyLimits(NewKeyLimits, total=False):
    """Limits of one key, tighter than the account's."""

    #: What all requests of the key may cost, in credits; a string if it has more than 15 digits.
    budget: str | float | None
    #: day, week or month: when the budget is renewed, in UTC; by default never.
    budget_every: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiCall(Generic[T]):
    """One call, with its arguments."""

    verb: str
    path: str
    read: Callable[[JsonFields], T]
    #: JSON; None for no body.
    body: bytes | None = None
    #: Sent with an idempotency key, so that a retry is never billed twice.
    has_idempotency_key: bool = False
    #: The gateway keeps running it for a while after a disconnect, so leaving early needs a cancellation.
    survives_disconnect: bool = False
    #: Sending it again is harmless.
    repeatable: bool = True
    needs_credential: bool = True


def inference(prompt: str | None, options: Options, *, stream: bool = False) -> ApiCall[Answer]:
    body = {"prompt": prompt, **options, "stream": stream or None}
    return ApiCall(
        verb="POST", path="/api/inference", read=answers.read_answer, body=_json(body), has_idempotency_key=True, survives_disconnect=True
    )


def cancel() -> ApiCall[None]:
    """Cancel the request with the same idempotency key."""
    return ApiCall(verb="DELETE", path="/api/inference", read=lambda _: None, has_idempotency_key=True)


def embed(texts: str | Sequence[str], model: str | None, dimensions: int | None) -> ApiCall[Embeddings]:
    inputs = [texts] if isinstance(texts, str) else list(texts)
    body = _json({"input": inputs, "model": model, "dimensions": dimensions, "encoding_format": "base64"})
    read = partial(answers.read_embeddings, count=len(inputs))
    return ApiCall(verb="POST", path="/v1/embeddings", read=read, body=body, has_idempotency_key=True, survives_disconnect=True)


def models() -> ApiCall[tuple[Model, ...]]:
    return ApiCall(verb="GET", path="/v1/models", read=answers.read_models)


def usage() -> ApiCall[UsageReport]:
    return ApiCall(verb="GET", path="/api/usage", read=answers.read_usage)


def quota() -> ApiCall[Quota]:
    return ApiCall(verb="GET", path="/api/quota", read=answers.read_quota)


def register(username: str, email: str, password: str) -> ApiCall[User]:
    body = _json({"username": username, "email": email, "password": password})
    return ApiCall(verb="POST", path="/api/auth/register", read=answers.read_user, body=body, repeatable=False, needs_credential=False)


def login(username: str, password: str, code: str | None = None) -> ApiCall[Session]:
    """Log in by username or email address."""
    name = "email" if "@" in username else "username"
    body = _json({name: username, "password": password, "code": code})
    return ApiCall(verb="POST", path="/api/auth/login", read=answers.read_session, body=body, repeatable=False, needs_credential=False)


def renew(session_token: str) -> ApiCall[Session]:
    """Renew a session. The gateway repeats its answer for ten seconds, in case it was lost."""
    body = _json({"session_token": session_token})
    return ApiCall(verb="POST", path="/api/auth/refresh", read=answers.read_session, body=body, needs_credential=False)


def create_key(name: str, limits: KeyLimits) -> ApiCall[NewApiKey]:
    body = _json({"name": name, **limits})
    return ApiCall(verb="POST", path="/api/auth/api-keys", read=answers.read_new_key, body=body, repeatable=False)


def _json(body: Mapping[str, object]) -> bytes:
    """Leave out None. Raises BadRequest for what JSON cannot express: NaN, half of a character, a set."""
    sent = {name: value for name, value in body.items() if value is not None}
    try:
        return json.dumps(sent, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_list).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(f"this cannot be sent as JSON: {error}", hint="see the types of the parameters") from error


def _as_list(value: object) -> object:
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is not a JSON value")
