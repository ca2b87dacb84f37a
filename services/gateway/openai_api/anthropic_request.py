"""Parses requests to Anthropic's Messages API. Pure."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import chat_messages, parameters, service_tiers
from services.gateway.http_api.chat_messages import IN_MESSAGE, OF_TOOLS, ChosenTools, ImageUrl, JsonObject, TextPart
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.openai_api import reasoning_words
from services.gateway.openai_api.reasoning_words import ThinkingBody
from services.gateway.requests.request_validation import ensure_messages
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, MaxTokens, NamedModel, ReasoningEffort, Stops, Temperature, ToolCall, TopK, TopP


class ImageSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="base64"):
    media_type: str
    #: In base64.
    data: str


class ImageBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="image"):
    source: ImageSource


class TextSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    data: str
    media_type: str = "text/plain"


class ContentSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="content"):
    content: str | Annotated[tuple[TextPart | ImageBlock, ...], IN_MESSAGE]


class DocumentBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="document"):
    source: TextSource | ContentSource
    title: str | None = None
    context: str | None = None


class SearchResultBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="search_result"):
    title: str
    #: Where it was found.
    source: str
    content: tuple[TextPart, ...]


class ToolUseBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: JsonObject


#: What a model reads as text or an image.
ReadBlock = TextPart | ImageBlock | DocumentBlock | SearchResultBlock


class ToolResultBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | Annotated[tuple[ReadBlock, ...], IN_MESSAGE] = ""
    is_error: bool = False


class ThinkingBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="thinking"):
    thinking: str
    #: Without effect in requests.
    signature: str = ""


class MessagesTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="custom"):
    name: str
    #: A JSON schema.
    input_schema: JsonObject
    description: str | None = None


class ToolReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="tool_reference"):
    name: str


class ToolDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="tool_definition"):
    definition: MessagesTool


class ToolAdditionBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="tool_addition"):
    tool: ToolReference | ToolDefinition


class ToolRemovalBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="tool_removal"):
    tool: ToolReference


_Block: TypeAlias = ReadBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | ToolAdditionBlock | ToolRemovalBlock


class MessageParam(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[tuple[_Block, ...], IN_MESSAGE]


class MessagesToolChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    #: An answer has at most one call.
    disable_parallel_tool_use: bool = False


class SchemaFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    schema: JsonObject


class OutputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    effort: ReasoningEffort | None = None
    format: SchemaFormat | None = None


class MessagesBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request."""

    messages: tuple[MessageParam, ...]
    max_tokens: MaxTokens
    model: NamedModel | None = None
    system: str | tuple[TextPart, ...] = ""
    stop_sequences: Stops = ()
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    tools: Annotated[tuple[MessagesTool, ...], OF_TOOLS] = ()
    tool_choice: MessagesToolChoice | None = None
    #: As at Anthropic, a model thinks only if this says so.
    thinking: ThinkingBody = ThinkingBody("disabled")
    output_config: OutputConfig = OutputConfig()
    #: The older name of ``output_config.format``.
    output_format: SchemaFormat | None = None
    #: Nothing is edited, and the answer says so.
    context_management: JsonObject | None = None
    stream: bool = False
    #: "flex" runs behind live requests, at the price of batches.
    service_tier: str | None = None

    @property
    def shows_thoughts(self) -> bool:
        return self.thinking.type != "disabled" and self.thinking.display != "omitted"

    @property
    def parallel_calls(self) -> bool:
        return self.tool_choice is None or not self.tool_choice.disable_parallel_tool_use

    @property
    def effort(self) -> ReasoningEffort | None:
        thinking = self.thinking
        return reasoning_words.effort_of(thinking.is_on, budget=thinking.budget_tokens, effort=self.output_config.effort)


Block = TypeVar("Block")
_ROLE_OF = {
    ToolUseBlock: "assistant", ThinkingBlock: "assistant", ToolResultBlock: "user", ToolAdditionBlock: "system", ToolRemovalBlock: "system"
}  # fmt: skip


class CountTokensBody(MessagesBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request whose prompt is counted. What concerns only the answer has no effect."""

    max_tokens: MaxTokens = 1


#: Claude Code's first line of instructions.
_BILLING = "x-anthropic-billing-header:"


DIALECT = BodyDialect("messages", MessagesBody, parameters.MESSAGES)
COUNT_DIALECT = BodyDialect("count_tokens", CountTokensBody, parameters.MESSAGES)


def to_request(body: MessagesBody) -> InferenceRequest:
    """Convert the request. Raises BadRequest that names the field."""
    ensure_messages(body.messages)
    if not body.messages or body.messages[-1].role == "assistant":
        raise BadField("messages", "must end with a message of the user; answers cannot be prefilled")
    tools, tool_choice = _tools(body)
    form = body.output_config.format or body.output_format
    return InferenceRequest(
        **chat_messages.shared_parameters(body),
        messages=_conversation(body),
        stop=body.stop_sequences,
        format=None if form is None else chat_messages.json_format(form.type, form.schema),
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=body.parallel_calls,
        reasoning_effort=body.effort,
        flex=service_tiers.wants_flex(body.service_tier),
    )


def _conversation(body: MessagesBody) -> tuple[ChatMessage, ...]:
    system = "".join(_instruction(block.text) for block in _blocks(body.system))
    found = [ChatMessage("system", system)] if system else []
    for index, message in enumerate(body.messages):
        found += _messages(index, message)
    return tuple(found)


def _messages(index: int, message: MessageParam) -> Iterator[ChatMessage]:
    """Return the results of tools as separate messages, before the text."""
    blocks = _blocks(message.content)
    parts: list[str | ImageUrl] = []
    calls: list[ToolCall] = []
    thoughts: list[str] = []
    for at, block in enumerate(blocks):
        field = f"messages[{index}].content[{at}]"
        role = _ROLE_OF.get(type(block), message.role)
        if role != message.role:
            raise BadField(field, f"must be in a message of the {role}")
        match block:
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case ToolUseBlock():
                calls.append(ToolCall(block.id, block.name, chat_messages.json_text(block.input)))
            case ToolResultBlock():
                yield _result(field, block)
            case TextPart() if message.role == "system":
                parts += [text] if (text := _instruction(block.text)) else []
            case ToolAdditionBlock() | ToolRemovalBlock():
                pass  # see _offered
            case _:
                parts += _read(block)
    if parts or calls or any(thoughts):
        text, images = chat_messages.to_content(f"messages[{index}].content", parts)
        yield ChatMessage(message.role, text, tuple(calls), reasoning="".join(thoughts), images=images)


def _result(field: str, block: ToolResultBlock) -> ChatMessage:
    parts: list[str | ImageUrl] = ["Error: "] if block.is_error else []
    text, images = chat_messages.to_content(f"{field}.content", [*parts, *_read_all(block.content)])
    return ChatMessage("tool", text, (), block.tool_use_id, images=images)


def _blocks(content: str | tuple[Block, ...]) -> tuple[Block | TextPart, ...]:
    return (TextPart(content),) if isinstance(content, str) else content


def _read(block: ReadBlock) -> Iterator[str | ImageUrl]:
    """Return what the model reads."""
    match block:
        case TextPart():
            yield block.text
        case ImageBlock():
            yield ImageUrl(block.source.data)
        case DocumentBlock(source=source):
            yield from (f"{text}\n" for text in (block.title, block.context) if text)
            yield from (source.data,) if isinstance(source, TextSource) else _read_all(source.content)
            yield "\n"
        case SearchResultBlock():
            yield from (f"{text}\n" for text in (block.title, block.source) if text)
            yield from _read_all(block.content)
            yield "\n"


def _read_all(content: str | tuple[ReadBlock, ...]) -> Iterator[str | ImageUrl]:
    return (part for block in _blocks(content) for part in _read(block))


def _instruction(text: str) -> str:
    """Leave out the line about billing: it changes with each turn, so no prefix could be cached."""
    return text.partition("\n")[2] if text.startswith(_BILLING) else text


def _offered(body: MessagesBody) -> Iterable[MessagesTool]:
    """Return the tools after the changes that instructions in the middle make."""
    blocks = (block for message in body.messages if message.role == "system" for block in _blocks(message.content))
    changes = [block for block in blocks if isinstance(block, ToolAdditionBlock | ToolRemovalBlock)]
    if not changes:
        return body.tools
    known = {tool.name: tool for tool in body.tools}
    offered = dict(known)
    for change in changes:
        match change.tool:
            case ToolDefinition(tool):
                known[tool.name] = offered[tool.name] = tool
            case ToolReference(name) if isinstance(change, ToolRemovalBlock):
                offered.pop(name, None)
            case ToolReference(name) if name in known:
                offered[name] = known[name]
    return offered.values()


def _tools(body: MessagesBody) -> ChosenTools:
    tools = tuple(chat_messages.tool(tool.name, tool.description, tool.input_schema) for tool in _offered(body))
    choice = body.tool_choice or MessagesToolChoice("auto")
    if choice.type == "tool":
        return chat_messages.choose_of(tools, (choice.name or "",), "required")
    return chat_messages.choose(tools, "required" if choice.type == "any" else choice.type)
