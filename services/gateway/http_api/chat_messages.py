"""Converts messages, tools and output formats as OpenAI's APIs write them; `/api` takes the same. Pure."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from operator import attrgetter
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from services.gateway.facts.bad_field import BadField
from services.gateway.requests.request_validation import ensure_messages
from shared.api.generation import (
    MAX_PARTS,
    MAX_TOOLS,
    ChatMessage,
    FormatKind,
    ImageDetail,
    ImagePart,
    MinP,
    OutputFormat,
    Penalty,
    RepeatPenalty,
    Stop,
    Stops,
    Temperature,
    Tool,
    ToolCall,
    ToolChoice,
    TopK,
    TopP,
)

#: The bounds of lists.
IN_MESSAGE, OF_TOOLS = Meta(max_length=MAX_PARTS), Meta(max_length=MAX_TOOLS)
#: Aliases of roles.
_ROLES = {"developer": "system"}


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str


class RefusalPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    refusal: str


class ImageUrl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: A data URL with the image in base64.
    url: str
    #: low: the model sees a smaller image, for fewer tokens.
    detail: ImageDetail = ImageDetail.AUTO


class ImageUrlPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="image_url"):
    image_url: str | ImageUrl
    detail: ImageDetail = ImageDetail.AUTO


class FunctionCallBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    #: JSON.
    arguments: str


class ToolCallBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    function: FunctionCallBody
    type: Literal["function"] = "function"


class ChatBodyMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: system (or its newer name developer), user, assistant, tool, or function, which is its older name.
    role: str
    #: May be null with tool calls, a refusal or thoughts. Text parts are joined.
    content: str | Annotated[tuple[TextPart | RefusalPart | ImageUrlPart, ...], IN_MESSAGE] | None = None
    tool_calls: Annotated[tuple[ToolCallBody, ...], IN_MESSAGE] = ()
    tool_call_id: str | None = None
    #: The older form of one call. Some clients always send it, empty.
    function_call: FunctionCallBody | Literal[""] | tuple[()] | None = None
    #: From an earlier answer.
    refusal: str | None = None
    #: The thoughts of an earlier answer; the other name is vLLM's and OpenRouter's.
    reasoning_content: str | None = None
    reasoning: str | None = None


WrittenContent: TypeAlias = tuple[str, tuple[ImagePart, ...]]


def to_messages(messages: tuple[ChatBodyMessage, ...]) -> tuple[ChatMessage, ...]:
    """Convert messages. Raises BadField."""
    if not messages:
        raise BadField("messages", "is empty")
    ensure_messages(messages)
    return tuple(_message(position, message) for position, message in enumerate(messages))


def _message(position: int, message: ChatBodyMessage) -> ChatMessage:
    role = _ROLES.get(message.role, message.role)
    call_id = message.tool_call_id
    if role == "function":
        # The result of the call in the message before it.
        role, call_id = "tool", f"call_{position - 1}"
    if role == "tool" and not call_id:
        raise BadField(f"messages[{position}].tool_call_id", "is missing; it names the call that this answers")
    calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls)
    if isinstance(message.function_call, FunctionCallBody):
        calls = (*calls, ToolCall(f"call_{position}", message.function_call.name, message.function_call.arguments))
    reasoning = (message.reasoning_content or message.reasoning or "") if role == "assistant" else ""
    text, images = _content(f"messages[{position}].content", message)
    return ChatMessage(role, text, calls, call_id or None, reasoning, images)


def _content(field: str, message: ChatBodyMessage) -> WrittenContent:
    if message.content is None:
        if not (message.tool_calls or message.function_call or message.refusal or message.reasoning_content or message.reasoning):
            raise BadField(field, "is missing")
        return message.refusal or "", ()
    return (message.content, ()) if isinstance(message.content, str) else to_content(field, map(_written, message.content))


def _written(part: TextPart | RefusalPart | ImageUrlPart) -> str | ImageUrl:
    if isinstance(part, ImageUrlPart):
        return ImageUrl(part.image_url, part.detail) if isinstance(part.image_url, str) else part.image_url
    return part.text if isinstance(part, TextPart) else part.refusal


def to_content(field: str, parts: Iterable[str | ImageUrl]) -> WrittenContent:
    """Return the text, and the images as they are written, at their places in it. Raises BadField for a URL of another place."""
    text, images = "", []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            text += part
        elif ":" in part.url[:16] and not part.url.startswith("data:"):
            raise BadField(f"{field}[{index}]", "is not a data URL; send the image itself")
        else:
            images.append(ImagePart(part.url.encode(), len(text), part.detail))
    return text, tuple(images)


#: JSON schemas are passed on unparsed.
JsonObject: TypeAlias = dict[str, Any]


class FunctionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    #: A JSON schema.
    parameters: JsonObject | None = None
    #: Accepted and ignored: the arguments of a required call always match.
    strict: bool | None = None


class ToolBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    function: FunctionBody


class NamedFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    function: NamedFunction


class NamedCustomTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="custom"):
    """A tool of a type that is never offered."""

    custom: NamedFunction


class AllowedTools(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: Annotated[tuple[NamedTool, ...], OF_TOOLS]


class AllowedToolsChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


class SchemaBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    description: str | None = None
    schema: JsonObject | bool = True
    #: Accepted and ignored: an answer always matches its schema.
    strict: bool | None = None


ToolChoiceBody: TypeAlias = Literal["none", "auto", "required"] | NamedTool | NamedCustomTool | AllowedToolsChoice


class ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaBody | None = None


ChosenTools = tuple[tuple[Tool, ...], ToolChoice]


def tool(name: str, description: str | None, parameters: JsonObject | None) -> Tool:
    return Tool(name, description or "", json_text(parameters or {}))


def chosen_tools(tools: Sequence[ToolBody], choice: ToolChoiceBody | None) -> ChosenTools:
    """Return the callable tools, and whether a call is required. Raises BadField."""
    if not tools and choice is None:
        return (), ToolChoice.AUTO
    known = tuple(tool(body.function.name, body.function.description, body.function.parameters) for body in tools)
    match choice:
        case NamedTool(function=named) | NamedCustomTool(custom=named):
            return choose_of(known, (named.name,), "required")
        case AllowedToolsChoice(allowed_tools=allowed):
            return choose_of(known, tuple(one.function.name for one in allowed.tools), allowed.mode)
        case word:
            return choose(known, word)


class SamplingOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are drawn, as OpenAI's APIs write it."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    #: This and the next two are extensions of local engines, not OpenAI's.
    top_k: TopK | None = None
    min_p: MinP | None = None
    repeat_penalty: RepeatPenalty | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    stop: Stop | Stops | None = None


#: What a request has under the same name in all APIs that have it.
_SHARED_PARAMETERS = (
    *("model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "n", "ignore_eos"),
    *("repeat_penalty", "frequency_penalty", "presence_penalty", "parallel_tool_calls", "reasoning_effort"),
)


def shared_parameters(body: msgspec.Struct) -> dict[str, Any]:
    """Return the body's parameters that ``InferenceRequest`` has, too, by their name."""
    names, read = _shared_parameters_of(type(body))
    return dict(zip(names, read(body), strict=True))


@cache  # one for each API
def _shared_parameters_of(kind: type[msgspec.Struct]) -> tuple[Sequence[str], Callable[[msgspec.Struct], Sequence[Any]]]:
    names = [name for name in _SHARED_PARAMETERS if name in kind.__struct_fields__]
    return names, attrgetter(*names)


def wanted_logprobs(logprobs: bool, top: int | None) -> int | None:
    """Return how many alternatives each token needs; None for no log probabilities. Raises BadField."""
    if top and not logprobs:
        raise BadField("top_logprobs", "requires logprobs=true")
    return (top or 0) if logprobs else None


def choose(tools: tuple[Tool, ...], choice: str | None) -> ChosenTools:
    """Return the callable tools, and whether a call is required."""
    chosen = ToolChoice(choice or ToolChoice.AUTO)
    return (() if chosen is ToolChoice.NONE else tools), chosen


def choose_of(tools: tuple[Tool, ...], names: Sequence[str], mode: str) -> ChosenTools:
    """Return the named tools. Raises BadField for an unknown name."""
    known = {tool.name for tool in tools}
    for name in names:
        if name not in known:
            raise BadField("tool_choice", f"names {name[:64]!r}, which is not among the tools")
    return tuple(tool for tool in tools if tool.name in names), ToolChoice(mode)


def json_format(kind: Literal["text", "json_object", "json_schema"], schema: JsonObject | bool | None) -> OutputFormat | None:
    if kind == "text":
        return None
    if kind == "json_object":
        return OutputFormat(FormatKind.JSON)
    return OutputFormat(FormatKind.JSON_SCHEMA, json_text(schema))


def wanted_format(requested: ResponseFormat) -> OutputFormat | None:
    """Raises BadField."""
    if requested.type == "json_schema" and requested.json_schema is None:
        raise BadField("response_format.json_schema", "is missing")
    return json_format(requested.type, None if requested.json_schema is None else requested.json_schema.schema)


def json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def json_object(text: str) -> JsonObject | None:
    """Return the object that a model wrote as a call's arguments. Another server's model may have written none."""
    try:
        return msgspec.json.decode(text, type=JsonObject)
    except (msgspec.DecodeError, RecursionError):
        return None
