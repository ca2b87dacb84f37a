"""Formats answers of /api/inference and /api/infer, whole or as events. Pure."""

from collections.abc import Sequence

import msgspec

from services.gateway.facts.call_parts import CallParts
from services.gateway.http_api import response_formats
from services.gateway.http_api.response_formats import AnswerFormat, AnswerToolCall, ServerSentEvent, TokenChoice
from shared.api.gateway import InferenceResult
from shared.api.generation import Usage
from shared.api.inference import Chunk
from shared.types import FinishReason, ModelName, RequestId


class UsageView(msgspec.Struct, frozen=True, omit_defaults=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    #: The completion tokens that were spent on thoughts; omitted if there are none.
    reasoning_tokens: int = 0

    @classmethod
    def of(cls, usage: Usage) -> "UsageView":
        return cls(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.reasoning_tokens)


class InferenceAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    request_id: RequestId
    model: ModelName
    #: stop, length, cancelled, or tool_calls if the model waits for the results of its calls.
    finish_reason: str
    usage: UsageView
    response_time_ms: int
    #: The next four are omitted at the end of a stream, which had them in its pieces.
    response: str | None = None
    #: The model's thoughts before the response.
    reasoning: str = ""
    tool_calls: tuple[AnswerToolCall, ...] = ()
    logprobs: tuple[TokenChoice, ...] = ()


class TextEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of a streamed answer: the next text or thoughts, complete tool calls, and the log probabilities of its tokens."""

    text: str
    tool_calls: tuple[AnswerToolCall, ...] = ()
    logprobs: tuple[TokenChoice, ...] = ()
    reasoning: str = ""


_NO_TEXT = TextEvent("")


class RestFormat(AnswerFormat):
    def __init__(self, *, parallel_calls: bool = True) -> None:
        self._calls = CallParts(parallel=parallel_calls)
        self._pieces: list[TextEvent] = []

    def take(self, chunk: Chunk) -> Sequence[TextEvent]:
        """Add a chunk; return its piece of the answer, if there is one."""
        calls = tuple(map(AnswerToolCall.of, self._calls.complete(chunk)))
        piece = TextEvent(chunk.text, calls, response_formats.logprobs_of(chunk.logprobs), chunk.reasoning)
        if piece == _NO_TEXT:
            return ()
        self._pieces.append(piece)
        return (piece,)

    def joined(self) -> TextEvent:
        """Return all pieces as one."""
        return TextEvent(
            "".join(piece.text for piece in self._pieces),
            tuple(call for piece in self._pieces for call in piece.tool_calls),
            tuple(token for piece in self._pieces for token in piece.logprobs),
            "".join(piece.reasoning for piece in self._pieces),
        )

    def events(self, chunk: Chunk) -> Sequence[ServerSentEvent]:
        return tuple(map(ServerSentEvent, self.take(chunk)))

    def last_events(self, result: InferenceResult) -> Sequence[ServerSentEvent]:
        return ServerSentEvent(self._answer(result)), response_formats.DONE

    def whole(self, result: InferenceResult) -> msgspec.Struct:
        text = self.joined()
        return msgspec.structs.replace(
            self._answer(result), response=text.text, reasoning=text.reasoning, tool_calls=text.tool_calls, logprobs=text.logprobs
        )

    def _answer(self, result: InferenceResult) -> InferenceAnswer:
        waits = result.finish_reason is FinishReason.STOP and any(piece.tool_calls for piece in self._pieces)
        reason = "tool_calls" if waits else str(result.finish_reason)
        return InferenceAnswer(result.request_id, result.model, reason, UsageView.of(result.usage), result.response_time_ms)
