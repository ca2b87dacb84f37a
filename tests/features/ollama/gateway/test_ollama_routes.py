"""Ollama's API at a gateway with a fake mesh and store."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from features.ollama.gateway import ollama_request
from features.ollama.gateway.ollama_format import OllamaFormat
from shared import errors
from shared.api.embedding import Embed, Embedded, Vectors
from shared.api.generation import FormatKind, ReasoningEffort, ToolCall
from shared.types import ModelName
from tests.cases import case
from tests.services.gateway import fakes
from tests.services.gateway.fakes import FakeWorker, RunningService
from tests.services.gateway.http_answers import BEARER
from tests.services.gateway.images.pictures import png
from tests.services.gateway.requests.test_embedding_runs import packed
from tests.services.gateway.thinking import TEXT, THOUGHTS, Thinks

HI = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
LOOK_UP = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}


@pytest.fixture
async def service() -> AsyncIterator[RunningService]:
    async with fakes.running_service() as running:
        yield running


@pytest.fixture
async def worker(service: RunningService) -> FakeWorker:
    worker = FakeWorker()
    service.add_worker(1, worker, "smollm2", context_tokens=8192, abilities=("tools", "images", "reasoning"))
    return worker


@pytest.fixture
async def http(service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway/ollama", headers=BEARER) as client:
        yield client


def lines(answer: httpx.Response) -> list[Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_a_chat_is_streamed_by_default_as_a_json_object_on_each_line(http: httpx.AsyncClient, worker: FakeWorker) -> None:
    *parts, last = lines(await http.post("/api/chat", json=HI))
    assert [part["message"] for part in parts] == [{"role": "assistant", "content": word} for word in worker.words]
    assert {(part["model"], part["done"]) for part in parts} == {("smollm2", False)}
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == (True, "stop", 7, 3)
    assert {name for name in last if name.endswith("duration")} == {
        "total_duration", "load_duration", "prompt_eval_duration", "eval_duration",
    }  # fmt: skip
    whole = (await http.post("/api/chat", json={**HI, "stream": False})).json()
    assert whole["message"] == {"role": "assistant", "content": "Hello world!"}
    assert whole["done"] is True


async def test_generate_answers_a_prompt(http: httpx.AsyncClient, worker: FakeWorker) -> None:
    body = {"model": "smollm2", "prompt": "hi", "system": "Be short."}
    *parts, last = lines(await http.post("/api/generate", json=body))
    assert [part["response"] for part in parts] == list(worker.words)
    assert (last["response"], last["done"]) == ("", True)
    asked = worker.received[-1].prompt
    assert [(message.role, message.content) for message in asked if not isinstance(message, str)] == [
        ("system", "Be short."), ("user", "hi"),
    ]  # fmt: skip
    whole = (await http.post("/api/generate", json={**body, "stream": False, "raw": True, "prompt": "def f(", "suffix": "return"})).json()
    assert whole["response"] == "Hello world!"
    assert worker.received[-1].model_config.raw


async def test_options_reach_the_worker(http: httpx.AsyncClient, worker: FakeWorker) -> None:
    options = {
        "num_predict": 5, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "seed": 3, "stop": ["a", "b"], "repeat_penalty": 1.1,
        "presence_penalty": 0.2, "frequency_penalty": 0.3, "num_ctx": 4096, "mirostat": 1,
    }  # fmt: skip
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    answer = await http.post("/api/chat", json={**HI, "options": options, "format": schema, "think": "high", "keep_alive": "5m", "zz": 1})
    assert answer.headers["x-aimesh-ignored"] == "keep_alive, zz, options.num_ctx, options.mirostat"
    config = worker.received[-1].model_config
    assert (config.max_tokens, config.temperature, config.top_k, config.top_p, config.min_p, config.seed) == (5, 0.5, 7, 0.9, 0.1, 3)
    assert (config.stop, config.repeat_penalty, config.presence_penalty, config.frequency_penalty) == (("a", "b"), 1.1, 0.2, 0.3)
    assert config.format is not None
    assert (config.format.kind, json.loads(config.format.text)) == (FormatKind.JSON_SCHEMA, schema)
    assert config.reasoning_effort is ReasoningEffort.HIGH
    await http.post("/api/chat", json={**HI, "options": {"num_predict": -1, "seed": -1, "stop": "a"}, "format": "json", "think": False})
    config = worker.received[-1].model_config
    # The gateway draws a seed.
    assert config.seed != 3
    assert (config.stop, config.reasoning_effort) == (("a",), ReasoningEffort.NONE)
    assert config.format is not None
    assert config.format.kind is FormatKind.JSON


async def test_numbers_that_only_ollama_accepts_become_the_nearest_of_ours(http: httpx.AsyncClient, worker: FakeWorker) -> None:
    """Its engine takes any number; programs send -1 for off, and whole numbers with a fraction."""
    options = {
        "num_predict": 5.0, "temperature": 3, "top_k": -1, "top_p": 0, "min_p": 2, "seed": 7.0, "repeat_penalty": 0,
        "presence_penalty": -9, "frequency_penalty": 9.5,
    }  # fmt: skip
    assert (await http.post("/api/chat", json={**HI, "options": options})).status_code == 200
    config = worker.received[-1].model_config
    assert (config.max_tokens, config.temperature, config.top_k, config.min_p, config.seed) == (5, 2, 0, 1, 7)
    assert (config.repeat_penalty, config.presence_penalty, config.frequency_penalty) == (0.1, -2, 2)
    assert 0 < config.top_p < 1e-9
    assert (await http.post("/api/chat", json={**HI, "options": {"seed": 2**63 - 1, "top_k": 5000}})).status_code == 200
    assert (worker.received[-1].model_config.seed, worker.received[-1].model_config.top_k) == (2**63 - 1, 1000)


async def test_thoughts_and_calls(service: RunningService, http: httpx.AsyncClient) -> None:
    service.add_worker(1, Thinks(), "smollm2", abilities=("tools", "reasoning"))
    parts = [line["message"] for line in lines(await http.post("/api/chat", json={**HI, "tools": [LOOK_UP]}))]
    assert "".join(part.get("thinking", "") for part in parts) == THOUGHTS
    assert "".join(part["content"] for part in parts) == TEXT
    calls = [call for part in parts for call in part.get("tool_calls", ())]
    assert calls == [
        {"id": "c1", "function": {"index": 0, "name": "look_up", "arguments": {"a": 1}}},
        {"id": "c2", "function": {"index": 1, "name": "look_up", "arguments": {}}},
    ]
    whole = (await http.post("/api/chat", json={**HI, "tools": [LOOK_UP], "stream": False})).json()["message"]
    assert whole == {"role": "assistant", "content": TEXT, "thinking": THOUGHTS, "tool_calls": calls}
    quiet = (await http.post("/api/chat", json={**HI, "tools": [LOOK_UP], "stream": False, "think": False})).json()["message"]
    assert "thinking" not in quiet


async def test_results_belong_to_the_calls_before_them(http: httpx.AsyncClient, worker: FakeWorker) -> None:
    """Older clients know no ids; newer ones name the tool."""
    calls = [{"function": {"name": name, "arguments": {"a": 1}}} for name in ("look_up", "add", "look_up")]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "5", "tool_name": "add"},
        {"role": "tool", "content": "first"},
        {"role": "tool", "content": "second"},
        {"role": "assistant", "tool_calls": [{"id": "mine", "function": {"name": "add", "index": 0, "arguments": {}}}]},
        {"role": "tool", "content": "6", "tool_call_id": "mine"},
    ]
    assert (await http.post("/api/chat", json={**HI, "messages": messages, "tools": [LOOK_UP]})).status_code == 200
    asked = [message for message in worker.received[-1].prompt if not isinstance(message, str)]
    assert asked[1].tool_calls[1] == ToolCall("call_1_1", "add", '{"a":1}')
    assert [message.tool_call_id for message in asked] == [None, None, "call_1_1", "call_1_0", "call_1_2", None, "mine"]
    lost = await http.post("/api/chat", json={**HI, "messages": [{"role": "tool", "content": "5", "tool_name": "add"}]})
    assert lost.status_code == 400
    assert "messages[0].tool_name names no call" in lost.json()["error"]


async def test_images_are_shown(http: httpx.AsyncClient, worker: FakeWorker) -> None:
    picture = png()
    long = png(padding=2 * 1024 * 1024)
    for image in (picture, long):
        text = base64.b64encode(image).decode()
        with case(len(text)):
            messages = [{"role": "user", "content": "see", "images": [text]}]
            assert (await http.post("/api/chat", json={**HI, "messages": messages})).status_code == 200
            (message,) = worker.received[-1].prompt
            assert not isinstance(message, str)
            assert [each.data for each in message.images] == [image]
    answer = await http.post("/api/generate", json={"model": "smollm2", "prompt": "see", "images": [base64.b64encode(picture).decode()]})
    assert answer.status_code == 200


async def test_embeddings(service: RunningService, http: httpx.AsyncClient) -> None:
    class Embeds(FakeWorker):
        async def run(self, prompt: Any) -> AsyncIterator[Any]:
            assert isinstance(prompt, Embed)
            yield Vectors(tuple(packed(0.6, 0.8) for _ in prompt.inputs))
            yield Embedded(2, 5)

    service.add_worker(1, Embeds(), "embedder", abilities=("embeddings",))
    for given, count in (("one", 1), (["one", "two"], 2)):
        answer = (await http.post("/api/embed", json={"model": "embedder:latest", "input": given, "truncate": True})).json()
        assert [[round(number, 3) for number in vector] for vector in answer["embeddings"]] == [[0.6, 0.8]] * count
        assert (answer["model"], answer["prompt_eval_count"]) == ("embedder:latest", 5)
    older = {"model": "embedder", "prompt": "one", "keep_alive": "5m", "options": {"num_ctx": 512}}
    assert [round(number, 3) for number in (await http.post("/api/embeddings", json=older)).json()["embedding"]] == [0.6, 0.8]
    # As with chats, a request without an input asks whether the model is there.
    for empty in ({}, {"input": ""}, {"input": []}):
        with case(empty):
            assert (await http.post("/api/embed", json={"model": "embedder", **empty})).json()["embeddings"] == []
    assert (await http.post("/api/embeddings", json={"model": "embedder"})).json() == {"embedding": []}
    for path in ("/api/embed", "/api/embeddings"):
        assert (await http.post(path, json={"model": "nothing"})).status_code == 404


async def test_tags_say_which_models_are_external_as_ollamas_do(service: RunningService, http: httpx.AsyncClient) -> None:
    service.add_worker(2, FakeWorker(), "cloud", provider="acme")
    found = {model["name"]: model for model in (await http.get("/api/tags")).json()["models"]}
    assert (found["cloud:latest"]["remote_model"], found["cloud:latest"]["remote_host"]) == ("cloud:latest", "acme")
    assert {"remote_model", "remote_host"}.isdisjoint(found["smollm2:latest"])


async def test_models_have_tags_as_clients_expect(http: httpx.AsyncClient, worker: FakeWorker) -> None:
    assert (await http.get("/api/version")).json() == {"version": "0.14.0"}
    assert (await http.get("/")).text == "Ollama is running"
    for path in ("/", "/api/version", "/api/tags"):
        assert (await http.head(path)).status_code == 200
    [listed] = (await http.get("/api/tags")).json()["models"]
    assert (listed["name"], listed["model"], listed["context_length"]) == ("smollm2:latest", "smollm2:latest", 8192)
    assert len(listed["digest"]) == 64
    assert [model["name"] for model in (await http.get("/api/ps")).json()["models"]] == ["smollm2:latest"]
    for name in ("smollm2", "smollm2:latest", "llama3", "llama3:latest"):
        with case(name):
            shown = (await http.post("/api/show", json={"model": name})).json()
            assert shown["capabilities"] == ["completion", "tools", "vision", "thinking"]
            assert shown["model_info"]["aimesh.context_length"] == 8192
            assert (await http.post("/api/chat", json={**HI, "model": name})).status_code == 200
            assert len(worker.received) > 0
            assert (await http.post("/api/pull", json={"model": name})).text == '{"status":"success"}\n'
            whole = await http.post("/api/pull", json={"model": name, "stream": False})
            assert (whole.headers["content-type"], whole.json()) == ("application/json", {"status": "success"})


async def test_a_request_without_a_prompt_loads_the_model(http: httpx.AsyncClient, worker: FakeWorker) -> None:
    loaded = (await http.post("/api/chat", json={"model": "smollm2", "messages": [], "keep_alive": 0})).json()
    assert (loaded["done"], loaded["done_reason"], loaded["message"]["content"]) == (True, "load", "")
    assert (await http.post("/api/generate", json={"model": "smollm2"})).json()["done_reason"] == "load"
    assert worker.received == []


async def test_a_body_may_have_any_media_type(http: httpx.AsyncClient, worker: FakeWorker) -> None:
    """`curl -d` names a form, and Ollama's own documentation uses it."""
    for kind in ("application/x-www-form-urlencoded", "text/plain", ""):
        with case(kind):
            answer = await http.post("/api/chat", content=json.dumps(HI), headers={"content-type": kind})
            assert answer.status_code == 200


async def test_errors_are_a_text(http: httpx.AsyncClient, worker: FakeWorker) -> None:
    for body, status, code in (
        ({**HI, "options": {"temperature": "hot"}}, 400, "bad_request"),
        ({**HI, "model": "nothing"}, 404, "unknown_model"),
        ({"model": "nothing"}, 404, "unknown_model"),
        ({"messages": HI["messages"]}, 400, "bad_request"),
        ({**HI, "tools": [{"type": "function"}]}, 400, "bad_request"),
    ):
        with case(code):
            answer = await http.post("/api/chat", json=body)
            found = answer.json()
            assert (answer.status_code, found["code"], found["request_id"]) == (status, code, answer.headers["x-request-id"])
            assert isinstance(found["error"], str)
    for refused in ({"context": [1, 2]}, {"template": "{{ .Prompt }}"}):
        answer = await http.post("/api/generate", json={"model": "smollm2", "prompt": "hi", **refused})
        assert answer.status_code == 400
        assert next(iter(refused)) in answer.json()["error"]
    assert (await http.post("/api/generate", json={"model": "smollm2", "prompt": "hi", "context": [], "template": ""})).status_code == 200
    assert (await http.get("/api/tags", headers={"authorization": "Bearer none"})).status_code == 401


async def test_routes_that_change_models_are_refused_with_a_sentence(http: httpx.AsyncClient) -> None:
    for verb, path in (("POST", "create"), ("POST", "copy"), ("POST", "push"), ("DELETE", "delete"), ("POST", "blobs/sha256:0")):
        with case(path):
            refused = await http.request(verb, f"/api/{path}", json={"model": "m"})
            expected = f"Ollama's /api/{path} does not exist here – administrators choose the models of a mesh, with `aicli models`"
            assert (refused.status_code, refused.json()["error"]) == (404, expected)


async def test_a_stream_that_fails_ends_with_an_error(http: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.fails_with, worker.fails_after = errors.Poison("it crashed two engines"), 1
    *parts, last = lines(await http.post("/api/chat", json=HI))
    assert parts[0]["message"]["content"] == "Hello"
    assert "it crashed two engines" in last["error"]


def test_signs_of_life_are_lines_without_text() -> None:
    """Clients parse each line, so there are no comments and no empty lines."""
    body = ollama_request.OllamaChatBody(model=ModelName("m"), messages=())
    (line,) = OllamaFormat(body).stream.write_comment("loading\nm").splitlines()
    assert json.loads(line)["message"] == {"role": "assistant", "content": ""}
    prompt = ollama_request.OllamaGenerateBody(model=ModelName("m"), prompt="hi")
    assert json.loads(OllamaFormat(prompt).stream.write_comment("still here"))["response"] == ""
