"""Parses requests to OpenAI's chat API. Pure."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import chat_messages, parameters, service_tiers
from services.gateway.http_api.chat_messages import (
    OF_TOOLS,
    ChatBodyMessage,
    ChosenTools,
    FunctionBody,
    JsonObject,
    NamedFunction,
    NamedTool,
    ResponseFormat,
    SamplingOptions,
    ToolBody,
    ToolChoiceBody,
    json_text,
)
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.openai_api import reasoning_words
from services.gateway.openai_api.reasoning_words import OpenRouterReasoning, ThinkingBody, ThoughtTokens
from services.gateway.requests.request_validation import GUIDES
from shared.api.gateway import ConversationId, InferenceRequest
from shared.api.generation import (
    MAX_BIASES,
    Answers,
    Bias,
    FormatKind,
    LogitBias,
    MaxTokens,
    NamedModel,
    OutputFormat,
    ReasoningEffort,
    Seed,
    TopLogprobs,
)
from shared.protocol import field_errors


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Send a last event with the usage.
    include_usage: bool | None = None


class SamplingBody(SamplingOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters that chats and completions share."""

    model: NamedModel | None = None
    max_tokens: MaxTokens | None = None
    #: Logit bias by token id.
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)] | None = None
    n: Answers | None = None
    #: The next four are extensions of local engines, not OpenAI's.
    ignore_eos: bool = False
    #: GBNF.
    grammar: str | None = None
    #: A regular expression that the whole answer matches, or the texts of which it is one.
    guided_regex: str | None = None
    guided_choice: tuple[str, ...] | None = None
    seed: Seed | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    #: "flex" runs behind live requests, at the price of batches.
    service_tier: str | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatBody(SamplingBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chat request."""

    messages: tuple[ChatBodyMessage, ...]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[tuple[ToolBody, ...], OF_TOOLS] | None = None
    tool_choice: ToolChoiceBody | None = None
    #: The older form of the last two; an answer then has the older form of one call.
    functions: Annotated[tuple[FunctionBody, ...], OF_TOOLS] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    #: If false, an answer has at most one call.
    parallel_tool_calls: bool = True
    #: How much a model that can think thinks before it answers. The others are OpenRouter's, Qwen's, and DeepSeek's with GLM and Kimi.
    reasoning_effort: ReasoningEffort | None = None
    reasoning: OpenRouterReasoning = OpenRouterReasoning()
    include_reasoning: bool = True
    enable_thinking: bool | None = None
    thinking_budget: ThoughtTokens | None = None
    thinking: ThinkingBody = ThinkingBody("auto")
    #: Further variables of the model's chat template, at most 4 KiB.
    chat_template_kwargs: JsonObject | None = None
    #: Only ``conversation_id`` has an effect.
    metadata: dict[str, Any] | None = None

    @property
    def parallel_calls(self) -> bool:
        return self.parallel_tool_calls and not self.functions

    @property
    def shows_thoughts(self) -> bool:
        return self.include_reasoning and not self.reasoning.exclude

    @property
    def effort(self) -> ReasoningEffort | None:
        reasoning, thinking = self.reasoning, self.thinking
        budgets = (self.thinking_budget, thinking.budget_tokens, reasoning.max_tokens)
        return reasoning_words.effort_of(
            *(self.enable_thinking, thinking.is_on, reasoning.enabled),
            budget=next((budget for budget in budgets if budget is not None), None),
            effort=self.reasoning_effort or reasoning.effort,
        )


DIALECT = BodyDialect("chat", ChatBody, parameters.CHAT)


def to_request(chat: ChatBody) -> InferenceRequest:
    """Convert the request. Raises BadRequest that names the field."""
    if chat.max_completion_tokens is not None and chat.max_tokens not in {None, chat.max_completion_tokens}:
        raise BadField("max_tokens", "and max_completion_tokens differ; send only one")
    tools, tool_choice = _tools(chat)
    request = sampled_request(chat)
    return msgspec.structs.replace(
        request,
        messages=chat_messages.to_messages(chat.messages),
        max_tokens=chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens,
        top_logprobs=chat_messages.wanted_logprobs(chat.logprobs, chat.top_logprobs),
        format=request.format if chat.response_format is None else _json_format(chat.response_format, request.format),
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=chat.parallel_calls,
        reasoning_effort=chat.effort,
        chat_template_kwargs=json_text(chat.chat_template_kwargs) if chat.chat_template_kwargs else "",
        conversation_id=named_conversation(chat.metadata) if chat.metadata else None,
    )


def _tools(chat: ChatBody) -> ChosenTools:
    """Raises BadField."""
    if not chat.functions and not isinstance(chat.function_call, NamedFunction):
        return chat_messages.chosen_tools(chat.tools or (), chat.tool_choice)
    if chat.tools:
        raise BadField("functions", "and tools exclude each other; send only tools")
    choice = NamedTool(chat.function_call) if isinstance(chat.function_call, NamedFunction) else chat.function_call
    return chat_messages.chosen_tools(tuple(map(ToolBody, chat.functions or ())), choice)


def named_conversation(metadata: Mapping[str, Any]) -> str | None:
    """Return the conversation that the metadata name, if any; a header comes first. Raises BadField for an invalid id."""
    found = metadata.get("conversation_id")
    return None if found is None else field_errors.convert("metadata.conversation_id", found, ConversationId, BadField)


def sampled_request(body: SamplingBody) -> InferenceRequest:
    """Return a request with the shared parameters. Raises BadField."""
    biases = _biases(body.logit_bias) if body.logit_bias else {}
    return InferenceRequest(
        **chat_messages.shared_parameters(body),
        stop=(body.stop,) if isinstance(body.stop, str) else body.stop or (),
        logit_bias=biases,
        format=_guide(body),
        flex=service_tiers.wants_flex(body.service_tier),
    )


def _biases(biases: dict[str, float]) -> dict[int, float]:
    """Convert token ids. Raises BadField."""
    try:
        return msgspec.convert(biases, LogitBias, str_keys=True)
    except msgspec.ValidationError as error:
        raise BadField("logit_bias", "must have token ids as its keys") from error


def _guide(body: SamplingBody) -> OutputFormat | None:
    """Return the format that isn't JSON, if any. Raises BadField for more than one."""
    choices = None if body.guided_choice is None else json_text(list(body.guided_choice))
    texts = {FormatKind.GBNF: body.grammar, FormatKind.REGEX: body.guided_regex, FormatKind.CHOICE: choices}
    found = [OutputFormat(kind, text) for kind, text in texts.items() if text is not None]
    if len(found) > 1:
        raise BadField(GUIDES[found[1].kind], f"and {GUIDES[found[0].kind]} exclude each other; send only one")
    return found[0] if found else None


def _json_format(requested: ResponseFormat, guide: OutputFormat | None) -> OutputFormat | None:
    if guide is not None:
        raise BadField(GUIDES[guide.kind], "and response_format exclude each other; send only one")
    return chat_messages.wanted_format(requested)
