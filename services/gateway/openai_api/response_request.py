"""Parses requests to OpenAI's Responses API. Pure.

Nothing is stored, so clients must send the whole conversation each time.
"""

from typing import Literal

import msgspec

from services.gateway.http_api import chat_messages, parameters
from services.gateway.http_api.chat_messages import ChosenTools, ImageUrl, JsonObject, RefusalPart, WrittenContent
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.openai_api import chat_request
from services.gateway.request_validation import MAX_MESSAGES, BadField, ensure_count
from shared.api.gateway import InferenceRequest
from shared.api.generation import (
    ChatMessage,
    ImageDetail,
    MaxTokens,
    OutputFormat,
    ReasoningEffort,
    Temperature,
    ToolCall,
    TopLogprobs,
    TopP,
)
from shared.types import ModelName

#: The role to use for each of the API's roles.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class InputText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="input_text"):
    text: str


class InputImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="input_image"):
    #: A data URL with the image in base64.
    image_url: str
    detail: ImageDetail = ImageDetail.AUTO


class OutputText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="output_text"):
    text: str


_Part = InputText | InputImage | OutputText | RefusalPart


class MessageItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="message"):
    """A message; ``type`` is optional."""

    #: system (or its newer name developer), user or assistant.
    role: str
    content: str | tuple[_Part, ...]


class FunctionCallItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function_call"):
    call_id: str
    name: str
    #: JSON.
    arguments: str


class FunctionOutputItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function_call_output"):
    call_id: str
    output: str | tuple[InputText, ...]


class ReasoningText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="reasoning_text"):
    text: str


class ReasoningItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="reasoning"):
    """The thoughts before an answer. Those of other models, which are encrypted or summarized, are ignored."""

    content: tuple[ReasoningText, ...] = ()


Item = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem


#: Several items, such as calls, are one message.
MAX_ITEMS = 4 * MAX_MESSAGES


def to_messages(items: str | tuple[Item, ...]) -> tuple[ChatMessage, ...]:
    """Convert items. Raises BadField."""
    if not items or (isinstance(items, str) and not items.strip()):
        raise BadField("input", "is empty")
    if isinstance(items, str):
        return (ChatMessage("user", items),)
    ensure_count("input", items, MAX_ITEMS)
    messages: list[ChatMessage] = []
    #: The calls of each message.
    calls: dict[int, list[ToolCall]] = {}
    for index, item in enumerate(items):
        match item:
            case MessageItem():
                reasoning = _pop_thoughts(messages) if item.role == "assistant" and len(messages) - 1 not in calls else ""
                messages.append(_message(f"input[{index}]", item, reasoning))
            case ReasoningItem():
                # The message after it belongs to the same turn: see ``_pop_thoughts``.
                if thoughts := "".join(part.text for part in item.content):
                    messages.append(ChatMessage("assistant", "", reasoning=thoughts))
            case FunctionOutputItem():
                messages.append(ChatMessage("tool", _content("", item.output)[0], tool_call_id=item.call_id))
            case FunctionCallItem():
                # Join the calls with the preceding text: they are one turn of the model.
                if not messages or messages[-1].role != "assistant":
                    messages.append(ChatMessage("assistant", ""))
                calls.setdefault(len(messages) - 1, []).append(ToolCall(item.call_id, item.name, item.arguments))
    return tuple(_with_calls(message, calls.get(position)) for position, message in enumerate(messages))


def _with_calls(message: ChatMessage, calls: list[ToolCall] | None) -> ChatMessage:
    return message if calls is None else msgspec.structs.replace(message, tool_calls=tuple(calls))


def _message(field: str, item: MessageItem, reasoning: str) -> ChatMessage:
    if item.role not in _ROLES:
        raise BadField(f"{field}.role", f"must be one of {', '.join(_ROLES)}")
    text, images = _content(f"{field}.content", item.content)
    return ChatMessage(_ROLES[item.role], text, reasoning=reasoning, images=images)


def _pop_thoughts(messages: list[ChatMessage]) -> str:
    """Remove the last message if it only has thoughts, and return them."""
    last = messages[-1] if messages else ChatMessage("", "")
    if not last.reasoning or last.content:
        return ""
    return messages.pop().reasoning


def _content(field: str, content: str | tuple[_Part, ...]) -> WrittenContent:
    return chat_messages.to_content(field, (content,) if isinstance(content, str) else map(_written, content))


def _written(part: _Part) -> str | ImageUrl:
    if isinstance(part, InputImage):
        return ImageUrl(part.image_url, part.detail)
    return part.refusal if isinstance(part, RefusalPart) else part.text


class FunctionTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    name: str
    #: A JSON schema.
    parameters: JsonObject | None = None
    #: Accepted and ignored: the arguments of a required call always match.
    strict: bool | None = None
    description: str | None = None


class ChosenFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    name: str


class AllowedFunctions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: tuple[ChosenFunction, ...]


class TextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"] = "text"
    #: The next four are for json_schema.
    name: str | msgspec.UnsetType = msgspec.UNSET
    schema: JsonObject | msgspec.UnsetType = msgspec.UNSET
    description: str | msgspec.UnsetType | None = msgspec.UNSET
    #: Accepted and ignored: an answer always matches its schema.
    strict: bool | msgspec.UnsetType | None = msgspec.UNSET


class TextBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: TextFormat | None = None
    #: Accepted and ignored.
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    effort: ReasoningEffort | None = None


class ResponseStreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of them are ignored; see ``parameters``."""


ToolChoiceBody = Literal["none", "auto", "required"] | ChosenFunction | AllowedFunctions


class ResponseBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request."""

    #: A text, or the whole conversation.
    input: str | tuple[Item, ...]
    #: A system message before the input.
    instructions: str | None = None
    model: ModelName | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: TopLogprobs | None = None
    include: tuple[str, ...] = ()
    text: TextBody = TextBody()
    tools: tuple[FunctionTool, ...] = ()
    tool_choice: ToolChoiceBody = "auto"
    #: If false, an answer has at most one call.
    parallel_tool_calls: bool = True
    #: Returned with the response; ``conversation_id`` keeps a conversation at one target of a route.
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    reasoning: ReasoningBody | None = None
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None

    @property
    def effort(self) -> ReasoningEffort | None:
        return None if self.reasoning is None else self.reasoning.effort

    @property
    def with_logprobs(self) -> bool:
        return self.top_logprobs is not None or parameters.INCLUDABLE[0] in self.include


DIALECT = BodyDialect("responses", ResponseBody, parameters.RESPONSES, {"input": "message"})


def to_request(body: ResponseBody) -> InferenceRequest:
    """Convert the request. Raises BadRequest that names the field."""
    for name in body.include:
        if name not in parameters.INCLUDABLE:
            raise BadField("include", f"contains {name[:64]!r}, which is not supported")
    if body.stream_options is not None and not body.stream:
        raise BadField("stream_options", "requires stream=true")
    tools, tool_choice = _tools(body)
    instructions = (ChatMessage("system", body.instructions),) if body.instructions else ()
    return InferenceRequest(
        **chat_messages.shared_parameters(body),
        messages=(*instructions, *to_messages(body.input)),
        max_tokens=body.max_output_tokens,
        top_logprobs=(body.top_logprobs or 0) if body.with_logprobs else None,
        format=_format(body.text.format),
        tools=tools,
        tool_choice=tool_choice,
        reasoning_effort=body.effort,
        conversation_id=chat_request.named_conversation(body.metadata),
    )


def _format(body: TextFormat | None) -> OutputFormat | None:
    if body is None:
        return None
    if body.type == "json_schema" and body.schema is msgspec.UNSET:
        raise BadField("text.format.schema", "is missing")
    return chat_messages.json_format(body.type, None if body.schema is msgspec.UNSET else body.schema)


def _tools(body: ResponseBody) -> ChosenTools:
    tools = tuple(chat_messages.tool(tool.name, tool.description, tool.parameters) for tool in body.tools)
    match body.tool_choice:
        case ChosenFunction(name=name):
            return chat_messages.choose_of(tools, (name,), "required")
        case AllowedFunctions(mode=mode, tools=allowed):
            return chat_messages.choose_of(tools, tuple(tool.name for tool in allowed), mode)
        case choice:
            return chat_messages.choose(tools, choice)
