"""/v1/chat/completions and /v1/models, with a fake mesh and store."""

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from services.gateway.requests import request_validation
from shared import errors
from shared.api import inference
from shared.api.generation import GenerationEnd, ToolCall, Usage
from shared.types import FinishReason, UserId
from tests.services.gateway.fakes import USER, FakeWorker, RunningService, node_id
from tests.services.gateway.http_answers import CHAT, events, problem
from tests.services.gateway.thinking import Thinks

HINT = {"type": "ephemeral"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look it up.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"what": "x"}'}}
CHOICE = {"type": "function", "function": {"name": "look_up"}}
OTHER = {"type": "function", "function": {"name": "other"}}
RESULT = {"role": "tool", "content": "x", "tool_call_id": "c1"}


async def test_chat(http: httpx.AsyncClient, running_service: RunningService) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, "model": "llama3"})
    body = answer.json()
    assert answer.status_code == 200
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello world!", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert (body["object"], body["model"]) == ("chat.completion", "llama3"), "as the caller named it"
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    row = running_service.store.only_row
    assert row.tokens_used == 10
    assert answer.headers["x-request-id"] == str(row.id)
    assert body["id"] == f"chatcmpl-{row.id.hex}"
    assert answer.headers["x-ratelimit-limit-requests"] == "100"
    assert answer.headers["x-ratelimit-remaining-requests"] == "99"


@pytest.mark.parametrize(
    ("words", "is_shown"),
    [({}, True), ({"reasoning": {"exclude": True}}, False), ({"include_reasoning": False}, False), ({"include_reasoning": True}, True)],
)
async def test_thoughts_are_left_out_if_the_caller_wants_none(
    http: httpx.AsyncClient, running_service: RunningService, words: dict[str, Any], is_shown: bool
) -> None:
    running_service.add_worker(1, Thinks(), "smollm2")
    message = (await http.post("/v1/chat/completions", json={**CHAT, **words})).json()["choices"][0]["message"]
    assert (message["content"], message.get("reasoning_content")) == ("I look.", "Let me think." if is_shown else None)
    *chunks, _ = events(await http.post("/v1/chat/completions", json={**CHAT, **words, "stream": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == ("Let me think." if is_shown else "")
    assert "".join(delta.get("content", "") for delta in deltas) == "I look."


async def test_stream_options_have_no_effect_without_a_stream(http: httpx.AsyncClient) -> None:
    for path, body in (("chat/completions", CHAT), ("completions", {"prompt": "hi"}), ("responses", {"input": "hi"})):
        answer = await http.post(f"/v1/{path}", json={**body, "stream_options": {"include_usage": True}})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("include_usage", [True, False])
async def test_chat_stream(http: httpx.AsyncClient, running_service: RunningService, include_usage: bool) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True, "stream_options": {"include_usage": include_usage}})
    *chunks, done = events(answer)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    if include_usage:
        last = chunks.pop()
        assert (last["choices"], last["usage"]["total_tokens"]) == ([], 10)
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert not any("usage" in chunk for chunk in chunks)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello world!"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert running_service.store.only_row.status == "success"


async def test_chat_parameters_reach_the_worker(http: httpx.AsyncClient, running_service: RunningService) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    fields = {
        "n": 2, "logprobs": True, "top_logprobs": 3, "min_p": 0.1, "repeat_penalty": 1.1,
        "frequency_penalty": 0.5, "presence_penalty": -0.5,
        "logit_bias": {"17": -100}, "ignore_eos": True, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
    }  # fmt: skip
    assert (await http.post("/v1/chat/completions", json={**CHAT, **fields})).status_code == 200
    (prompt,) = running_service.worker.received
    config = prompt.model_config
    assert (config.n, config.top_logprobs, config.min_p, config.repeat_penalty) == (2, 3, 0.1, 1.1)
    assert (config.frequency_penalty, config.presence_penalty, config.logit_bias, config.ignore_eos) == (0.5, -0.5, {17: -100.0}, True)
    assert config.format is not None
    assert (config.format.kind, json.loads(config.format.text)) == ("json_schema", schema)


@pytest.mark.parametrize(
    ("choice", "names", "must"),
    [
        (None, ["look_up", "count"], "auto"),
        ("none", [], "none"),
        ("required", ["look_up", "count"], "required"),
        ({"type": "function", "function": {"name": "count"}}, ["count"], "required"),
    ],
)
async def test_allowed_tools_reach_the_worker(
    http: httpx.AsyncClient, running_service: RunningService, choice: object, names: list[str], must: str
) -> None:
    tools = [TOOL, {"type": "function", "function": {"name": "count"}}]
    await http.post("/v1/chat/completions", json={**CHAT, "tools": tools, "tool_choice": choice})
    config = running_service.worker.received[0].model_config
    assert [tool.name for tool in config.tools] == names
    assert config.tool_choice == must
    if "look_up" in names:
        assert json.loads(config.tools[0].parameters) == TOOL["function"]["parameters"]


async def test_users_have_different_and_stable_salts(http: httpx.AsyncClient, running_service: RunningService) -> None:
    await http.post("/v1/chat/completions", json=CHAT)
    await http.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": "other"}]})
    mine, again = (prompt.salt for prompt in running_service.worker.received)
    assert mine == again
    assert mine
    assert mine != request_validation.prompt_salt(UserId(UUID(int=7)), "s" * 16)
    assert str(USER) not in mine


class Caller(FakeWorker):
    """A worker that generates two answers, a tool call and a word, both with log probabilities."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        drawn = inference.TokenChance(5, "é".encode()[:1], -0.5)
        yield inference.Chunk("", (5,), 0, (inference.TokenLogprob(drawn, (drawn,)),))
        yield inference.Chunk("", (6,), 0, (), (ToolCall("c1", "look_up", '{"what": "x"}'),))
        yield inference.Chunk("Hi", (7,), 1, (inference.TokenLogprob(inference.TokenChance(7, b"Hi", -1.5)),))
        yield GenerationEnd(FinishReason.STOP, Usage(7, 3), (FinishReason.STOP, FinishReason.LENGTH))


async def test_calls_log_probabilities_and_several_answers(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(1, Caller(), "smollm2")
    body = (await http.post("/v1/chat/completions", json={**CHAT, "n": 2, "logprobs": True, "top_logprobs": 1, "tools": [TOOL]})).json()
    first, second = body["choices"]
    assert (first["finish_reason"], second["finish_reason"]) == ("tool_calls", "length")
    assert first["message"]["content"] is None
    assert first["message"]["tool_calls"] == [CALL]
    assert first["logprobs"]["content"] == [
        {"token": "�", "logprob": -0.5, "bytes": [195], "top_logprobs": [{"token": "�", "logprob": -0.5, "bytes": [195]}]}
    ]
    assert second["message"] == {"role": "assistant", "content": "Hi", "refusal": None}
    assert second["logprobs"]["content"][0]["logprob"] == -1.5
    assert body["usage"]["completion_tokens"] == 3


async def test_a_stream_of_calls_and_several_answers(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(1, Caller(), "smollm2")
    answer = await http.post("/v1/chat/completions", json={**CHAT, "n": 2, "stream": True, "logprobs": True, "tools": [TOOL]})
    *chunks, done = events(answer)
    assert done == "[DONE]"
    by_answer = {index: [one["choices"][0] for one in chunks if one["choices"][0]["index"] == index] for index in (0, 1)}
    assert all(choices[0]["delta"]["role"] == "assistant" for choices in by_answer.values())
    assert [call for choice in by_answer[0] for call in choice["delta"].get("tool_calls", [])] == [{**CALL, "index": 0}]
    assert "".join(choice["delta"].get("content", "") for choice in by_answer[1]) == "Hi"
    assert [choices[-1]["finish_reason"] for choices in by_answer.values()] == ["tool_calls", "length"]
    assert sum(len(choice["logprobs"]["content"]) for choices in by_answer.values() for choice in choices if choice["logprobs"]) == 2


class Loading(FakeWorker):
    """A worker that first reports that it is loading the model."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        yield inference.Chunk("", (), waiting="loading smollm2: 40 %")
        async for item in super().run(prompt):
            yield item


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/inference"])
async def test_waiting_notices_are_sent_as_comments(http: httpx.AsyncClient, running_service: RunningService, path: str) -> None:
    running_service.add_worker(1, Loading(), "smollm2")
    answer = await http.post(path, json={**CHAT, "stream": True})
    comment, _, rest = answer.text.partition("\n\n")
    assert comment == ": loading smollm2: 40 %"
    assert "data: [DONE]" in rest
    assert "loading" not in (await http.post(path, json=CHAT)).text


async def test_without_parallel_calls_an_answer_has_one_call(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.worker.run = _calls_twice  # type: ignore[method-assign]
    fields = {**CHAT, "tools": [TOOL]}
    for parallel, ids in ((None, ["c1", "c2"]), (True, ["c1", "c2"]), (False, ["c1"])):
        body = (await http.post("/v1/chat/completions", json={**fields, "parallel_tool_calls": parallel})).json()
        assert [call["id"] for call in body["choices"][0]["message"]["tool_calls"]] == ids
        stream = await http.post("/v1/chat/completions", json={**fields, "parallel_tool_calls": parallel, "stream": True})
        deltas = [event["choices"][0]["delta"] for event in events(stream)[:-1]]
        assert [call["id"] for delta in deltas for call in delta.get("tool_calls", [])] == ids


async def test_functions_are_the_older_form_of_tools(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.worker.run = _calls_twice  # type: ignore[method-assign]
    function = TOOL["function"]
    fields = {**CHAT, "functions": [function, OTHER["function"]], "function_call": {"name": "look_up"}}
    (choice,) = (await http.post("/v1/chat/completions", json=fields)).json()["choices"]
    called = {"name": "look_up", "arguments": "{}"}
    assert (choice["finish_reason"], choice["message"]["content"]) == ("function_call", None)
    assert choice["message"]["function_call"] == called
    assert "tool_calls" not in choice["message"]
    *chunks, last, _done = events(await http.post("/v1/chat/completions", json={**fields, "stream": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta["function_call"] for delta in deltas if "function_call" in delta] == [called]
    assert last["choices"][0]["finish_reason"] == "function_call"


async def test_calls_and_results_of_functions_reach_the_worker(http: httpx.AsyncClient, running_service: RunningService) -> None:
    called, result = {"role": "assistant", "content": None, "function_call": CALL["function"]}, {"role": "function", "name": "look_up"}
    messages = [*CHAT["messages"], called, {**result, "content": "x"}, {"role": "user", "content": "y", "function_call": ""}]
    answer = await http.post("/v1/chat/completions", json={"messages": messages, "functions": [TOOL["function"]]})
    assert answer.status_code == 200, answer.text
    (prompt,) = running_service.worker.received
    _, call, reply, _ = prompt.prompt
    assert [(each.name, each.arguments) for each in call.tool_calls] == [("look_up", '{"what": "x"}')]
    assert (reply.role, reply.content, reply.tool_call_id) == ("tool", "x", call.tool_calls[0].id)
    config = prompt.model_config
    assert (config.parallel_tool_calls, [tool.name for tool in config.tools]) == (False, ["look_up"])


async def _calls_twice(_prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
    for identity in ("c1", "c2"):
        yield inference.Chunk("", (5,), tool_calls=(ToolCall(identity, "look_up", "{}"),))
    yield GenerationEnd(FinishReason.STOP, Usage(7, 2))


async def test_models_list_the_default_first(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(2, FakeWorker(), "alpha")
    assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["alpha", "smollm2"]


async def test_models_are_those_that_the_caller_may_use(http: httpx.AsyncClient, running_service: RunningService) -> None:
    kept: dict[str, Any] = {"labels": {"shared": "no"}}
    running_service.add_worker(2, FakeWorker(), "anothers", owner=str(UUID(int=77)), **kept)
    running_service.add_worker(3, FakeWorker(), "mine", owner=str(USER), **kept)
    # One machine with this model is another user's and not shared; the other is the operator's.
    running_service.add_worker(4, FakeWorker(), "smollm2", owner=str(UUID(int=77)), **kept)
    assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["mine", "smollm2"]
    assert (await http.get("/v1/models/mine")).status_code == 200
    error = problem(await http.get("/v1/models/anothers"), 404, "unknown_model")
    assert "served models: mine, smollm2" in error["message"]


async def test_models_tell_their_context_and_modalities(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(2, FakeWorker(), "cloud", context_tokens=131_072, abilities=("images", "tools"))
    running_service.add_worker(3, FakeWorker(), "unknown", context_tokens=0)
    models = {model["id"]: model for model in (await http.get("/v1/models")).json()["data"]}
    assert (models["cloud"]["context_length"], models["cloud"]["max_model_len"]) == (131_072, 131_072)
    assert models["cloud"]["architecture"] == {"input_modalities": ["text", "image"], "output_modalities": ["text"]}
    assert models["unknown"]["architecture"] == {"input_modalities": ["text"], "output_modalities": ["text"]}
    assert (models["cloud"]["suits_agents"], models["cloud"]["agents_hint"]) == (False, "tools not checked")
    assert (models["unknown"]["suits_agents"], models["unknown"]["agents_hint"]) == (False, "tools not checked, context unknown")
    assert not models["unknown"].keys() & {"context_length", "max_model_len", "max_input_tokens"}, "0 would be read as no room at all"


async def test_models_are_also_as_anthropics_clients_read_them(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(2, FakeWorker(), "cloud", context_tokens=131_072)
    page = (await http.get("/v1/models")).json()
    cloud = page["data"][0]
    assert (cloud["type"], cloud["display_name"], cloud["max_input_tokens"], page["has_more"]) == ("model", "cloud", 131_072, False)
    assert datetime.fromisoformat(cloud["created_at"]).timestamp() == cloud["created"]


async def test_a_model_is_found_by_any_of_its_names(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(2, FakeWorker(), "org/name:8b")
    for name, shown in (("smollm2", "smollm2"), ("llama3", "smollm2"), ("org/name:8b", "org/name:8b"), ("org%2Fname:8b", "org/name:8b")):
        answer = await http.get(f"/v1/models/{name}")
        assert (answer.status_code, answer.json()["id"], answer.json()["object"]) == (200, shown, "model"), answer.text
    error = problem(await http.get("/v1/models/gpt-9"), 404, "unknown_model")
    assert error["param"] == "model"
    assert "smollm2" in error["message"]
    problem(await http.get("/v1/models/{model}"), 404, "unknown_model")
    problem(await http.delete("/v1/models/smollm2"), 405, "method_not_allowed")


async def test_an_unknown_model_is_a_404_that_lists_what_is_served(http: httpx.AsyncClient) -> None:
    error = problem(await http.post("/v1/chat/completions", json={**CHAT, "model": "gpt-9"}), 404, "unknown_model")
    assert "smollm2" in error["message"]
    assert "aicli admin config apply" in error["hint"]


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        (errors.NotAuthenticated("x"), "invalid_api_key", None),
        (errors.BudgetExhausted("x"), "insufficient_quota", None),
        (errors.UnknownModel("x"), "model_not_found", "model"),
        (errors.Limited("x"), "rate_limit_exceeded", None),
        (errors.ContextExceeded("the prompt has 9 tokens"), "context_length_exceeded", None),
        (errors.Overloaded("x"), "overloaded", None),
        (errors.BadRequest("tools[1].function.parameters must describe an object"), "bad_request", "tools[1].function.parameters"),
        (errors.BadRequest("dimensions is 9; this model's vectors have 8"), "bad_request", "dimensions"),
        (errors.BadRequest("inputs are strange"), "bad_request", None),
    ],
)
async def test_v1_has_openais_code_beside_ours_and_api_only_ours(
    http: httpx.AsyncClient, running_service: RunningService, error: errors.AimeshError, code: str, param: str | None
) -> None:
    running_service.worker.fails_with = error
    # OpenAI's clients know exhausted credits as 429.
    status = 429 if isinstance(error, errors.BudgetExhausted) else error.status
    found = problem(await http.post("/v1/chat/completions", json=CHAT), status, error.code)
    assert (found["code"], found["param"]) == (code, param)
    assert problem(await http.post("/api/inference", json=CHAT), error.status, error.code)["param"] == param


async def test_an_error_in_a_stream_has_openais_code_too(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.worker.fails_with, running_service.worker.fails_after = errors.Limited("slow down"), 1
    *_, last = events(await http.post("/v1/chat/completions", json={**CHAT, "stream": True}))
    assert (last["error"]["code"], last["error"]["aimesh_code"]) == ("rate_limit_exceeded", "rate_limited")


async def test_without_workers_it_is_a_503(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.directory.mark_gone(node_id(1), "stopped")
    answer = await http.post("/v1/chat/completions", json=CHAT)
    assert "aicli" in problem(answer, 503, "not_reachable")["hint"]
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False, "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0},
        {"logprobs": False, "top_logprobs": 0, "response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "logit_bias": {}},
        {"temperature": None, "stop": None, "seed": None, "tools": None, "n": None, "stream": False, "stream_options": None},
        {"stop": "x"}, {"stop": ["x", "y"]}, {"max_completion_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": 5},
        {"messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None}]},
        {"temperature": 1, "top_p": 1, "top_k": 5}, {"min_p": 0.1, "repeat_penalty": 1.1, "ignore_eos": True},
        {"frequency_penalty": 0.5, "presence_penalty": -0.5, "logit_bias": {"1": 5}}, {"logprobs": True, "top_logprobs": 3},
        {"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "required"}, {"grammar": "root ::= [a]"},
        {"guided_regex": "[a-z]+"}, {"guided_choice": ["a", "b"]}, {"guided_regex": None, "grammar": None, "guided_choice": ["a"]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT]},
        {"stream": None, "logprobs": None, "parallel_tool_calls": None, "ignore_eos": None},
        {"tools": [TOOL], "parallel_tool_calls": False}, {"tools": [TOOL], "response_format": {"type": "json_object"}},
        {"messages": [{"role": "user", "content": "a", "name": "ann"}, {"role": "assistant", "content": None, "refusal": "I will not."}]},
        {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, {"role": "user", "content": "b"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}]}]},
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CHOICE]}}},
        {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": True}},
        {"prediction": {"type": "content", "content": "x"}, "service_tier": "flex", "reasoning_effort": "high", "verbosity": "low"},
        {"store": True, "safety_identifier": "x", "cache_control": HINT, "tools": [{**TOOL, "cache_control": HINT}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": HINT}], "cache_control": HINT}]},
    ],
)  # fmt: skip
async def test_supported_parameters_are_accepted(http: httpx.AsyncClient, harmless: dict[str, object]) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, **harmless})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"n": 5}, "n"), ({"n": True}, "n"), ({"tools": [{"type": "function"}]}, "tools[0].function"), ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= [a]"}, "grammar"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"logit_bias": {"a": 5}}, "logit_bias"), ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [TOOL], "grammar": "root ::= [a]"}, "grammar"),
        ({"tools": [TOOL], "guided_regex": "a"}, "guided_regex"), ({"tools": [TOOL], "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_regex": "a", "grammar": "root ::= [a]"}, "guided_regex"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"guided_choice": "a"}, "guided_choice"), ({"guided_choice": [1]}, "guided_choice[0]"),
        ({"surprise": 1}, "surprise"), ({"temperature": "1"}, "temperature"), ({"temperature": True}, "temperature"),
        ({"temperature": 2.5}, "temperature"), ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": 10**30}, "max_tokens"), ({"seed": -1}, "seed"), ({"stop": [""]}, "stop[0]"),
        ({"stop": ["a"] * 5}, "stop"), ({"stop": 5}, "stop"), ({"stream": 1}, "stream"), ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"), ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "bad": 1}]}, "messages[0].bad"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}, "messages[0].content[0].text"),
        ({"stream_options": True}, "stream_options"), ({"model": 5}, "model"), ({"model": ""}, "model"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f"}}]}, "messages[0].function_call.arguments"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [OTHER]}}}, "tool_choice"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"), ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}], "tools": [TOOL]}, "functions"), ({"function_call": {"name": "f"}}, "tool_choice"),
        ({"metadata": 5}, "metadata"),
        ({"reasoning_effort": 1}, "reasoning_effort"), ({"reasoning_effort": "ultra"}, "reasoning_effort"),
        ({"reasoning_effort": ["low"]}, "reasoning_effort"), ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"chat_template_kwargs": "{}"}, "chat_template_kwargs"), ({"chat_template_kwargs": {"a": "x" * 4089}}, "chat_template_kwargs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"moderation": {"model": "x"}}, "moderation"), ({"messages": None}, "messages"),
    ],
)  # fmt: skip
async def test_a_wrong_parameter_is_a_400_that_names_it(
    http: httpx.AsyncClient, running_service: RunningService, wrong: dict[str, object], param: str
) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, **wrong}, headers={"x-aimesh-strict": "1"})
    assert problem(answer, 400, "bad_request")["param"] == param
    assert not running_service.worker.received


# --- the same requests on /api --------------------------------------------------------------------------------------------


class OneCall(FakeWorker):
    """A worker that generates a word and a tool call, with log probabilities."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        drawn = inference.TokenChance(5, b"Well", -0.5)
        yield inference.Chunk("Well", (5,), 0, (inference.TokenLogprob(drawn, (drawn,)),))
        yield inference.Chunk("", (6,), 0, (), (ToolCall("c1", "look_up", '{"what": "x"}'),))
        yield GenerationEnd(FinishReason.STOP, Usage(7, 2))


WELL = {"token": "Well", "logprob": -0.5, "bytes": list(b"Well")}
ASKED = {"prompt": "hi", "tools": [TOOL], "logprobs": True, "top_logprobs": 1}


async def test_inference_takes_tools_and_log_probabilities(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(1, OneCall(), "smollm2")
    for path, body in (("/api/inference", ASKED), ("/api/infer", {"payload": ASKED})):
        found = (await http.post(path, json=body)).json()
        assert (found["response"], found["finish_reason"], found["tool_calls"]) == ("Well", "tool_calls", [CALL])
        assert found["logprobs"] == [{**WELL, "top_logprobs": [WELL]}]


async def test_a_stream_of_inference_has_whole_calls_under_ids_of_their_own(
    http: httpx.AsyncClient, running_service: RunningService
) -> None:
    running_service.add_worker(1, OneCall(), "smollm2")
    answer = await http.post("/api/inference", json={**ASKED, "stream": True})
    word, call, last, done = events(answer)
    assert word == {"text": "Well", "logprobs": [{**WELL, "top_logprobs": [WELL]}]}
    assert call == {"text": "", "tool_calls": [CALL]}
    assert (last["finish_reason"], done) == ("tool_calls", "[DONE]")
    assert not {"response", "tool_calls", "logprobs"} & last.keys()
    ids = [line.rpartition("-")[2] for line in answer.text.split("\n") if line.startswith("id: ")]
    assert ids == ["1", "2"]


async def test_inference_converts_everything_as_the_chat_api_does(http: httpx.AsyncClient, running_service: RunningService) -> None:
    worker = OneCall()
    running_service.add_worker(1, worker, "smollm2")
    schema = {"type": "object", "properties": {"aB": {"type": "string"}}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
    ]
    choice = {"type": "function", "function": {"name": "look_up"}}
    body = {"messages": messages, "tools": [TOOL], "tool_choice": choice, "seed": 7}
    formatted = {**body, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    assert (await http.post("/api/inference", json=formatted)).status_code == 200
    assert (await http.post("/v1/chat/completions", json=formatted)).status_code == 200
    ours, openais = worker.received
    assert (ours.prompt, ours.model_config) == (openais.prompt, openais.model_config)
    # In camelCase too; schemas and arguments are left alone.
    camel = {
        "messages": [messages[0], {"role": "assistant", "toolCalls": [CALL]}, {"role": "tool", "toolCallId": "c1", "content": "found"}],
        "tools": [TOOL],
        "toolChoice": choice,
        "seed": 7,
        "responseFormat": {"type": "json_schema", "jsonSchema": {"schema": schema}},
    }
    assert (await http.post("/api/inference", json=camel)).status_code == 200
    assert (worker.received[-1].prompt, worker.received[-1].model_config) == (ours.prompt, ours.model_config)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
async def test_inference_refuses_what_the_chat_api_refuses(http: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    answer = await http.post("/api/inference", json={"prompt": "hi", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
