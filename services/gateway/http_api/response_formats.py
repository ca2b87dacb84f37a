"""Defines how an API formats an answer, the headers about limits, and OpenAI's error object. Pure."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.facts.tightest_limit import TightestLimit
from services.gateway.http_api import service_tiers
from shared.api.gateway import InferenceResult, Rest
from shared.api.generation import ToolCall, ToolCallPart
from shared.api.inference import Chunk, TokenLogprob
from shared.types import FinishReason, ModelName, RequestId

Headers = list[tuple[bytes, bytes]]


class ErrorDetails(msgspec.Struct, frozen=True):
    """What Anthropic's clients act on."""

    error_code: str
    unsupported: tuple[str, ...]


class ErrorObject(msgspec.Struct, frozen=True):
    message: str
    type: str
    #: Stable: match on it. On /v1 it is OpenAI's code, where OpenAI has one.
    code: str
    #: The invalid field, if there is one.
    param: str | None
    #: What to do next; may be empty.
    hint: str
    request_id: RequestId
    #: This project's own code; only on /v1. Elsewhere, ``code`` is.
    aimesh_code: str | msgspec.UnsetType = msgspec.UNSET
    details: ErrorDetails | msgspec.UnsetType = msgspec.UNSET


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorObject


class AnthropicErrorBody(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    #: Its ``type`` is Anthropic's.
    error: ErrorObject
    request_id: RequestId


class AnswerFacts(msgspec.Struct, frozen=True):
    """Facts included in every answer."""

    request_id: RequestId
    model: ModelName
    #: Seconds since 1970.
    created: int
    #: Changes if the same seed may give another answer.
    fingerprint: str = ""
    service_tier: str = service_tiers.DEFAULT

    @property
    def flex(self) -> str | msgspec.UnsetType:
        """Return the tier for answers that only name it if it is not the default."""
        return msgspec.UNSET if self.service_tier == service_tiers.DEFAULT else self.service_tier


class ServerSentEvent(msgspec.Struct, frozen=True):
    content: msgspec.Struct | bytes
    #: For the `event:` line; empty for none.
    name: str = ""


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class AnswerToolCall(msgspec.Struct, frozen=True):
    id: str
    function: CalledFunction
    type: str = "function"

    @classmethod
    def of(cls, call: ToolCall) -> "AnswerToolCall":
        return cls(call.id, CalledFunction(call.name, call.arguments))


class FunctionDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    #: Only in a call's first part.
    name: str | None = None
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The next part of a call."""

    #: Position of the call in its answer.
    index: int
    #: These two are only in a call's first part.
    id: str | None = None
    type: str | None = None
    function: FunctionDelta

    @classmethod
    def of(cls, part: ToolCallPart) -> "ToolCallDelta":
        function = FunctionDelta(name=part.name or None, arguments=part.arguments)
        return cls(index=part.index, id=part.id or None, type="function" if part.name else None, function=function)


class Alternative(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    #: As bytes, because a token may be part of a character.
    bytes: tuple[int, ...]


class TokenChoice(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[Alternative, ...]


DONE = ServerSentEvent(b"[DONE]")

_encode = msgspec.json.Encoder().encode


def json_of(event: ServerSentEvent) -> bytes:
    return event.content if isinstance(event.content, bytes) else _encode(event.content)


class EventStream:
    """How a stream writes its events: as server-sent events, with comments that clients ignore."""

    media_type = b"text/event-stream; charset=utf-8"

    def write(self, event: ServerSentEvent, event_id: str | None) -> bytes:
        name = b"event: " + event.name.encode() + b"\n" if event.name else b""
        identity = b"id: " + event_id.encode() + b"\n" if event_id is not None else b""
        return b"%b%bdata: %b\n\n" % (name, identity, json_of(event))

    def write_comment(self, text: str) -> bytes:
        return b": " + " ".join(text.split()).encode() + b"\n\n"


SERVER_SENT_EVENTS = EventStream()


class AnswerFormat(ABC):
    """Formats one answer. The same chunks always give the same events, so that a reader can resume."""

    #: Set by ``begin``.
    about: AnswerFacts
    has_begun = False
    stream: EventStream = SERVER_SENT_EVENTS

    def begin(self, about: AnswerFacts) -> None:
        """Start, before the first chunk."""
        self.about, self.has_begun = about, True

    def gather(self, chunk: Chunk) -> None:
        """Add a chunk to a whole answer."""
        self.events(chunk)

    @abstractmethod
    def events(self, chunk: Chunk) -> Sequence[ServerSentEvent]:
        """Add a chunk, and return its events."""

    @abstractmethod
    def last_events(self, result: InferenceResult) -> Sequence[ServerSentEvent]:
        """Return the end of a stream."""

    def failed(self, error: ErrorBody) -> Sequence[ServerSentEvent]:
        """Return the end of a failed stream; ``begin`` may not have been called."""
        return (ServerSentEvent(error),)

    @abstractmethod
    def whole(self, result: InferenceResult) -> msgspec.Struct:
        """Return the whole answer."""


def logprobs_of(drawn: Sequence[TokenLogprob]) -> tuple[TokenChoice, ...]:
    return tuple(
        TokenChoice(
            piece_text(token.drawn.piece),
            token.drawn.logprob,
            tuple(token.drawn.piece),
            tuple(Alternative(piece_text(other.piece), other.logprob, tuple(other.piece)) for other in token.top),
        )
        for token in drawn
    )


def piece_text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def reasons(result: InferenceResult, answers: int) -> tuple[FinishReason, ...]:
    """Return one reason for each requested answer, however many the worker reports."""
    found = result.finish_reasons or (result.finish_reason,)
    return tuple(found[index] if index < len(found) else found[0] for index in range(answers))


def allowance_headers(tightest: TightestLimit) -> Headers:
    """Return the remaining limits under OpenAI's names; empty if there is no limit."""
    found: Headers = []
    for what, allowance in ((b"requests", tightest.requests), (b"tokens", tightest.tokens)):
        if allowance is not None:
            found += [
                (b"x-ratelimit-limit-" + what, b"%d" % allowance.limit),
                (b"x-ratelimit-remaining-" + what, b"%d" % allowance.remaining),
                (b"x-ratelimit-reset-" + what, duration(allowance.resets_in_seconds).encode()),
            ]
    return found


def duration(seconds: float) -> str:
    """Format a duration as OpenAI does: 1h2m3s, 6m0s, 1.5s, 120ms."""
    milliseconds = math.ceil(seconds * 1000 - 0.001)
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if minutes or hours:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


#: Event ids name the request and the chunk number. A client that lost its stream sends the last one as `Last-Event-ID`.
_EVENT_ID = re.compile(r"(?P<request>[0-9a-f]{32})-(?P<number>[0-9]{1,9})\Z")


def event_id_start(request_id: RequestId) -> str:
    """Return what the number of a chunk follows in an event id."""
    return f"{request_id.hex}-"


def read_event_id(event_id: str) -> Rest:
    """Return what is left of the answer after this event. Raises BadRequest for another id."""
    found = _EVENT_ID.match(event_id)
    if found is None:
        raise BadField("Last-Event-ID", "is not an event id of this gateway; send it unchanged, or omit it")
    return Rest(int(found["number"]))
