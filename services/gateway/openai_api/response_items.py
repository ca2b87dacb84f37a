"""Converts conversation items of OpenAI's Responses API to chat messages. Pure."""

import msgspec

from services.gateway.admission.prompt_admission import BadField
from shared.api.generation import ChatMessage, ToolCall

#: The role to use for each of the API's roles.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class InputText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="input_text"):
    text: str


class OutputText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="output_text"):
    text: str


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    refusal: str


class MessageItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="message"):
    """A message; ``type`` is optional."""

    #: system (or its newer name developer), user or assistant.
    role: str
    content: str | tuple[InputText | OutputText | Refusal, ...]
    id: str | None = None
    status: str | None = None


class FunctionCallItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function_call"):
    call_id: str
    name: str
    #: JSON.
    arguments: str
    id: str | None = None
    status: str | None = None


class FunctionOutputItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function_call_output"):
    call_id: str
    output: str | tuple[InputText, ...]
    id: str | None = None
    status: str | None = None


Item = MessageItem | FunctionCallItem | FunctionOutputItem

_ITEMS = ("message", "function_call", "function_call_output")
_PARTS = ("input_text", "output_text", "refusal")
#: Fields that clients copy from an answer, without meaning for a model.
_SILENT = ("annotations", "logprobs", "prompt_cache_breakpoint", "phase")


def tidy(items: object) -> object:
    """Remove what has no meaning for a model. Raises BadField for unsupported items."""
    if not isinstance(items, list):
        return items
    # Skip reasoning items of other models, which are encrypted or for people.
    return [_tidy(f"input[{index}]", item) for index, item in enumerate(items) if not _is(item, "reasoning")]


def to_messages(items: str | tuple[Item, ...]) -> tuple[ChatMessage, ...]:
    """Convert items. Raises BadField."""
    if not items or (isinstance(items, str) and not items.strip()):
        raise BadField("input", "is empty")
    if isinstance(items, str):
        return (ChatMessage("user", items),)
    messages: list[ChatMessage] = []
    for index, item in enumerate(items):
        match item:
            case MessageItem():
                if item.role not in _ROLES:
                    raise BadField(f"input[{index}].role", f"must be one of {', '.join(_ROLES)}")
                messages.append(ChatMessage(_ROLES[item.role], _text(item.content)))
            case FunctionOutputItem():
                messages.append(ChatMessage("tool", _text(item.output), (), item.call_id))
            case FunctionCallItem():
                # Join the calls with the preceding text: they are one turn of the model.
                previous = messages.pop() if messages and messages[-1].role == "assistant" else ChatMessage("assistant", "")
                call = ToolCall(item.call_id, item.name, item.arguments)
                messages.append(msgspec.structs.replace(previous, tool_calls=(*previous.tool_calls, call)))
    return tuple(messages)


def _is(item: object, kind: str) -> bool:
    return isinstance(item, dict) and item.get("type") == kind


def _tidy(field: str, item: object) -> object:
    if not isinstance(item, dict):
        return item
    kind = item.get("type") or "message"
    if kind == "item_reference":
        raise BadField(field, "refers to a stored item, but items are not stored; send the item itself")
    if kind not in _ITEMS:
        raise BadField(f"{field}.type", f"must be {', '.join(_ITEMS[:-1])} or {_ITEMS[-1]}")
    tidied = {name: value for name, value in item.items() if value is not None and name not in _SILENT}
    for name in ("content", "output"):
        if isinstance(parts := tidied.get(name), list):
            tidied[name] = [_part(f"{field}.{name}[{index}]", part) for index, part in enumerate(parts)]
    return {**tidied, "type": kind}


def _part(field: str, part: object) -> object:
    if not isinstance(part, dict):
        return part
    if part.get("type") not in _PARTS:
        raise BadField(field, "must be a text; images, audio and files are not supported")
    return {name: value for name, value in part.items() if name not in _SILENT}


def _text(content: str | tuple[InputText | OutputText | Refusal, ...]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.refusal if isinstance(part, Refusal) else part.text for part in content)
