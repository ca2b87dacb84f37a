import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from features.remote_servers.worker import ollama
from features.remote_servers.worker.ollama import OllamaAssembly
from features.remote_servers.worker.rules.event_stream import BadStream
from features.remote_servers.worker.rules.openai_answer import AnswerStep
from features.remote_servers.worker.rules.token_counts import ReportedUsage
from features.remote_servers.worker.upstreams import Upstream
from shared import errors
from shared.api.generation import (
    ChatMessage,
    FormatKind,
    ImagePart,
    OutputFormat,
    ReasoningEffort,
    Sampling,
    Tool,
    ToolCall,
    ToolCallPart,
    ToolChoice,
)
from shared.api.inference import Chunk
from shared.types import FinishReason
from tests.services.inference.standins import job

HI = (ChatMessage("user", "hi"),)


def sent(messages: tuple[ChatMessage, ...] = HI, keep: int | str | None = None, **asked: object) -> dict[str, Any]:
    body = ollama.body("m", replace(job(), messages=messages, requested=Sampling(**asked)), 7, keep=keep)  # type: ignore[arg-type]
    return json.loads(msgspec.json.encode(body))  # type: ignore[no-any-return]


def test_what_was_not_asked_for_is_not_sent() -> None:
    assert sent() == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": {"num_predict": 7},
    }


def test_an_open_ended_answer_has_no_limit() -> None:
    assert ollama.body("m", job(), None, keep=None)["options"] == {}


def test_images_are_sent_beside_the_text() -> None:
    [message] = sent((ChatMessage("user", "hi", images=(ImagePart(b"a", 1), ImagePart(b"b", 2))),))["messages"]
    assert message == {"role": "user", "content": "hi", "images": ["YQ==", "Yg=="]}


@pytest.mark.parametrize(
    ("tag", "abilities"),
    [
        pytest.param({"details": {"family": "llama", "families": ["llama", "clip"]}}, ("images",), id="an older version"),
        pytest.param({"details": {"family": "mllama", "families": None}}, ("images",), id="Llama 3.2"),
        pytest.param({"capabilities": ["completion", "vision", "thinking", "tools"]}, ("tools", "reasoning", "images"), id="capabilities"),
        pytest.param({"details": {"family": "llama", "families": ["llama"]}}, (), id="text"),
        pytest.param({"details": {"family": "bert"}}, ("embeddings",), id="embeddings"),
        pytest.param({"capabilities": [{"vision": 1}], "details": 3}, (), id="another form"),
    ],
)
def test_the_list_says_what_a_model_can(tag: dict[str, Any], abilities: tuple[str, ...]) -> None:
    [listed] = ollama._read_models(Upstream(name="x", url="http://x"), json.dumps({"models": [{"name": "m", **tag}]}).encode())
    assert listed.abilities == abilities


def test_what_the_operator_says_counts_more_than_the_list() -> None:
    upstream = Upstream(name="x", url="http://x", context=65_536, tools=False)
    tags = {"models": [{"name": "m", "capabilities": ["tools", "thinking"]}]}
    [listed] = ollama._read_models(upstream, json.dumps(tags).encode())
    assert (listed.context_tokens, listed.abilities) == (65_536, ("reasoning",))


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
        ({"tools": (Tool("f"),), "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"chat_template_kwargs": '{"a": 1}'}, "chat_template_kwargs"),
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
    assert sent(keep=ollama.parse_keep_alive(text))["keep_alive"] == value


@pytest.mark.parametrize("text", ["", "m", "10 m", "10x", "1h1h1h1h", "9" * 30, "10m\n", "forever"])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(errors.BadSettings, match="OLLAMA_KEEP_ALIVE"):
        ollama.parse_keep_alive(text)


@pytest.mark.parametrize(
    ("effort", "think"),
    [("none", False), ("minimal", "low"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "high"), (None, None)],
)
def test_effort(effort: str | None, think: bool | str | None) -> None:
    assert sent(reasoning_effort=None if effort is None else ReasoningEffort(effort)).get("think") == think


def test_thoughts() -> None:
    assert sent((ChatMessage("assistant", "a", reasoning="hm"),))["messages"] == [{"role": "assistant", "content": "a", "thinking": "hm"}]
    answer = OllamaAssembly(1, lambda: "x")
    assert answer.push(b'{"message": {"content": "", "thinking": "hm"}}').chunks == (Chunk("", (), reasoning="hm"),)
    assert (answer.pieces, answer.thoughts) == (1, 1)


def test_calls_in_parts() -> None:
    answer = OllamaAssembly(1, lambda: "x")
    step = answer.push(b'{"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}, {"function": {"name": "g"}}]}}')
    assert step.chunks[0].call_parts == (ToolCallPart(0, '{"a":1}', "x", "f"), ToolCallPart(1, "", "x", "g"))
    assert answer.push(b'{"done": true}').chunks[0].call_parts == (ToolCallPart(1, "{}"),)


def test_what_follows_the_last_line_is_ignored() -> None:
    answer = OllamaAssembly(1, lambda: "x")
    assert answer.push(b'{"message": {"content": "a"}, "done": true, "eval_count": 1}').chunks == (Chunk("a", ()),)
    assert answer.push(b'{"message": {"content": "b"}, "done": true, "eval_count": 2}') == AnswerStep()
    assert (answer.reasons(), answer.usage, answer.pieces) == ((FinishReason.STOP,), ReportedUsage(None, 1), 1)


def test_too_many_calls_are_none() -> None:
    calls = [{"function": {"name": "f", "arguments": {}}}] * 129
    with pytest.raises(BadStream, match="more than 128 tool calls"):
        OllamaAssembly(1, lambda: "x").push(json.dumps({"message": {"tool_calls": calls}}).encode())


def test_later_instructions_are_the_users() -> None:
    messages = (ChatMessage("system", "S"), ChatMessage("user", "U"), ChatMessage("system", "T"))
    assert sent(messages)["messages"] == [{"role": "system", "content": "S"}, {"role": "user", "content": "U\n\nT"}]
