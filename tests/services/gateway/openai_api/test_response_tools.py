"""Namespaces and custom tools of the Responses API: what models see of them, and what callers get back."""

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import tolerant_json
from services.gateway.http_api.tolerant_json import Ignored
from services.gateway.openai_api import response_request
from services.gateway.openai_api.response_tools import CustomInput
from shared.api import inference
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, GenerationEnd, ImageDetail, ImagePart, ToolCall, ToolCallPart, Usage
from shared.types import FinishReason
from tests.services.gateway.fakes import FakeWorker, RunningService
from tests.services.gateway.openai_api.test_response_request import TOOL, respond, streamed

GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}
PATCH = {"type": "custom", "name": "patch", "description": "Edits files.", "format": GRAMMAR}
SPAWN = {"type": "function", "name": "spawn", "description": "Starts one.", "parameters": {"type": "object", "properties": {}}}
AGENTS = {"type": "namespace", "name": "agents", "description": "Helpers.", "tools": [SPAWN, {**SPAWN, "name": "close"}, PATCH]}
DATA_URL = "data:image/png;base64,aaaa"


def request(ignored: Ignored | None = None, **fields: object) -> InferenceRequest:
    body = json.dumps({"input": "hi", **fields}).encode()
    return response_request.to_request(tolerant_json.read(body, response_request.DIALECT, ignored or Ignored()))


def test_models_see_namespaces_and_custom_tools_as_functions() -> None:
    tools = request(tools=[TOOL, AGENTS, PATCH]).tools
    assert [tool.name for tool in tools] == ["look_up", "agents__spawn", "agents__close", "agents__patch", "patch"]
    assert tools[1].description == "Starts one.\n\nAbout all tools of agents: Helpers."
    assert (tools[2].description, tools[4].description) == (
        "Starts one.",
        "Edits files.\n\nThe input must match this lark grammar:\nstart: /.+/",
    )
    for custom in (tools[3], tools[4]):
        assert json.loads(custom.parameters)["properties"].keys() == {"input"}


def test_tools_of_an_input_item_are_offered_too() -> None:
    item = {"type": "additional_tools", "id": "at_1", "role": "developer", "tools": [AGENTS, {"type": "web_search"}]}
    ignored = Ignored()
    found = request(ignored, input=[item, {"role": "user", "content": "hi"}], tools=[TOOL])
    assert [tool.name for tool in found.tools] == ["look_up", "agents__spawn", "agents__close", "agents__patch"]
    assert found.messages == (ChatMessage("user", "hi"),)
    assert "input.tools[web_search]" in ignored.labels


def test_other_tools_and_fields_are_ignored_and_named() -> None:
    ignored = Ignored()
    tools = [
        TOOL,
        {**AGENTS, "tools": [SPAWN, {"type": "mcp"}]},
        {"type": "web_search", "external_web_access": True},
        {"type": "tool_search"},
    ]
    found = request(ignored, tools=tools, client_metadata={"a": "b"}, include=["file_search_call.results"], prompt_cache_key="x")
    assert [tool.name for tool in found.tools] == ["look_up", "agents__spawn"]
    assert set(ignored.labels) == {"tools[web_search]", "tools[tool_search]", "tools.tools[mcp]", "client_metadata", "prompt_cache_key"}


def test_long_and_odd_names_become_unique_names_of_64_characters() -> None:
    inner = [{**SPAWN, "name": "x" * 60 + end} for end in ("1", "2")]
    namespaces = [{**AGENTS, "name": name, "tools": inner} for name in ("mcp.one", "mcp/one")]
    names = [tool.name for tool in request(tools=namespaces).tools]
    assert len(set(names)) == 4
    assert {len(name) for name in names} == {64}
    assert names == [tool.name for tool in request(tools=namespaces).tools]


@pytest.mark.parametrize("other", [{**TOOL, "name": "agents__spawn"}, {**PATCH, "name": "agents__spawn"}, AGENTS])
def test_a_tool_named_like_one_of_a_namespace_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(BadField, match="agents__spawn twice: models know the tools of the namespace agents by such names; rename one"):
        request(tools=[AGENTS, other])


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "function", "name": "spawn", "namespace": "agents"}, ["agents__spawn"]),
        ({"type": "custom", "name": "patch"}, ["patch"]),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "patch"}, TOOL]}, ["look_up", "patch"]),
    ],
)
def test_a_choice_names_tools_as_the_caller_knows_them(choice: dict[str, Any], names: list[str]) -> None:
    found = request(tools=[TOOL, AGENTS, PATCH], tool_choice=choice)
    assert ([tool.name for tool in found.tools], found.tool_choice) == (names, "required")


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        ({"type": "web_search"}, "tool_choice"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [TOOL, {"type": "web_search"}]}, r"tool_choice.tools\[1\]"),
    ],
)
def test_a_choice_of_an_ignored_tool_is_refused_with_its_name(choice: dict[str, Any], field: str) -> None:
    must = f"{field} must name a function or a custom tool that is offered; it is of the type 'web_search'"
    with pytest.raises(BadField, match=must):
        request(tools=[TOOL, {"type": "web_search"}], tool_choice=choice)


def test_calls_and_results_of_earlier_turns_reach_the_model() -> None:
    items = [
        {"type": "custom_tool_call", "id": "ctc_1", "status": "completed", "call_id": "c1", "name": "patch", "input": 'a "b"\n'},
        {"type": "function_call", "call_id": "c2", "name": "spawn", "namespace": "agents", "arguments": "{}"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Doing it."}]},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
        {"type": "function_call_output", "call_id": "c2", "output": [
            {"type": "input_text", "text": "seen"}, {"type": "input_image", "image_url": DATA_URL, "detail": "high"}]},
    ]  # fmt: skip
    calls = (ToolCall("c1", "patch", '{"input":"a \\"b\\"\\n"}'), ToolCall("c2", "agents__spawn", "{}"))
    assert request(input=items).messages == (
        ChatMessage("assistant", "Doing it.", calls),
        ChatMessage("tool", "done", (), "c1"),
        ChatMessage("tool", "seen", (), "c2", images=(ImagePart(DATA_URL.encode(), 4, ImageDetail.HIGH),)),
    )


class Caller(FakeWorker):
    """A worker that calls a function and a custom tool of a namespace, in parts."""

    parts = ('{"in', 'put":', ' "a \\', "n\\u00e", "9\\ud83d\\ude", '00"', "}")

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        yield inference.Chunk("", (5,), call_parts=(ToolCallPart(0, '{"a": 1}', "c1", "agents__spawn"),))
        yield inference.Chunk("", (6,), call_parts=(ToolCallPart(1, "", "c2", "agents__patch"),))
        for part in self.parts:
            yield inference.Chunk("", (7,), call_parts=(ToolCallPart(1, part),))
        yield GenerationEnd(FinishReason.STOP, Usage(7, 9))


async def test_calls_come_back_under_the_callers_names(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(1, Caller(), "smollm2")
    plain, events = await respond(http, tools=[AGENTS]), await streamed(http, tools=[AGENTS])
    for response in (plain, events[-1].response):
        call, custom = (item.to_dict() for item in response.output)
        assert (call["type"], call["namespace"], call["name"], call["arguments"]) == ("function_call", "agents", "spawn", '{"a": 1}')
        assert (custom["type"], custom["namespace"], custom["name"], custom["call_id"]) == ("custom_tool_call", "agents", "patch", "c2")
        assert (custom["input"], custom["id"][:4]) == ("a \né😀", "ctc_")
        assert [tool.type for tool in response.tools] == ["namespace"]
    added = [event.item for event in events if event.type == "response.output_item.added"]
    assert [(item.type, item.name, item.namespace) for item in added] == [
        ("function_call", "spawn", "agents"),
        ("custom_tool_call", "patch", "agents"),
    ]
    deltas = [event for event in events if event.type == "response.custom_tool_call_input.delta"]
    assert [event.delta for event in deltas] == ["a ", "\n", "é", "😀"]
    (done,) = [event for event in events if event.type == "response.custom_tool_call_input.done"]
    assert (done.input, done.item_id, done.output_index) == ("a \né😀", deltas[0].item_id, 1)
    assert not any(event.type.startswith("response.function_call") and event.output_index == 1 for event in events)


async def test_arguments_of_another_form_are_the_input_itself(http: httpx.AsyncClient, running_service: RunningService) -> None:
    class Odd(Caller):
        parts = ('{"patch":', " 1}")

    running_service.add_worker(1, Odd(), "smollm2")
    events = await streamed(http, tools=[AGENTS])
    assert events[-1].response.output[1].input == '{"patch": 1}'
    assert [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"] == ['{"patch": 1}']


@given(st.text(), st.lists(st.integers(0, 200)), st.booleans())
def test_an_input_is_the_same_however_it_is_cut(text: str, cuts: list[int], is_ascii: bool) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=is_ascii)
    places = sorted({0, *(cut for cut in cuts if cut < len(arguments)), len(arguments)})
    custom = CustomInput()
    read = [custom.add(arguments[start:end]) for start, end in itertools.pairwise(places)]
    assert "".join(read) == custom.text == text


def test_a_line_end_that_is_not_escaped_is_text() -> None:
    custom = CustomInput()
    assert custom.add('{"input": "a\nb"}') == custom.text == "a\nb"


class Thinker(FakeWorker):
    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        for thought in ("Hm", " so."):
            yield inference.Chunk("", (5,), reasoning=thought)
        yield inference.Chunk("Yes.", (6,))
        yield GenerationEnd(FinishReason.STOP, Usage(7, 3))


async def test_thoughts_are_their_summary_if_one_is_asked_for(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(1, Thinker(), "smollm2")
    asked = {"reasoning": {"effort": "low", "summary": "auto"}}
    plain, events = await respond(http, **asked), await streamed(http, **asked)
    for response in (plain, events[-1].response):
        thoughts = response.output[0].to_dict()
        assert thoughts["summary"] == [{"type": "summary_text", "text": "Hm so."}]
        assert thoughts["content"] == [{"type": "reasoning_text", "text": "Hm so."}]
        assert response.reasoning.to_dict()["summary"] == "auto"
    names = [event.type.removeprefix("response.") for event in events]
    assert names[2 : names.index("output_item.done") + 1] == [
        "output_item.added", "content_part.added", "reasoning_summary_part.added",
        *["reasoning_text.delta", "reasoning_summary_text.delta"] * 2,
        "reasoning_text.done", "content_part.done", "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done",
    ]  # fmt: skip
    assert (await respond(http)).output[0].to_dict()["summary"] == []
    assert not any("summary" in event.type for event in await streamed(http))
