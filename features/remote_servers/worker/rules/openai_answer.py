"""Assembles the events of OpenAI's streamed chat answers: thoughts, text, token ids, log probabilities, tool calls, finish reasons and
usage.  Pure.

Our log probabilities need token ids, which this API lacks. So each distinct piece of text gets a negative number, which can't be
confused with an id of the model's vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from features.remote_servers.worker.rules.event_stream import BadStream, Lines, StreamEventParser, convert_or
from features.remote_servers.worker.rules.token_counts import ReportedUsage
from shared.api.generation import MAX_TOKEN_ID, ToolCallPart
from shared.api.inference import Chunk, TokenChance, TokenLogprob
from shared.types import FinishReason

MAX_TOOL_CALLS = 128
#: Longer arguments don't fit a message of the mesh.
MAX_ARGUMENT_CHARACTERS = 512 * 1024
MAX_NAME_CHARACTERS = 256

_DONE = b"[DONE]"
#: The finish reasons of vLLM and OpenRouter for an answer that failed.
_FAILED = ("abort", "error")


class WrongIds(BadStream):
    """The server's token ids or counts contradict each other."""


class ServerFunctionDelta(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | dict[str, object] | None = None


class CallDelta(msgspec.Struct, frozen=True):
    index: int | None = None
    id: str | None = None
    function: ServerFunctionDelta | None = None


class AnswerDelta(msgspec.Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None
    #: A reasoning model's thoughts. Some servers send the first two, with the same text; the last is Ollama's.
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    #: Older versions of TGI send a single one.
    tool_calls: tuple[CallDelta, ...] | CallDelta | None = None

    @property
    def calls(self) -> tuple[CallDelta, ...]:
        return (self.tool_calls,) if isinstance(self.tool_calls, CallDelta) else self.tool_calls or ()


class _Chance(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None


class _Token(_Chance, frozen=True):
    top_logprobs: tuple[_Chance, ...] | None = None


class _Logprobs(msgspec.Struct, frozen=True):
    content: tuple[_Token, ...] | None = None


class AnswerChoice(msgspec.Struct, frozen=True):
    index: int = 0
    delta: AnswerDelta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    #: In place of ``delta``, of a completion.
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    #: The stop sequence that ended it; None for the model's own end token. SGLang has the other name.
    stop_reason: object = None
    matched_stop: object = None


class _AnswerEvent(msgspec.Struct, frozen=True):
    choices: tuple[AnswerChoice, ...] | None = None
    usage: object = None
    error: object = None


_event = msgspec.json.Decoder(_AnswerEvent)
_NO_DELTA = AnswerDelta()


class AnswerStep(msgspec.Struct, frozen=True):
    """The content of an event. A struct, because there is one per token and structs are cheap to create."""

    chunks: tuple[Chunk, ...] = ()
    #: False for comments and empty deltas.
    is_progress: bool = False
    complaint: bytes = b""
    #: The text has more tokens than the chunk has ids.
    has_gap: bool = False


@dataclass(slots=True)
class _OpenAICall:
    #: Counted from 0 in the order of their beginnings.
    number: int
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    #: How many of ``arguments`` were sent as parts; None before the first part, which needs the name.
    sent: int | None = None


@dataclass(slots=True)
class _Branch:
    """The state of one answer."""

    finish: FinishReason | None = None
    calls: dict[int, _OpenAICall] = field(default_factory=dict)
    #: Token ids whose text has not come.
    held: list[int] = field(default_factory=list)
    argument_characters: int = 0


class AnswerAssembly:
    """Assembles the ``count`` answers of one request. ``draw_id`` creates the ids of tool calls that the server left out.
    ``has_ids``: the events have token ids."""

    #: The response's type, and what splits its pieces into texts for ``push``.
    media_type = "text/event-stream"
    splitter: type[StreamEventParser | Lines] = StreamEventParser

    def __init__(self, count: int, draw_id: Callable[[], str], *, has_ids: bool = False) -> None:
        self._branches = [_Branch() for _ in range(count)]
        self._draw_id = draw_id
        self._has_ids = has_ids
        #: Tokens with ids, end tokens included.
        self.counted = 0
        self._numbers: dict[bytes, int] = {}
        self._done = False
        self.usage: ReportedUsage | None = None
        #: The number of events with thoughts, text or a part of a call: a lower bound of the tokens.
        self.pieces = 0
        #: Those with thoughts.
        self.thoughts = 0
        #: What ended the first answer, if the server says so.
        self.stopped_by: object = None

    @property
    def finished(self) -> bool:
        """Every answer has ended; the usage may still follow."""
        return all(branch.finish is not None for branch in self._branches)

    @property
    def complete(self) -> bool:
        """Nothing more follows."""
        return self._done or (self.finished and self.usage is not None)

    def push(self, data: bytes) -> AnswerStep:
        """Raises BadStream or one of `event_stream.UNREADABLE`."""
        if data.strip() == _DONE:
            self._done = True
            return AnswerStep()
        event = _event.decode(data)
        if event.error is not None:
            return AnswerStep(complaint=data)
        if event.usage is not None:
            self.usage = convert_or(ReportedUsage(), event.usage)
        if event.choices is not None and len(event.choices) == 1:
            return self.choose(event.choices[0])
        steps = [self.choose(choice) for choice in event.choices or ()]
        return AnswerStep(tuple(chunk for step in steps for chunk in step.chunks), any(step.is_progress for step in steps))

    def reasons(self) -> tuple[FinishReason, ...]:
        """Return the finish reason of each answer. Raises BadStream if one didn't end."""
        reasons = tuple(branch.finish for branch in self._branches if branch.finish is not None)
        if len(reasons) < len(self._branches):
            missing = f"; {len(reasons)} of {len(self._branches)} answers are complete" if len(self._branches) > 1 else ""
            raise BadStream(f"it closed the answer before its end{missing}")
        return reasons

    def choose(self, choice: AnswerChoice) -> AnswerStep:
        """Add the next part of one answer. Raises BadStream."""
        if not 0 <= choice.index < len(self._branches):
            raise BadStream(f"a choice with index {str(choice.index)[:20]} although {len(self._branches)} were requested")
        branch = self._branches[choice.index]
        delta = choice.delta or _NO_DELTA
        text = (choice.text or delta.content or "") + (delta.refusal or "")
        thought = delta.reasoning_content or delta.reasoning or delta.thinking or ""
        logprobs = self._logprobs(choice.logprobs)
        for part in delta.calls:
            self._add_call(branch, _guess_index(branch, part) if part.index is None else part.index, part)
        called = bool(delta.calls)
        if choice.finish_reason is not None and branch.finish is None:
            branch.finish = _finish(choice.finish_reason)
            self.stopped_by = choice.stop_reason or choice.matched_stop if choice.index == 0 else self.stopped_by
            self._complete_calls(branch)
        parts = self._parts(branch)
        self.pieces += bool(text or thought) or called
        self.thoughts += bool(thought)
        is_progress = bool(text or thought or logprobs or called or choice.finish_reason or choice.token_ids)
        ids = self._ids(branch, choice, is_shown=bool(text or thought)) if self._has_ids else ()
        if not (text or thought or logprobs or parts or ids):
            return AnswerStep(is_progress=is_progress)
        return AnswerStep((Chunk(text, ids, choice.index, logprobs, reasoning=thought, call_parts=parts),), is_progress)

    def _ids(self, branch: _Branch, choice: AnswerChoice, *, is_shown: bool) -> tuple[int, ...]:
        """Return the ids of the text that is shown. Another server can continue after them, so an end token is not among them."""
        fresh = choice.token_ids or ()
        if not all(0 <= token <= MAX_TOKEN_ID for token in fresh):
            raise WrongIds("a token id that is out of range")
        self.counted += len(fresh)
        branch.held += fresh
        if choice.finish_reason == "stop" and choice.stop_reason is None and branch.held:
            branch.held.pop()
        elif is_shown and not branch.held:
            raise WrongIds("text without token ids")
        if not is_shown and choice.finish_reason is None:
            return ()
        ids = tuple(branch.held)
        branch.held.clear()
        return ids

    @staticmethod
    def _add_call(branch: _Branch, index: int, part: CallDelta) -> None:
        if not 0 <= index < MAX_TOOL_CALLS:
            raise BadStream(f"more than {MAX_TOOL_CALLS} tool calls")
        call = branch.calls.setdefault(index, _OpenAICall(len(branch.calls)))
        call.id = call.id or part.id or ""
        if part.function is None:
            return
        # OpenAI sends the name once; other servers repeat it in every part.
        call.name = call.name or part.function.name or ""
        arguments = part.function.arguments or ""
        written = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        branch.argument_characters += len(written)
        if branch.argument_characters > MAX_ARGUMENT_CHARACTERS or len(call.name) + len(call.id) > MAX_NAME_CHARACTERS:
            raise BadStream(f"a tool call with more than {MAX_ARGUMENT_CHARACTERS} characters")
        call.arguments.append(written)

    @staticmethod
    def _complete_calls(branch: _Branch) -> None:
        for call in branch.calls.values():
            if not call.name:
                raise BadStream("a tool call without a name")
            if not any(call.arguments):
                call.arguments.append("{}")

    def _parts(self, branch: _Branch) -> tuple[ToolCallPart, ...]:
        """Return what was written since the last time. A call without a name waits for it; one without an id gets it."""
        parts = []
        for call in branch.calls.values():
            if not call.name:
                continue
            fresh = "".join(call.arguments[call.sent or 0 :])
            if call.sent is None:
                call.id = call.id or self._draw_id()
                parts.append(ToolCallPart(call.number, fresh, call.id, call.name))
            elif fresh:
                parts.append(ToolCallPart(call.number, fresh))
            call.sent = len(call.arguments)
        return tuple(parts)

    def _logprobs(self, reported: _Logprobs | None) -> tuple[TokenLogprob, ...]:
        if reported is None:
            return ()
        tokens = reported.content or ()
        return tuple(TokenLogprob(self._chance(token), tuple(map(self._chance, token.top_logprobs or ()))) for token in tokens)

    def _chance(self, reported: _Chance) -> TokenChance:
        piece = reported.token.encode() if reported.bytes is None else _bytes(reported.bytes)
        return TokenChance(self._numbers.setdefault(piece, -1 - len(self._numbers)), piece, reported.logprob)


def _guess_index(branch: _Branch, part: CallDelta) -> int:
    """Place a part without an index: a new id starts the next call, anything else continues the last one."""
    last = max(branch.calls, default=-1)
    known = {call.id for call in branch.calls.values()}
    return last + 1 if last < 0 or (part.id and part.id not in known) else last


def _bytes(values: tuple[int, ...]) -> bytes:
    try:
        return bytes(values)
    except ValueError as error:
        raise BadStream("a token with invalid bytes") from error


def _finish(reason: str) -> FinishReason:
    """Treat `stop`, `tool_calls`, `content_filter` and unknown reasons as the model's own end."""
    if reason in _FAILED:
        raise BadStream("it aborted the answer")
    return FinishReason.LENGTH if reason == "length" else FinishReason.STOP
