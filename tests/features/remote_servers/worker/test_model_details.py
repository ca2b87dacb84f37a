"""What servers say of their models beside the list: contexts and abilities. Pages are cut from those of the programs."""

import json
from typing import Any

import pytest

from features.remote_servers.worker import ollama
from features.remote_servers.worker.rules import model_details
from features.remote_servers.worker.rules.dialects import DIALECTS
from features.remote_servers.worker.rules.event_stream import UNREADABLE
from features.remote_servers.worker.rules.model_details import ModelDetails
from features.remote_servers.worker.upstreams import Dialect
from shared.types import Ability
from tests.services.inference.fake_http import Answer, serving
from tests.services.inference.standins import Watch, until

TAGS = {
    "models": [{"name": name, "digest": digest * 64} for name, digest in (("qwen3:8b", "a"), ("bge-m3:latest", "b"), ("mine:latest", "c"))]
}
SHOWN: dict[str, Any] = {
    "qwen3:8b": {"capabilities": ["completion", "tools", "thinking"], "details": {"quantization_level": "Q4_K_M", "parent_model": ""}},
    "bge-m3:latest": {"capabilities": ["embedding"]},
    "mine:latest": {
        "capabilities": ["completion"], "details": {"parent_model": "qwen3:8b"}, "parameters": "num_ctx      8192\nstop x",
    },
}  # fmt: skip


def page(content: Any) -> bytes:
    return json.dumps(content).encode()


def shown(name: str) -> ModelDetails:
    return model_details.read_ollama_model(page(SHOWN[name]))


def test_what_ollama_shows_of_a_model() -> None:
    assert shown("qwen3:8b") == ModelDetails(abilities=(Ability.TOOLS, Ability.REASONING), quantization="Q4_K_M")
    assert shown("bge-m3:latest") == ModelDetails(only_embeds=True)
    assert shown("mine:latest") == ModelDetails(context_tokens=8192, is_made_there=True)


def test_a_model_of_ollama_that_is_loaded_has_its_context() -> None:
    loaded = page({"models": [{"name": "qwen3:8b", "context_length": 32768}, {"name": "old:latest"}]})
    assert model_details.read_ollama_loaded(loaded) == {
        "qwen3:8b": ModelDetails(context_tokens=32768), "old:latest": ModelDetails()
    }  # fmt: skip


def test_what_lm_studio_says() -> None:
    models = page({"data": [
        {"id": "qwen/qwen3-8b", "type": "llm", "quantization": "4bit", "capabilities": ["tool_use"],
         "loaded_context_length": 16384, "max_context_length": 40960},
        {"id": "gemma", "type": "vlm", "quantization": "Q4_0", "max_context_length": 8192},
        {"id": "nomic", "type": "embeddings"},
    ]})  # fmt: skip
    assert model_details.read_studio_models(models) == {
        "qwen/qwen3-8b": ModelDetails(context_tokens=16384, abilities=(Ability.TOOLS,), quantization="4bit"),
        # It is not loaded, so nobody knows which context it will have.
        "gemma": ModelDetails(abilities=(Ability.IMAGES,), quantization="Q4_0"),
        "nomic": ModelDetails(only_embeds=True),
    }


def test_what_llama_server_says() -> None:
    props = {"default_generation_settings": {"n_ctx": 4096}, "modalities": {"vision": True}, "chat_template_caps": {"supports_tools": True}}
    (found,) = model_details.read_llama_props(page(props)).values()
    assert found == ModelDetails(context_tokens=4096, abilities=(Ability.TOOLS, Ability.IMAGES))


@pytest.mark.parametrize("content", [{}, {"capabilities": 7, "details": [], "parameters": 1}, {"parameters": "num_ctx 99999999999999999"}])
def test_nonsense_is_unknown(content: Any) -> None:
    assert model_details.read_ollama_model(page(content)) == ModelDetails()


@pytest.mark.parametrize("raw", [b"", b"[1]", b"[" * 100_000, b"\xff"])
def test_what_is_no_page_is_refused(raw: bytes) -> None:
    for read in (model_details.read_ollama_model, model_details.read_ollama_loaded, model_details.read_studio_models):
        with pytest.raises(UNREADABLE, match=r"\w"):
            read(raw)


def test_a_health_page_alone_is_no_mlx_server() -> None:
    row = DIALECTS[Dialect.MLX]
    assert row.read_identity(b'{"status": "ok"}', "BaseHTTP/0.6 Python/3.12.1") == 0
    assert row.read_identity(b'{"status": "ok"}', "uvicorn") is None


async def test_the_list_of_ollama_has_contexts_and_abilities() -> None:
    def show(asked: Any) -> Answer:
        return Answer([json.dumps(SHOWN[asked["model"]])])

    loaded = {"models": [{"name": "qwen3:8b", "context_length": 40960}]}
    answers: dict[str, Any] = {"/api/tags": Answer([json.dumps(TAGS)]), "/api/show": show, "/api/ps": Answer([json.dumps(loaded)])}
    async with serving(answers) as server, ollama.opened(server.url, 2, 8, Watch()) as backend:
        await until(lambda: len(backend.models()) == 3)
        found = {str(model.model_id): model for model in backend.models()}
    assert (found["qwen3:8b"].context_tokens, found["qwen3:8b"].abilities) == (40960, (Ability.TOOLS, Ability.REASONING))
    assert found["bge-m3"].only_embeds
    assert found["mine"].context_tokens == 8192
    # Once each.
    assert server.times_asked("/api/show") == 3
