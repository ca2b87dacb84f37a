import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from features.remote_servers.worker.rules import openai_chat
from features.remote_servers.worker.upstreams import Dialect
from shared import errors
from shared.api.generation import (
    ChatMessage,
    FormatKind,
    ImageDetail,
    ImagePart,
    OutputFormat,
    ReasoningEffort,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.features.remote_servers.worker.fake_token_servers import FIELDS, MLX_FIELDS, SGLANG_FIELDS, TENSORRT_FIELDS, TGI_FIELDS
from tests.services.inference.standins import job

HI = (ChatMessage("user", "hi"),)
WEATHER = Tool("weather", "says it", '{"type": "object", "properties": {"city": {"type": "string"}}}')
ALWAYS = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "stream_options": {"include_usage": True}}


def sent(dialect: Dialect = Dialect.COMPATIBLE, messages: tuple[ChatMessage, ...] = HI, **asked: object) -> dict[str, Any]:
    given = replace(job(), messages=messages, requested=Sampling(**asked))  # type: ignore[arg-type]
    body = openai_chat.body("upstream x", dialect, "m", given, 7, salt="s")
    return json.loads(msgspec.json.encode(body))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dialect", Dialect)
def test_what_was_not_asked_for_is_not_sent(dialect: Dialect) -> None:
    name = "max_completion_tokens" if dialect is Dialect.OPENAI else "max_tokens"
    salted = dialect in (Dialect.VLLM, Dialect.SGLANG, Dialect.TENSORRT_LLM)
    assert sent(dialect) == {**ALWAYS, name: 7, **({"cache_salt": "s"} if salted else {})}


@pytest.mark.parametrize(
    ("dialect", "asked", "expected"),
    [
        pytest.param(
            Dialect.OPENAI, {"temperature": 0.0, "top_p": 0.5, "seed": 3}, {"temperature": 0.0, "top_p": 0.5, "seed": 3}, id="OpenAI's"
        ),
        pytest.param(Dialect.OPENAI, {"frequency_penalty": 1.0, "n": 2}, {"frequency_penalty": 1.0, "n": 2}, id="more of OpenAI's"),
        pytest.param(Dialect.OPENAI, {"logit_bias": {5: -100.0}}, {"logit_bias": {"5": -100.0}}, id="ids are texts in JSON"),
        pytest.param(Dialect.OPENAI, {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}, {}, id="what changes nothing is left out"),
        pytest.param(
            Dialect.VLLM, {"top_k": 5, "min_p": 0.1, "ignore_eos": True}, {"top_k": 5, "min_p": 0.1, "ignore_eos": True}, id="vLLM's"
        ),
        pytest.param(Dialect.VLLM, {"repeat_penalty": 1.2, "top_k": 0}, {"repetition_penalty": 1.2, "top_k": -1}, id="vLLM's words"),
        pytest.param(Dialect.SGLANG, {"repeat_penalty": 1.2, "top_k": 0}, {"repetition_penalty": 1.2, "top_k": -1}, id="SGLang's words"),
        pytest.param(Dialect.TENSORRT_LLM, {"top_k": 0, "ignore_eos": True}, {"top_k": 0, "ignore_eos": True}, id="TensorRT-LLM's words"),
        pytest.param(Dialect.MLX, {"repeat_penalty": 1.2, "min_p": 0.1}, {"repetition_penalty": 1.2, "min_p": 0.1}, id="MLX's words"),
        pytest.param(Dialect.LLAMA_CPP, {"repeat_penalty": 1.2, "top_k": 0}, {"repeat_penalty": 1.2, "top_k": 0}, id="llama.cpp's words"),
        pytest.param(Dialect.LLAMA_CPP, {"seed": 2**32 + 6}, {"seed": 7}, id="llama.cpp's seed has 32 bits"),
        pytest.param(Dialect.TGI, {"top_p": 1.0, "temperature": 1.0}, {"temperature": 1.0}, id="TGI refuses a top_p of 1"),
        pytest.param(Dialect.TGI, {"n": 1, "presence_penalty": 0.0}, {}, id="TGI gives one answer"),
        pytest.param(Dialect.AIMESH, {"top_k": 4, "repeat_penalty": 1.1}, {"top_k": 4, "repeat_penalty": 1.1}, id="another mesh's"),
        *(
            pytest.param(dialect, {"reasoning_effort": ReasoningEffort.LOW}, {"reasoning_effort": "low"}, id=f"{dialect} knows the effort")
            for dialect in Dialect
            if dialect not in (Dialect.TGI, Dialect.MLX, Dialect.LM_STUDIO)
        ),
        pytest.param(Dialect.VLLM, {"chat_template_kwargs": '{"a": [1]}'}, {"chat_template_kwargs": {"a": [1]}}, id="variables"),
        pytest.param(
            Dialect.VLLM,
            {"tools": (Tool("f"),), "parallel_tool_calls": False},
            {"tools": [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}], "parallel_tool_calls": False},
            id="one call at a time",
        ),
        pytest.param(Dialect.TGI, {"parallel_tool_calls": False}, {}, id="no tools, no calls"),
        pytest.param(Dialect.COMPATIBLE, {"stop": ("a", "b")}, {"stop": ["a", "b"]}, id="stop sequences"),
        pytest.param(Dialect.COMPATIBLE, {"top_logprobs": 0}, {"logprobs": True}, id="log probabilities of what was drawn"),
        pytest.param(Dialect.COMPATIBLE, {"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}, id="and of others"),
    ],
)
def test_what_was_asked_for_is_sent_in_the_servers_words(dialect: Dialect, asked: dict[str, Any], expected: dict[str, Any]) -> None:
    body = sent(dialect, **asked)
    assert {name: value for name, value in body.items() if name not in {*ALWAYS, "cache_salt"} and not name.endswith("_tokens")} == expected


@pytest.mark.parametrize(
    ("dialect", "asked", "field"),
    [
        pytest.param(Dialect.OPENAI, {"top_k": 5}, "top_k", id="OpenAI has no top_k"),
        pytest.param(Dialect.OPENAI, {"min_p": 0.1}, "min_p", id="OpenAI has no min_p"),
        pytest.param(Dialect.OPENAI, {"repeat_penalty": 1.1}, "repeat_penalty", id="OpenAI has no repeat_penalty"),
        *(pytest.param(dialect, {"raw": True}, "raw", id=f"{dialect} is asked for chats alone") for dialect in Dialect),
        pytest.param(Dialect.COMPATIBLE, {"ignore_eos": True}, "ignore_eos", id="nor does what every server has"),
        pytest.param(Dialect.TGI, {"n": 2}, "n", id="TGI would give one answer"),
        pytest.param(Dialect.TGI, {"logit_bias": {1: 1.0}}, "logit_bias", id="TGI does not use the bias"),
        pytest.param(Dialect.TGI, {"presence_penalty": 0.5}, "presence_penalty", id="nor that penalty"),
        pytest.param(Dialect.TGI, {"reasoning_effort": ReasoningEffort.NONE}, "reasoning_effort", id="TGI knows no effort"),
        *(
            pytest.param(dialect, {"chat_template_kwargs": "{}"}, "chat_template_kwargs", id=f"{dialect} has no variables")
            for dialect in (Dialect.OPENAI, Dialect.COMPATIBLE, Dialect.TGI, Dialect.OLLAMA)
        ),
        pytest.param(Dialect.VLLM, {"chat_template_kwargs": "[1]"}, "chat_template_kwargs", id="variables are an object"),
        *(
            pytest.param(dialect, {"tools": (WEATHER,), "parallel_tool_calls": False}, "parallel_tool_calls", id=f"{dialect} calls many")
            for dialect in (Dialect.TGI, Dialect.OLLAMA, Dialect.SGLANG, Dialect.TENSORRT_LLM, Dialect.MLX)
        ),
        *(
            pytest.param(dialect, {"tools": (WEATHER,), "tool_choice": ToolChoice.REQUIRED}, "tool_choice", id=f"{dialect} forces no call")
            for dialect in (Dialect.TENSORRT_LLM, Dialect.MLX)
        ),
        pytest.param(Dialect.MLX, {"format": OutputFormat(FormatKind.JSON)}, "format", id="MLX has no formats"),
        pytest.param(Dialect.MLX, {"top_logprobs": 0}, "top_logprobs", id="MLX's log probabilities have another form"),
        pytest.param(Dialect.MLX, {"n": 2}, "n", id="MLX gives one answer"),
        pytest.param(Dialect.VLLM, {"format": OutputFormat(FormatKind.GBNF, "root ::= [a-z]")}, "format", id="only llama.cpp takes GBNF"),
        pytest.param(Dialect.VLLM, {"format": OutputFormat(FormatKind.JSON_SCHEMA, "{")}, "format.text", id="a schema that is no JSON"),
        pytest.param(Dialect.VLLM, {"format": OutputFormat(FormatKind.JSON_SCHEMA, "[" * 100_000)}, "format.text", id="or too deep"),
        pytest.param(Dialect.VLLM, {"tools": (WEATHER, Tool("x", "", "[]"))}, r"tools\[1\].parameters", id="parameters that are no object"),
    ],
)
def test_what_cannot_be_honoured_is_refused_and_named(dialect: Dialect, asked: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.BadRequest, match=f"^{field} "):
        sent(dialect, **asked)


@pytest.mark.parametrize(
    ("dialect", "asked", "expected"),
    [
        pytest.param(Dialect.VLLM, OutputFormat(FormatKind.JSON), {"type": "json_object"}, id="any object"),
        pytest.param(
            Dialect.TGI, OutputFormat(FormatKind.JSON), {"type": "json_object", "value": {"type": "object"}}, id="TGI wants a schema"
        ),
        pytest.param(
            Dialect.TENSORRT_LLM,
            OutputFormat(FormatKind.JSON_SCHEMA, '{"type": "array"}'),
            {"type": "json", "schema": {"type": "array"}},
            id="TensorRT-LLM takes the bare schema",
        ),
        pytest.param(
            Dialect.OPENAI,
            OutputFormat(FormatKind.JSON_SCHEMA, '{"type": "array"}'),
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "array"}, "strict": True}},
            id="a schema",
        ),
    ],
)
def test_formats(dialect: Dialect, asked: OutputFormat, expected: dict[str, Any]) -> None:
    assert sent(dialect, format=asked)["response_format"] == expected


@pytest.mark.parametrize(
    ("dialect", "known"),
    [
        (Dialect.TGI, TGI_FIELDS),
        (Dialect.SGLANG, SGLANG_FIELDS),
        (Dialect.TENSORRT_LLM, TENSORRT_FIELDS),
        (Dialect.MLX, MLX_FIELDS),
        (
            Dialect.VLLM,
            FIELDS["vllm"]["/v1/chat/completions"] | {"repetition_penalty", "logit_bias", "top_logprobs", "parallel_tool_calls"},
        ),
    ],
)
def test_only_fields_of_the_documentation_are_sent(dialect: Dialect, known: set[str]) -> None:
    everything: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "seed": 1, "repeat_penalty": 1.1, "frequency_penalty": 0.1,
        "presence_penalty": 0.1, "logit_bias": {1: 1.0}, "ignore_eos": True, "n": 2, "top_logprobs": 2, "stop": ("a",),
        "tools": (WEATHER,), "tool_choice": ToolChoice.REQUIRED, "parallel_tool_calls": False, "format": OutputFormat(FormatKind.JSON),
        "reasoning_effort": ReasoningEffort.LOW, "chat_template_kwargs": "{}",
    }  # fmt: skip
    for name, value in everything.items():
        with suppress(errors.BadRequest):
            assert sent(dialect, **({"tools": (WEATHER,)} | {name: value})).keys() <= known


def test_a_grammar_goes_to_llama_cpp() -> None:
    assert sent(Dialect.LLAMA_CPP, format=OutputFormat(FormatKind.GBNF, "root ::= [a-z]"))["grammar"] == "root ::= [a-z]"


def test_tools_and_the_choice_among_them() -> None:
    body = sent(tools=(WEATHER,), tool_choice=ToolChoice.REQUIRED)
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    assert body["tools"] == [{"type": "function", "function": {"name": "weather", "description": "says it", "parameters": parameters}}]
    assert body["tool_choice"] == "required"
    wanted = OutputFormat(FormatKind.JSON)
    assert "response_format" in sent(tools=(WEATHER,), format=wanted)
    assert "response_format" not in sent(tools=(WEATHER,), format=wanted, tool_choice=ToolChoice.REQUIRED), "the call is the answer"
    assert "tool_choice" not in sent(tools=(WEATHER,)), "auto is what servers take without it"
    assert "tools" not in sent(tool_choice=ToolChoice.REQUIRED), "a choice among no tools is none"


@pytest.mark.parametrize(
    ("dialect", "sent_back"),
    [
        (Dialect.VLLM, {"reasoning": "hm"}),
        (Dialect.LLAMA_CPP, {"reasoning_content": "hm"}),
        (Dialect.AIMESH, {"reasoning_content": "hm"}),
        (Dialect.OLLAMA, {"reasoning": "hm"}),
        (Dialect.SGLANG, {"reasoning_content": "hm"}),
        (Dialect.TENSORRT_LLM, {"reasoning_content": "hm"}),
        (Dialect.MLX, {}),
        (Dialect.OPENAI, {}),
        (Dialect.COMPATIBLE, {}),
        (Dialect.TGI, {}),
    ],
)
def test_thoughts_are_sent_back(dialect: Dialect, sent_back: dict[str, str]) -> None:
    messages = (*HI, ChatMessage("assistant", "hello", reasoning="hm"), *HI)
    assert sent(dialect, messages)["messages"][1] == {"role": "assistant", "content": "hello", **sent_back}


def test_images_are_sent_at_their_places() -> None:
    images = (ImagePart(b"\x89PNG", 4, ImageDetail.LOW), ImagePart(b"\xff\xd8", 4), ImagePart(b"RIFF", 7))
    [message] = sent(messages=(ChatMessage("user", "one two", images=images),))["messages"]
    assert message["content"] == [
        {"type": "text", "text": "one "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw==", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9g=", "detail": "auto"}},
        {"type": "text", "text": "two"},
        {"type": "image_url", "image_url": {"url": "data:image/webp;base64,UklGRg==", "detail": "auto"}},
    ]


def test_a_conversation_with_tools() -> None:
    messages = (
        *HI,
        ChatMessage("assistant", "", (ToolCall("c1", "weather", '{"city":"Bern"}'),)),
        ChatMessage("tool", "rain", tool_call_id="c1"),
    )
    assert sent(messages=messages)["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize("dialect", Dialect)
def test_only_servers_whose_models_all_take_later_instructions_get_them(dialect: Dialect) -> None:
    """vLLM, llama.cpp's server and Ollama answer 400 or 500 for Qwen 3.5: "System message must be at the beginning"."""
    messages = (ChatMessage("system", "S"), ChatMessage("user", "U"), ChatMessage("system", "T"))
    found = [(message["role"], message["content"]) for message in sent(dialect, messages)["messages"]]
    is_passed_on = dialect in (Dialect.OPENAI, Dialect.AIMESH)
    assert found == [("system", "S"), *([("user", "U"), ("system", "T")] if is_passed_on else [("user", "U\n\nT")])]


@pytest.mark.parametrize(("is_batch", "has_priority", "priority"), [(True, True, 1), (False, True, None), (True, False, None)])
def test_server_with_priorities_gets_that_of_batches(is_batch: bool, has_priority: bool, priority: int | None) -> None:
    given = replace(job(), is_batch=is_batch)
    assert openai_chat.body("x", Dialect.VLLM, "m", given, 7, salt="s", has_priority=has_priority).get("priority") == priority
