"""The HTTP door, on the fakes."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from services.gateway import prompts
from services.gateway.http_app import Access, HttpApp, Route
from services.gateway.http_call import MAX_BODY_BYTES, HttpCall
from shared import errors
from shared.api import auth, inference
from shared.api.generation import Generation, ToolCall, Usage
from shared.types import FinishReason, ModelName, RequestId, Role, Tier, UserId, UserRole
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, TOKEN, USER, FakeWorker, House, node_id

BEARER = {"authorization": f"Bearer {KEY}"}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
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


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with fakes.house() as made:
        yield made


@pytest.fixture
async def http(house: House) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(house.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=BEARER) as client:
        yield client


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    error = answer.json()["error"]
    assert error["request_id"] == answer.headers["x-request-id"]
    assert error["message"]
    assert error["type"]
    return dict(error)


def events(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


# --- /v1 ----------------------------------------------------------------------------------------------------------------


async def test_chat(http: httpx.AsyncClient, house: House) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, "model": "llama3"})
    body = answer.json()
    assert answer.status_code == 200
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello world!", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert (body["object"], body["model"]) == ("chat.completion", "smollm2")
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 0}}
    row = house.store.only_row
    assert row.tokens_used == 10
    assert answer.headers["x-request-id"] == str(row.id)
    assert body["id"] == f"chatcmpl-{row.id.hex}"
    assert answer.headers["x-ratelimit-limit-requests"] == "100"
    assert answer.headers["x-ratelimit-remaining-requests"] == "99"


@pytest.mark.parametrize("include_usage", [True, False])
async def test_chat_stream(http: httpx.AsyncClient, house: House, include_usage: bool) -> None:
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
    assert house.store.only_row.status == "success"


async def test_what_is_asked_of_a_chat_reaches_the_worker(http: httpx.AsyncClient, house: House) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asked = {
        "n": 2, "logprobs": True, "top_logprobs": 3, "min_p": 0.1, "repeat_penalty": 1.1,
        "frequency_penalty": 0.5, "presence_penalty": -0.5,
        "logit_bias": {"17": -100}, "ignore_eos": True, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
    }  # fmt: skip
    assert (await http.post("/v1/chat/completions", json={**CHAT, **asked})).status_code == 200
    (prompt,) = house.worker.asked
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
async def test_the_tools_that_may_be_called_reach_the_worker(
    http: httpx.AsyncClient, house: House, choice: object, names: list[str], must: str
) -> None:
    tools = [TOOL, {"type": "function", "function": {"name": "count"}}]
    await http.post("/v1/chat/completions", json={**CHAT, "tools": tools, "tool_choice": choice})
    config = house.worker.asked[0].model_config
    assert [tool.name for tool in config.tools] == names
    assert config.tool_choice == must
    if "look_up" in names:
        assert json.loads(config.tools[0].parameters) == TOOL["function"]["parameters"]


async def test_two_people_never_share_a_salt_and_one_always_does(http: httpx.AsyncClient, house: House) -> None:
    await http.post("/v1/chat/completions", json=CHAT)
    await http.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": "other"}]})
    mine, again = (prompt.salt for prompt in house.worker.asked)
    assert mine == again
    assert mine
    assert mine != prompts.salt(UserId(UUID(int=7)), "s" * 16)
    assert str(USER) not in mine


class Caller(FakeWorker):
    """Answers twice: with a call of a tool, and with a word; both with log probabilities."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | Generation]:
        drawn = inference.TokenChance(5, "é".encode()[:1], -0.5)
        yield inference.Chunk("", (5,), 0, (inference.TokenLogprob(drawn, (drawn,)),))
        yield inference.Chunk("", (6,), 0, (), (ToolCall("c1", "look_up", '{"what": "x"}'),))
        yield inference.Chunk("Hi", (7,), 1, (inference.TokenLogprob(inference.TokenChance(7, b"Hi", -1.5)),))
        yield Generation(FinishReason.STOP, Usage(7, 3), (FinishReason.STOP, FinishReason.LENGTH))


async def test_calls_log_probabilities_and_several_answers(http: httpx.AsyncClient, house: House) -> None:
    house.add_worker(1, Caller(), "smollm2")
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


async def test_a_stream_of_calls_and_several_answers(http: httpx.AsyncClient, house: House) -> None:
    house.add_worker(1, Caller(), "smollm2")
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
    """Has to load its model first, and says so."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | Generation]:
        yield inference.Chunk("", (), waiting="loading smollm2: 40 %")
        async for said in super().run(prompt):
            yield said


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/inference"])
async def test_who_waits_for_a_model_hears_of_it_as_a_comment(http: httpx.AsyncClient, house: House, path: str) -> None:
    house.add_worker(1, Loading(), "smollm2")
    answer = await http.post(path, json={**CHAT, "stream": True})
    comment, _, rest = answer.text.partition("\n\n")
    assert comment == ": loading smollm2: 40 %"
    assert "data: [DONE]" in rest
    assert "loading" not in (await http.post(path, json=CHAT)).text


async def test_without_parallel_calls_an_answer_has_one(http: httpx.AsyncClient, house: House) -> None:
    house.worker.run = _calls_twice  # type: ignore[method-assign]
    asked = {**CHAT, "tools": [TOOL]}
    for parallel, ids in ((None, ["c1", "c2"]), (True, ["c1", "c2"]), (False, ["c1"])):
        body = (await http.post("/v1/chat/completions", json={**asked, "parallel_tool_calls": parallel})).json()
        assert [call["id"] for call in body["choices"][0]["message"]["tool_calls"]] == ids
        stream = await http.post("/v1/chat/completions", json={**asked, "parallel_tool_calls": parallel, "stream": True})
        deltas = [event["choices"][0]["delta"] for event in events(stream)[:-1]]
        assert [call["id"] for delta in deltas for call in delta.get("tool_calls", [])] == ids


async def _calls_twice(_prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | Generation]:
    for identity in ("c1", "c2"):
        yield inference.Chunk("", (5,), tool_calls=(ToolCall(identity, "look_up", "{}"),))
    yield Generation(FinishReason.STOP, Usage(7, 2))


async def test_models_list_the_default_first(http: httpx.AsyncClient, house: House) -> None:
    house.add_worker(2, FakeWorker(), "alpha")
    assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["alpha", "smollm2"]


async def test_one_model_by_any_name_of_it(http: httpx.AsyncClient, house: House) -> None:
    house.add_worker(2, FakeWorker(), "org/name:8b")
    for name, found in (("smollm2", "smollm2"), ("llama3", "smollm2"), ("org/name:8b", "org/name:8b"), ("org%2Fname:8b", "org/name:8b")):
        answer = await http.get(f"/v1/models/{name}")
        assert (answer.status_code, answer.json()["id"], answer.json()["object"]) == (200, found, "model"), answer.text
    error = problem(await http.get("/v1/models/gpt-9"), 404, "unknown_model")
    assert error["param"] == "model"
    assert "smollm2" in error["message"]
    problem(await http.get("/v1/models/{model}"), 404, "unknown_model")
    problem(await http.delete("/v1/models/smollm2"), 405, "method_not_allowed")


async def test_an_unknown_model_is_a_404_that_lists_what_is_served(http: httpx.AsyncClient) -> None:
    error = problem(await http.post("/v1/chat/completions", json={**CHAT, "model": "gpt-9"}), 404, "unknown_model")
    assert "smollm2" in error["message"]
    assert "MODEL_ALIASES" in error["hint"]


async def test_without_workers_it_is_a_503(http: httpx.AsyncClient, house: House) -> None:
    house.directory.gone(node_id(1), "stopped")
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
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT]},
        {"stream": None, "logprobs": None, "parallel_tool_calls": None, "ignore_eos": None},
        {"tools": [TOOL], "parallel_tool_calls": False},
        {"messages": [{"role": "user", "content": "a", "name": "ann"}, {"role": "assistant", "content": None, "refusal": "I will not."}]},
        {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, {"role": "user", "content": "b"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}]}]},
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CHOICE]}}},
        {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": True}},
    ],
)  # fmt: skip
async def test_parameters_that_are_taken(http: httpx.AsyncClient, harmless: dict[str, object]) -> None:
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
        ({"store": True}, "store"), ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
        ({"surprise": 1}, "surprise"), ({"temperature": "1"}, "temperature"), ({"temperature": True}, "temperature"),
        ({"temperature": 2.5}, "temperature"), ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": 10**30}, "max_tokens"), ({"seed": -1}, "seed"), ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"), ({"stop": 5}, "stop"), ({"stream": 1}, "stream"), ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"), ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "bad": 1}]}, "messages[0].bad"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}, "messages[0].content[0]"),
        ({"stream_options": {"include_usage": True}}, "stream_options"), ({"model": 5}, "model"), ({"model": ""}, "model"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}]}, "messages[0]"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [OTHER]}}}, "tool_choice"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"), ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"), ({"function_call": {"name": "f"}}, "function_call"), ({"metadata": 5}, "metadata"),
        ({"web_search_options": {}}, "web_search_options"), ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"service_tier": "flex"}, "service_tier"), ({"reasoning_effort": "high"}, "reasoning_effort"), ({"verbosity": "low"}, "verbosity"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"moderation": {"model": "x"}}, "moderation"), ({"surprise": None}, "surprise"), ({"messages": None}, "messages"),
    ],
)  # fmt: skip
async def test_a_wrong_parameter_is_a_400_that_names_it(
    http: httpx.AsyncClient, house: House, wrong: dict[str, object], param: str
) -> None:
    error = problem(await http.post("/v1/chat/completions", json={**CHAT, **wrong}), 400, "bad_request")
    assert error["param"] == param
    assert not house.worker.asked


# --- bodies ---------------------------------------------------------------------------------------------------------------

BAD_BODIES = [
    b"", b"{", b"[]", b"null", b"5", b'"x"', b'{"messages": NaN}', b'{"temperature": 1e999}', b'{"temperature": NaN, "messages": []}',
    b'{"prompt": "\xff\xfe"}', b'{"prompt": "\\ud800"}', b"\x00" * 100, b"[" * 100_000,
    b'{"a":' * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
]  # fmt: skip


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/api/inference", "/api/infer"]
)
@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: repr(body[:24]))
async def test_what_is_not_the_expected_json_is_a_400(http: httpx.AsyncClient, path: str, body: bytes) -> None:
    problem(await http.post(path, content=body, headers={"content-type": "application/json"}), 400, "bad_request")


async def test_a_ten_megabyte_prompt_is_refused_without_reading_it(house: House) -> None:
    app, read = house.app(), 0
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 65_536
        return {"type": "http.request", "body": b"x" * 65_536, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", BEARER["authorization"].encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    await app({**scope, "headers": [*headers, (b"content-length", b"10485760")]}, receive, send)
    assert (sent[0]["status"], read) == (413, 0)
    sent.clear()
    await app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert read <= MAX_BODY_BYTES + 65_536


async def test_a_prompt_that_just_fits_a_body_but_no_frame(http: httpx.AsyncClient) -> None:
    problem(await http.post("/api/inference", json={"prompt": "x" * (MAX_BODY_BYTES - 100)}), 413, "too_large")


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/plain"}, {"content-type": ""}, {"content-type": "application/x-www-form-urlencoded"}]
)
async def test_other_media_types_are_a_415(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    problem(await http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers), 415, "unsupported_media_type")


async def test_a_compressed_body_is_a_415(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    body = gzip.compress(b"0" * 10_000_000)
    problem(await http.post("/v1/chat/completions", content=body, headers=headers), 415, "unsupported_media_type")


# --- credentials ----------------------------------------------------------------------------------------------------------

NEED_CREDENTIAL = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/responses"), ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"), ("GET", "/v1/models/{model}"), ("POST", "/api/inference"), ("POST", "/api/infer"),
    ("POST", "/api/auth/api-keys"), ("GET", "/api/usage"), ("GET", "/api/quota"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "path"), NEED_CREDENTIAL)
@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer nonsense"}, {"authorization": "Basic abc"}, {"x-api-key": KEY[:-1]}, {"authorization": "Bearer"}],
)
async def test_no_good_credential_is_a_401_before_the_body_is_read(house: House, verb: str, path: str, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(house.app()), base_url="http://gateway") as http:
        answer = await http.request(verb, path, content=b"{", headers=headers)
    problem(answer, 401, "not_authenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert not house.rpc.called


async def test_the_table_of_the_test_is_the_table_of_the_gateway(house: House) -> None:
    routes = [route for by_verb in house.app()._routes.values() for route in by_verb.values()]
    assert {(route.verb, route.path) for route in routes if route.access is not Access.PUBLIC} == set(NEED_CREDENTIAL)


def test_a_route_that_does_not_say_who_may_use_it_stops_the_start(house: House) -> None:
    async def handler(_call: HttpCall) -> None: ...

    route = Route(verb="GET", path="/x", access=None, handler=handler, method="x", summary="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not say what credential"):
        HttpApp([route], house.callers, house.metrics)


@pytest.mark.parametrize(
    "path", ["//v1/models", "/v1/models/", "/V1/models", "/v1/%6dodels", "/v1/models;x", "/v1/../v1/models", "/", "/admin"]
)
async def test_other_spellings_of_a_path_are_not_that_path(house: House, path: str) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    await house.app()({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)
    assert sent[0]["status"] == 404


async def test_wrong_verb_and_unknown_path(http: httpx.AsyncClient) -> None:
    problem(await http.get("/v1/chat/completions"), 405, "method_not_allowed")
    problem(await http.get("/nothing"), 404, "not_found")


async def test_limited(house: House, http: httpx.AsyncClient) -> None:
    for _ in range(99):
        await house.quotas.spend(fakes.OWNER, ModelName("smollm2"), RequestId(uuid4()), tokens=1, seconds=1)
    assert (await http.post("/api/inference", json={"prompt": "hi"})).status_code == 200
    answer = await http.post("/api/inference", json={"prompt": "hi"})
    problem(answer, 429, "rate_limited")
    assert 3600 <= int(answer.headers["retry-after"]) <= 3660
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"


# --- /api -----------------------------------------------------------------------------------------------------------------


async def test_inference(house: House) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(house.app()), base_url="http://gateway") as http:
        answer = await http.post("/api/inference", json={"prompt": "Write a poem", "model": "llama3"}, headers={"x-api-key": KEY})
    body = answer.json()
    assert body["response"] == "Hello world!"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert (body["model"], body["request_id"]) == ("smollm2", str(house.store.only_row.id))


async def test_inference_stream(http: httpx.AsyncClient) -> None:
    *texts, last, done = events(await http.post("/api/inference", json={"prompt": "hi", "stream": True}))
    assert ([event["text"] for event in texts], done) == (["Hello", " world", "!"], "[DONE]")
    assert last["usage"]["total_tokens"] == 10
    assert "response" not in last


@pytest.mark.parametrize(
    "body",
    [
        {"model": "smollm2", "payload": {"prompt": "hi", "max_tokens": 9}},
        {"model": "smollm2", "payload": {"prompt": "hi", "maxTokens": 9}},
        {"payload": {"messages": [{"role": "user", "content": "hi"}], "maxTokens": 9}},
    ],
)
async def test_infer_takes_both_spellings(http: httpx.AsyncClient, house: House, body: dict[str, object]) -> None:
    assert (await http.post("/api/infer", json=body)).status_code == 200
    assert house.worker.asked[0].model_config.max_tokens == 9


async def test_infer_takes_a_prompt_alone(http: httpx.AsyncClient) -> None:
    assert (await http.post("/api/infer", json={"payload": "hi"})).json()["response"] == "Hello world!"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x", "maxTokens": 1, "max_tokens": 2}, "max_tokens"), ({"prompt": "x", "n_discard": -1}, "n_discard"),
        ({"prompt": ""}, "prompt"), ({}, "prompt"), ({"prompt": 5}, "prompt"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "prompt"),
        ({"prompt": "x", "topP": 7}, "top_p"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_a_400_that_names_it(http: httpx.AsyncClient, body: dict[str, object], param: str) -> None:
    assert problem(await http.post("/api/inference", json=body), 400, "bad_request")["param"] == param


async def test_register_login_and_key(house: House) -> None:
    user = auth.User(USER, "ada", "ada@example.com", UserRole.USER, Tier.FREE, True, fakes.announcement(1).started_at)
    key = auth.ApiKey(fakes.KEY_ID, USER, "My CLI Key", "aip_live_xxx…1234", True, user.created_at)

    async def register(request: auth.RegisterUser) -> auth.User:
        assert request.user_data.email == "ada@example.com"
        return user

    async def login(request: auth.LoginUser) -> auth.Session:
        return auth.Session(TOKEN, 600, "opaque", user)

    async def generate(request: auth.GenerateApiKey) -> auth.NewApiKey:
        assert request.name == "My CLI Key"
        return auth.NewApiKey(KEY, key)

    house.rpc.answers |= {"auth.registerUser": register, "auth.loginUser": login, "auth.generateApiKey": generate}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(house.app()), base_url="http://gateway") as http:
        made = await http.post("/api/auth/register", json={"username": "ada", "email": "ada@example.com", "password": "secure_password"})
        assert (made.status_code, made.json()["id"]) == (201, str(USER))
        token = (await http.post("/api/auth/login", json={"email": "ada@example.com", "password": "x"})).json()["access_token"]
        answer = await http.post("/api/auth/api-keys", json={"name": "My CLI Key"}, headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["api_key"]) == (201, KEY)
        assert house.rpc.credentials[-1] == TOKEN
        refused = await http.post("/api/auth/api-keys", json={"name": "x"}, headers=BEARER)
        problem(refused, 403, "not_allowed")
        problem(await http.post("/api/auth/register", json={"username": "x"}), 400, "bad_request")


async def test_an_error_of_auth_keeps_its_status(house: House, http: httpx.AsyncClient) -> None:
    async def taken(_request: object) -> None:
        raise errors.AlreadyExists("the name is taken")

    house.rpc.answers["auth.registerUser"] = taken
    problem(await http.post("/api/auth/register", json={"username": "a", "email": "b", "password": "c"}), 409, "already_exists")
    del house.rpc.answers["auth.registerUser"]
    problem(await http.post("/api/auth/register", json={"username": "a", "email": "b", "password": "c"}), 503, "not_reachable")


async def test_usage_and_quota(http: httpx.AsyncClient) -> None:
    await http.post("/api/inference", json={"prompt": "hi"})
    assert (await http.get("/api/usage")).json()["tokens_used"] == 10
    quota = (await http.get("/api/quota")).json()
    assert (quota["limit_per_hour"], quota["used_this_hour"], quota["remaining"]) == (100, 1, 99)


# --- faults ---------------------------------------------------------------------------------------------------------------


async def test_a_failure_in_the_stream_is_its_last_event(http: httpx.AsyncClient, house: House) -> None:
    house.worker.fails_with, house.worker.fails_after = errors.LinkLost("the worker died"), 2
    found = events(await http.post("/v1/chat/completions", json={**CHAT, "stream": True}))
    assert found[-1]["error"]["code"] == "worker_lost"
    assert "[DONE]" not in found


async def test_a_failure_before_the_first_token_has_a_status(http: httpx.AsyncClient, house: House) -> None:
    house.worker.fails_with = errors.DeadlineExceeded("late")
    problem(await http.post("/v1/chat/completions", json={**CHAT, "stream": True}), 504, "deadline_exceeded")


async def test_a_bug_is_a_500_that_tells_nothing(house: House) -> None:
    async def broken(_request: object) -> None:
        raise ZeroDivisionError("secret detail")

    house.rpc.answers["auth.loginUser"] = broken
    async with httpx.AsyncClient(transport=httpx.ASGITransport(house.app()), base_url="http://gateway") as http:
        answer = await http.post("/api/auth/login", json={"username": "a", "password": "b"})
    problem(answer, 500, "internal")
    assert "secret detail" not in answer.text


async def test_an_error_that_only_a_newer_peer_knows_is_no_500(http: httpx.AsyncClient, house: House) -> None:
    house.worker.fails_with = errors.RemoteError(errors.Problem("new_thing", "something new", fault=errors.Fault.PEER))
    problem(await http.post("/v1/chat/completions", json=CHAT), 503, "new_thing")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_cancels_the_generation(house: House, stream: bool) -> None:
    house.worker.hangs_after = 1
    gone = asyncio.Event()
    body = [{"type": "http.request", "body": json.dumps({**CHAT, "stream": stream}).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None: ...

    headers = [(b"authorization", BEARER["authorization"].encode()), (b"content-type", b"application/json")]
    serving = asyncio.create_task(
        house.app()({"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}, receive, send)
    )
    await house.worker.said.wait()
    gone.set()
    await serving
    assert house.worker.left_early == 1
    async with asyncio.timeout(1):
        while not house.store.rows:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert (house.store.only_row.status, house.store.only_row.completion_tokens) == ("cancelled", 1)


# --- what is there --------------------------------------------------------------------------------------------------------


async def test_openapi_describes_every_route(http: httpx.AsyncClient, house: House) -> None:
    document = (await http.get("/openapi.json")).json()
    for verb, path in [*NEED_CREDENTIAL, ("POST", "/api/auth/register"), ("POST", "/api/auth/login")]:
        operation = document["paths"][path][verb.lower()]
        assert operation["summary"]
        assert bool(operation["security"]) is ((verb, path) in NEED_CREDENTIAL)
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in document["components"]["schemas"]


async def test_the_reference_is_one_page_without_scripts_or_other_hosts(http: httpx.AsyncClient) -> None:
    answer = await http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "/v1/chat/completions" in answer.text
    assert "<script" not in answer.text
    assert "http://" not in answer.text
    assert "https://" not in answer.text


async def test_a_trace_of_the_caller_goes_on(house: House, http: httpx.AsyncClient) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    answer = await http.get("/v1/models", headers={"traceparent": trace})
    assert UUID(answer.headers["x-request-id"]).version == 7
    assert (await http.get("/v1/models", headers={"traceparent": "nonsense"})).status_code == 200


async def test_requests_are_counted(http: httpx.AsyncClient, house: House) -> None:
    await http.post("/api/inference", json={"prompt": "hi"})
    await http.get("/nothing")
    text = house.metrics.render()
    assert 'ai_platform_requests_total{method="processInferenceRequest",service="gateway",status="success"} 1.0' in text
    assert 'ai_platform_requests_total{method="unknown",service="gateway",status="not_found"} 1.0' in text
    assert 'ai_platform_inflight_requests{service="gateway"} 0.0' in text
    assert house.directory.usable(Role.WORKER)
