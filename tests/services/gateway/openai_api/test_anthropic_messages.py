"""/v1/messages, with a fake mesh and store."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from services.gateway.http_api import tolerant_json
from services.gateway.http_api.tolerant_json import Ignored
from services.gateway.openai_api import anthropic_request
from shared import errors
from shared.api import inference
from shared.api.generation import ChatMessage, GenerationEnd, ToolCall, Usage
from shared.types import FinishReason
from tests.services.gateway.fakes import KEY, FakeWorker, RunningService
from tests.services.gateway.thinking import Thinks

KEYED = {"x-api-key": KEY, "anthropic-version": "2023-06-01", "anthropic-beta": "x"}
TOOL = {"name": "look_up", "description": "Look it up.", "input_schema": {"type": "object", "properties": {"what": {"type": "string"}}}}
OTHER = {"name": "count", "input_schema": {"type": "object"}}
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
HINT = {"type": "ephemeral"}
TEXT = {"type": "text", "text": "s"}


class Calls(FakeWorker):
    """A worker that generates two pieces of text and two tool calls."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        self.received.append(prompt)
        yield inference.Chunk("Let me", (5,))
        yield inference.Chunk(" see.", (6,))
        yield inference.Chunk("", (7,), tool_calls=(ToolCall("c1", "look_up", '{"what":"x"}'), ToolCall("c2", "count", "{}")))
        yield GenerationEnd(FinishReason.STOP, Usage(7, 3, 2))


@pytest.fixture
async def http(running_service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(running_service.app()), base_url="http://gateway", headers=KEYED) as client:
        yield client


async def post(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await http.post("/v1/messages", json={"model": "llama3", "max_tokens": 10, "messages": ASKED, **fields})


async def streamed(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    answer = await post(http, stream=True, **fields)
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in answer.text.strip().split("\n\n")]
    found = [json.loads(block["data"]) for block in blocks]
    assert [block["event"] for block in blocks] == [event["type"] for event in found]
    return found


def refusal(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    found = answer.json()
    assert (answer.status_code, found["type"], found["error"]["type"]) == (status, "error", kind), answer.text
    # Anthropic's clients read the other header.
    assert found["request_id"] == answer.headers["x-request-id"] == answer.headers["request-id"]
    return dict(found["error"])


async def test_a_plain_answer(http: httpx.AsyncClient, running_service: RunningService) -> None:
    answer = await post(http, system="Be brief.", temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["x"])
    row = running_service.store.only_row
    assert answer.json() == {
        "id": f"msg_{row.id.hex}",
        "type": "message",
        "role": "assistant",
        "model": "llama3",
        "content": [{"type": "text", "text": "Hello world!"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 3, "cache_read_input_tokens": 0, "output_tokens_details": {"thinking_tokens": 0}},
    }
    (prompt,) = running_service.worker.received
    config = prompt.model_config
    assert prompt.prompt == (ChatMessage("system", "Be brief."), ChatMessage("user", "hi"))
    assert (config.max_tokens, config.temperature, config.top_p, config.top_k, config.stop) == (10, 0.5, 0.9, 5, ("x",))


async def test_the_events_of_a_text(http: httpx.AsyncClient) -> None:
    start, *rest = await streamed(http)
    assert start["message"]["content"] == []
    assert (start["message"]["stop_reason"], start["message"]["usage"]["output_tokens"]) == (None, 0)
    assert rest[0] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert [event["delta"] for event in rest[1:4]] == [{"type": "text_delta", "text": text} for text in ("Hello", " world", "!")]
    assert rest[4:] == [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"input_tokens": 7, "output_tokens": 3, "cache_read_input_tokens": 0, "output_tokens_details": {"thinking_tokens": 0}},
        },
        {"type": "message_stop"},
    ]


@pytest.mark.parametrize("parallel", [True, False])
async def test_calls_are_blocks_of_their_own(http: httpx.AsyncClient, running_service: RunningService, parallel: bool) -> None:
    running_service.add_worker(1, Calls(), "smollm2")
    fields = {"tools": [TOOL, OTHER], "tool_choice": {"type": "auto", "disable_parallel_tool_use": not parallel}}
    calls = [("c1", "look_up", {"what": "x"}), ("c2", "count", {})][: 1 + parallel]
    blocks = [{"type": "tool_use", "id": one, "name": name, "input": given} for one, name, given in calls]
    whole = (await post(http, **fields)).json()
    assert whole["content"] == [{"type": "text", "text": "Let me see."}, *blocks]
    assert (whole["stop_reason"], whole["usage"]) == (
        "tool_use",
        {"input_tokens": 5, "output_tokens": 3, "cache_read_input_tokens": 2, "output_tokens_details": {"thinking_tokens": 0}},
    )
    events = await streamed(http, **fields)
    assert [event["type"].removeprefix("content_block_") for event in events] == [
        "message_start", "start", "delta", "delta", "stop", *["start", "delta", "stop"] * len(calls), "message_delta", "message_stop",
    ]  # fmt: skip
    started = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert started[1:] == [{**block, "input": {}} for block in blocks]
    inputs = [event["delta"]["partial_json"] for event in events if event.get("delta", {}).get("type") == "input_json_delta"]
    assert [json.loads(given) for given in inputs] == [given for _, _, given in calls]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


async def test_thoughts_and_arguments_are_streamed(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(1, Thinks(), "smollm2")
    fields = {"tools": [{**TOOL, "name": "look_up"}], "thinking": {"type": "adaptive"}}
    whole = (await post(http, **fields)).json()
    signature = whole["content"][0]["signature"]
    assert signature, "clients only send thoughts back that have one"
    assert whole["content"] == [
        {"type": "thinking", "thinking": "Let me think.", "signature": signature},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "c1", "name": "look_up", "input": {"a": 1}},
        {"type": "tool_use", "id": "c2", "name": "look_up", "input": {}},
    ]
    assert whole["usage"]["output_tokens_details"] == {"thinking_tokens": 2}
    events = await streamed(http, **fields)
    assert [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"] == [
        "thinking", "text", "tool_use", "tool_use",
    ]  # fmt: skip
    deltas = [(event["index"], *list(event["delta"].values())[1:]) for event in events if event["type"] == "content_block_delta"]
    assert deltas == [(0, "Let me"), (0, " think."), (0, signature), (1, "I look."), (2, '{"a":'), (2, "1}"), (3, "{}")]
    assert [event["index"] for event in events if event["type"] == "content_block_stop"] == [0, 1, 2, 3]
    hidden = (await post(http, thinking={"type": "adaptive", "display": "omitted"})).json()
    assert [block["type"] for block in hidden["content"]] == ["text"]


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, "none"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, "none"),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "xhigh"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1025}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 8193}}, "high"),
    ],
)
async def test_the_budget_is_an_effort(
    http: httpx.AsyncClient, running_service: RunningService, fields: dict[str, Any], effort: str | None
) -> None:
    assert (await post(http, **fields)).status_code == 200
    assert running_service.worker.received[-1].model_config.reasoning_effort == effort


async def test_an_answer_cut_off_has_its_reason(http: httpx.AsyncClient, running_service: RunningService) -> None:
    class Long(FakeWorker):
        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
            yield inference.Chunk("a", (1,))
            yield GenerationEnd(FinishReason.LENGTH, Usage(7, 1))

    running_service.add_worker(1, Long(), "smollm2")
    assert (await post(http)).json()["stop_reason"] == "max_tokens"


async def test_a_stop_sequence_is_named(http: httpx.AsyncClient, running_service: RunningService) -> None:
    class Stops(FakeWorker):
        called = False

        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
            yield inference.Chunk("a", (1,), tool_calls=(ToolCall("c1", "look_up", "{}"),) if self.called else ())
            yield GenerationEnd(FinishReason.STOP, Usage(7, 1), stop_sequence="END")

    worker = Stops()
    running_service.add_worker(1, worker, "smollm2")
    whole, *_, last, _ = (await post(http, stop_sequences=["END"])).json(), *await streamed(http, stop_sequences=["END"])
    for found in (whole, last["delta"]):
        assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "END")
    worker.called = True
    found = (await post(http, stop_sequences=["END"], tools=[TOOL])).json()
    assert (found["stop_reason"], found["stop_sequence"]) == ("tool_use", None), "the caller has to run the tool"


async def test_an_answer_says_that_no_context_was_edited(http: httpx.AsyncClient) -> None:
    edits = {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}
    *_, last, _ = await streamed(http, **edits)
    assert (await post(http, **edits)).json()["context_management"] == last["context_management"] == {"applied_edits": []}
    *_, last, _ = await streamed(http)
    assert "context_management" not in last
    assert "context_management" not in last["delta"]


async def test_a_conversation_with_tools_reaches_the_worker(http: httpx.AsyncClient, running_service: RunningService) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": HINT}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "c", "citations": None},
                {"type": "tool_use", "id": "c1", "name": "look_up", "input": {"what": "x"}, "caller": {"type": "direct"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "found"}], "cache_control": HINT},
                {"type": "tool_result", "tool_use_id": "c2", "content": "broken", "is_error": True},
                {"type": "tool_result", "tool_use_id": "c3"},
                {"type": "text", "text": "go on"},
            ],
        },
    ]
    fields = {
        "metadata": {"user_id": "u"},
        "thinking": {"type": "disabled"},
        "service_tier": "auto",
        "system": [{**TEXT, "cache_control": HINT}],
    }
    tools = [{**TOOL, "cache_control": HINT}, OTHER]
    answer = await post(http, messages=messages, tools=tools, tool_choice={"type": "tool", "name": "look_up"}, **fields)
    assert answer.status_code == 200, answer.text
    (prompt,) = running_service.worker.received
    assert prompt.prompt == (
        ChatMessage("system", "s"),
        ChatMessage("user", "ab"),
        ChatMessage("assistant", "c", (ToolCall("c1", "look_up", '{"what":"x"}'),), reasoning="hm"),
        ChatMessage("tool", "found", (), "c1"),
        ChatMessage("tool", "Error: broken", (), "c2"),
        ChatMessage("tool", "", (), "c3"),
        ChatMessage("user", "go on"),
    )
    assert ([tool.name for tool in prompt.model_config.tools], prompt.model_config.tool_choice) == (["look_up"], "required")


@pytest.mark.parametrize(("choice", "names", "must"), [("auto", 2, "auto"), ("any", 2, "required"), ("none", 0, "none")])
async def test_tool_choices(http: httpx.AsyncClient, running_service: RunningService, choice: str, names: int, must: str) -> None:
    assert (await post(http, tools=[TOOL, OTHER], tool_choice={"type": choice})).status_code == 200
    config = running_service.worker.received[0].model_config
    assert (len(config.tools), config.tool_choice) == (names, must)


STRICT = "x-aimesh-strict"
USE = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x"}}


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"max_tokens": None}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"), ({"messages": []}, "messages"),
        ({"surprise": 1}, "surprise"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"), ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [IMAGE]}]}]},
         "messages[0].content[0].content[0].source"),
        ({"messages": [{"role": "user", "content": [USE]}]}, "messages[0].content[0]"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "So"}]}, "messages"), ({"messages": [{"role": "user", "content": [None]}]},
         "messages[0].content[0]"),
        ({"stop_sequences": ["a"] * 5}, "stop_sequences"), ({"temperature": 3}, "temperature"), ({"system": 5}, "system"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"compaction": {"type": "summarize"}}, "compaction"),
        ({"output_config": {"formats": 1}}, "output_config.formats"),
        ({"thinking": True}, "thinking"), ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "deep"}}, "thinking.type"), ({"output_config": {"effort": "ultra"}}, "output_config.effort"),
    ],
)  # fmt: skip
async def test_a_wrong_parameter_is_a_400_that_names_it(
    http: httpx.AsyncClient, running_service: RunningService, wrong: dict[str, Any], param: str
) -> None:
    http.headers[STRICT] = "1"
    assert refusal(await post(http, **wrong), 400, "invalid_request_error")["param"] == param
    assert not running_service.worker.received


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.UnknownModel("x"), 404, "not_found_error"),
        (errors.Limited("x"), 429, "rate_limit_error"),
        (errors.BudgetExhausted("x"), 402, "billing_error"),
        (errors.TooLarge("x"), 413, "request_too_large"),
        (errors.Overloaded("x"), 503, "overloaded_error"),
        (errors.DeadlineExceeded("x"), 504, "timeout_error"),
        (errors.Internal("x"), 500, "api_error"),
    ],
)
async def test_errors_have_anthropics_form(
    http: httpx.AsyncClient, running_service: RunningService, error: errors.AimeshError, status: int, kind: str
) -> None:
    running_service.worker.fails_with = error
    assert refusal(await post(http), status, kind)["aimesh_code"] == error.code


@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}])
async def test_a_thread_is_refused_so_that_clients_send_the_whole_conversation(http: httpx.AsyncClient, thread: dict[str, str]) -> None:
    """Anthropic's tool runners send only the results of their tools in a thread, and everything after this error."""
    found = refusal(await post(http, thread=thread), 400, "invalid_request_error")
    assert (found["param"], found["details"]["error_code"]) == ("thread", "thread_unsupported_request")
    assert "send the whole conversation" in found["message"]


async def test_an_unknown_key_is_refused_in_anthropics_form(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/messages", json={}, headers={"x-api-key": "sk-ant-nothing"})
    assert refusal(answer, 401, "authentication_error")["aimesh_code"] == "not_authenticated"


async def test_a_failure_in_the_stream_is_an_error_event(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.worker.fails_with, running_service.worker.fails_after = errors.DeadlineExceeded("too slow"), 1
    *_, last = await streamed(http)
    assert (last["type"], last["error"]["type"], last["error"]["message"]) == ("error", "timeout_error", "too slow")


def test_hundreds_of_images_between_texts_are_read_at_once() -> None:
    """Each image once counted all texts before it: 1 MiB blocked the gateway for seven seconds."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "a"}}
    blocks = [{"type": "text", "text": "ab"}, image] * 500
    body = tolerant_json.read(
        json.dumps({"max_tokens": 5, "messages": [{"role": "user", "content": blocks}]}).encode(), anthropic_request.DIALECT, Ignored()
    )
    began = time.thread_time()
    [message] = anthropic_request.to_request(body).messages
    assert time.thread_time() - began < 1
    assert [image.at for image in message.images] == list(range(2, 1_001, 2))
