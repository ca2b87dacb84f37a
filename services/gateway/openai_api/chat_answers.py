"""The answers of OpenAI's API, and how they are made of what a worker said. Pure."""

from collections.abc import Sequence

import msgspec

from shared.api.generation import Usage
from shared.api.inference import TokenLogprob
from shared.types import FinishReason, ModelName


class UsageDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class ChatUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: UsageDetails

    @classmethod
    def of(cls, usage: Usage) -> "ChatUsage":
        return cls(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, UsageDetails(usage.cached_tokens))


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class AnswerToolCall(msgspec.Struct, frozen=True):
    id: str
    function: CalledFunction
    type: str = "function"
    #: Of the call within its answer; in chunks alone.
    index: int | msgspec.UnsetType = msgspec.UNSET


class Alternative(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    #: A token may be a part of a character.
    bytes: tuple[int, ...]


class TokenChoice(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[Alternative, ...]


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    content: tuple[TokenChoice, ...]
    refusal: None = None


class AnswerMessage(msgspec.Struct, frozen=True):
    #: Null where the answer is calls alone.
    content: str | None
    role: str = "assistant"
    refusal: None = None
    tool_calls: tuple[AnswerToolCall, ...] | msgspec.UnsetType = msgspec.UNSET


class Choice(msgspec.Struct, frozen=True):
    message: AnswerMessage
    finish_reason: str
    index: int = 0
    logprobs: ChoiceLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    id: str
    created: int
    model: ModelName
    choices: tuple[Choice, ...]
    usage: ChatUsage
    system_fingerprint: str = ""
    service_tier: str = "default"
    object: str = "chat.completion"


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    tool_calls: tuple[AnswerToolCall, ...] = ()


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
    #: With include_usage null in all chunks but the last; without it absent.
    usage: ChatUsage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: str = ""
    service_tier: str = "default"
    object: str = "chat.completion.chunk"


class Model(msgspec.Struct, frozen=True):
    id: ModelName
    created: int
    #: It gives vectors and no answers: for /v1/embeddings alone.
    only_embeds: bool = False
    object: str = "model"
    owned_by: str = "aimesh"


class Models(msgspec.Struct, frozen=True):
    """The default model first."""

    data: tuple[Model, ...]
    object: str = "list"


def logprobs_of(drawn: Sequence[TokenLogprob]) -> tuple[TokenChoice, ...]:
    return tuple(
        TokenChoice(
            piece_text(one.drawn.piece),
            one.drawn.logprob,
            tuple(one.drawn.piece),
            tuple(Alternative(piece_text(other.piece), other.logprob, tuple(other.piece)) for other in one.top),
        )
        for one in drawn
    )


def piece_text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def finish_word(reason: FinishReason) -> str:
    """In OpenAI's words, which have none for a generation that somebody ended."""
    return "length" if reason is FinishReason.LENGTH else "stop"
