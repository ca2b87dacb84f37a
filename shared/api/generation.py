"""The parameters and result of a generation, shared by the gateway's and the worker's messages."""

import hashlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from shared.api.method import Body
from shared.types import FinishReason, ModelName

MAX_TEMPLATE_KWARGS_BYTES = 4096
#: All texts of a prompt and its tools together, in UTF-8.
MAX_PROMPT_BYTES = 4 * 1024 * 1024
#: Of a request as users write it. A model may read more, because each result of a tool is a message.
MAX_MESSAGES = 10_000
MAX_READ_MESSAGES = 4 * MAX_MESSAGES
MAX_TOOLS = 512
#: Texts, images, calls and results in one message.
MAX_PARTS = 1000
#: Settings of a gateway can only lower it.
MAX_IMAGES = 64

# --- bounds: every API's bodies use these types, so that no value out of bounds ever becomes an object -------------------------------

MAX_SEED = 2**63 - 1
MAX_TOKEN_ID = 2**31 - 1
MAX_TEMPERATURE = 2.0
#: 1 has no effect; larger or smaller values produce noise.
MIN_REPEAT_PENALTY, MAX_REPEAT_PENALTY = 0.1, 2.0

#: A model's context is a lower limit, to which a higher number is reduced.
MaxTokens = Annotated[int, Meta(ge=1, le=MAX_SEED)]
Temperature = Annotated[float, Meta(ge=0, le=MAX_TEMPERATURE)]
TopP = Annotated[float, Meta(gt=0, le=1)]
#: 0 is off.
TopK = Annotated[int, Meta(ge=0, le=1000)]
MinP = Annotated[float, Meta(ge=0, le=1)]
Seed = Annotated[int, Meta(ge=0, le=MAX_SEED)]
RepeatPenalty = Annotated[float, Meta(ge=MIN_REPEAT_PENALTY, le=MAX_REPEAT_PENALTY)]
#: 0 has no effect.
Penalty = Annotated[float, Meta(ge=-2, le=2)]
#: The number of answers to one prompt.
Answers = Annotated[int, Meta(ge=1, le=4)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
#: OpenAI's range: -100 bans a token, 100 forces it.
Bias = Annotated[float, Meta(ge=-100, le=100)]
MAX_BIASES = 300
#: As a caller names it.
NamedModel = Annotated[ModelName, Meta(min_length=1, max_length=200)]
#: Each is searched for in every step (SECURITY.md, T5).
Stop = Annotated[str, Meta(min_length=1, max_length=64)]
Stops = Annotated[tuple[Stop, ...], Meta(max_length=4)]
LogitBias = Annotated[dict[TokenId, Bias], Meta(max_length=MAX_BIASES)]


class ToolCall(Body, frozen=True):
    #: The caller runs it.
    id: str
    name: str
    #: JSON as written by the model. The caller must check it against the tool's schema.
    arguments: str


class ToolCallPart(Body, frozen=True):
    """The next part of a call that the model is writing."""

    #: Which call of the answer, from 0.
    index: int
    #: The next part of its arguments.
    arguments: str = ""
    #: These two are only in a call's first part.
    id: str = ""
    name: str = ""


#: In a raw prompt's second message: the text behind the gap that the model fills.
SUFFIX_ROLE = "suffix"


class ImageDetail(StrEnum):
    """How closely the model looks at an image."""

    AUTO = "auto"
    LOW = "low"
    HIGH = "high"

    @classmethod
    def _missing_(cls, value: object) -> "ImageDetail | None":
        # Codex asks OpenAI's newer models for it. Ours see no more than at "high".
        return cls.HIGH if value == "original" else None


#: The long side of what a model sees, and for ``low``: workers shrink larger images.
LONG_SIDE, LOW_LONG_SIDE = 1568, 512


class ImagePart(Body, frozen=True):
    #: An encoded JPEG, PNG, WebP or GIF.
    data: bytes
    #: The character of the message's content before which the image is.
    at: int = 0
    detail: ImageDetail = ImageDetail.AUTO
    #: SHA-256 of the data. The gateway sets it; nobody believes a caller's.
    digest: bytes = b""


class ChatMessage(Body, frozen=True):
    role: str
    content: str
    #: Only in an assistant's message.
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(max_length=MAX_PARTS)] = ()
    #: Only with role ``tool``: the call that this message answers.
    tool_call_id: str | None = None
    #: Only in an assistant's message: its thoughts before the content.
    reasoning: str = ""
    #: In the order of their places.
    images: Annotated[tuple[ImagePart, ...], Meta(max_length=MAX_IMAGES)] = ()


Messages = Annotated[tuple[ChatMessage, ...], Meta(max_length=MAX_READ_MESSAGES)]


class Tool(Body, frozen=True):
    """A function that the model may ask its caller to run."""

    name: str
    description: str = ""
    #: A JSON schema, as JSON text.
    parameters: str = "{}"


Tools = Annotated[tuple[Tool, ...], Meta(max_length=MAX_TOOLS)]


class ToolChoice(StrEnum):
    AUTO = "auto"
    NONE = "none"
    #: At least one call of any tool, or of the only tool.
    REQUIRED = "required"


class ReasoningEffort(StrEnum):
    """How much a model that can think thinks before it answers."""

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"

    @classmethod
    def _missing_(cls, value: object) -> "ReasoningEffort | None":
        # Another name of the same, at Anthropic, DeepSeek and GLM.
        return cls.XHIGH if value == "max" else None

    @classmethod
    def of_tokens(cls, tokens: int) -> "ReasoningEffort":
        """Return the effort that allows so many tokens of thoughts."""
        return next((effort for effort, most in THOUGHT_TOKENS.items() if tokens <= most), cls.HIGH) if tokens else cls.NONE


#: The most tokens of thoughts; an effort without a number has no limit.
THOUGHT_TOKENS = {ReasoningEffort.LOW: 1024, ReasoningEffort.MEDIUM: 8192}


class FormatKind(StrEnum):
    #: Any JSON object.
    JSON = "json"
    JSON_SCHEMA = "json_schema"
    GBNF = "gbnf"
    REGEX = "regex"
    #: One of several texts.
    CHOICE = "choice"


class OutputFormat(Body, frozen=True):
    """A format that the whole answer must have."""

    kind: FormatKind
    #: The schema as JSON text, the grammar, the regular expression, or the choices as a list in JSON; empty for JSON.
    text: str = ""

    @property
    def is_json(self) -> bool:
        """Whether tools may be offered beside it."""
        return self.kind in (FormatKind.JSON, FormatKind.JSON_SCHEMA)


class Sampling(Body, frozen=True):
    """The parameters of a generation. None uses the model's own default."""

    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    stop: Stops = ()
    seed: Seed | None = None
    min_p: MinP | None = None
    repeat_penalty: RepeatPenalty | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    #: Token id -> value added to its logit.
    logit_bias: LogitBias = msgspec.field(default_factory=dict)
    #: Ignore the model's end of text and continue to max_tokens; for load tests.
    ignore_eos: bool = False
    #: None is one.
    n: Answers | None = None
    #: None: no log probabilities. 0: only for the generated tokens. More: also for this many most likely tokens.
    top_logprobs: TopLogprobs | None = None
    format: OutputFormat | None = None
    tools: Tools = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    #: False: at most one call per answer.
    parallel_tool_calls: bool = True
    #: None: as the model's entry or its template says.
    reasoning_effort: ReasoningEffort | None = None
    #: Further variables of the chat template, as a JSON object of at most MAX_TEMPLATE_KWARGS_BYTES; empty for none.
    chat_template_kwargs: str = ""
    #: Complete the prompt as plain text, without the model's chat template.
    raw: bool = False

    @property
    def is_deterministic(self) -> bool:
        return self.temperature == 0 or self.seed is not None


class Usage(Body, frozen=True, omit_defaults=False):
    """Exact counts in the model's own tokens."""

    prompt_tokens: int
    #: Sum over all answers.
    completion_tokens: int
    #: Prompt tokens that were already in the model's cache.
    cached_tokens: int = 0
    #: The part of ``completion_tokens`` that was spent on thoughts.
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class GenerationEnd(Body, frozen=True, omit_defaults=False):
    #: Of the first answer.
    finish_reason: FinishReason
    usage: Usage
    #: One per answer, if the request asked for several.
    finish_reasons: tuple[FinishReason, ...] = ()
    #: The caller's stop sequence that ended the first answer; None also if another server doesn't say.
    stop_sequence: str | None = None
    #: Of a request of a batch: how long the worker computed it, without the time for which it made way; None if unknown.
    computed_seconds: float | None = None


# --- the beginnings of prompts, by which gateways find the worker, and workers the engine, that has just read the same ------------------

# Constants from LocalAI's prefix-cache routing (core/services/nodes/prefixcache/config.go): 256-byte blocks, at most 64.
BLOCK_BYTES = 256
MAX_BLOCKS = 64
_HASH_BYTES = 12
#: Digests of 32 bytes that stand for an image: 4 KiB, as a text of 1,000 tokens.
_IMAGE_BLOCKS = 128


def hash_prefixes(messages: Sequence[ChatMessage], salt: str, tools: Sequence[Tool] = ()) -> tuple[bytes, ...]:
    """Return the hashes of the prompt's prefixes, one for each whole block, shortest first; none for a shorter prompt.

    Above MAX_BLOCKS, only every second, fourth, … prefix is hashed. A shorter prompt hashes each of these, too, so a conversation
    matches its own last turn.
    """
    text = _rendered(messages, tools)
    blocks = len(text) // BLOCK_BYTES
    stride = 1
    while blocks // stride > MAX_BLOCKS:
        stride *= 2
    running = hashlib.blake2b(digest_size=_HASH_BYTES, key=salt.encode()[: hashlib.blake2b.MAX_KEY_SIZE])
    step, view, hashes = stride * BLOCK_BYTES, memoryview(text), []
    for start in range(0, blocks // stride * step, step):
        running.update(view[start : start + step])
        hashes.append(running.digest())
    return tuple(hashes)


def _rendered(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> bytes:
    """Serialize the prompt without length prefixes, so that an extended text starts with the same bytes."""
    parts = [msgspec.msgpack.encode(tools)] if tools else []
    for message in messages:
        parts += [message.role.encode(), b"\0", *_content(message), b"\0"]
        if message.reasoning:
            parts += [message.reasoning.encode(errors="surrogatepass"), b"\0"]
        if message.tool_calls:
            parts.append(msgspec.msgpack.encode(message.tool_calls))
    return b"".join(parts)


def _content(message: ChatMessage) -> Iterator[bytes]:
    start = 0
    for image in message.images:
        yield message.content[start : image.at].encode(errors="surrogatepass")
        # Another image is never a hit.
        yield image.digest * _IMAGE_BLOCKS
        start = image.at
    yield message.content[start:].encode(errors="surrogatepass")
