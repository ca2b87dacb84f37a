"""The parameters and result of a generation, shared by the gateway's and the worker's messages."""

from enum import StrEnum

import msgspec

from shared.api.method import Body
from shared.types import FinishReason


class ToolCall(Body, frozen=True):
    #: The caller runs it.
    id: str
    name: str
    #: JSON as written by the model. The caller must check it against the tool's schema.
    arguments: str


class ChatMessage(Body, frozen=True):
    role: str
    content: str
    #: Only in an assistant's message.
    tool_calls: tuple[ToolCall, ...] = ()
    #: Only with role ``tool``: the call that this message answers.
    tool_call_id: str | None = None


class Tool(Body, frozen=True):
    """A function that the model may ask its caller to run."""

    name: str
    description: str = ""
    #: A JSON schema, as JSON text.
    parameters: str = "{}"


class ToolChoice(StrEnum):
    AUTO = "auto"
    NONE = "none"
    #: At least one call of any tool, or of the only tool.
    REQUIRED = "required"


class FormatKind(StrEnum):
    #: Any JSON object.
    JSON = "json"
    JSON_SCHEMA = "json_schema"
    GBNF = "gbnf"


class OutputFormat(Body, frozen=True):
    """A format that the whole answer must have."""

    kind: FormatKind
    #: The schema as JSON text, or the grammar; empty for JSON.
    text: str = ""


class Sampling(Body, frozen=True):
    """The parameters of a generation. None uses the model's own default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    min_p: float | None = None
    #: 1 has no effect; for the other two, 0.
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    #: Token id -> value added to its logit.
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    #: Ignore the model's end of text and continue to max_tokens; for load tests.
    ignore_eos: bool = False
    #: The number of answers; None is one.
    n: int | None = None
    #: None: no log probabilities. 0: only for the generated tokens. More: also for this many most likely tokens.
    top_logprobs: int | None = None
    format: OutputFormat | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    #: Complete the prompt as plain text, without the model's chat template.
    raw: bool = False


class Usage(Body, frozen=True, omit_defaults=False):
    """Exact counts in the model's own tokens."""

    prompt_tokens: int
    #: Sum over all answers.
    completion_tokens: int
    #: Prompt tokens that were already in the model's cache.
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Generation(Body, frozen=True, omit_defaults=False):
    #: Of the first answer.
    finish_reason: FinishReason
    usage: Usage
    #: One per answer, if the request asked for several.
    finish_reasons: tuple[FinishReason, ...] = ()
