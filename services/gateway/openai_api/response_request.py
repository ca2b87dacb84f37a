"""Parses requests to OpenAI's Responses API. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import chat_messages, parameters, service_tiers
from services.gateway.http_api.chat_messages import IN_MESSAGE, OF_TOOLS, ImageUrl, JsonObject, RefusalPart, WrittenContent
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.openai_api import chat_request, response_tools
from services.gateway.openai_api.response_tools import ToolBody, ToolChoiceBody
from services.gateway.requests.request_validation import ensure_messages
from shared.api.gateway import InferenceRequest
from shared.api.generation import (
    MAX_READ_MESSAGES,
    ChatMessage,
    ImageDetail,
    MaxTokens,
    NamedModel,
    OutputFormat,
    ReasoningEffort,
    Temperature,
    ToolCall,
    TopLogprobs,
    TopP,
)

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
    content: str | Annotated[tuple[_Part, ...], IN_MESSAGE]


class FunctionCallItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function_call"):
    call_id: str
    name: str
    #: JSON.
    arguments: str
    namespace: str | None = None


class CustomCallItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="custom_tool_call"):
    call_id: str
    name: str
    input: str
    namespace: str | None = None


class FunctionOutputItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function_call_output"):
    call_id: str
    output: str | Annotated[tuple[_Part, ...], IN_MESSAGE]


class CustomOutputItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="custom_tool_call_output"):
    call_id: str
    output: str | Annotated[tuple[_Part, ...], IN_MESSAGE]


class ReasoningText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="reasoning_text"):
    text: str


class ReasoningItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="reasoning"):
    """The thoughts before an answer. Those of other models, which are encrypted or summarized, are ignored."""

    content: tuple[ReasoningText, ...] = ()


class AdditionalToolsItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="additional_tools"):
    """Offers tools like the field ``tools``."""

    tools: Annotated[tuple[ToolBody, ...], OF_TOOLS]


class ConfigurationItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="configuration_update"):
    """Replaces these fields of the request; the last one decides."""

    reasoning: "ReasoningBody | None" = None
    text: "TextBody | None" = None


class ItemReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="item_reference"):
    """Stands for a stored item: see ``StoredItems``."""

    id: str


#: What an answer consists of.
StoredItem = MessageItem | FunctionCallItem | CustomCallItem | ReasoningItem
_decode_stored = msgspec.json.Decoder(StoredItem).decode
Item = StoredItem | FunctionOutputItem | CustomOutputItem | AdditionalToolsItem | ConfigurationItem | ItemReference


AnyItem = TypeVar("AnyItem", bound=Item)
_LOGPROBS = "message.output_text.logprobs"


@dataclass(slots=True)
class _Turn:
    """A turn of the model. Its thoughts, texts and calls are one message, because the results must follow the calls."""

    thoughts: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def message(self) -> ChatMessage:
        return ChatMessage("assistant", "".join(self.texts), tuple(self.calls), reasoning="".join(self.thoughts))


def to_messages(items: str | tuple[Item, ...]) -> tuple[ChatMessage, ...]:
    """Convert items. Raises BadField."""
    if not items or (isinstance(items, str) and not items.strip()):
        raise BadField("input", "is empty")
    if isinstance(items, str):
        return (ChatMessage("user", items),)
    # Several items, such as calls, are one message.
    ensure_messages(items, MAX_READ_MESSAGES)
    found: list[ChatMessage | _Turn] = []
    for index, item in enumerate(items):
        match item:
            case MessageItem():
                message = _message(f"input[{index}]", item)
                if message.role == "assistant" and not message.images:
                    _turn(found).texts.append(message.content)
                else:
                    found.append(message)
            case ReasoningItem():
                if thoughts := "".join(part.text for part in item.content):
                    _turn(found).thoughts.append(thoughts)
            case FunctionOutputItem() | CustomOutputItem():
                text, images = _content(f"input[{index}].output", item.output)
                found.append(ChatMessage("tool", text, tool_call_id=item.call_id, images=images))
            case FunctionCallItem() | CustomCallItem():
                arguments = item.arguments if isinstance(item, FunctionCallItem) else response_tools.arguments_of(item.input)
                _turn(found, is_call=True).calls.append(
                    ToolCall(item.call_id, response_tools.flat_name(item.name, item.namespace), arguments)
                )
    return tuple(each.message if isinstance(each, _Turn) else each for each in found)


def _turn(found: list[ChatMessage | _Turn], *, is_call: bool = False) -> _Turn:
    """Return the model's turn that the next item belongs to. A turn ends with its text, unless it has calls."""
    last = found[-1] if found else None
    if not isinstance(last, _Turn) or (last.texts and not last.calls and not is_call):
        found.append(last := _Turn())
    return last


def _message(field: str, item: MessageItem) -> ChatMessage:
    if item.role not in _ROLES:
        raise BadField(f"{field}.role", f"must be one of {', '.join(_ROLES)}")
    text, images = _content(f"{field}.content", item.content)
    return ChatMessage(_ROLES[item.role], text, images=images)


def _content(field: str, content: str | tuple[_Part, ...]) -> WrittenContent:
    return chat_messages.to_content(field, (content,) if isinstance(content, str) else map(_written, content))


def _written(part: _Part) -> str | ImageUrl:
    if isinstance(part, InputImage):
        return ImageUrl(part.image_url, part.detail)
    return part.refusal if isinstance(part, RefusalPart) else part.text


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


class ReasoningBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    effort: ReasoningEffort | None = None
    #: If set, thoughts are also returned as their summary.
    summary: str | None = None


class ResponseStreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of them are ignored; see ``parameters``."""


class ResponseBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request."""

    #: A text, or the whole conversation.
    input: str | tuple[Item, ...]
    #: A system message before the input.
    instructions: str | None = None
    model: NamedModel | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: TopLogprobs | None = None
    #: Values that ask for nothing here are ignored.
    include: tuple[str, ...] = ()
    text: TextBody = TextBody()
    tools: Annotated[tuple[ToolBody, ...], OF_TOOLS] = ()
    tool_choice: ToolChoiceBody = "auto"
    #: If false, an answer has at most one call.
    parallel_tool_calls: bool = True
    #: Returned with the response; ``conversation_id`` keeps a conversation at one target of a route.
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    reasoning: ReasoningBody | None = None
    #: Whether the items of the answer are stored.
    store: bool = True
    #: Answer at once; the response is stored until it is fetched. See ``background_responses``.
    background: bool = False
    #: Begin with the conversation of this response, where a policy says `stored_prompts: 24h`.
    previous_response_id: Annotated[str, msgspec.Meta(max_length=100)] | None = None
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    #: "flex" runs behind live requests, at the price of batches.
    service_tier: str | None = None

    @property
    def effort(self) -> ReasoningEffort | None:
        return None if self.reasoning is None else self.reasoning.effort

    @property
    def with_logprobs(self) -> bool:
        return self.top_logprobs is not None or _LOGPROBS in self.include

    @property
    def with_summary(self) -> bool:
        return self.reasoning is not None and self.reasoning.summary is not None

    @property
    def references(self) -> tuple[str, ...]:
        """Return the ids of the stored items that it refers to."""
        return tuple(item.id for item in self.items_of(ItemReference))

    def settled(self, found: Mapping[str, bytes]) -> "ResponseBody":
        """Return the body with the stored items that it refers to, and as its configuration items change it. Raises BadField for an item
        of another version."""
        body = self._with_items(found) if found else self
        updates = self.items_of(ConfigurationItem)
        efforts = [each.reasoning.effort for each in updates if each.reasoning is not None and each.reasoning.effort is not None]
        formats = [each.text.format for each in updates if each.text is not None and each.text.format is not None]
        if efforts:
            body = msgspec.structs.replace(body, reasoning=msgspec.structs.replace(self.reasoning or ReasoningBody(), effort=efforts[-1]))
        return msgspec.structs.replace(body, text=TextBody(formats[-1])) if formats else body

    def continuing(self, earlier: bytes) -> "ResponseBody":
        """Return the body with the conversation that it continues. Raises BadField for one of another version."""
        try:
            return msgspec.structs.replace(self, input=(*_decode_conversation(earlier), *self._items))
        except msgspec.MsgspecError as error:
            raise BadField(
                "previous_response_id", "is a response of another version of the gateway; send the whole conversation"
            ) from error

    def conversation(self, answer: Iterable[bytes]) -> bytes:
        """Return what a request continues that follows on this answer. ``answer``: its items."""
        return msgspec.json.encode([*self._items, *map(msgspec.Raw, answer)])

    @property
    def _items(self) -> tuple[Item, ...]:
        return (MessageItem("user", self.input),) if isinstance(self.input, str) else self.input

    def _with_items(self, found: Mapping[str, bytes]) -> "ResponseBody":
        try:
            items = tuple(_decode_stored(found[item.id]) if isinstance(item, ItemReference) else item for item in self.input)
        except msgspec.MsgspecError as error:
            raise BadField("input", "refers to an item of another version of the gateway; send the item itself") from error
        return msgspec.structs.replace(self, input=items)

    def offered(self) -> Iterator[ToolBody]:
        """Yield all tools, wherever they are offered."""
        yield from self.tools
        for item in self.items_of(AdditionalToolsItem):
            yield from item.tools

    def items_of(self, kind: type[AnyItem]) -> tuple[AnyItem, ...]:
        return () if isinstance(self.input, str) else tuple(item for item in self.input if isinstance(item, kind))


_decode_conversation = msgspec.json.Decoder(tuple[Item, ...]).decode
DIALECT = BodyDialect("responses", ResponseBody, parameters.RESPONSES, {"input": "message"})


def to_request(body: ResponseBody) -> InferenceRequest:
    """Convert the request. Raises BadRequest that names the field."""
    tools, tool_choice = response_tools.chosen(response_tools.offered(body.offered()), body.tool_choice)
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
        flex=service_tiers.wants_flex(body.service_tier),
    )


def _format(body: TextFormat | None) -> OutputFormat | None:
    if body is None:
        return None
    if body.type == "json_schema" and body.schema is msgspec.UNSET:
        raise BadField("text.format.schema", "is missing")
    return chat_messages.json_format(body.type, None if body.schema is msgspec.UNSET else body.schema)
