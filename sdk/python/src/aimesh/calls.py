"""The table of what can be asked: for each call its route, its body, and how its answer is read.  Pure."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypedDict, TypeVar

from aimesh import answers
from aimesh.answers import Answer, Embeddings, Model, NewApiKey, Quota, Session, UsageReport, User
from aimesh.errors import BadRequest
from aimesh.json_fields import JsonFields

T = TypeVar("T")


class Message(TypedDict):
    """One message of a chat."""

    #: system, user or assistant.
    role: str
    content: str


class Options(TypedDict, total=False):
    """How a model shall answer; what is left out is the platform's to choose."""

    #: A name of ``models()`` or an alias. Default: the platform's default model.
    model: str | None
    #: What the model should be and do; goes with a prompt.
    system: str | None
    #: A chat, in place of a prompt.
    messages: Sequence[Message] | None
    #: The most tokens of the answer.
    max_tokens: int | None
    #: 0 takes the likeliest token each time; more, up to 2, is more varied.
    temperature: float | None
    #: Choose among the likeliest tokens that together have this probability.
    top_p: float | None
    #: Choose among so many likeliest tokens; 0 means all.
    top_k: int | None
    #: End before this text, or before the first of several.
    stop: str | Sequence[str] | None
    #: The same seed gives the same answer.
    seed: int | None


class KeyLimits(TypedDict, total=False):
    """Limits of a key's own, tighter than the account's."""

    requests_per_hour: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    #: Requests that run at once.
    concurrency: int | None
    #: What all requests of the key may cost, in credits; as a text where it has more than 15 digits.
    budget: str | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiCall(Generic[T]):
    """One row of the table, with what this very call sends."""

    verb: str
    path: str
    read: Callable[[JsonFields], T]
    #: Of JSON; None for none.
    body: bytes | None = None
    #: Goes with an idempotency key, so that asking again costs nothing twice.
    under_a_key: bool = False
    #: Goes on for a while when its caller has left, so leaving early has to be said.
    goes_on: bool = False
    #: Asking again does no harm.
    repeatable: bool = True
    needs_credential: bool = True


def inference(prompt: str | None, options: Options, *, stream: bool = False) -> ApiCall[Answer]:
    body = {"prompt": prompt, **options, "stream": stream or None}
    return ApiCall(
        verb="POST", path="/api/inference", read=answers.read_answer, body=_json(body), under_a_key=True, goes_on=True
    )  # fmt: skip


def cancel() -> ApiCall[None]:
    """Nobody wants the rest of what was asked under the key that this goes with."""
    return ApiCall(verb="DELETE", path="/api/inference", read=lambda _: None, under_a_key=True)


def embed(texts: str | Sequence[str], model: str | None, dimensions: int | None) -> ApiCall[Embeddings]:
    inputs = [texts] if isinstance(texts, str) else list(texts)
    body = _json({"input": inputs, "model": model, "dimensions": dimensions, "encoding_format": "base64"})
    read = partial(answers.read_embeddings, count=len(inputs))
    return ApiCall(verb="POST", path="/v1/embeddings", read=read, body=body, under_a_key=True, goes_on=True)


def models() -> ApiCall[tuple[Model, ...]]:
    return ApiCall(verb="GET", path="/v1/models", read=answers.read_models)


def usage() -> ApiCall[UsageReport]:
    return ApiCall(verb="GET", path="/api/usage", read=answers.read_usage)


def quota() -> ApiCall[Quota]:
    return ApiCall(verb="GET", path="/api/quota", read=answers.read_quota)


def register(username: str, email: str, password: str) -> ApiCall[User]:
    body = _json({"username": username, "email": email, "password": password})
    return ApiCall(
        verb="POST", path="/api/auth/register", read=answers.read_user, body=body, repeatable=False, needs_credential=False
    )  # fmt: skip


def login(username: str, password: str, code: str | None = None) -> ApiCall[Session]:
    """By the name, or by the mail address."""
    name = "email" if "@" in username else "username"
    body = _json({name: username, "password": password, "code": code})
    return ApiCall(verb="POST", path="/api/auth/login", read=answers.read_session, body=body, repeatable=False, needs_credential=False)


def renew(session_token: str) -> ApiCall[Session]:
    """Asked again within ten seconds it is answered the same, should the answer be lost."""
    body = _json({"session_token": session_token})
    return ApiCall(verb="POST", path="/api/auth/refresh", read=answers.read_session, body=body, needs_credential=False)


def create_key(name: str, limits: KeyLimits) -> ApiCall[NewApiKey]:
    body = _json({"name": name, **limits})
    return ApiCall(verb="POST", path="/api/auth/api-keys", read=answers.read_new_key, body=body, repeatable=False)


def _json(body: Mapping[str, object]) -> bytes:
    """Without what is None. Raises BadRequest for what JSON has no words for: NaN, half of a character, a set."""
    sent = {name: value for name, value in body.items() if value is not None}
    try:
        return json.dumps(sent, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_list).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(f"this cannot be sent as JSON: {error}", hint="see the types of the parameters") from error


def _as_list(value: object) -> object:
    """Any sequence will do where a list is meant."""
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is no value of JSON")
