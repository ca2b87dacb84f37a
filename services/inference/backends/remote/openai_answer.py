"""Puts the events of OpenAI's streamed chat answers together: text, log probabilities, tool calls, ends and usage.  Pure.

The API names no token ids. A token's log probability needs one all the same, so the pieces of an answer are numbered from -1 down,
the same piece always the same number: such a number tells two pieces apart and is never taken for an id of the model's vocabulary.
`Chunk.token_ids` stays empty.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from services.inference.backends.remote.event_stream import BadStream
from shared.api.generation import ToolCall
from shared.api.inference import Chunk, TokenChance, TokenLogprob
from shared.types import FinishReason

#: More calls in one answer than any tool loop makes.
MAX_TOOL_CALLS = 128
#: The largest message of the mesh: what is longer could not be sent on.
MAX_ARGUMENT_CHARACTERS = 512 * 1024
#: Of the name and the id of a call.
MAX_NAME_CHARACTERS = 256

_DONE = b"[DONE]"
#: What ends an answer and is no end: vLLM and OpenRouter say so when they give up.
_FAILED = ("abort", "error")


class _FunctionDelta(msgspec.Struct, frozen=True):
    name: str | None = None
    #: An object where a server sends the call in one piece.
    arguments: str | dict[str, object] | None = None


class _CallDelta(msgspec.Struct, frozen=True):
    index: int | None = None
    id: str | None = None
    function: _FunctionDelta | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None
    #: What reasoning models think before they answer: not the answer, but a sign of life.
    reasoning_content: str | None = None
    reasoning: str | None = None
    #: Older TGI sends one that is no list.
    tool_calls: tuple[_CallDelta, ...] | _CallDelta | None = None


class _Chance(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None


class _Token(_Chance, frozen=True):
    top_logprobs: tuple[_Chance, ...] | None = None


class _Logprobs(msgspec.Struct, frozen=True):
    content: tuple[_Token, ...] | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _UsageDetails(msgspec.Struct, frozen=True):
    cached_tokens: object = None


class SaidUsage(msgspec.Struct, frozen=True):
    """The server's own counts, which may be anything."""

    prompt_tokens: object = None
    completion_tokens: object = None
    prompt_tokens_details: object = None

    @property
    def cached_tokens(self) -> object:
        try:
            return msgspec.convert(self.prompt_tokens_details, _UsageDetails).cached_tokens
        except msgspec.ValidationError:
            return None


class _AnswerEvent(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...] | None = None
    usage: object = None
    error: object = None


_event = msgspec.json.Decoder(_AnswerEvent)
_NO_DELTA = _Delta()


class AnswerStep(msgspec.Struct, frozen=True):
    """What an event brought. A struct, because there is one for each token of every answer: they are made fast."""

    chunks: tuple[Chunk, ...] = ()
    #: The answer got on: comments and empty deltas do not count.
    moved: bool = False
    #: The event is the server's complaint, whole.
    complaint: bytes = b""


@dataclass(slots=True)
class _OpenAICall:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Branch:
    """One of the answers."""

    finish: FinishReason | None = None
    calls: dict[int, _OpenAICall] = field(default_factory=dict)
    argument_characters: int = 0


class AnswerAssembly:
    """The answers of one request, ``count`` of them. ``draw_id`` names a tool call whose server did not."""

    def __init__(self, count: int, draw_id: Callable[[], str]) -> None:
        self._branches = [_Branch() for _ in range(count)]
        self._unfinished = count
        self._draw_id = draw_id
        self._numbers: dict[bytes, int] = {}
        self._done = False
        self.usage: SaidUsage | None = None
        #: How often text or a part of a call came: at least so many tokens there were.
        self.pieces = 0

    @property
    def finished(self) -> bool:
        """Every answer has its end; what may still come is the usage."""
        return not self._unfinished

    @property
    def complete(self) -> bool:
        """Nothing more is to come."""
        return self._done or (self.finished and self.usage is not None)

    def push(self, data: bytes) -> AnswerStep:
        """Raises BadStream, or one of `event_stream.UNREADABLE`, for what is not of the protocol."""
        if data.strip() == _DONE:
            self._done = True
            return AnswerStep()
        event = _event.decode(data)
        if event.error is not None:
            return AnswerStep(complaint=data)
        if event.usage is not None:
            self.usage = _usage(event.usage)
        if event.choices is not None and len(event.choices) == 1:
            return self._choice(event.choices[0])
        steps = [self._choice(choice) for choice in event.choices or ()]
        return AnswerStep(tuple(chunk for step in steps for chunk in step.chunks), any(step.moved for step in steps))

    def reasons(self) -> tuple[FinishReason, ...]:
        """How each answer ended. Raises BadStream when one did not."""
        reasons = tuple(branch.finish for branch in self._branches if branch.finish is not None)
        if len(reasons) < len(self._branches):
            missing = f"; {len(reasons)} of {len(self._branches)} answers are complete" if len(self._branches) > 1 else ""
            raise BadStream(f"it closed the answer before its end{missing}")
        return reasons

    def _choice(self, choice: _Choice) -> AnswerStep:
        if not 0 <= choice.index < len(self._branches):
            raise BadStream(f"a choice with index {str(choice.index)[:20]}, where {len(self._branches)} were asked for")
        branch = self._branches[choice.index]
        delta = choice.delta or _NO_DELTA
        text = (delta.content or "") + (delta.refusal or "")
        logprobs = self._logprobs(choice.logprobs)
        called = self._add_calls(branch, delta.tool_calls)
        calls: tuple[ToolCall, ...] = ()
        if choice.finish_reason is not None and branch.finish is None:
            branch.finish = _finish(choice.finish_reason)
            self._unfinished -= 1
            calls = self._complete_calls(branch)
        self.pieces += bool(text) or called
        moved = bool(text or logprobs or called or delta.reasoning_content or delta.reasoning or choice.finish_reason)
        chunks = (Chunk(text, (), choice.index, logprobs, calls),) if text or logprobs or calls else ()
        return AnswerStep(chunks, moved)

    def _add_calls(self, branch: _Branch, deltas: tuple[_CallDelta, ...] | _CallDelta | None) -> bool:
        if deltas is None:
            return False
        parts = (deltas,) if isinstance(deltas, _CallDelta) else deltas
        for part in parts:
            self._add_call(branch, _place(branch, part) if part.index is None else part.index, part)
        return bool(parts)

    @staticmethod
    def _add_call(branch: _Branch, index: int, part: _CallDelta) -> None:
        if not 0 <= index < MAX_TOOL_CALLS:
            raise BadStream(f"more than {MAX_TOOL_CALLS} tool calls")
        call = branch.calls.setdefault(index, _OpenAICall())
        call.id = call.id or part.id or ""
        if part.function is None:
            return
        # Whole in the first part with OpenAI; others repeat it in every part.
        call.name = call.name or part.function.name or ""
        arguments = part.function.arguments or ""
        written = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        branch.argument_characters += len(written)
        if branch.argument_characters > MAX_ARGUMENT_CHARACTERS or len(call.name) + len(call.id) > MAX_NAME_CHARACTERS:
            raise BadStream(f"a tool call with more than {MAX_ARGUMENT_CHARACTERS} characters")
        call.arguments.append(written)

    def _complete_calls(self, branch: _Branch) -> tuple[ToolCall, ...]:
        calls = []
        for _, call in sorted(branch.calls.items()):
            if not call.name:
                raise BadStream("a tool call without a name")
            calls.append(ToolCall(call.id or self._draw_id(), call.name, "".join(call.arguments) or "{}"))
        return tuple(calls)

    def _logprobs(self, said: _Logprobs | None) -> tuple[TokenLogprob, ...]:
        if said is None:
            return ()
        tokens = said.content or ()
        return tuple(TokenLogprob(self._chance(token), tuple(map(self._chance, token.top_logprobs or ()))) for token in tokens)

    def _chance(self, said: _Chance) -> TokenChance:
        piece = said.token.encode() if said.bytes is None else _bytes(said.bytes)
        return TokenChance(self._numbers.setdefault(piece, -1 - len(self._numbers)), piece, said.logprob)


def _place(branch: _Branch, part: _CallDelta) -> int:
    """Of a part without an index: an id that is new begins the next call, all else goes on with the last."""
    last = max(branch.calls, default=-1)
    known = {call.id for call in branch.calls.values()}
    return last + 1 if last < 0 or (part.id and part.id not in known) else last


def _bytes(values: tuple[int, ...]) -> bytes:
    try:
        return bytes(values)
    except ValueError as error:
        raise BadStream("a token whose bytes are none") from error


def _usage(said: object) -> SaidUsage:
    try:
        return msgspec.convert(said, SaidUsage)
    except msgspec.ValidationError:
        return SaidUsage()


def _finish(reason: str) -> FinishReason:
    """`stop`, `tool_call_parser`, `content_filter` and what others invent: the model has ended."""
    if reason in _FAILED:
        raise BadStream("it gave the answer up")
    return FinishReason.LENGTH if reason == "length" else FinishReason.STOP
