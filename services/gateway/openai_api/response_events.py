"""Defines the responses of OpenAI's Responses API, their items, and their stream events. Pure."""

import msgspec

from services.gateway.http_api.response_formats import TokenChoice
from services.gateway.openai_api.response_request import TextFormat
from services.gateway.openai_api.response_tools import ToolBody, ToolChoiceBody
from shared.api.generation import ReasoningEffort, Usage
from shared.types import ModelName


class OutputTextPart(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[TokenChoice, ...] = ()


class OutputMessage(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    #: in_progress, completed or incomplete.
    status: str
    content: tuple[OutputTextPart, ...]
    role: str = "assistant"


class OutputCall(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    status: str
    call_id: str
    name: str
    arguments: str
    namespace: str | msgspec.UnsetType = msgspec.UNSET


class OutputCustomCall(msgspec.Struct, frozen=True, tag_field="type", tag="custom_tool_call"):
    id: str
    status: str
    call_id: str
    name: str
    input: str
    namespace: str | msgspec.UnsetType = msgspec.UNSET


class ReasoningTextPart(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


class SummaryPart(msgspec.Struct, frozen=True, tag_field="type", tag="summary_text"):
    text: str


class OutputReasoning(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """The model's thoughts, whole. Send them back before the answer that follows them."""

    id: str
    status: str
    content: tuple[ReasoningTextPart, ...]
    #: The same thoughts, if the request asks for a summary.
    summary: tuple[SummaryPart, ...] = ()


OutputItem = OutputMessage | OutputCall | OutputCustomCall | OutputReasoning


class InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "ResponseUsage":
        cached = InputDetails(usage.cached_tokens)
        details = OutputDetails(usage.reasoning_tokens)
        return cls(usage.prompt_tokens, cached, usage.completion_tokens, details, usage.total_tokens)


class ResponseProblem(msgspec.Struct, frozen=True):
    #: server_error, rate_limit_exceeded, invalid_prompt or context_length_exceeded.
    code: str
    message: str


class Incomplete(msgspec.Struct, frozen=True):
    reason: str


class Reasoning(msgspec.Struct, frozen=True):
    effort: ReasoningEffort | None = None
    summary: str | None = None


class ResponseText(msgspec.Struct, frozen=True):
    format: TextFormat
    verbosity: str = "medium"


class Response(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "response"
    created_at: int
    #: queued, in_progress, completed, incomplete, failed or cancelled.
    status: str
    completed_at: int | None = None
    background: bool = False
    error: ResponseProblem | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    model: ModelName
    output: tuple[OutputItem, ...] = ()
    parallel_tool_calls: bool
    previous_response_id: str | None = None
    reasoning: Reasoning = Reasoning()
    service_tier: str = "default"
    store: bool
    #: Null for the model's default.
    temperature: float | None
    text: ResponseText
    tool_choice: ToolChoiceBody
    tools: tuple[ToolBody, ...]
    top_logprobs: int
    top_p: float | None
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: None = None
    metadata: dict[str, str]


class ResponseEvent(msgspec.Struct, frozen=True):
    type: str
    sequence_number: int
    response: Response


class ItemEvent(msgspec.Struct, frozen=True):
    type: str
    sequence_number: int
    output_index: int
    item: OutputItem


class PlacedEvent(msgspec.Struct, frozen=True):
    """An event about an item."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int


class PartEvent(PlacedEvent, frozen=True):
    part: OutputTextPart | ReasoningTextPart
    content_index: int = 0


class TextDelta(PlacedEvent, frozen=True):
    delta: str
    logprobs: tuple[TokenChoice, ...] = ()
    content_index: int = 0


class TextDone(PlacedEvent, frozen=True):
    text: str
    logprobs: tuple[TokenChoice, ...] = ()
    content_index: int = 0


class ReasoningDelta(PlacedEvent, frozen=True):
    delta: str
    content_index: int = 0


class ReasoningDone(PlacedEvent, frozen=True):
    text: str
    content_index: int = 0


class SummaryPartEvent(PlacedEvent, frozen=True):
    part: SummaryPart
    summary_index: int = 0


class SummaryDelta(PlacedEvent, frozen=True):
    delta: str
    summary_index: int = 0


class SummaryDone(PlacedEvent, frozen=True):
    text: str
    summary_index: int = 0


class ArgumentsDelta(PlacedEvent, frozen=True):
    delta: str


class ArgumentsDone(PlacedEvent, frozen=True):
    name: str
    arguments: str


class CustomInputDone(PlacedEvent, frozen=True):
    input: str


class ErrorEvent(msgspec.Struct, frozen=True):
    sequence_number: int
    code: str
    message: str
    param: str | None
    type: str = "error"


#: All stream events; their names are in the `event:` lines, too.
StreamEvent = (
    ResponseEvent | ItemEvent | PartEvent | TextDelta | TextDone | ReasoningDelta | ReasoningDone | SummaryPartEvent | SummaryDelta
    | SummaryDone | ArgumentsDelta | ArgumentsDone | CustomInputDone
)  # fmt: skip
