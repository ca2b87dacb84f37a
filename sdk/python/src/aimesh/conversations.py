"""Run one call from its first attempt to its result: requests, retries, resumption.  Pure, apart from the clock that it is given.

A conversation yields one action after another and gets a reply to each. A wire performs the actions and makes no decisions.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from aimesh import answers, calls, errors, retry_policy
from aimesh.actions import Action, AnswerHead, EmitPiece, OpenRequest, PauseAction, Read, Renew, Reply, Steps, WireLost
from aimesh.answers import Answer, AnswerPiece, ToolCall
from aimesh.calls import ApiCall
from aimesh.errors import AimeshError, AnswerBroken, BadRequest, ConnectionFailed, DeadlineExceeded, ProtocolError
from aimesh.event_stream import SseEvent, SseParser
from aimesh.json_fields import JsonFields
from aimesh.logins import Bearer, SessionLogin
from aimesh.retry_policy import FailedAttempt, RetryRules
from aimesh.version import __version__

T = TypeVar("T")

#: Holds the vectors of the largest request that the gateway accepts.
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
#: The gateway sends something every 15 s, so three times as long means that the connection is dead.
STREAM_SILENCE_SECONDS = 45.0
#: The user pressed Ctrl-C and waits; a reachable gateway answers within milliseconds.
CANCEL_SECONDS = 1.0
#: For the bytes after the last event, which arrive with it.
REST_SECONDS = 0.5
#: The gateway keeps an answer for at most a day.
MAX_SECONDS = 86_400
#: Clocks and timers differ by this much.
_SLACK_SECONDS = 0.05

#: The gateway's event ids: the answer, and the number of the piece.
_EVENT_ID = re.compile(r"[0-9a-f]{32}-(?P<number>[0-9]{1,9})\Z")
_IDEMPOTENCY_KEY = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")
_DONE = b"[DONE]"
_NO_CONTENT = AnswerPiece("", (), ())
#: After these errors the gateway may still be working on the answer.
_MAY_STILL_RUN = frozenset({"connection_failed", "deadline_exceeded", "in_progress", "link_lost", "protocol_error", "unavailable"})
_WRONG_SERVER = "is base_url the address of aimesh?"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientContext:
    """What all calls of one client share."""

    base_url: str
    #: Kept out of the repr, which ends up in logs.
    api_key: str | None = field(repr=False)
    retry_rules: RetryRules
    clock: Callable[[], float]
    #: Returns a number from 0 to 1.
    draw: Callable[[], float]
    make_key: Callable[[], str]
    #: Used instead of the API key.
    login: SessionLogin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTerms:
    """The options of one call. Raises BadRequest for invalid ones."""

    #: For the whole call, pauses and retries included.
    seconds: float
    #: The caller's own; None generates one if the call needs one.
    idempotency_key: str | None = None
    #: Resume a broken stream. If False, no idempotency key is generated.
    resume: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= MAX_SECONDS:
            raise BadRequest(f"timeout must be above 0 and at most {MAX_SECONDS} s, not {self.seconds}")
        key = self.idempotency_key
        if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
            raise BadRequest("idempotency_key must have 1 to 255 printable ASCII characters, and no space at its ends")


class Conversation(Generic[T]):
    """One call. ``reply(None)`` begins it; call ``reply`` or ``fail`` for each action until one returns None; then read ``result``."""

    def __init__(self, steps: Steps[T], progress: "StreamProgress") -> None:
        self._steps = steps
        self._progress = progress
        self._result: list[T] = []

    def reply(self, reply: Reply) -> Action | None:
        return self._advance(lambda: self._steps.send(reply))

    def fail(self, fault: WireLost | AimeshError) -> Action | None:
        return self._advance(lambda: self._steps.throw(fault))

    @property
    def result(self) -> T:
        if not self._result:
            raise RuntimeError("the answer is not complete yet")
        return self._result[0]

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(piece.text for piece in self._progress.pieces)

    @property
    def reasoning(self) -> str:
        """The thoughts so far."""
        return "".join(piece.reasoning for piece in self._progress.pieces)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls so far."""
        return tuple(call for piece in self._progress.pieces for call in piece.tool_calls)

    def take_cancellation(self) -> "Conversation[None] | None":
        """Return the call that cancels the request, if the gateway would keep running it; None the second time."""
        cancellation, self._progress.cancellation = self._progress.cancellation, None
        return cancellation

    def _advance(self, step: Callable[[], Action]) -> Action | None:
        try:
            return step()
        except StopIteration as end:
            self._result.append(end.value)
            return None


@dataclass(slots=True)
class StreamProgress:
    """The progress of one call."""

    #: Set when the call begins.
    until: float = math.inf
    #: In a row.
    failures: int = 0
    pieces: list[AnswerPiece] = field(default_factory=list)
    last_event_id: str = ""
    #: Set while the gateway would keep running the request without us.
    cancellation: Conversation[None] | None = None
    _bytes: int = 0

    def is_new(self, event: SseEvent) -> bool:
        """Remember the event's id. Return False if the gateway repeats an event instead of resuming after it."""
        before, now = (_EVENT_ID.match(event_id) for event_id in (self.last_event_id, event.id))
        if before is not None and now is not None and int(now["number"]) <= int(before["number"]):
            return False
        self.last_event_id = event.id or self.last_event_id
        return True

    def add(self, piece: AnswerPiece, size: int) -> None:
        """Add a piece of ``size`` bytes. Raises ProtocolError if the answer becomes longer than any."""
        self.failures = 0
        self.pieces.append(piece)
        self._bytes += size
        if self._bytes > MAX_ANSWER_BYTES:
            raise _too_long(MAX_ANSWER_BYTES)


def whole(call: ApiCall[T], context: ClientContext, terms: CallTerms) -> Conversation[T]:
    """Begin a call whose answer arrives in one piece."""
    progress = StreamProgress()
    exchange = _Exchange(call, context, terms, progress)
    return Conversation(_whole(exchange, call), progress)


def streamed(call: ApiCall[Answer], context: ClientContext, terms: CallTerms) -> Conversation[Answer]:
    """Begin a call whose answer arrives in pieces, each with an ``EmitPiece``."""
    progress = StreamProgress()
    exchange = _Exchange(call, context, terms, progress)
    return Conversation(_streamed(exchange), progress)


class _Exchange(Generic[T]):
    """Builds the requests of one call and judges their failures."""

    def __init__(self, call: ApiCall[T], context: ClientContext, terms: CallTerms, progress: StreamProgress) -> None:
        self._call = call
        self._context = context
        self.progress = progress
        is_keyed = call.has_idempotency_key and (terms.resume or terms.idempotency_key is not None)
        self._key = (terms.idempotency_key or context.make_key()) if is_keyed else None
        self._repeatable = call.repeatable and (is_keyed or not call.has_idempotency_key)
        #: With a key of their own, callers can come back for the answer, so leaving does not cancel it.
        self._is_canceled_on_exit = call.survives_disconnect and is_keyed and terms.idempotency_key is None
        self._seconds = terms.seconds
        self._bearer = Bearer(context.api_key, context.login, is_needed=call.needs_credential)

    def begin(self) -> None:
        self.progress.until = self._context.clock() + self._seconds

    def left(self) -> float:
        """Return the seconds left. Raises DeadlineExceeded if there are none."""
        left = self.progress.until - self._context.clock()
        if left <= _SLACK_SECONDS:
            raise self._too_late()
        return left

    def open(self, accept: str, *, silence_seconds: float, is_stream: bool = False) -> OpenRequest:
        credential = self._bearer.next_credential()
        left = self.left()
        if self._is_canceled_on_exit and self._key is not None:
            self.progress.cancellation = _cancel_call(self._key, self._context)
        return OpenRequest(
            verb=self._call.verb,
            path=self._call.path,
            headers=self._headers(accept, credential),
            body=self._call.body,
            silence_seconds=min(silence_seconds, left),
            seconds=left,
            is_stream=is_stream,
        )

    def mark_ended(self) -> None:
        """The gateway has ended the request, so there is nothing to cancel."""
        self.progress.cancellation = None

    def renew_credential(self, problem: AimeshError | WireLost) -> Steps[bool]:
        """Return whether to send the request again with another access token. Raises SessionEnded and errors of the renewal."""
        spent = self._bearer.find_spent(problem)
        if spent is None:
            self._bearer.explain(problem)
            return False
        self.mark_ended()
        yield Renew(spent, self.left())
        return True

    def judge(self, problem: AimeshError | WireLost) -> PauseAction:
        """Return the pause before the next attempt; raise the error if it is final."""
        error = self._connection_error(problem) if isinstance(problem, WireLost) else problem
        if error.code not in _MAY_STILL_RUN:
            self.mark_ended()
        self.progress.failures += 1
        left = self.progress.until - self._context.clock()
        # Text without an event id cannot be resumed, and a retry would repeat it.
        repeatable = self._repeatable and (not self.progress.pieces or bool(self.progress.last_event_id))
        attempt = FailedAttempt(failures=self.progress.failures, left_seconds=left, repeatable=repeatable)
        pause = retry_policy.find_pause(error, attempt, self._context.retry_rules, self._context.draw())
        if pause is not None:
            return PauseAction(pause)
        if isinstance(problem, WireLost):
            raise error from problem
        raise error

    def _headers(self, accept: str, credential: str | None) -> Mapping[str, str]:
        headers = {"accept": accept, "accept-encoding": "identity", "user-agent": f"aimesh-client/{__version__}"}
        if credential is not None:
            headers["authorization"] = f"Bearer {credential}"
        if self._call.body is not None:
            headers["content-type"] = "application/json"
        if self._key is not None:
            headers["idempotency-key"] = self._key
            if self.progress.last_event_id:
                headers["last-event-id"] = self.progress.last_event_id
        return headers

    def _connection_error(self, lost: WireLost) -> AimeshError:
        if self.progress.until - self._context.clock() <= _SLACK_SECONDS:
            return self._too_late()
        hint = f"is {self._context.base_url} the right address, and is the platform running?"
        return ConnectionFailed(f"the connection failed: {lost.why}", hint=hint, may_have_arrived=lost.may_have_arrived)

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"there was no answer within {self._seconds:g} s", hint="ask for fewer tokens, or set a longer timeout")


def _whole(exchange: _Exchange[T], call: ApiCall[T]) -> Steps[T]:
    exchange.begin()
    while True:
        problem: AimeshError | WireLost
        try:
            content = yield from _content(exchange)
        except (AimeshError, WireLost) as error:
            problem = error
        else:
            exchange.mark_ended()
            return call.read(JsonFields.parse(content, "the answer"))
        if not (yield from exchange.renew_credential(problem)):
            yield exchange.judge(problem)


def _content(exchange: _Exchange[T]) -> Steps[bytes]:
    head = yield from _head(exchange.open("application/json", silence_seconds=exchange.left()))
    is_success = head.status in {200, 201}
    content = yield from _body(exchange, MAX_ANSWER_BYTES if is_success else MAX_ERROR_BYTES)
    if not is_success:
        raise errors.from_response(head.status, head.headers, content)
    return content


def _head(request: OpenRequest) -> Steps[AnswerHead]:
    head = yield request
    assert isinstance(head, AnswerHead)  # the reply to OpenRequest
    return head


def _body(exchange: _Exchange[T], max_bytes: int) -> Steps[bytes]:
    content = bytearray()
    while piece := (yield from _piece(exchange)):
        content += piece
        if len(content) > max_bytes:
            raise _too_long(max_bytes)
    return bytes(content)


def _too_long(max_bytes: int) -> ProtocolError:
    return ProtocolError(f"the answer has more than {max_bytes} bytes", hint=_WRONG_SERVER)


def _piece(exchange: _Exchange[T], max_seconds: float = math.inf) -> Steps[bytes]:
    piece = yield Read(min(exchange.left(), max_seconds))
    assert isinstance(piece, bytes)  # the reply to Read
    return piece


def _cancel_call(idempotency_key: str, context: ClientContext) -> Conversation[None]:
    without_retries = replace(context, retry_rules=RetryRules(max_retries=0))
    return whole(calls.cancel(), without_retries, CallTerms(seconds=CANCEL_SECONDS, idempotency_key=idempotency_key))


def _streamed(exchange: _Exchange[Answer]) -> Steps[Answer]:
    exchange.begin()
    while True:
        problem: AimeshError | WireLost
        try:
            return (yield from _events(exchange))
        except (AimeshError, WireLost) as error:
            problem = error
        try:
            if not (yield from exchange.renew_credential(problem)):
                yield exchange.judge(problem)
        except AimeshError as error:
            if exchange.progress.pieces and (isinstance(error, ConnectionFailed) or error.status is not None):
                raise _broken(error) from error
            raise  # the stream reported its own end, or the deadline passed


def _events(exchange: _Exchange[Answer]) -> Steps[Answer]:
    head = yield from _head(exchange.open("text/event-stream", silence_seconds=STREAM_SILENCE_SECONDS, is_stream=True))
    if head.status != 200:
        raise errors.from_response(head.status, head.headers, (yield from _body(exchange, MAX_ERROR_BYTES)))
    kind = head.headers.get("content-type", "")
    if not kind.lower().startswith("text/event-stream"):
        raise ProtocolError(f"the answer is {kind[:100] or 'without a content type'}, not a stream of events", hint=_WRONG_SERVER)
    progress, parser = exchange.progress, SseParser()
    while piece := (yield from _piece(exchange)):
        for event in parser.push(piece):
            found = _read_event(event)
            if isinstance(found, Answer):
                exchange.mark_ended()
                yield from _discard_rest(exchange)
                return _joined(found, progress.pieces)
            if found is not None and progress.is_new(event):
                progress.add(found, len(event.data))
                yield EmitPiece(found)
    raise WireLost("the stream ended before the answer did")


def _joined(end: Answer, pieces: Sequence[AnswerPiece]) -> Answer:
    calls = tuple(call for piece in pieces for call in piece.tool_calls)
    drawn = tuple(token for piece in pieces for token in piece.logprobs)
    text, reasoning = ("".join(getattr(piece, name) for piece in pieces) for name in ("text", "reasoning"))
    return replace(end, text=text, tool_calls=calls, logprobs=drawn, reasoning=reasoning)


def _discard_rest(exchange: _Exchange[Answer]) -> Steps[None]:
    """A connection can only be reused if it was read to the end."""
    try:
        while (yield from _piece(exchange, REST_SECONDS)):
            pass
    except (AimeshError, WireLost):
        return  # the answer is complete


def _read_event(event: SseEvent) -> Answer | AnswerPiece | None:
    """Return None for an unknown event, and for a piece without content. Raises the error that the event reports."""
    if event.data == _DONE:
        return None
    found = JsonFields.parse(event.data, "an event")
    if found.has("error"):
        raise errors.from_event(found.child("error").plain())
    if found.has("finish_reason"):
        return answers.ended_answer(found, _NO_CONTENT)
    piece = answers.read_piece(found) if found.has("text") else _NO_CONTENT
    return None if piece == _NO_CONTENT else piece


def _broken(error: AimeshError) -> AnswerBroken:
    hint = "the text so far is in the stream's text; send the request again for the whole answer"
    return AnswerBroken(f"the answer broke off: {error.message}", hint=hint, request_id=error.request_id)
