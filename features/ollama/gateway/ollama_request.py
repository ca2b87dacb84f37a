"""Parses requests to Ollama's API. Pure."""

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import inspect

from features.ollama.gateway import ollama_parameters
from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import chat_messages
from services.gateway.http_api.chat_messages import IN_MESSAGE, OF_TOOLS, ImageUrl, JsonObject, ToolBody, json_text
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.openai_api import reasoning_words
from services.gateway.requests.request_validation import ensure_messages
from shared.api.embedding import Dimensions
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, NamedModel, ReasoningEffort, Stop, Stops, ToolCall, TopLogprobs
from shared.types import ModelName

#: Ollama's engine accepts any number, and a fraction for a whole one.
Number = int | float
_BOUNDS = {field.name: field.type for field in cast("inspect.StructType", inspect.type_info(InferenceRequest)).fields}


class OllamaOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Number | None = None
    min_p: Number | None = None
    repeat_penalty: Number | None = None
    frequency_penalty: Number | None = None
    presence_penalty: Number | None = None
    #: Negative: a random one.
    seed: Number | None = None
    #: Negative: until the end of the answer.
    num_predict: Number | None = None
    stop: Stop | Stops = ()


class OllamaNameBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request about a model, to show or to pull it."""

    #: The first is the older name.
    name: ModelName = ModelName("")
    model: ModelName = ModelName("")
    stream: bool = True


class OllamaPromptBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What chats and generations share."""

    model: NamedModel
    stream: bool = True
    #: A JSON schema, or ``json``.
    format: Literal["", "json"] | JsonObject = ""
    options: OllamaOptions = OllamaOptions()
    #: None: as the model does by default.
    think: bool | ReasoningEffort | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None


class OllamaFunctionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    arguments: JsonObject


class OllamaCallBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    function: OllamaFunctionBody
    #: Older clients know no ids.
    id: str = ""


class OllamaMessageBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: str
    content: str = ""
    thinking: str = ""
    #: In base64.
    images: Annotated[tuple[str, ...], IN_MESSAGE] = ()
    tool_calls: Annotated[tuple[OllamaCallBody, ...], IN_MESSAGE] = ()
    #: Which call this is the result of; by default, the first one without a result.
    tool_call_id: str = ""
    tool_name: str = ""


class OllamaChatBody(OllamaPromptBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chat request. Without messages, it only loads the model."""

    messages: tuple[OllamaMessageBody, ...] = ()
    tools: Annotated[tuple[ToolBody, ...], OF_TOOLS] = ()


class OllamaGenerateBody(OllamaPromptBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request to answer a prompt. Without one, it only loads the model."""

    prompt: str = ""
    system: str = ""
    images: Annotated[tuple[str, ...], IN_MESSAGE] = ()
    #: The answer is the text between the prompt and this.
    suffix: str = ""
    #: Without the model's chat template.
    raw: bool = False


class OllamaEmbeddingBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for one embedding, as older programs write it."""

    model: NamedModel
    prompt: str = ""
    options: OllamaOptions = OllamaOptions()


class OllamaEmbedBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for embeddings. Without an input, it only loads the model."""

    model: NamedModel
    input: str | tuple[str, ...] = ()
    dimensions: Dimensions | None = None
    options: OllamaOptions = OllamaOptions()


_TYPES = {"tools": "function"}
CHAT = BodyDialect("ollama_chat", OllamaChatBody, ollama_parameters.CHAT, _TYPES)
GENERATE = BodyDialect("ollama_generate", OllamaGenerateBody, ollama_parameters.GENERATE)
EMBED = BodyDialect("ollama_embed", OllamaEmbedBody, ollama_parameters.COMMON)
EMBEDDING = BodyDialect("ollama_embedding", OllamaEmbeddingBody, ollama_parameters.COMMON)
NAMED = BodyDialect("ollama_model", OllamaNameBody, ollama_parameters.COMMON)


def of_chat(body: OllamaChatBody) -> InferenceRequest:
    """Convert a chat. Raises BadRequest that names the field."""
    ensure_messages(body.messages)
    tools, _ = chat_messages.chosen_tools(body.tools, None)
    return msgspec.structs.replace(_sampled(body), messages=tuple(_messages(body.messages)), tools=tools)


def of_generation(body: OllamaGenerateBody) -> InferenceRequest:
    """Convert a prompt. Raises BadRequest that names the field."""
    if body.raw or body.suffix:
        return msgspec.structs.replace(_sampled(body), prompt=body.prompt, suffix=body.suffix, raw=True)
    system = [OllamaMessageBody(role="system", content=body.system)] if body.system else []
    messages = [*system, OllamaMessageBody(role="user", content=body.prompt, images=body.images)]
    return msgspec.structs.replace(_sampled(body), messages=tuple(_messages(messages)))


def _sampled(body: OllamaPromptBody) -> InferenceRequest:
    options, think = body.options, body.think
    schema = body.format if isinstance(body.format, dict) else None
    kind: Literal["text", "json_object", "json_schema"] = "text" if not body.format else "json_object" if schema is None else "json_schema"
    given = {name: _nearest(name, value) for name, value in chat_messages.shared_parameters(options).items() if value is not None}
    if options.seed is not None and options.seed < 0:
        del given["seed"]
    if options.num_predict is not None and options.num_predict > 0:
        given["max_tokens"] = _nearest("max_tokens", options.num_predict)
    given["stop"] = (options.stop,) if isinstance(options.stop, str) else options.stop
    is_on, effort = (think, None) if isinstance(think, bool) else (None, think)
    return InferenceRequest(
        **given,
        model=body.model,
        format=chat_messages.json_format(kind, schema),
        top_logprobs=chat_messages.wanted_logprobs(body.logprobs, body.top_logprobs),
        reasoning_effort=reasoning_words.effort_of(is_on, budget=None, effort=effort),
    )


def _nearest(name: str, value: Number) -> Any:
    """Return the nearest number within the bounds of a parameter."""
    bounds = next(each for each in cast("inspect.UnionType", _BOUNDS[name]).types if isinstance(each, inspect.IntType | inspect.FloatType))
    assert bounds.le is not None
    value = min(max(value, sys.float_info.epsilon if bounds.ge is None else bounds.ge), bounds.le)
    return int(value) if isinstance(bounds, inspect.IntType) else value


def _messages(messages: Sequence[OllamaMessageBody]) -> Iterator[ChatMessage]:
    """Convert messages; give their calls ids, and the results those of their calls."""
    #: The calls of the last message with calls that have no result yet: name by id.
    waiting: dict[str, str] = {}
    for position, message in enumerate(messages):
        field = f"messages[{position}]"
        calls = tuple(
            ToolCall(call.id or f"call_{position}_{index}", call.function.name, json_text(call.function.arguments))
            for index, call in enumerate(message.tool_calls)
        )
        waiting = {call.id: call.name for call in calls} or waiting
        call_id = None
        if message.role == "tool":
            first = (found for found, name in waiting.items() if message.tool_name in ("", name))
            call_id = message.tool_call_id or next(first, None)
            if call_id is None:
                raise BadField(f"{field}.tool_name", "names no call without a result in the messages before it")
            waiting.pop(call_id, None)
        text, images = chat_messages.to_content(f"{field}.images", [*map(ImageUrl, message.images), message.content])
        yield ChatMessage(message.role, text, calls, call_id, message.thinking if message.role == "assistant" else "", images)
