"""What is sent, and what becomes of what comes back: one call from its first try to its end.  Pure, but for the clock that it is given.

A conversation says one action after another, is told what came of each, and ends with a result or an error. Whoever performs the actions
(``wire``, ``async_wire``) decides nothing.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from aimesh import answers, calls, errors, tries
from aimesh.actions import Action, AnswerHead, OpenRequest, PauseAction, Read, Renew, Reply, Say, Steps, WireLost
from aimesh.answers import Answer
from aimesh.calls import ApiCall
from aimesh.errors import AimeshError, AnswerBroken, BadRequest, ConnectionFailed, DeadlineExceeded, ProtocolError
from aimesh.event_stream import SseEvent, SseParser
from aimesh.json_fields import JsonFields
from aimesh.logins import Bearer, SessionLogin
from aimesh.settings import ClientOptions
from aimesh.tries import FailedAttempt, RetryRules
from aimesh.version import __version__

T = TypeVar("T")

#: The vectors of the largest request that the gateway takes; an error is much shorter.
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
#: The gateway sends something every 15 s; after three times as long there is no connection any more.
STREAM_SILENCE_SECONDS = 45.0
#: Somebody has pressed Ctrl-C and waits: a gateway that is there answers within milliseconds.
CANCEL_SECONDS = 1.0
#: What comes behind the end of a stream comes with it.
REST_SECONDS = 0.5
#: A day: the longest that the gateway keeps an answer.
MAX_SECONDS = 86_400
#: Clocks and timers differ by so much.
_SLACK_SECONDS = 0.05

#: As the gateway makes them: whose answer, and the number of its piece there.
_EVENT_ID = re.compile(r"[0-9a-f]{32}-(?P<number>[0-9]{1,9})\Z")
#: What a header can carry and the gateway takes.
_KEY = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")
_DONE = b"[DONE]"
#: Errors behind which the gateway may still be at work on the answer.
_MAY_RUN_ON = frozenset({"connection_failed", "deadline_exceeded", "in_progress", "link_lost", "protocol_error", "unavailable"})
_WRONG_SERVER = "is base_url the address of aimesh?"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessContext:
    """What every conversation of a client is given."""

    settings: ClientOptions
    patience: RetryRules
    clock: Callable[[], float]
    #: From 0 to 1.
    draw: Callable[[], float]
    make_key: Callable[[], str]
    #: In place of the settings' key.
    login: SessionLogin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTerms:
    """How one call is made."""

    #: For all of it, pauses and repeats included.
    seconds: float
    #: The caller's own; None makes one where the call goes with one.
    idempotency_key: str | None = None
    #: Ask for the rest of a stream that broke. Without it there is no idempotency key.
    resume: bool = True

    def __post_init__(self) -> None:
        """Raises BadRequest."""
        if not 0 < self.seconds <= MAX_SECONDS:
            raise BadRequest(f"timeout must be above 0 and at most {MAX_SECONDS} s, and is {self.seconds}")
        key = self.idempotency_key
        if key is not None and not _KEY.fullmatch(key):
            raise BadRequest("idempotency_key must have 1 to 255 printable ASCII characters, and no space at its ends")


class Conversation(Generic[T]):
    """One call. ``reply(None)`` begins it; then ``reply`` or ``fail`` for every action, until that gives None; then ``result``."""

    def __init__(self, steps: Steps[T], progress: "StreamProgress") -> None:
        self._steps = steps
        self._progress = progress
        self._result: list[T] = []

    def reply(self, reply: Reply) -> Action | None:
        return self._go(lambda: self._steps.send(reply))

    def fail(self, fault: WireLost | AimeshError) -> Action | None:
        return self._go(lambda: self._steps.throw(fault))

    @property
    def result(self) -> T:
        if not self._result:
            raise RuntimeError("the answer is not over yet")
        return self._result[0]

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._progress.texts)

    def take_farewell(self) -> "Conversation[None] | None":
        """What is still to be said where it is left before its end; None where nothing is, and the second time."""
        farewell, self._progress.farewell = self._progress.farewell, None
        return farewell

    def _go(self, step: Callable[[], Action]) -> Action | None:
        try:
            return step()
        except StopIteration as end:
            self._result.append(end.value)
            return None


@dataclass(slots=True)
class StreamProgress:
    """How far a call has come."""

    #: Known when it begins.
    until: float = math.inf
    #: In a row.
    failures: int = 0
    texts: list[str] = field(default_factory=list)
    #: Of the last event that had one.
    last_event_id: str = ""
    #: The answer is made on without us, until this is said.
    farewell: Conversation[None] | None = None
    _characters: int = 0

    def is_new(self, event: SseEvent) -> bool:
        """Remembers its id. What was asked to go on, and begins anew, is not said twice."""
        before, now = (_EVENT_ID.match(event_id) for event_id in (self.last_event_id, event.id))
        if before is not None and now is not None and int(now["number"]) <= int(before["number"]):
            return False
        self.last_event_id = event.id or self.last_event_id
        return True

    def add(self, text: str) -> str:
        """Raises ProtocolError for more than any answer has."""
        self.failures = 0
        self.texts.append(text)
        self._characters += len(text)
        if self._characters > MAX_ANSWER_BYTES:
            raise _too_long(MAX_ANSWER_BYTES)
        return text


def whole(call: ApiCall[T], around: ProcessContext, terms: CallTerms) -> Conversation[T]:
    """A call whose answer comes in one piece."""
    progress = StreamProgress()
    exchange = _Exchange(call, around, terms, progress)
    return Conversation(_whole(exchange, call), progress)


def streamed(call: ApiCall[Answer], around: ProcessContext, terms: CallTerms) -> Conversation[Answer]:
    """A call whose answer comes in pieces, each with a ``Say``."""
    progress = StreamProgress()
    exchange = _Exchange(call, around, terms, progress)
    return Conversation(_streamed(exchange), progress)


class _Exchange(Generic[T]):
    """The requests of one call, and what is the same in all of them."""

    def __init__(self, call: ApiCall[T], around: ProcessContext, terms: CallTerms, progress: StreamProgress) -> None:
        self._call = call
        self._around = around
        self.progress = progress
        keyed = call.under_a_key and (terms.resume or terms.idempotency_key is not None)
        self._key = (terms.idempotency_key or around.make_key()) if keyed else None
        self._repeatable = call.repeatable and (keyed or not call.under_a_key)
        #: A key of the caller's own is there to come back with.
        self._ends_with_us = call.goes_on and keyed and terms.idempotency_key is None
        self._seconds = terms.seconds
        self._bearer = Bearer(around.settings.api_key, around.login, is_needed=call.needs_credential)

    def begin(self) -> None:
        self.progress.until = self._around.clock() + self._seconds

    def left(self) -> float:
        """Raises DeadlineExceeded where that is nothing."""
        left = self.progress.until - self._around.clock()
        if left <= _SLACK_SECONDS:
            raise self._too_late()
        return left

    def open(self, accept: str, *, silence_seconds: float, slowly: bool = False) -> OpenRequest:
        credential = self._bearer.take()
        left = self.left()
        if self._ends_with_us and self._key is not None:
            self.progress.farewell = _cancelling(self._key, self._around)
        return OpenRequest(
            verb=self._call.verb,
            path=self._call.path,
            headers=self._headers(accept, credential),
            body=self._call.body,
            silence_seconds=min(silence_seconds, left),
            seconds=left,
            slowly=slowly,
        )

    def settled(self) -> None:
        """The other side has said how it ended."""
        self.progress.farewell = None

    def renewed(self, problem: AimeshError | WireLost) -> Steps[bool]:
        """Whether it is to be sent again with another access token. Raises SessionEnded, or whatever keeps us from getting one."""
        spent = self._bearer.find_spent(problem)
        if spent is None:
            self._bearer.explain(problem)
            return False
        self.settled()
        yield Renew(spent, self.left())
        return True

    def judge(self, problem: AimeshError | WireLost) -> PauseAction:
        """The pause before the next try; raises where there is none."""
        error = self._named(problem) if isinstance(problem, WireLost) else problem
        if error.code not in _MAY_RUN_ON:
            self.settled()
        self.progress.failures += 1
        left = self.progress.until - self._around.clock()
        # Of what has begun only the rest may be asked for, or its beginning would be said twice.
        repeatable = self._repeatable and (not self.progress.texts or bool(self.progress.last_event_id))
        trouble = FailedAttempt(failures=self.progress.failures, left_seconds=left, repeatable=repeatable)
        pause = tries.find_pause(error, trouble, self._around.patience, self._around.draw())
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

    def _named(self, lost: WireLost) -> AimeshError:
        if self.progress.until - self._around.clock() <= _SLACK_SECONDS:
            return self._too_late()
        hint = f"is {self._around.settings.base_url} the right address, and does the platform run?"
        return ConnectionFailed(f"there is no answer: {lost.why}", hint=hint, may_have_arrived=lost.may_have_arrived)

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"there was no answer within {self._seconds:g} s", hint="ask for fewer tokens, or give a longer timeout")


# --- an answer in one piece -----------------------------------------------------------------------------------------


def _whole(exchange: _Exchange[T], call: ApiCall[T]) -> Steps[T]:
    exchange.begin()
    while True:
        problem: AimeshError | WireLost
        try:
            content = yield from _content(exchange)
        except (AimeshError, WireLost) as error:
            problem = error
        else:
            exchange.settled()
            return call.read(JsonFields.parse(content, "the answer"))
        if not (yield from exchange.renewed(problem)):
            yield exchange.judge(problem)


def _content(exchange: _Exchange[T]) -> Steps[bytes]:
    head = yield from _head(exchange.open("application/json", silence_seconds=exchange.left()))
    is_success = head.status in {200, 201}
    content = yield from _body(exchange, MAX_ANSWER_BYTES if is_success else MAX_ERROR_BYTES)
    if not is_success:
        raise errors.of_answer(head.status, head.headers, content)
    return content


def _head(request: OpenRequest) -> Steps[AnswerHead]:
    head = yield request
    assert isinstance(head, AnswerHead)  # what Open is told
    return head


def _body(exchange: _Exchange[T], most_bytes: int) -> Steps[bytes]:
    content = bytearray()
    while piece := (yield from _piece(exchange)):
        content += piece
        if len(content) > most_bytes:
            raise _too_long(most_bytes)
    return bytes(content)


def _too_long(most_bytes: int) -> ProtocolError:
    return ProtocolError(f"the answer has more than {most_bytes} bytes", hint=_WRONG_SERVER)


def _piece(exchange: _Exchange[T], most_seconds: float = math.inf) -> Steps[bytes]:
    piece = yield Read(min(exchange.left(), most_seconds))
    assert isinstance(piece, bytes)  # what Read is told
    return piece


def _cancelling(idempotency_key: str, around: ProcessContext) -> Conversation[None]:
    once = replace(around, patience=RetryRules(max_retries=0))
    return whole(calls.cancel(), once, CallTerms(seconds=CANCEL_SECONDS, idempotency_key=idempotency_key))


# --- an answer in pieces --------------------------------------------------------------------------------------------


def _streamed(exchange: _Exchange[Answer]) -> Steps[Answer]:
    exchange.begin()
    while True:
        problem: AimeshError | WireLost
        try:
            return (yield from _events(exchange))
        except (AimeshError, WireLost) as error:
            problem = error
        try:
            if not (yield from exchange.renewed(problem)):
                yield exchange.judge(problem)
        except AimeshError as error:
            if exchange.progress.texts and (isinstance(error, ConnectionFailed) or error.status is not None):
                raise _broken(error) from error
            raise  # what the stream itself told of its end, or that the time is over


def _events(exchange: _Exchange[Answer]) -> Steps[Answer]:
    head = yield from _head(exchange.open("text/event-stream", silence_seconds=STREAM_SILENCE_SECONDS, slowly=True))
    if head.status != 200:
        raise errors.of_answer(head.status, head.headers, (yield from _body(exchange, MAX_ERROR_BYTES)))
    kind = head.headers.get("content-type", "")
    if not kind.lower().startswith("text/event-stream"):
        raise ProtocolError(f"the answer is {kind[:100] or 'of no type'}, not a stream of events", hint=_WRONG_SERVER)
    progress, stream = exchange.progress, SseParser()
    while piece := (yield from _piece(exchange)):
        for event in stream.push(piece):
            found = _read_event(event)
            if isinstance(found, Answer):
                exchange.settled()
                yield from _rest(exchange)
                return replace(found, text="".join(progress.texts))
            if found and progress.is_new(event):
                yield Say(progress.add(found))
    raise WireLost("the stream ended before the answer did")


def _rest(exchange: _Exchange[Answer]) -> Steps[None]:
    """Nothing of it is of use, but a connection that was read to its end can be used again."""
    try:
        while (yield from _piece(exchange, REST_SECONDS)):
            pass
    except (AimeshError, WireLost):
        return  # the answer is there


def _read_event(event: SseEvent) -> Answer | str:
    """Empty for what this version does not know. Raises the error that it tells of."""
    if event.data == _DONE:
        return ""
    found = JsonFields.parse(event.data, "an event")
    if found.has("error"):
        raise errors.of_event(found.child("error").plain())
    if found.has("finish_reason"):
        return answers.ended_answer(found, "")
    return found.text("text") if found.has("text") else ""


def _broken(error: AimeshError) -> AnswerBroken:
    hint = "what came until then is in the stream's text; ask again for all of it"
    return AnswerBroken(f"the answer broke off: {error.message}", hint=hint, request_id=error.request_id)
