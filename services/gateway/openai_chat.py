"""The messages of OpenAI's chat API, and what of them this gateway takes. Pure.

A parameter that would change the answer and is not built is refused; one that changes nothing is let through, because
clients and frameworks send such ones unasked.
"""

from collections.abc import Callable, Mapping

import msgspec

from services.gateway import bodies
from services.gateway.admission import BadField
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, Usage
from shared.types import ModelName


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    text: str | None = None


class ChatBodyMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: system (or developer, its newer name), user or assistant.
    role: str
    content: str | tuple[TextPart, ...]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Beyond these, parameters of OpenAI's that change nothing here are taken and ignored: user, metadata, n=1, …"""

    messages: tuple[ChatBodyMessage, ...]
    model: ModelName | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    #: Not OpenAI's, but of every local engine.
    top_k: int | None = None
    stop: str | tuple[str, ...] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None


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


class AnswerMessage(msgspec.Struct, frozen=True):
    content: str
    role: str = "assistant"
    refusal: None = None


class Choice(msgspec.Struct, frozen=True):
    message: AnswerMessage
    finish_reason: str
    index: int = 0
    logprobs: None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    id: str
    created: int
    model: ModelName
    choices: tuple[Choice, ...]
    usage: ChatUsage
    object: str = "chat.completion"


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    delta: Delta
    finish_reason: str | None = None
    index: int = 0
    logprobs: None = None


class ChatChunk(msgspec.Struct, frozen=True, omit_defaults=False):
    id: str
    created: int
    model: ModelName
    choices: tuple[ChunkChoice, ...]
    #: With include_usage null in all chunks but the last; without it absent.
    usage: ChatUsage | msgspec.UnsetType | None = msgspec.UNSET
    object: str = "chat.completion.chunk"


class Model(msgspec.Struct, frozen=True):
    id: ModelName
    created: int
    object: str = "model"
    owned_by: str = "aimesh"


class Models(msgspec.Struct, frozen=True):
    """The default model first."""

    data: tuple[Model, ...]
    object: str = "list"


def _any(_value: object) -> bool:
    return True


def _one_of(*values: object) -> Callable[[object], bool]:
    # `1 == True` in Python, but not in JSON.
    return lambda value: any(type(value) is type(good) and value == good for good in values)


_ZERO = _one_of(0, 0.0)

#: Parameter of OpenAI's -> the values that change nothing here. Null always counts as absent.
HARMLESS: Mapping[str, Callable[[object], bool]] = {
    "user": _any,
    "metadata": _any,
    "safety_identifier": _any,
    "prompt_cache_key": _any,
    "prompt_cache_retention": _any,
    "parallel_tool_calls": _any,
    "store": _one_of(False),
    "n": _one_of(1),
    "frequency_penalty": _ZERO,
    "presence_penalty": _ZERO,
    "logit_bias": _one_of({}),
    "logprobs": _one_of(False),
    "top_logprobs": _one_of(0),
    "response_format": _one_of({"type": "text"}),
    "tools": _one_of([]),
    "tool_choice": _one_of("none", "auto"),
    "functions": _one_of([]),
    "function_call": _one_of("none", "auto"),
    "service_tier": _one_of("auto", "default"),
    "modalities": _one_of(["text"]),
    "reasoning_effort": _one_of("none"),
    "verbosity": _one_of("medium"),
    "audio": _one_of(),
    "prediction": _one_of(),
    "web_search_options": _one_of(),
    "moderation": _one_of(),
}

#: Fields of a message that clients send back as they got them, as null or empty.
_EMPTY_IN_MESSAGES = ("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content", "name")


def read(body: bytes) -> ChatBody:
    """Raises BadRequest that names the field."""
    found = bodies.read_object(body)
    for name, is_harmless in HARMLESS.items():
        if name not in found:
            continue
        value = found.pop(name)
        if value is not None and not is_harmless(value):
            raise BadField(name, "is not supported with this value; leave it out")
    if isinstance(messages := found.get("messages"), list):
        found["messages"] = [_without_empty(message) if isinstance(message, dict) else message for message in messages]
    chat = bodies.convert(found, ChatBody)
    if chat.stream_options is not None and not chat.stream:
        raise BadField("stream_options", "is only for stream=true")
    return chat


def to_request(chat: ChatBody) -> InferenceRequest:
    """Raises BadRequest that names the field."""
    if not chat.messages:
        raise BadField("messages", "is empty")
    if chat.max_tokens is not None and chat.max_completion_tokens not in {None, chat.max_tokens}:
        raise BadField("max_tokens", "and max_completion_tokens differ; give one of them")
    return InferenceRequest(
        messages=tuple(_message(position, message) for position, message in enumerate(chat.messages)),
        model=chat.model,
        max_tokens=chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens,
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=chat.top_k,
        stop=(chat.stop,) if isinstance(chat.stop, str) else chat.stop or (),
        seed=chat.seed,
    )


def _message(position: int, message: ChatBodyMessage) -> ChatMessage:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return ChatMessage(role, message.content)
    for part_position, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            raise BadField(f"messages[{position}].content[{part_position}]", "must be a text part; other media are not supported")
    return ChatMessage(role, "".join(part.text or "" for part in message.content))


def _without_empty(message: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in message.items() if not (name in _EMPTY_IN_MESSAGES and value in (None, [], ""))}
