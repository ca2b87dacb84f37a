"""What a generation is asked for and what comes back; the gateway's and the worker's messages share these."""

from enum import StrEnum

import msgspec

from shared.api.method import Body
from shared.types import FinishReason


class ToolCall(Body, frozen=True):
    """What the model asks its caller to run."""

    id: str
    name: str
    #: JSON as the model wrote it; whether it fits the tool's schema is the caller's to check.
    arguments: str


class ChatMessage(Body, frozen=True):
    role: str
    content: str
    #: Of an assistant's message.
    tool_calls: tuple[ToolCall, ...] = ()
    #: Of a message with role ``tool``: which call it answers.
    tool_call_id: str | None = None


class Tool(Body, frozen=True):
    """A function that the model may ask for."""

    name: str
    description: str = ""
    #: A JSON schema, as JSON text.
    parameters: str = "{}"


class ToolChoice(StrEnum):
    AUTO = "auto"
    NONE = "none"
    #: At least one call, of any tool, or of the only one if the request names one.
    REQUIRED = "required"


class FormatKind(StrEnum):
    #: Any JSON object.
    JSON = "json"
    JSON_SCHEMA = "json_schema"
    GBNF = "gbnf"


class OutputFormat(Body, frozen=True):
    """What the whole answer must be."""

    kind: FormatKind
    #: The schema as JSON text, or the grammar; empty for JSON.
    text: str = ""


class Sampling(Body, frozen=True):
    """The parameters of a generation. None leaves a choice to the worker, which takes the model's own default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    min_p: float | None = None
    #: 1 changes nothing; the other two, at 0.
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    #: Token id -> what is added to its logit.
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    #: Go on to max_tokens, whatever the model says; for load tests.
    ignore_eos: bool = False
    #: How many answers; None is one.
    n: int | None = None
    #: None: no log probabilities. 0: those of the tokens that were drawn; more: those of the likeliest besides.
    top_logprobs: int | None = None
    format: OutputFormat | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    #: The prompt is one text that the model goes on with, as it is: without its chat template.
    raw: bool = False


class Usage(Body, frozen=True, omit_defaults=False):
    """Exact counts of the model's own tokens."""

    prompt_tokens: int
    #: Of all answers, if more than one was asked for.
    completion_tokens: int
    #: The part of the prompt that was already in the model's memory.
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Generation(Body, frozen=True, omit_defaults=False):
    """How a generation ended."""

    #: Of the first answer.
    finish_reason: FinishReason
    usage: Usage
    #: Of every answer, where more than one was asked for.
    finish_reasons: tuple[FinishReason, ...] = ()
