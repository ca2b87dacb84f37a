import json

import pytest

from services.inference.tool_calls import chat_rows
from services.inference.tool_calls.chat_rows import Habits
from shared import errors
from shared.api.generation import ChatMessage, Tool, ToolCall


def rows(*messages: ChatMessage, habits: Habits | None = None) -> list[chat_rows.Row]:
    return chat_rows.message_rows(messages, str.upper, habits or Habits())


def called(arguments: str, identity: str = "i") -> ChatMessage:
    return ChatMessage("assistant", "", (ToolCall(identity, "f", arguments),))


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        pytest.param(
            '{"a": [1, 2.5, "x", null, true]}', {"A": [1, 2.5, "X", None, True]}, id="an object is decoded and its texts are marked"
        ),
        pytest.param("", {}, id="nothing is no arguments"),
        pytest.param("{a: 1", "{A: 1", id="what is no JSON stays a text"),
        pytest.param('"a"', '"A"', id="what is no object stays a text"),
        pytest.param("\ud800", "\ud800", id="half a character is no JSON"),
    ],
)
def test_arguments_of_calls(arguments: str, seen: object) -> None:
    (row,) = rows(called(arguments))
    assert row["tool_calls"] == [{"id": "I", "type": "function", "function": {"name": "F", "arguments": seen}}]


def test_message_without_calls_has_no_tool_calls_key() -> None:
    assert rows(ChatMessage("user", "hi")) == [{"role": "user", "content": "HI"}]


def test_tool_message_has_the_id_and_name_of_its_call() -> None:
    answers = rows(called("{}", "i1"), ChatMessage("tool", "yes", tool_call_id="i1"), ChatMessage("tool", "no", tool_call_id="i2"))[1:]
    assert answers == [
        {"role": "tool", "content": "YES", "tool_call_id": "I1", "name": "F"},
        {"role": "tool", "content": "NO", "tool_call_id": "I2"},
    ]


@pytest.mark.parametrize(
    ("message", "content"),
    [
        pytest.param(called("{}"), None, id="nothing but a call"),
        pytest.param(ChatMessage("assistant", "so", (ToolCall("i", "f", "{}"),)), "SO", id="a text and a call"),
        pytest.param(ChatMessage("assistant", ""), "", id="an empty text"),
    ],
)
def test_content_for_templates_that_need_none(message: ChatMessage, content: str | None) -> None:
    assert rows(message, habits=Habits(none_without_text=True))[0]["content"] == content


@pytest.mark.parametrize(
    ("call_id", "kept"),
    [("call_abcdefghijklmnopqrstuvwx", False), ("Ab3456789", True), ("", False), ("ab-456789", False), ("ÄÖÜ456789", False)],
)
def test_short_ids(call_id: str, kept: bool) -> None:
    call, answer = rows(called("{}", call_id), ChatMessage("tool", "", tool_call_id=call_id), habits=Habits(short_ids=True))
    identity = answer["tool_call_id"]
    assert isinstance(identity, str)
    assert call["tool_calls"] == [{"id": identity, "type": "function", "function": {"name": "F", "arguments": {}}}]
    assert len(identity) == 9
    assert identity.isalnum()
    assert (identity == call_id.upper()) is kept


def test_tools_are_rendered_as_openai_functions() -> None:
    assert chat_rows.tool_rows((Tool("f", "d", '{"properties": {"a": {"type": "number"}}}'), Tool("g")), str.upper) == [
        {"type": "function", "function": {"name": "F", "description": "D", "parameters": {"PROPERTIES": {"A": {"TYPE": "NUMBER"}}}}},
        {"type": "function", "function": {"name": "G", "description": "", "parameters": {"TYPE": "OBJECT", "PROPERTIES": {}}}},
    ]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        pytest.param((Tool("f"), Tool("g"), Tool("f")), r"tools\[2\]\.function\.name is used", id="two of one name"),
        pytest.param((Tool("f", "", "[]"),), r"tools\[0\]\.function\.parameters must be", id="a list of parameters"),
        pytest.param((Tool("f"), Tool("g", "", "{")), r"tools\[1\]\.function\.parameters must be", id="broken JSON"),
        pytest.param((Tool("f", "", '{"a":' * 40 + "1" + "}" * 40),), r"nested deeper than 32", id="nested deeper than a schema"),
        pytest.param((Tool("f", "", "[" * 100_000),), r"tools\[0\]\.function\.parameters must be", id="nested deeper than a stack"),
    ],
)
def test_tools_that_cannot_be_rendered(tools: tuple[Tool, ...], message: str) -> None:
    with pytest.raises(errors.BadRequest, match=message):
        chat_rows.tool_rows(tools, str)


def test_too_deeply_nested_arguments_are_refused_with_their_place() -> None:
    deep = json.dumps({"a": json.loads("[" * 50 + "]" * 50)})
    with pytest.raises(errors.BadRequest, match=r"messages\[1\]\.tool_calls\[0\]\.function\.arguments is nested deeper than 32 levels"):
        rows(ChatMessage("user", ""), called(deep))
