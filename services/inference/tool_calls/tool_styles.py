"""Parses a call in each style of `tool_format`, with a small generator per style.  Pure.

To add a style, write a function here with a row in STYLES, and add its rows in `tool_format`. A function starts at one of the style's
marks in an answer, and reads the mark first. If a step raises `NoCall`, the text becomes part of the answer.

Styles with the name outside the JSON also accept it inside, because required calls are written so (`tool_format`).
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from services.inference.tool_calls.call_reader import CallReader, NoCall, Waiting
from services.inference.tool_calls.tool_format import ToolStyle

_CALL, _CALL_END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Style:
    read: Callable[[CallReader], Waiting]
    marks: tuple[str, ...]
    #: An answer may start with a call, or with hidden text, without a mark.
    from_start: bool = False


def _hermes(reader: CallReader) -> Waiting:
    yield from reader.mark(_CALL)
    yield from _json_call(reader, _CALL_END)


def _function_tags(reader: CallReader) -> Waiting:
    # These models sometimes omit the outer tag.
    if (yield from reader.mark(_CALL, "<function=")) == _CALL:
        if (yield from reader.next_sign()) == "{":
            return (yield from _json_call(reader, _CALL_END))
        yield from reader.mark("<function=")
    name = yield from reader.name_until(">")
    reader.check_offered(name)
    values: dict[str, str] = {}
    while (yield from reader.mark("<parameter=", "</function>")) == "<parameter=":
        key = yield from reader.name_until(">")
        value = yield from reader.value_until("</parameter>")
        # The template adds a line break on either side.
        values[key] = value.removeprefix("\n").removesuffix("\n")
    reader.take_values(name, values)
    yield from reader.mark_behind(_CALL_END)


def _key_tags(reader: CallReader) -> Waiting:
    yield from reader.mark(_CALL)
    if (yield from reader.next_sign()) == "{":
        return (yield from _json_call(reader, _CALL_END))
    name = yield from reader.name()
    reader.check_offered(name)
    values: dict[str, str] = {}
    while (yield from reader.mark("<arg_key>", _CALL_END)) == "<arg_key>":
        key = yield from reader.name_until("</arg_key>")
        yield from reader.mark("<arg_value>")
        values[key.strip()] = yield from reader.value_until("</arg_value>")
    reader.take_values(name, values)
    return None


def _mistral(reader: CallReader) -> Waiting:
    yield from reader.mark("[TOOL_CALLS]")
    if (yield from reader.next_sign()) == "[":
        return reader.take_json((yield from reader.json("[")))
    name = yield from reader.name()
    reader.check_offered(name)
    if (yield from reader.mark("[ARGS]", "[CALL_ID]")) == "[CALL_ID]":
        yield from reader.name_until("[ARGS]")
    return reader.take_arguments(name, (yield from reader.json("{")))


_LIST, _LIST_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_ITEM, _ITEM_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"


def _deepseek(reader: CallReader) -> Waiting:
    if (yield from reader.mark(_LIST, _ITEM)) == _LIST:
        yield from reader.mark(_ITEM)
    if (yield from reader.next_sign()) == "{":
        reader.take_json((yield from reader.json("{")))
    else:
        name = yield from reader.name()
        yield from reader.mark("<｜tool▁sep｜>")
        if (yield from reader.next_sign()) != "{":
            # V3 and R1 have the kind of the call there, which is always a function, and the JSON in a code fence.
            name = yield from reader.name()
            yield from reader.mark("```json")
        reader.take_arguments(name, (yield from reader.json("{")))
        yield from reader.mark_behind("```")
    yield from reader.mark_behind(_ITEM_END)
    yield from reader.mark_behind(_LIST_END)


_START, _CHANNEL, _MESSAGE, _END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
#: A sender, a channel, a recipient and a kind, each after a mark or a blank.
_MOST_HEADER_PARTS = 6


def _harmony(reader: CallReader) -> Waiting:
    """Read a message's header, and its content if that is a call. Text in the channel `analysis` is not part of the answer."""
    first = yield from reader.mark(_START, _CHANNEL, _END, "to=")
    if first == _END:
        return reader.end_message()
    channel, recipient = yield from _harmony_header(reader, first)
    if not recipient:
        return reader.begin_message(is_shown=channel != "analysis")
    arguments = yield from reader.json("{")
    if recipient == "functions":
        reader.take_json(arguments)
    else:
        reader.take_arguments(recipient.removeprefix("functions."), arguments)
    yield from reader.mark_behind(_END, "<|call|>")
    reader.begin_message(is_shown=True)
    return reader.end_message()


def _harmony_header(reader: CallReader, part: str) -> Generator[None, None, tuple[str, str]]:
    """Return the channel and the recipient, or empty texts; ``part`` is the mark that was already read."""
    channel = recipient = ""
    for _ in range(_MOST_HEADER_PARTS):
        if part == _CHANNEL:
            channel = yield from reader.name()
        elif part == "to=":
            recipient = yield from reader.name()
            if recipient != "functions":
                reader.check_offered(recipient.removeprefix("functions."))
        elif part == _START:
            yield from reader.mark("assistant")
        if (yield from reader.next_sign()) == "<":
            part = yield from reader.mark(_CHANNEL, "<|constrain|>", _MESSAGE)
        else:
            part = yield from reader.mark("to=", "json")
        if part == _MESSAGE:
            return channel, recipient
    raise NoCall


def _json_call(reader: CallReader, closing: str) -> Waiting:
    reader.take_json((yield from reader.json("{")))
    yield from reader.mark_behind(closing)


STYLES: dict[ToolStyle, Style] = {
    ToolStyle.HERMES: Style(_hermes, (_CALL,)),
    ToolStyle.FUNCTION_TAGS: Style(_function_tags, (_CALL, "<function=")),
    ToolStyle.KEY_TAGS: Style(_key_tags, (_CALL,)),
    ToolStyle.MISTRAL: Style(_mistral, ("[TOOL_CALLS]",)),
    ToolStyle.MISTRAL_NAMED: Style(_mistral, ("[TOOL_CALLS]",)),
    ToolStyle.DEEPSEEK_FENCED: Style(_deepseek, (_LIST, _ITEM)),
    ToolStyle.DEEPSEEK: Style(_deepseek, (_LIST, _ITEM)),
    ToolStyle.HARMONY: Style(_harmony, (_START, _CHANNEL, _END), from_start=True),
}
