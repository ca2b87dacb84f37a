"""Models that a local server forwards to a provider are external: the answers are those of Ollama 0.12, LiteLLM, One API and others."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from features.remote_servers.worker import ollama, openai, server_watch
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.rules.forwarding import ForwardedTag
from features.remote_servers.worker.upstreams import Dialect, Upstream
from services.gateway.facts import placements
from services.gateway.facts.placements import Barrier, Placement
from services.inference.announcements import _offer
from shared.api.inference import ModelState
from shared.protocol.directory import Announcement
from shared.types import ModelName, NodeId, Role, TenantId
from tests.services.inference.fake_http import Answer, Answers, serving
from tests.services.inference.standins import Watch, until

LOCAL = {
    "name": "qwen3:8b", "model": "qwen3:8b", "modified_at": "2026-02-07T09:27:22.346234577+08:00", "size": 5_225_388_164,
    "digest": "500a1f067a9f782620b40bee6f7b0c89e17ae61f686b92c24933e4ca4b2b8b41",
    "details": {"parent_model": "", "format": "gguf", "family": "qwen3", "families": ["qwen3"], "parameter_size": "8.2B"},
}  # fmt: skip
CLOUD = {
    "name": "deepseek-v3.1:671b-cloud", "model": "deepseek-v3.1:671b-cloud", "remote_model": "deepseek-v3.1:671b",
    "remote_host": "https://ollama.com:443", "modified_at": "2026-02-07T09:27:22.346234577+08:00", "size": 405,
    "digest": "d3749919e45f955731da7a7e76849e20f7ed310725d3b8b52822e811f55d0a90",
    "details": {"parent_model": "", "format": "", "family": "deepseek2", "families": ["deepseek2"], "parameter_size": "671.0B"},
}  # fmt: skip
#: After `ollama cp`, and of a version that says only the name.
COPY, NAMED = CLOUD | {"name": "helper:latest", "model": "helper:latest"}, {"name": "glm-4.6:cloud"}
ALL: list[dict[str, Any]] = [LOCAL, CLOUD, COPY, NAMED]
TAGS = Answer([json.dumps({"models": ALL})])
VERSION = Answer(['{"version": "0.12.3"}'])
PROVIDERS = {"qwen3:8b": "", "deepseek-v3.1:671b-cloud": "ollama-com", "helper": "ollama-com", "glm-4.6:cloud": "ollama-com"}


def listed(*models: tuple[str, str | None]) -> Answer:
    return Answer([json.dumps({"object": "list", "data": [{"id": name, "object": "model", "owned_by": owner} for name, owner in models]})])


OLLAMA_MODELS = listed(*((tag["name"], "library") for tag in ALL))


@asynccontextmanager
async def serving_openai(pages: dict[str, Answers], **more: Any) -> AsyncIterator[RemoteBackend]:
    async with serving(pages) as server:
        upstream = Upstream(**({"name": "rack", "url": server.url + "/v1"} | more))
        async with openai.opened_all((upstream,), 4, 32, Watch()) as backend:
            yield backend


async def read_providers(backend: RemoteBackend) -> dict[str, str]:
    await until(lambda: backend.models()[0].state is ModelState.READY)
    return {model.model_id: model.provider for model in backend.models()}


async def test_policies_without_external_never_reach_cloud_models_of_ollama() -> None:
    async with serving({"/api/tags": TAGS}) as server, ollama.opened(server.url, 4, 32, Watch()) as backend:
        assert await read_providers(backend) == PROVIDERS
        offers = [_offer(ModelName(model.model_id), model) for model in backend.models()]
    worker = Announcement(Role.WORKER, NodeId("w"), "1", datetime.now(UTC), tuple(offers))
    tenant = TenantId(UUID(int=1))
    for allowed, reached in (((), ["qwen3:8b"]), (("ollama",), ["qwen3:8b"]), (("ollama-com",), list(PROVIDERS))):
        barriers = {offer.name: placements.barrier(tenant, Placement(external=allowed), worker, offer) for offer in offers}
        assert [name for name, barrier in barriers.items() if barrier is None] == reached
        assert set(barriers.values()) <= {None, Barrier.PROVIDER}


@pytest.mark.parametrize("more", [{}, {"dialect": Dialect.OLLAMA}, {"external": False}, {"provider": "acme"}], ids=repr)
async def test_ollama_behind_its_openai_api_is_asked_which_models_it_forwards(more: dict[str, Any]) -> None:
    async with serving_openai({"/v1/models": OLLAMA_MODELS, "/api/version": VERSION, "/api/tags": TAGS}, **more) as backend:
        assert await read_providers(backend) == {tag["name"]: PROVIDERS[tag["name"].removesuffix(":latest")] for tag in ALL}


@pytest.mark.parametrize("tags", [Answer(["oops"], status=500), Answer(["[]"]), Answer([" " * (server_watch.MAX_PAGE_BYTES + 1)])])
async def test_an_ollama_that_does_not_say_it_serves_nothing(tags: Answer) -> None:
    async with serving_openai({"/v1/models": OLLAMA_MODELS, "/api/version": VERSION, "/api/tags": tags}) as backend:
        await until(lambda: "which models it forwards" in backend.models()[0].detail)
        assert [model.state for model in backend.models()] == [ModelState.LOADING]


async def test_a_server_that_does_not_say_whether_it_is_an_ollama_counts_as_external(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_watch, "IDENTITY_SECONDS", 0.05)
    pages: dict[str, Answers] = {"/v1/models": listed(("helper:latest", "library")), "/api/version": Answer([], hang=True, silent=True)}
    async with serving_openai(pages) as backend:
        assert await read_providers(backend) == {"helper:latest": "rack"}
    async with serving_openai(pages, dialect=Dialect.COMPATIBLE) as backend:
        assert await read_providers(backend) == {"helper:latest": ""}, "its owner says what it is"


@pytest.mark.parametrize(
    ("models", "more", "providers"),
    [
        pytest.param([("gpt-4o", "openai"), ("claude-opus", "openai")], {}, ["rack", "rack"], id="LiteLLM names OpenAI for all"),
        pytest.param([("gpt-4o", "openai")], {"provider": "acme"}, ["acme"], id="its owner names who is behind it"),
        pytest.param([("gpt-4o", "openai")], {"external": False}, [""], id="its owner says that it forwards nothing"),
        pytest.param([("claude", "anthropic"), ("gemini", "vertex_ai"), ("own", "custom")], {}, ["rack", "rack", ""], id="One API"),
        pytest.param([("qwen", "vllm")], {}, [""], id="vLLM"),
        pytest.param([("qwen", "organization_owner")], {}, [""], id="LM Studio"),
        pytest.param([("qwen", "llamacpp")], {}, [""], id="llama-server as a router, which starts its models itself"),
        pytest.param([("openai/gpt-oss-20b", "openai/gpt-oss-20b"), ("x", None)], {}, ["", ""], id="TGI, and one that says nothing"),
        pytest.param([("a", "aimesh"), ("b", "Open AI, x")], {"dialect": Dialect.AIMESH}, ["", "open-ai-x"], id="another mesh"),
        pytest.param([("a", "aimesh"), ("b", "acme")], {}, ["", "acme"], id="another mesh that nobody names"),
        pytest.param([("b", "openai")], {"dialect": Dialect.AIMESH, "external": False}, ["openai"], id="another mesh's word counts"),
        pytest.param([("gpt-4o", "openai")], {"external": True, "provider": "acme"}, ["acme"], id="an external server"),
    ],
)
async def test_a_gateway_to_providers_is_external_by_the_owners_of_its_models(
    models: list[tuple[str, str | None]], more: dict[str, Any], providers: list[str]
) -> None:
    async with serving_openai({"/v1/models": listed(*models), "/healthz": Answer(["{}"])}, **more) as backend:
        assert list((await read_providers(backend)).values()) == providers


@pytest.mark.parametrize(
    ("tag", "provider"),
    [
        (ForwardedTag("x", "m", "https://ollama.com:443"), "ollama-com"),
        (ForwardedTag("x", "m", "API.example.org"), "api-example-org"),
        (ForwardedTag("x", "", "http://10.0.0.9:11434"), "10-0-0-9"),
        (ForwardedTag("x", "m", ""), "ollama-com"),
        (ForwardedTag("x", "m", 7), "ollama-com"),
        (ForwardedTag("x", ["m"], None), "ollama-com"),
        (ForwardedTag("x", "m", "https://[::"), "ollama-com"),
        (ForwardedTag("gpt-oss:120b-cloud"), "ollama-com"),
        (ForwardedTag("a\nb:cloud"), "ollama-com"),
        (ForwardedTag("cloud"), ""),
        (ForwardedTag("my-cloud:8b"), ""),
        (ForwardedTag("x:clouds"), ""),
        (ForwardedTag("x", "", ""), ""),
    ],
)
def test_a_tag_says_who_gets_the_prompts(tag: ForwardedTag, provider: str) -> None:
    assert tag.provider == provider
