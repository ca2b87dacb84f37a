"""The platform's answers as frozen objects, and their readers.  Pure.

Every ``read_…`` raises ProtocolError for a field that is missing or of another type, and ignores unknown fields.
"""

import base64
import binascii
import struct
from dataclasses import dataclass
from datetime import date, datetime

from aimesh.errors import ProtocolError
from aimesh.json_fields import JsonFields

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer."""

    text: str
    #: The model that answered, with aliases resolved.
    model: str
    usage: Usage
    #: stop, length or cancelled.
    finish_reason: str
    #: Find the request under this id in logs and in the ledger.
    request_id: str
    response_time_ms: int


@dataclass(frozen=True, slots=True)
class Model:
    """An available model."""

    name: str
    #: Works with ``embed`` only.
    only_embeds: bool


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A vector for each text, in the order of the texts."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class UsageDay:
    date: date
    #: None for requests that used a login.
    api_key_id: str | None
    request_count: int
    tokens_used: int


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Your usage; the newest day first, at most a year."""

    user_id: str
    request_count: int
    tokens_used: int
    days: tuple[UsageDay, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit and what is left of it."""

    #: user, key or model.
    scope: str
    #: requests_per_hour, requests_per_minute, tokens_per_minute or concurrency.
    kind: str
    limit: int
    remaining: int
    #: Until the whole limit is available again.
    resets_in_seconds: float


@dataclass(frozen=True, slots=True)
class Quota:
    """Your quota for this hour, and every limit that applies to your requests."""

    user_id: str
    tier: str
    limit_per_hour: int
    used_this_hour: int
    remaining: int
    resets_in_seconds: float
    limits: tuple[Limit, ...]


@dataclass(frozen=True, slots=True)
class User:
    id: str
    username: str
    email: str
    role: str
    tier: str


@dataclass(frozen=True, slots=True)
class Session:
    """A login. A client that gets it acts for the user and renews the access token."""

    #: Works like an API key until it expires.
    access_token: str
    expires_in_seconds: int
    user: User
    #: Buys a new access token and a new session token, once.
    session_token: str

    def __repr__(self) -> str:
        return f"Session(access_token=…, session_token=…, expires_in_seconds={self.expires_in_seconds}, user={self.user!r})"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret."""

    id: str
    name: str
    preview: str
    created_at: datetime
    requests_per_hour: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    #: In credits, exact; None if the key has no budget.
    budget: str | None


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A new key; ``secret`` is shown only once."""

    secret: str
    key: ApiKey

    def __repr__(self) -> str:
        return f"NewApiKey(secret=…, key={self.key!r})"


# --- readers -----------------------------------------------------------------------------------------------------------


def read_answer(found: JsonFields) -> Answer:
    return ended_answer(found, found.text("response"))


def ended_answer(found: JsonFields, text: str) -> Answer:
    """Read the last event of a stream, which has everything but the text."""
    usage = found.child("usage")
    return Answer(
        text=text,
        model=found.text("model"),
        usage=Usage(usage.integer("prompt_tokens"), usage.integer("completion_tokens"), usage.integer("total_tokens")),
        finish_reason=found.text("finish_reason"),
        request_id=found.text("request_id"),
        response_time_ms=found.integer("response_time_ms"),
    )


def read_models(found: JsonFields) -> tuple[Model, ...]:
    return tuple(Model(one.text("id"), one.flag("only_embeds")) for one in found.children("data"))


def read_embeddings(found: JsonFields, count: int) -> Embeddings:
    vectors = {one.integer("index"): _vector(one.text("embedding")) for one in found.children("data")}
    if set(vectors) != set(range(count)):
        raise ProtocolError(f"{count} texts were sent, but the answer has vectors for {len(vectors)}")
    in_order = tuple(vectors[index] for index in range(count))
    return Embeddings(in_order, found.text("model"), found.child("usage").integer("prompt_tokens"))


def read_usage(found: JsonFields) -> UsageReport:
    days = tuple(
        UsageDay(one.day("date"), one.maybe_text("api_key_id"), one.integer("request_count"), one.integer("tokens_used"))
        for one in found.children("days")
    )
    return UsageReport(found.text("user_id"), found.integer("request_count"), found.integer("tokens_used"), days)


def read_quota(found: JsonFields) -> Quota:
    limits = tuple(
        Limit(one.text("scope"), one.text("kind"), one.integer("limit"), one.integer("remaining"), one.number("resets_in_seconds"))
        for one in (found.children("limits") if found.has("limits") else ())
    )
    return Quota(
        user_id=found.text("user_id"),
        tier=found.text("tier"),
        limit_per_hour=found.integer("limit_per_hour"),
        used_this_hour=found.integer("used_this_hour"),
        remaining=found.integer("remaining"),
        resets_in_seconds=found.number("resets_in_seconds"),
        limits=limits,
    )


def read_user(found: JsonFields) -> User:
    return User(found.text("id"), found.text("username"), found.text("email"), found.text("role"), found.text("tier"))


def read_session(found: JsonFields) -> Session:
    return Session(found.text("access_token"), found.integer("expires_in"), read_user(found.child("user")), found.text("session_token"))


def read_new_key(found: JsonFields) -> NewApiKey:
    key = found.child("key")
    shown = ApiKey(
        id=key.text("id"),
        name=key.text("name"),
        preview=key.text("preview"),
        created_at=key.moment("created_at"),
        requests_per_hour=key.maybe_integer("requests_per_hour"),
        requests_per_minute=key.maybe_integer("requests_per_minute"),
        tokens_per_minute=key.maybe_integer("tokens_per_minute"),
        concurrency=key.maybe_integer("concurrency"),
        budget=key.maybe_text("budget"),
    )
    return NewApiKey(found.text("api_key"), shown)


def _vector(text: str) -> tuple[float, ...]:
    """Decode base64 of little-endian 32-bit floats: a third of the size of decimals, and exact."""
    try:
        packed = base64.b64decode(text, validate=True)
        return struct.unpack(f"<{len(packed) // _FLOAT_BYTES}f", packed)
    except (binascii.Error, struct.error, ValueError) as error:
        raise ProtocolError("a vector is not base64 of 32-bit floats") from error
