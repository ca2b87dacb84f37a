"""Formats answers for OpenAI's chat API. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from services.gateway.facts.call_parts import CallParts
from services.gateway.http_api import response_formats
from services.gateway.openai_api.chat_request import ChatBody
from shared.api.gateway import InferenceResult, ServedModel
from shared.api.generation import Usage
from shared.api.inference import Chunk
from shared.types import Ability, FinishReason, ModelName, Moment


class UsageDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class ChatUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: UsageDetails
    completion_tokens_details: CompletionDetails

    @classmethod
    def of(cls, usage: Usage) -> "ChatUsage":
        details = UsageDetails(usage.cached_tokens), CompletionDetails(usage.reasoning_tokens)
        return cls(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, *details)


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    content: tuple[response_formats.TokenChoice, ...]
    refusal: None = None


class AnswerMessage(msgspec.Struct, frozen=True):
    #: Null if the answer has only calls.
    content: str | None
    role: str = "assistant"
    refusal: None = None
    #: The model's thoughts before the content, as DeepSeek's API has them.
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: tuple[response_formats.AnswerToolCall, ...] | msgspec.UnsetType = msgspec.UNSET
    #: The older form, if the request has ``functions``.
    function_call: response_formats.CalledFunction | msgspec.UnsetType = msgspec.UNSET


class Choice(msgspec.Struct, frozen=True):
    message: AnswerMessage
    finish_reason: str
    index: int = 0
    logprobs: ChoiceLogprobs | None = None


class ServedBy(msgspec.Struct, frozen=True):
    """Our addition to OpenAI's answers."""

    #: The route's name for it.
    target: str


ShownServedBy = ServedBy | msgspec.UnsetType


def served_by(result: InferenceResult) -> ShownServedBy:
    return msgspec.UNSET if result.target is None else ServedBy(result.target)


class ChatCompletion(msgspec.Struct, frozen=True):
    id: str
    created: int
    model: ModelName
    choices: tuple[Choice, ...]
    usage: ChatUsage
    system_fingerprint: str = ""
    service_tier: str = "default"
    object: str = "chat.completion"
    x_aimesh: ShownServedBy = msgspec.UNSET


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[response_formats.ToolCallDelta, ...] = ()
    function_call: response_formats.FunctionDelta | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    delta: Delta
    finish_reason: str | None = None
    index: int = 0
    logprobs: ChoiceLogprobs | None = None


class ChatChunk(msgspec.Struct, frozen=True, omit_defaults=False):
    id: str
    created: int
    model: ModelName
    choices: tuple[ChunkChoice, ...]
    #: Only with include_usage: null in all chunks but the last.
    usage: ChatUsage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: str = ""
    service_tier: str = "default"
    object: str = "chat.completion.chunk"
    #: Only in the last one.
    x_aimesh: ShownServedBy = msgspec.UNSET


class Modalities(msgspec.Struct, frozen=True):
    """As in OpenRouter's list."""

    input_modalities: tuple[str, ...]
    output_modalities: tuple[str, ...]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    id: ModelName
    created: int
    #: Tokens of prompt and answer, under OpenRouter's name and vLLM's; missing if unknown.
    context_length: int | msgspec.UnsetType
    max_model_len: int | msgspec.UnsetType
    architecture: Modalities
    #: The model only works with /v1/embeddings.
    only_embeds: bool = False
    #: tools, reasoning, images, embeddings, rerank, infill.
    abilities: tuple[str, ...] = ()
    #: Whether coding agents can work with it, and what is known of that.
    suits_agents: bool = False
    agents_hint: str = ""
    #: The model whose adapter this is.
    parent: ModelName | None = None
    object: str = "model"
    owned_by: str = "aimesh"
    #: The rest is Anthropic's.
    type: str = "model"
    display_name: ModelName
    created_at: Moment
    max_input_tokens: int | msgspec.UnsetType
    lifecycle: str = "active"


def show_model(model: ServedModel, started_at: int) -> Model:
    context = model.context_tokens or msgspec.UNSET
    images = ("image",) if Ability.IMAGES in model.abilities else ()
    return Model(
        id=model.name,
        created=started_at,
        context_length=context,
        max_model_len=context,
        architecture=Modalities(("text", *images), ("embeddings",) if model.only_embeds else ("text",)),
        only_embeds=model.only_embeds,
        abilities=model.abilities,
        suits_agents=model.suits_agents,
        agents_hint=model.agents_hint,
        parent=model.parent,
        owned_by=", ".join(model.providers) or "aimesh",
        display_name=model.name,
        created_at=datetime.fromtimestamp(started_at, UTC),
        max_input_tokens=context,
    )


class Models(msgspec.Struct, frozen=True):
    """The default model first."""

    data: tuple[Model, ...]
    object: str = "list"
    #: Anthropic's: this is the only page.
    has_more: bool = False


def finish_word(reason: FinishReason) -> str:
    """Return OpenAI's finish reason; it has none for a cancellation."""
    return reason.value if reason in {FinishReason.LENGTH, FinishReason.CONTENT_FILTER} else "stop"


_NOTHING = Delta()


class ChatFormat(response_formats.AnswerFormat):
    def __init__(self, chat: ChatBody) -> None:
        self._gathered = [_GatheredChat(chat) for _ in range(chat.n or 1)]
        self._with_logprobs = chat.logprobs
        self._include_usage = chat.include_usage
        #: Answers with at least one event.
        self._begun: set[int] = set()

    def begin(self, about: response_formats.AnswerFacts) -> None:
        super().begin(about)
        self._id = f"chatcmpl-{about.request_id.hex}"

    def gather(self, chunk: Chunk) -> None:
        if chunk.answer < len(self._gathered):
            self._gathered[chunk.answer].add(chunk)

    def events(self, chunk: Chunk) -> Sequence[response_formats.ServerSentEvent]:
        index = chunk.answer
        # A worker may send more answers than requested.
        if index >= len(self._gathered):
            return ()
        delta = self._gathered[index].add(chunk)
        logprobs = ChoiceLogprobs(response_formats.logprobs_of(chunk.logprobs)) if chunk.logprobs else None
        events: list[response_formats.ServerSentEvent] = []
        if index not in self._begun:
            events += [response_formats.ServerSentEvent(self._chunk((choice,))) for choice in self._beginning(index)]
        if delta != _NOTHING or logprobs is not None:
            choice = ChunkChoice(delta, index=index, logprobs=logprobs)
            events.append(response_formats.ServerSentEvent(self._chunk((choice,))))
        return events

    def last_events(self, result: InferenceResult) -> Sequence[response_formats.ServerSentEvent]:
        choices: list[ChunkChoice] = []
        for index, reason in enumerate(response_formats.reasons(result, len(self._gathered))):
            choices += self._beginning(index)
            choices.append(ChunkChoice(Delta(), finish_reason=self._gathered[index].finish_reason(reason), index=index))
        events = [self._chunk((choice,)) for choice in choices]
        if self._include_usage:
            events.append(self._chunk((), ChatUsage.of(result.usage)))
        events[-1] = msgspec.structs.replace(events[-1], x_aimesh=served_by(result))
        return (*map(response_formats.ServerSentEvent, events), response_formats.DONE)

    def whole(self, result: InferenceResult) -> ChatCompletion:
        about = self.about
        choices = tuple(
            self._gathered[index].choice(index, reason, with_logprobs=self._with_logprobs)
            for index, reason in enumerate(response_formats.reasons(result, len(self._gathered)))
        )
        return ChatCompletion(
            *(self._id, about.created, about.model, choices, ChatUsage.of(result.usage), about.fingerprint, about.service_tier),
            x_aimesh=served_by(result),
        )

    def _beginning(self, index: int) -> list[ChunkChoice]:
        if index in self._begun:
            return []
        self._begun.add(index)
        return [ChunkChoice(Delta(role="assistant", content=""), index=index)]

    def _chunk(self, choices: tuple[ChunkChoice, ...], usage: ChatUsage | None = None) -> ChatChunk:
        about = self.about
        shown_usage = usage if self._include_usage else msgspec.UNSET
        return ChatChunk(self._id, about.created, about.model, choices, shown_usage, about.fingerprint, about.service_tier)


class _GatheredChat:
    def __init__(self, chat: ChatBody) -> None:
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._parallel_calls = chat.parallel_calls
        self._has_functions = bool(chat.functions)
        self._shows_thoughts = chat.shows_thoughts
        #: None until the answer has a call.
        self._calls: CallParts | None = None
        self._logprobs: list[response_formats.TokenChoice] = []

    def add(self, chunk: Chunk) -> Delta:
        calls: tuple[response_formats.ToolCallDelta, ...] = ()
        if self._calls is not None or chunk.tool_calls or chunk.call_parts:
            self._calls = self._calls or CallParts(parallel=self._parallel_calls)
            calls = tuple(map(response_formats.ToolCallDelta.of, self._calls.add(chunk)))
        self._texts.append(chunk.text)
        reasoning = chunk.reasoning if self._shows_thoughts else ""
        self._reasoning.append(reasoning)
        if chunk.logprobs:
            self._logprobs += response_formats.logprobs_of(chunk.logprobs)
        delta = Delta(content=chunk.text or None, reasoning_content=reasoning or None, tool_calls=calls)
        if calls and self._has_functions:
            arguments = "".join(part.function.arguments for part in calls)
            function = response_formats.FunctionDelta(name=calls[0].function.name, arguments=arguments)
            delta = msgspec.structs.replace(delta, tool_calls=(), function_call=function)
        return delta

    def finish_reason(self, reason: FinishReason) -> str:
        if self._calls is not None and self._calls.calls and reason is FinishReason.STOP:
            return "function_call" if self._has_functions else "tool_calls"
        return finish_word(reason)

    def choice(self, index: int, reason: FinishReason, *, with_logprobs: bool) -> Choice:
        text, reasoning = "".join(self._texts), "".join(self._reasoning)
        calls = () if self._calls is None else tuple(map(response_formats.AnswerToolCall.of, self._calls.calls))
        message = AnswerMessage(
            text or None if calls else text,
            reasoning_content=reasoning or msgspec.UNSET,
            tool_calls=msgspec.UNSET if self._has_functions else calls or msgspec.UNSET,
            function_call=calls[0].function if calls and self._has_functions else msgspec.UNSET,
        )
        logprobs = ChoiceLogprobs(tuple(self._logprobs)) if with_logprobs else None
        return Choice(message, self.finish_reason(reason), index, logprobs)
