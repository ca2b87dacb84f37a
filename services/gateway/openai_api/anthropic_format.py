"""Formats answers for Anthropic's Messages API. Pure."""

from collections.abc import Sequence

import msgspec

from services.gateway.facts.call_parts import CallParts
from services.gateway.http_api import chat_messages, http_errors, service_tiers
from services.gateway.http_api.chat_messages import JsonObject, TextPart
from services.gateway.http_api.response_formats import AnswerFacts, AnswerFormat, ErrorBody, ServerSentEvent
from services.gateway.openai_api.anthropic_request import MessagesBody, ThinkingBlock, ToolUseBlock
from shared.api.gateway import InferenceResult
from shared.api.generation import Usage
from shared.api.inference import Chunk
from shared.types import FinishReason, ModelName

Block = TextPart | ToolUseBlock | ThinkingBlock
#: Clients only send thoughts back that have one. It means nothing here.
_SIGNATURE = "YWltZXNo"


class ThinkingDetails(msgspec.Struct, frozen=True):
    thinking_tokens: int


class MessagesUsage(msgspec.Struct, frozen=True):
    #: Without cached tokens.
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    output_tokens_details: ThinkingDetails = ThinkingDetails(0)
    #: "batch", as at Anthropic, if it ran behind live requests.
    service_tier: str | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, usage: Usage, about: AnswerFacts) -> "MessagesUsage":
        details = ThinkingDetails(usage.reasoning_tokens)
        tier = "batch" if about.service_tier == service_tiers.FLEX else msgspec.UNSET
        return cls(usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens, usage.cached_tokens, details, tier)


class ContextManagement(msgspec.Struct, frozen=True):
    applied_edits: tuple[JsonObject, ...] = ()


#: Only if the request asks for edits.
ShownEdits = ContextManagement | msgspec.UnsetType


class AnthropicMessage(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str = "message"
    role: str = "assistant"
    model: ModelName
    content: tuple[Block, ...] = ()
    #: end_turn, stop_sequence, max_tokens, tool_use or refusal; null at the start of a stream.
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessagesUsage
    context_management: ShownEdits = msgspec.UNSET


class EventDelta(msgspec.Struct, frozen=True, kw_only=True):
    type: str | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    thinking: str | msgspec.UnsetType = msgspec.UNSET
    partial_json: str | msgspec.UnsetType = msgspec.UNSET
    signature: str | msgspec.UnsetType = msgspec.UNSET
    stop_reason: str | msgspec.UnsetType = msgspec.UNSET
    stop_sequence: str | msgspec.UnsetType | None = msgspec.UNSET


class MessagesEvent(msgspec.Struct, frozen=True):
    """An event of a stream; each type has some of the fields."""

    type: str
    index: int | msgspec.UnsetType = msgspec.UNSET
    content_block: Block | msgspec.UnsetType = msgspec.UNSET
    delta: EventDelta | msgspec.UnsetType = msgspec.UNSET
    message: AnthropicMessage | msgspec.UnsetType = msgspec.UNSET
    usage: MessagesUsage | msgspec.UnsetType = msgspec.UNSET
    context_management: ShownEdits = msgspec.UNSET


class MessagesFormat(AnswerFormat):
    def __init__(self, body: MessagesBody) -> None:
        self._shows_thoughts = body.shows_thoughts
        self._edits: ShownEdits = msgspec.UNSET if body.context_management is None else ContextManagement()
        self._blocks: list[Block] = []
        #: The block that is not in ``_blocks`` yet, and what it has so far.
        self._open: Block | None = None
        self._pieces: list[str] = []
        self._calls = CallParts(parallel=body.parallel_calls)
        self._is_begun = False

    def events(self, chunk: Chunk) -> Sequence[ServerSentEvent]:
        events = self._beginning()
        if chunk.reasoning and self._shows_thoughts:
            events += self._add(ThinkingBlock(""), chunk.reasoning, EventDelta(type="thinking_delta", thinking=chunk.reasoning))
        if chunk.text:
            events += self._add(TextPart(""), chunk.text, EventDelta(type="text_delta", text=chunk.text))
        for part in self._calls.add(chunk):
            # The first part of a call names it.
            block = ToolUseBlock(part.id, part.name, {}) if part.name else self._open
            delta = EventDelta(type="input_json_delta", partial_json=part.arguments)
            events += [] if block is None else self._add(block, part.arguments, delta, begins=bool(part.name))
        return [ServerSentEvent(event, event.type) for event in events]

    def last_events(self, result: InferenceResult) -> Sequence[ServerSentEvent]:
        reason, stop = self._end(result)
        delta = EventDelta(stop_reason=reason, stop_sequence=stop)
        end = MessagesEvent("message_delta", delta=delta, usage=MessagesUsage.of(result.usage, self.about), context_management=self._edits)
        events = (*self._beginning(), *self._close(), end, MessagesEvent("message_stop"))
        return [ServerSentEvent(event, event.type) for event in events]

    def failed(self, error: ErrorBody) -> Sequence[ServerSentEvent]:
        return (ServerSentEvent(http_errors.anthropic_body(error), "error"),)

    def whole(self, result: InferenceResult) -> AnthropicMessage:
        cut_off = isinstance(self._open, ToolUseBlock) and result.finish_reason is not FinishReason.STOP
        arguments = "".join(self._pieces)
        self._close()
        if cut_off and chat_messages.json_object(arguments) is None:
            # Nobody should run a call without its end.
            del self._blocks[-1]
        reason, stop = self._end(result)
        message = self._message(tuple(self._blocks), MessagesUsage.of(result.usage, self.about))
        return msgspec.structs.replace(message, stop_reason=reason, stop_sequence=stop, context_management=self._edits)

    def _beginning(self) -> list[MessagesEvent]:
        if self._is_begun:
            return []
        self._is_begun = True
        # The counts are known at the end.
        return [MessagesEvent("message_start", message=self._message((), MessagesUsage.of(Usage(0, 0), self.about)))]

    def _add(self, block: Block, piece: str, delta: EventDelta, *, begins: bool = False) -> list[MessagesEvent]:
        events: list[MessagesEvent] = []
        if begins or type(block) is not type(self._open):
            events = [*self._close(), MessagesEvent("content_block_start", len(self._blocks), block)]
            self._open = block
        if piece:
            self._pieces.append(piece)
            events.append(MessagesEvent("content_block_delta", len(self._blocks), delta=delta))
        return events

    def _close(self) -> list[MessagesEvent]:
        block, text, at = self._open, "".join(self._pieces), len(self._blocks)
        events = [MessagesEvent("content_block_stop", at)]
        self._open = None
        self._pieces.clear()
        match block:
            case None:
                return []
            case ToolUseBlock():
                self._blocks.append(ToolUseBlock(block.id, block.name, chat_messages.json_object(text) or {}))
            case TextPart():
                self._blocks.append(TextPart(text))
            case ThinkingBlock():
                self._blocks.append(ThinkingBlock(text, _SIGNATURE))
                delta = EventDelta(type="signature_delta", signature=_SIGNATURE)
                events.insert(0, MessagesEvent("content_block_delta", at, delta=delta))
        return events

    def _end(self, result: InferenceResult) -> tuple[str, str | None]:
        """Return why the answer ended, and by which stop sequence."""
        if result.finish_reason is FinishReason.LENGTH:
            return "max_tokens", None
        if result.finish_reason is FinishReason.CONTENT_FILTER:
            return "refusal", None
        if self._calls.calls:
            return "tool_use", None
        return ("end_turn" if result.stop_sequence is None else "stop_sequence"), result.stop_sequence

    def _message(self, content: tuple[Block, ...], usage: MessagesUsage) -> AnthropicMessage:
        return AnthropicMessage(id=f"msg_{self.about.request_id.hex}", model=self.about.model, content=content, usage=usage)
