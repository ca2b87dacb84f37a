"""The platform's answers as frozen objects, and their readers.  Pure.

Every ``read_…`` raises ProtocolError for a field that is missing or of another type, and ignores unknown fields.
"""

import base64
import binascii
import struct
from dataclasses import asdict, dataclass
from datetime import date, datetime

from aimesh import limits
from aimesh.errors import ProtocolError
from aimesh.json_fields import JsonFields
from aimesh.limits import ShownLimits

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    #: The completion tokens that were spent on thoughts.
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks you to run."""

    #: Goes into ``tool_call_id`` of the message with the result.
    id: str
    name: str
    #: JSON as the model wrote it; check it before you use it.
    arguments: str


@dataclass(frozen=True, slots=True)
class LogProbability:
    """A token of the answer and its log probability."""

    token: str
    logprob: float
    #: The exact content, because a token may be a part of a character.
    bytes: bytes
    #: The likeliest tokens in its place; as many as ``top_logprobs``.
    top: "tuple[LogProbability, ...]" = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer."""

    text: str
    #: The model that answered, with aliases resolved.
    model: str
    usage: Usage
    #: stop, length, cancelled, or tool_calls if the model waits for results.
    finish_reason: str
    #: Find the request under this id in logs and in the ledger.
    request_id: str
    response_time_ms: int
    tool_calls: tuple[ToolCall, ...] = ()
    #: Empty unless ``logprobs`` asked for them.
    logprobs: tuple[LogProbability, ...] = ()
    #: What the model thought before the text; empty if it doesn't think.
    reasoning: str = ""

    @property
    def message(self) -> dict[str, object]:
        """The answer as a message, to put into ``messages`` before the results of its calls."""
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in self.tool_calls
        ]
        thoughts = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return {"role": "assistant", "content": self.text, **thoughts, **({"tool_calls": calls} if calls else {})}


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """A piece of a streamed answer; its calls are complete."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    logprobs: tuple[LogProbability, ...]
    reasoning: str = ""


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
    #: A field of ``KeyLimits`` such as requests_per_hour; a newer platform may know more.
    kind: str
    limit: int
    remaining: int
    #: Until the whole limit is available again.
    resets_in_seconds: float


@dataclass(frozen=True, slots=True)
class Credits:
    """What your account can spend in money. Amounts are exact decimals, in credits."""

    #: What a new request may cost; for an account without a bound, balance - reserved.
    available: str
    #: Prepaid credits; below zero: owed.
    balance: str
    #: Held by running requests.
    reserved: str
    #: How far the balance may fall below zero; None without a bound.
    overage: str | None


@dataclass(frozen=True, slots=True)
class Allowance:
    """The tokens that your plan includes in its present period."""

    #: None: as many as you use.
    included: int | None
    used: int
    #: Held by running requests.
    held: int
    #: The end of the period. Unused tokens are lost.
    renews_at: datetime


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of an API key. Amounts are exact decimals, in credits."""

    limit: str
    spent: str
    #: Held by running requests.
    reserved: str
    available: str
    #: day, week or month: when it is renewed, in UTC; None: never.
    every: str | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """Your quota for this hour, every limit that applies to your requests, and what you can spend."""

    user_id: str
    tier: str
    limit_per_hour: int
    used_this_hour: int
    remaining: int
    resets_in_seconds: float
    limits: tuple[Limit, ...]
    #: None while the ledger is down.
    credits: Credits | None = None
    #: Of the key of this client; None if it has none.
    budget: Budget | None = None
    #: None if the mesh has no plans, or while the ledger is down.
    allowance: Allowance | None = None


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
class ApiKey(ShownLimits):
    """A key without its secret."""

    id: str
    name: str
    preview: str
    created_at: datetime
    #: In credits, exact; None if the key has no budget.
    budget: str | None
    #: day, week or month: when the budget is renewed, in UTC; None: never.
    budget_every: str | None = None


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A new key; ``secret`` is shown only once."""

    secret: str
    key: ApiKey

    def __repr__(self) -> str:
        return f"NewApiKey(secret=…, key={self.key!r})"


def read_answer(found: JsonFields) -> Answer:
    return ended_answer(found, AnswerPiece(found.text("response"), *_parts(found)))


def read_piece(found: JsonFields) -> AnswerPiece:
    return AnswerPiece(found.text("text"), *_parts(found))


def _parts(found: JsonFields) -> tuple[tuple[ToolCall, ...], tuple[LogProbability, ...], str]:
    called = found.children("tool_calls") if found.has("tool_calls") else ()
    drawn = found.children("logprobs") if found.has("logprobs") else ()
    return tuple(map(_read_call, called)), tuple(map(_read_logprob, drawn)), found.maybe_text("reasoning") or ""


def _read_call(found: JsonFields) -> ToolCall:
    function = found.child("function")
    return ToolCall(found.text("id"), function.text("name"), function.text("arguments"))


def _read_logprob(found: JsonFields) -> LogProbability:
    others = found.children("top_logprobs") if found.has("top_logprobs") else ()
    return LogProbability(found.text("token"), found.number("logprob"), found.octets("bytes"), tuple(map(_read_logprob, others)))


def ended_answer(found: JsonFields, content: AnswerPiece) -> Answer:
    """Read the last event of a stream, which has everything but the content."""
    usage = found.child("usage")
    return Answer(
        text=content.text,
        model=found.text("model"),
        usage=Usage(
            usage.integer("prompt_tokens"),
            usage.integer("completion_tokens"),
            usage.integer("total_tokens"),
            usage.maybe_integer("reasoning_tokens") or 0,
        ),
        finish_reason=found.text("finish_reason"),
        request_id=found.text("request_id"),
        response_time_ms=found.integer("response_time_ms"),
        tool_calls=content.tool_calls,
        logprobs=content.logprobs,
        reasoning=content.reasoning,
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
        credits=_read_credits(found.child("credits")) if found.has("credits") else None,
        budget=_read_budget(found.child("budget")) if found.has("budget") else None,
        allowance=_read_allowance(found.child("allowance")) if found.has("allowance") else None,
    )


def _read_credits(found: JsonFields) -> Credits:
    return Credits(
        available=found.text("available"),
        balance=found.text("balance"),
        reserved=found.text("reserved"),
        overage=found.maybe_text("overage"),
    )


def _read_allowance(found: JsonFields) -> Allowance:
    included = found.integer("included") if found.has("included") else None
    return Allowance(included, found.integer("used"), found.integer("held"), found.moment("renews_at"))


def _read_budget(found: JsonFields) -> Budget:
    return Budget(found.text("limit"), found.text("spent"), found.text("reserved"), found.text("available"), found.maybe_text("every"))


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
        **asdict(limits.read(key)),
        budget=key.maybe_text("budget"),
        budget_every=key.maybe_text("budget_every"),
    )
    return NewApiKey(found.text("api_key"), shown)


def _vector(text: str) -> tuple[float, ...]:
    """Decode base64 of little-endian 32-bit floats: a third of the size of decimals, and exact."""
    try:
        packed = base64.b64decode(text, validate=True)
        return struct.unpack(f"<{len(packed) // _FLOAT_BYTES}f", packed)
    except (binascii.Error, struct.error, ValueError) as error:
        raise ProtocolError("a vector is not base64 of 32-bit floats") from error
