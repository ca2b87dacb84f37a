"""POST /v1/responses, with a fake mesh and store; OpenAI's own types check the answers and every event."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from shared import errors
from shared.api import inference
from shared.api.generation import ChatMessage, FormatKind, GenerationEnd, ToolCall, Usage
from shared.types import FinishReason
from tests.services.gateway.fakes import FakeWorker, RunningService

EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
TOOL: dict[str, Any] = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}}
OTHER = {"type": "function", "name": "count", "description": "Counts.", "parameters": None, "strict": True}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


async def respond(http: httpx.AsyncClient, **fields: Any) -> Response:
    answer = await http.post("/v1/responses", json={"input": "hi", **fields})
    assert answer.status_code == 200, answer.text
    return Response.model_validate(answer.json())


async def streamed(http: httpx.AsyncClient, **fields: Any) -> list[Any]:
    answer = await http.post("/v1/responses", json={"input": "hi", "stream": True, **fields})
    assert "[DONE]" not in answer.text
    events = []
    for block in answer.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":") and line)
        if lines:
            event = EVENT.validate_python(json.loads(lines["data"]))
            assert lines["event"] == event.type
            events.append(event)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


async def test_a_plain_answer(http: httpx.AsyncClient, running_service: RunningService) -> None:
    response = await respond(http, model="llama3", instructions="Be brief.", temperature=0.5, metadata={"a": "b"}, store=True)
    assert (response.output_text, response.status, response.model, response.object) == ("Hello world!", "completed", "llama3", "response")
    assert (response.instructions, response.temperature, response.metadata, response.parallel_tool_calls) == (
        "Be brief.",
        0.5,
        {"a": "b"},
        True,
    )
    assert (response.error, response.incomplete_details, response.tool_choice, response.tools) == (None, None, "auto", [])
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (7, 3, 10)
    assert response.id == f"resp_{running_service.store.only_row.id.hex}"
    assert response.to_dict()["store"] is False
    assert running_service.worker.received[0].prompt == (ChatMessage("system", "Be brief."), ChatMessage("user", "hi"))


async def test_the_events_of_a_text_answer(http: httpx.AsyncClient) -> None:
    events = await streamed(http)
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * 3, "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello world!"
    last = events[-1].response
    assert (last.status, last.output_text, last.usage.total_tokens) == ("completed", "Hello world!", 10)
    assert events[0].response.status == "in_progress"
    assert {event.response.id for event in events if hasattr(event, "response")} == {last.id}
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {last.output[0].id}


class Calls(FakeWorker):
    """A worker that generates a word and two tool calls."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        yield inference.Chunk("Let me see.", (5,))
        yield inference.Chunk("", (6,), tool_calls=(ToolCall("c1", "look_up", '{"what": "x"}'), ToolCall("c2", "look_up", "{}")))
        yield GenerationEnd(FinishReason.STOP, Usage(7, 2))


@pytest.mark.parametrize(("parallel", "ids"), [(True, ["c1", "c2"]), (False, ["c1"])])
async def test_calls_are_separate_items(http: httpx.AsyncClient, running_service: RunningService, parallel: bool, ids: list[str]) -> None:
    running_service.add_worker(1, Calls(), "smollm2")
    plain = await respond(http, tools=[TOOL, OTHER], parallel_tool_calls=parallel)
    events = await streamed(http, tools=[TOOL, OTHER], parallel_tool_calls=parallel)
    for response in (plain, events[-1].response):
        assert [item.type for item in response.output] == ["message", *["function_call"] * len(ids)]
        assert [item.call_id for item in response.output[1:]] == ids
        assert (response.output[1].name, response.output[1].arguments) == ("look_up", '{"what": "x"}')
        assert [tool.name for tool in response.tools] == ["look_up", "count"]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert sorted(item.id for item in done) == sorted(item.id for item in events[-1].response.output)
    for event in events:
        if event.type.startswith("response.function_call_arguments"):
            assert events[-1].response.output[event.output_index].id == event.item_id


async def test_a_truncated_answer_is_incomplete(http: httpx.AsyncClient, running_service: RunningService) -> None:
    class Cut(FakeWorker):
        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
            yield inference.Chunk("Hel", (5,))
            yield GenerationEnd(FinishReason.LENGTH, Usage(7, 1))

    running_service.add_worker(1, Cut(), "smollm2")
    plain, (*_, last) = await respond(http, max_output_tokens=1), await streamed(http, max_output_tokens=1)
    assert last.type == "response.incomplete"
    for response in (plain, last.response):
        assert (response.status, response.incomplete_details.reason, response.output[0].status) == (
            "incomplete",
            "max_output_tokens",
            "incomplete",
        )


async def test_an_empty_answer_is_an_empty_message(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.worker.words = ()
    assert (await respond(http)).output[0].content[0].text == ""  # type: ignore[union-attr]
    events = await streamed(http)
    assert events[-1].response.output[0].content[0].text == ""
    assert [event.type for event in events].count("response.output_item.added") == 1


async def test_a_failure_in_the_stream_is_a_failed_response(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.worker.fails_with, running_service.worker.fails_after = errors.LinkLost("the worker died"), 2
    *_, last = await streamed(http)
    assert (last.type, last.response.status, last.response.error.code) == ("response.failed", "failed", "server_error")
    assert "the worker died" in last.response.error.message
    assert last.response.output_text == "Hello world"


async def test_a_failure_before_the_first_text_has_a_status(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.worker.fails_with = errors.DeadlineExceeded("late")
    answer = await http.post("/v1/responses", json={"input": "hi", "stream": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_a_conversation_becomes_the_same_chat(http: httpx.AsyncClient, running_service: RunningService) -> None:
    response = {
        "type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "phase": "commentary",
        "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
    }  # fmt: skip
    await respond(
        http,
        input=[
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Why "}, {"type": "input_text", "text": "x"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "…"},
            response,
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look_up", "arguments": "{}", "status": "completed"},
            {"type": "function_call", "call_id": "c2", "name": "count", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "user", "content": "go on"},
        ],
    )  # fmt: skip
    assert running_service.worker.received[0].prompt == (
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Why x"),
        ChatMessage("assistant", "Let me see.", (ToolCall("c1", "look_up", "{}"), ToolCall("c2", "count", "{}"))),
        ChatMessage("tool", "1", (), "c1"),
        ChatMessage("tool", "2", (), "c2"),
        ChatMessage("assistant", "No."),
        ChatMessage("user", "go on"),
    )


async def test_output_items_are_accepted_as_input(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(1, Calls(), "smollm2")
    first = (await http.post("/v1/responses", json={"input": "hi", "tools": [TOOL]})).json()
    outputs = [{"type": "function_call_output", "call_id": call, "output": "1"} for call in ("c1", "c2")]
    await respond(http, input=[{"role": "user", "content": "hi"}, *first["output"], *outputs], tools=[TOOL])


@pytest.mark.parametrize(
    ("choice", "names", "must"),
    [
        (None, ["look_up", "count"], "auto"),
        ("none", [], "none"),
        ("required", ["look_up", "count"], "required"),
        ({"type": "function", "name": "count"}, ["count"], "required"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "count"}]}, ["count"], "auto"),
    ],
)
async def test_allowed_tools(http: httpx.AsyncClient, running_service: RunningService, choice: object, names: list[str], must: str) -> None:
    response = await respond(http, tools=[TOOL, OTHER], tool_choice=choice)
    config = running_service.worker.received[0].model_config
    assert ([tool.name for tool in config.tools], config.tool_choice) == (names, must)
    assert json.loads(response.to_json())["tool_choice"] == (choice or "auto")


async def test_parameters_without_effect_are_accepted(http: httpx.AsyncClient, running_service: RunningService) -> None:
    asked = {"input": "hi", "reasoning": {"effort": "high"}, "text": {"verbosity": "low"}, "user": "ada", "store": True}
    answer = await http.post("/v1/responses", json=asked)
    assert answer.headers["x-aimesh-ignored"] == "user, text.verbosity"
    assert running_service.worker.received


async def test_the_last_configuration_update_decides(http: httpx.AsyncClient, running_service: RunningService) -> None:
    update = {"type": "configuration_update", "reasoning": {"effort": "low"}, "text": {"format": {"type": "json_object"}}}
    later = {"type": "configuration_update", "reasoning": {"effort": "high"}}
    items = [{"role": "user", "content": "hi"}, update, later]
    await respond(http, input=items, reasoning={"effort": "none"}, text={"format": {"type": "text"}})
    config = running_service.worker.received[0].model_config
    assert config.format is not None
    assert (config.reasoning_effort, config.format.kind) == ("high", FormatKind.JSON)


async def test_items_of_other_models_tools_are_left_out_and_named(http: httpx.AsyncClient, running_service: RunningService) -> None:
    items = [
        {"role": "user", "content": "hi"},
        {"type": "mcp_call", "id": "mcp_1", "name": "x"},
        {"type": "shell_call_output", "output": []},
    ]
    answer = await http.post("/v1/responses", json={"input": items, "background_options": {}, "truncation": "auto"})
    assert answer.status_code == 200, answer.text
    assert set(answer.headers["x-aimesh-ignored"].split(", ")) == {
        "input[mcp_call]",
        "input[shell_call_output]",
        "background_options",
        "truncation",
    }
    assert [message.content for message in running_service.worker.received[0].prompt] == ["hi"]


async def test_formats_and_log_probabilities(http: httpx.AsyncClient, running_service: RunningService) -> None:
    form = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    response = await respond(http, text={"format": form}, include=["message.output_text.logprobs"], top_logprobs=2)
    config = running_service.worker.received[0].model_config
    assert config.format is not None
    assert (config.format.kind, json.loads(config.format.text), config.top_logprobs) == (FormatKind.JSON_SCHEMA, SCHEMA, 2)
    assert response.text is not None
    assert json.loads(response.text.to_json())["format"] == form
    await respond(http, text={"format": {"type": "json_object"}}, include=["reasoning.encrypted_content"])
    config = running_service.worker.received[1].model_config
    assert (config.format.kind if config.format else None, config.top_logprobs) == (FormatKind.JSON, None)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"input": []}, "input"),
        ({"conversation": "conv_1"}, "conversation"), ({"input": None}, "input"), ({"input": 5}, "input"), ({"input": ""}, "input"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"), ({"input": [{"type": "of_tomorrow"}]}, "input[0].type"),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"), ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call", "name": "x", "arguments": "{}"}]}, "input[0].call_id"), ({"input": [5]}, "input[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"reasoning": 5}, "reasoning"),
        ({"reasoning": {"effort": "ultra"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"), ({"top_logprobs": 21}, "top_logprobs"), ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"messages": []}, "messages"), ({"prompt": {"id": "x"}}, "prompt"), ({"stream_options": True}, "stream_options"),
    ],
)  # fmt: skip
async def test_a_wrong_parameter_is_a_400_that_names_it(
    http: httpx.AsyncClient, running_service: RunningService, wrong: dict[str, object], param: str
) -> None:
    answer = await http.post("/v1/responses", json={"input": "hi", **wrong}, headers={"x-aimesh-strict": "1"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert not running_service.worker.received
