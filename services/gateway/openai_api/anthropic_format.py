"""Formats answers for Anthropic's Messages API. Pure."""

from collections.abc import Sequence

import msgspec

from services.gateway.http_api import http_errors
from services.gateway.http_api.chat_messages import JsonObject, TextPart
from services.gateway.http_api.response_formats import AnswerFacts, ErrorBody, ServerSentEvent
from services.gateway.openai_api.anthropic_request import MessagesBody, ToolUseBlock
from shared.api.gateway import InferenceResult
from shared.api.generation import ToolCall, Usage
from shared.api.inference import Chunk
from shared.types import FinishReason, ModelName

Block = TextPart | ToolUseBlock


class MessagesUsage(msgspec.Struct, frozen=True):
    #: Without cached tokens.
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0

    @classmethod
    def of(cls, usage: Usage) -> "MessagesUsage":
        return cls(usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens, usage.cached_tokens)


class AnthropicMessage(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str = "message"
    role: str = "assistant"
    model: ModelName
    content: tuple[Block, ...] = ()
    #: end_turn (also for a stop sequence), max_tokens or tool_use; null at the start of a stream.
    stop_reason: str | None = None
    stop_sequence: None = None
    usage: MessagesUsage


class EventDelta(msgspec.Struct, frozen=True, kw_only=True):
    type: str | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    partial_json: str | msgspec.UnsetType = msgspec.UNSET
    stop_reason: str | msgspec.UnsetType = msgspec.UNSET
    stop_sequence: msgspec.UnsetType | None = msgspec.UNSET


class MessagesEvent(msgspec.Struct, frozen=True):
    """An event of a stream; each type has some of the fields."""

    type: str
    index: int | msgspec.UnsetType = msgspec.UNSET
    content_block: Block | msgspec.UnsetType = msgspec.UNSET
    delta: EventDelta | msgspec.UnsetType = msgspec.UNSET
    message: AnthropicMessage | msgspec.UnsetType = msgspec.UNSET
    usage: MessagesUsage | msgspec.UnsetType = msgspec.UNSET


class MessagesFormat:
    """Formats the answer to one request."""

    def __init__(self, body: MessagesBody) -> None:
        self._parallel_calls = body.tool_choice is None or not body.tool_choice.disable_parallel_tool_use
        self._blocks: list[Block] = []
        #: Of the text block that is not in ``_blocks`` yet.
        self._texts: list[str] = []
        self._called = self._is_begun = False
        self._about: AnswerFacts | None = None

    def begin(self, about: AnswerFacts) -> None:
        self._about = about

    def gather(self, chunk: Chunk) -> None:
        self.events(chunk)

    def events(self, chunk: Chunk) -> Sequence[ServerSentEvent]:
        events = self._beginning()
        if chunk.text:
            events += self._text(chunk.text)
        for call in chunk.tool_calls:
            if self._parallel_calls or not self._called:
                events += self._call(call)
        return [ServerSentEvent(event, event.type) for event in events]

    def last_events(self, result: InferenceResult) -> Sequence[ServerSentEvent]:
        delta = EventDelta(stop_reason=self._stop_reason(result), stop_sequence=None)
        end = (MessagesEvent("message_delta", delta=delta, usage=MessagesUsage.of(result.usage)), MessagesEvent("message_stop"))
        return [ServerSentEvent(event, event.type) for event in (*self._beginning(), *self._text_end(), *end)]

    def failed(self, error: ErrorBody) -> Sequence[ServerSentEvent]:
        return (ServerSentEvent(http_errors.anthropic_body(error), "error"),)

    def whole(self, result: InferenceResult) -> AnthropicMessage:
        self._text_end()
        return self._message(tuple(self._blocks), self._stop_reason(result), MessagesUsage.of(result.usage))

    def _beginning(self) -> list[MessagesEvent]:
        if self._is_begun:
            return []
        self._is_begun = True
        # The counts are known at the end.
        return [MessagesEvent("message_start", message=self._message((), None, MessagesUsage(0, 0)))]

    def _text(self, text: str) -> list[MessagesEvent]:
        index = len(self._blocks)
        events = [] if self._texts else [MessagesEvent("content_block_start", index, TextPart(""))]
        self._texts.append(text)
        return [*events, MessagesEvent("content_block_delta", index, delta=EventDelta(type="text_delta", text=text))]

    def _text_end(self) -> list[MessagesEvent]:
        if not self._texts:
            return []
        self._blocks.append(TextPart("".join(self._texts)))
        self._texts.clear()
        return [MessagesEvent("content_block_stop", len(self._blocks) - 1)]

    def _call(self, call: ToolCall) -> list[MessagesEvent]:
        events, index = self._text_end(), len(self._blocks)
        self._called = True
        self._blocks.append(ToolUseBlock(call.id, call.name, _input(call)))
        return [
            *events,
            MessagesEvent("content_block_start", index, ToolUseBlock(call.id, call.name, {})),
            MessagesEvent("content_block_delta", index, delta=EventDelta(type="input_json_delta", partial_json=call.arguments)),
            MessagesEvent("content_block_stop", index),
        ]

    def _stop_reason(self, result: InferenceResult) -> str:
        if result.finish_reason is FinishReason.LENGTH:
            return "max_tokens"
        if result.finish_reason is FinishReason.CONTENT_FILTER:
            return "refusal"
        return "tool_use" if self._called else "end_turn"

    def _message(self, content: tuple[Block, ...], stop_reason: str | None, usage: MessagesUsage) -> AnthropicMessage:
        about = self._about
        assert about is not None  # `begin` was called
        return AnthropicMessage(id=f"msg_{about.request_id.hex}", model=about.model, content=content, stop_reason=stop_reason, usage=usage)


def _input(call: ToolCall) -> JsonObject:
    """Return the arguments; empty if another server's model wrote no JSON object."""
    try:
        return msgspec.json.decode(call.arguments, type=JsonObject)
    except (msgspec.DecodeError, RecursionError):
        return {}
