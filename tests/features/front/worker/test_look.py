"""Which servers of a machine are found: by what they answer, and never by the port alone."""

import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from features.front.rules import sharing
from features.front.rules.local_servers import LocalProgram, LocalServer
from features.front.worker import look
from features.remote_servers.worker.upstreams import Key
from tests.features.front.ollama_standin import MODELS, VERSION
from tests.services.inference.fake_http import Answer, Answers, FakeServer, serving
from tests.testnet import free_port

MODELS_PATH = "/v1/models"
VLLM_MODELS = {"data": [{"id": "Qwen/Qwen3-8B", "owned_by": "vllm", "max_model_len": 32768}]}
VLLM = {"/version": {"version": "0.11.0"}, MODELS_PATH: VLLM_MODELS}
LLAMA = {
    "/props": {"total_slots": 2, "default_generation_settings": {"n_ctx": 4096}},
    MODELS_PATH: {"data": [{"id": "/srv/ann/a.gguf", "owned_by": "llamacpp"}]},
}
STUDIO = {
    "/api/v0/models": {"data": [{"id": "qwen/qwen3-8b", "type": "llm", "quantization": "Q4_K_M", "loaded_context_length": 8192}]},
    MODELS_PATH: {"data": [{"id": "qwen/qwen3-8b", "owned_by": "organization_owner"}]},
}
MLX = {"/health": {"status": "ok"}, MODELS_PATH: {"data": [{"id": "mlx-community/Qwen3-8B-4bit"}]}}


def page(content: Any, **headers: str) -> Answer:
    return Answer([json.dumps(content)], headers=headers)


def pages(contents: Mapping[str, Any], **headers: str) -> dict[str, Answers]:
    return {path: page(content, **headers) for path, content in contents.items()}


@asynccontextmanager
async def found_at(answers: Mapping[str, Answers], *kinds: str, **more: Any) -> AsyncIterator[tuple[FakeServer, tuple[LocalServer, ...]]]:
    async with serving(answers) as server:
        port = int(server.url.rpartition(":")[2])
        yield server, await look.look([LocalProgram(kind, kind.title(), port) for kind in kinds], **more)


async def test_ollama_with_its_models() -> None:
    tags = {"models": [{name: value for name, value in model.items() if name != "parent_model"} for model in MODELS]}
    parents = {model["name"]: model.get("parent_model", "") for model in MODELS}

    def show(asked: Any) -> Answer:
        return page({"capabilities": ["completion"], "details": {"parent_model": parents[asked["model"]]}})

    answers: dict[str, Answers] = {**pages({"/api/version": {"version": VERSION}, "/api/tags": tags}), "/api/show": show}
    async with found_at(answers, "ollama") as (server, (found,)):
        assert [model.name for model in found.models] == [model["name"] for model in MODELS]
        assert [model.name for model in found.models if model.provider] == ["gpt-oss:120b-cloud"]
        assert [model.name for model in found.models if model.is_made_there] == ["mine:latest"]
        assert found.models[0].size_bytes == 5_200_000_000
        # Nothing that would load a model.
        asked = {head.split()[1] for head in server.headers}
    assert asked == {"/api/version", "/api/tags", "/api/ps", "/api/show"}


@pytest.mark.parametrize(
    ("contents", "kind", "name", "context"),
    [(VLLM, "vllm", "Qwen/Qwen3-8B", 32768), (LLAMA, "llama_cpp", "/srv/ann/a.gguf", 4096), (STUDIO, "lm_studio", "qwen/qwen3-8b", 8192)],
)
async def test_servers_with_openais_api(contents: Mapping[str, Any], kind: str, name: str, context: int) -> None:
    async with found_at(pages(contents), kind) as (_, (found,)):
        assert [(model.name, model.context_tokens) for model in found.models] == [(name, context)]
        assert (found.kind, found.trouble, found.is_open_to_others) == (kind, "", False)


async def test_two_programs_that_use_one_port_are_told_apart() -> None:
    async with found_at(pages(LLAMA), "llama_cpp", "mlx") as (_, (found,)):
        assert found.kind == "llama_cpp"
    async with found_at(pages(MLX, server="BaseHTTP/0.6 Python/3.12.1"), "llama_cpp", "mlx") as (_, (found,)):
        assert (found.kind, [model.name for model in found.models]) == ("mlx", ["mlx-community/Qwen3-8B-4bit"])


@pytest.mark.parametrize(
    "contents",
    [
        {}, {"/version": {"version": "1"}}, {"/version": [], MODELS_PATH: VLLM_MODELS},
        {"/version": {"version": "3"}, MODELS_PATH: MLX[MODELS_PATH]},
        # A page of a company's own.
        {"/health": {"status": "ok"}, MODELS_PATH: VLLM_MODELS},
    ],
)  # fmt: skip
async def test_an_open_port_alone_is_nothing(contents: Mapping[str, Any]) -> None:
    async with found_at(pages(contents), "vllm", "mlx", "llama_cpp") as (_, found):
        assert not [model for server in found for model in server.models]


async def test_a_mesh_at_ollamas_port_is_not_shared_with_itself() -> None:
    """`aicli serve`; see also tests/cli/machines/test_serve.py."""
    answers = pages({"/api/version": {"version": VERSION}, "/api/tags": {"models": []}})
    async with found_at(answers, "ollama") as (_, found):
        assert len(found) == 1
    ours = {**answers, "/api/version": page({"version": VERSION}, server="aimesh")}
    async with found_at(ours, "ollama") as (_, found):
        assert found == ()


async def test_a_closed_port_is_nothing() -> None:
    assert await look.look([LocalProgram("ollama", "Ollama", free_port())]) == ()


async def test_a_server_that_accepts_and_says_nothing_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "_LOOK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert await look.look([LocalProgram("ollama", "Ollama", silent.getsockname()[1])]) == ()


async def test_a_server_that_asks_for_a_key_is_recognized_and_says_so() -> None:
    refused = Answer(['{"error": "Unauthorized"}'], status=401)
    async with found_at({**pages({"/version": {"version": "0.11.0"}}), MODELS_PATH: refused}, "vllm") as (_, (found,)):
        assert (found.needs_key, found.models) == (True, ())


async def test_a_key_is_used_and_only_for_its_server() -> None:
    async with found_at(pages(VLLM), "vllm", keys={"vllm": Key("s3cret"), "ollama": Key("other")}) as (server, (found,)):
        assert found.models
        assert all("authorization: bearer s3cret" in head for head in server.headers)


async def test_a_server_that_other_machines_reach_without_a_key_is_marked() -> None:
    # The stand-in listens on one address, which is that of others here.
    async with found_at(pages(VLLM), "vllm", own_address="127.0.0.1") as (_, (found,)):
        assert found.is_open_to_others
    async with found_at(pages(VLLM), "vllm", own_address="127.0.0.1", keys={"vllm": Key("s")}) as (_, (found,)):
        assert not found.is_open_to_others


async def test_three_hundred_models_are_bounded() -> None:
    many = {"data": [{"id": f"m{number}", "owned_by": "vllm"} for number in range(300)]}
    async with found_at(pages({**VLLM, MODELS_PATH: many}), "vllm") as (_, (found,)):
        assert len(found.models) == 256


@pytest.mark.parametrize(
    "listed",
    [
        pytest.param(Answer([], silent=True), id="dies while it is asked"),
        pytest.param(Answer(['{"models": [{"na'], headers={"content-length": "500"}), id="dies in the middle of its list"),
        pytest.param(Answer(["<html>busy</html>"], status=503), id="is not ready"),
    ],
)
async def test_a_server_that_fails_while_it_is_asked_is_told_with_the_reason(listed: Answer) -> None:
    answers: dict[str, Answers] = {**pages({"/api/version": {"version": VERSION}}), "/api/tags": listed}
    async with found_at(answers, "ollama") as (_, (found,)):
        assert (found.models, found.needs_key, bool(found.trouble)) == ((), False, True)


async def test_a_slow_list_costs_a_bounded_time_and_hides_no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "_LOOK_SECONDS", 0.3)
    slow: dict[str, Answers] = {**pages({"/api/version": {"version": VERSION}}), "/api/tags": Answer([""], silent=True, hang=True)}
    async with serving(slow) as one, serving(pages(VLLM)) as other:
        ports = [int(server.url.rpartition(":")[2]) for server in (one, other)]
        programs = [LocalProgram("ollama", "Ollama", ports[0]), LocalProgram("vllm", "vLLM", ports[1])]
        assert [server.kind for server in await look.look(programs)] == ["vllm"]


async def test_names_have_any_letter() -> None:
    names = ["hf.co/ann/a b:Q4_K_M", "模型/é", "a\n\x1b[2J"]
    listed = {"data": [{"id": name, "owned_by": "vllm"} for name in names]}
    async with found_at(pages({**VLLM, MODELS_PATH: listed}), "vllm") as (_, (found,)):
        assert [model.name for model in found.models] == names


async def test_the_keys_are_those_in_the_workers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = sharing.key_file(tmp_path, "vllm")
    key.parent.mkdir()
    key.write_text("s3cret\n")
    async with serving(pages(VLLM)) as server:
        monkeypatch.setattr(look, "PROGRAMS", [LocalProgram("vllm", "vLLM", int(server.url.rpartition(":")[2]))])
        assert [found.kind for found in await look.look_all(tmp_path)] == ["vllm"]
        assert all("authorization: bearer s3cret" in head for head in server.headers)
