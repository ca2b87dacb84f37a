import json
from typing import Any

import pytest

from services.inference.backends.remote import ollama_chat
from services.inference.backends.remote.event_stream import BadStream
from services.inference.backends.remote.ollama_chat import OllamaAssembly
from services.inference.backends.remote.openai_answer import AnswerStep, ReportedUsage
from shared import errors
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, Sampling, Tool, ToolCall, ToolChoice
from shared.api.inference import Chunk
from shared.types import FinishReason

HI = (ChatMessage("user", "hi"),)


def sent(messages: tuple[ChatMessage, ...] = HI, keep: int | str | None = None, **asked: object) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(ollama_chat.body("m", messages, Sampling(**asked), max_tokens=7, keep=keep))  # type: ignore[arg-type]
    return body


def test_what_was_not_asked_for_is_not_sent() -> None:
    assert sent() == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": {"num_predict": 7},
    }


def test_options() -> None:
    asked: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1}
    asked |= {"repeat_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.3}
    assert sent(**asked, seed=5, stop=("a",))["options"] == {**asked, "seed": 5, "stop": ["a"], "num_predict": 7}


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"logit_bias": {1: 2.0}}, "logit_bias"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"raw": True}, "raw"),
        ({"n": 2}, "n"),
        ({"top_logprobs": 0}, "top_logprobs"),
        ({"tools": (Tool("f"),), "tool_choice": ToolChoice.REQUIRED}, "tool_choice"),
        ({"tools": (Tool("f"),), "format": OutputFormat(FormatKind.JSON)}, "format"),
        ({"format": OutputFormat(FormatKind.GBNF, "root ::= [a]")}, "format"),
        ({"format": OutputFormat(FormatKind.JSON_SCHEMA, "[1]")}, "format.text"),
        ({"tools": (Tool("f", "", "{"),)}, r"tools\[0\].parameters"),
    ],
)
def test_what_ollama_would_pass_over_in_silence_is_refused(asked: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.BadRequest, match=f"^{field} "):
        sent(**asked)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(OutputFormat(FormatKind.JSON), "json"), (OutputFormat(FormatKind.JSON_SCHEMA, '{"type": "array"}'), {"type": "array"})],
)
def test_formats(asked: OutputFormat, expected: object) -> None:
    assert sent(format=asked)["format"] == expected


def test_tools_that_must_not_be_used_are_not_shown() -> None:
    assert "tools" not in sent(tools=(Tool("f"),), tool_choice=ToolChoice.NONE)
    assert sent(tools=(Tool("f"),))["tools"][0]["function"]["name"] == "f"


def test_a_conversation_with_tools_names_the_tool_that_is_answered() -> None:
    messages = (
        ChatMessage("assistant", "", (ToolCall("c1", "weather", '{"city": "Bern"}'),)),
        ChatMessage("tool", "rain", tool_call_id="c1"),
    )
    assert sent(messages)["messages"] == [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": {"city": "Bern"}}}]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "tool_name": "weather"},
    ]


def test_arguments_that_are_no_object_are_refused() -> None:
    with pytest.raises(errors.BadRequest, match="arguments of a tool call"):
        sent((ChatMessage("assistant", "", (ToolCall("c1", "weather", "Bern"),)),))


@pytest.mark.parametrize(("text", "value"), [("10m", "10m"), ("1h30m", "1h30m"), ("-1", -1), ("0", 0), ("300", 300), ("1.5h", "1.5h")])
def test_keep_alive(text: str, value: int | str) -> None:
    assert sent(keep=ollama_chat.keep_alive(text))["keep_alive"] == value


@pytest.mark.parametrize("text", ["", "m", "10 m", "10x", "1h1h1h1h", "9" * 30, "10m\n", "forever"])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(errors.BadSettings, match="OLLAMA_KEEP_ALIVE"):
        ollama_chat.keep_alive(text)


def test_what_follows_the_last_line_is_ignored() -> None:
    answer = OllamaAssembly(lambda: "x")
    assert answer.push(b'{"message": {"content": "a"}, "done": true, "eval_count": 1}').chunks == (Chunk("a", ()),)
    assert answer.push(b'{"message": {"content": "b"}, "done": true, "eval_count": 2}') == AnswerStep()
    assert (answer.reasons(), answer.usage, answer.pieces) == ((FinishReason.STOP,), ReportedUsage(None, 1), 1)


def test_too_many_calls_are_none() -> None:
    calls = [{"function": {"name": "f", "arguments": {}}}] * 129
    with pytest.raises(BadStream, match="more than 128 tool calls"):
        OllamaAssembly(lambda: "x").push(json.dumps({"message": {"tool_calls": calls}}).encode())
