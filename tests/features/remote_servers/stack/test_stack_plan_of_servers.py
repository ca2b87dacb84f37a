"""The workers of other servers in a stack."""

from pathlib import Path

import pytest

from stack import stack_home as homes
from stack import stack_plan
from stack.stack_home import StackHome
from tests.stack.test_stack_plan import _environments, _plan


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    return homes.locate({"AIMESH_HOME": str(tmp_path / "h")})


def test_provider_key_goes_only_to_the_service_that_uses_it(home: StackHome) -> None:
    environments = _environments(_plan(home, OPENAI_API_KEY="sk-x", AIMESH_ECHO="1"))
    holders = [name for name, found in environments.items() if "OPENAI_API_KEY_FILE" in found]
    assert holders == ["inference-openai"]


def test_the_gateway_allows_the_providers_of_the_upstreams(home: StackHome) -> None:
    assert _environments(_plan(home))["gateway"]["EXTERNAL_PROVIDERS"] == ""
    assert _environments(_plan(home, OPENAI_API_KEY="sk-x"))["gateway"]["EXTERNAL_PROVIDERS"] == "openai"
    chosen = _environments(_plan(home, OPENAI_API_KEY="sk-x", EXTERNAL_PROVIDERS="acme,other"))["gateway"]
    assert chosen["EXTERNAL_PROVIDERS"] == "acme,other"


def test_beside_an_upstream_the_packaged_model_is_the_default_unless_there_are_others(home: StackHome, tmp_path: Path) -> None:
    def default(**settings: str) -> str | None:
        return _environments(_plan(home, **settings))["gateway"].get("DEFAULT_MODEL")

    # Settings are remembered from one call to the next.
    assert default() is None
    assert default(OPENAI_BASE_URL="http://127.0.0.1:8000/v1") == "smollm2"
    pulled = home.models / "names" / "qwen.json"
    pulled.parent.mkdir(parents=True)
    pulled.write_text("{}")
    assert default() is None
    pulled.unlink()
    assert default() == "smollm2"
    assert default(MODELS_DIR=str(tmp_path)) is None
    assert default(DEFAULT_MODEL="llama3") == "llama3"


def test_each_configured_backend_has_its_own_worker(home: StackHome, tmp_path: Path) -> None:
    registry = tmp_path / "models.yaml"
    registry.write_text("# service: a comment\n- name: a\n  file: a.gguf\n")
    given = {"OLLAMA_URL": "http://10.0.0.5:11434", "OPENAI_API_KEY": "sk-x", "MODELS": "a=/m.gguf", "MODELS_YAML": str(registry)}
    found = {name: one for name, one in _environments(_plan(home, **given)).items() if name in stack_plan.WORKERS}
    assert list(found) == ["inference", "inference-ollama", "inference-openai"], "no entry has a service"
    assert [one.get("INFERENCE_BACKEND") for one in found.values()] == [None, "ollama", "openai"]
    assert [name for name, one in found.items() if "OPENAI_API_KEY_FILE" in one] == ["inference-openai"]
    assert [name for name, one in found.items() if "OLLAMA_URL" in one] == ["inference-ollama"]
    assert [name for name, one in found.items() if "MODELS" in one] == ["inference"]
    registry.write_text("- name: a\n  service: llm\n")
    found = _environments(_plan(home, **given))
    assert (found["inference-http"]["INFERENCE_BACKEND"], found["inference-http"]["MODELS_YAML"]) == ("http", str(registry))
    workers = [found[name] for name in stack_plan.WORKERS if name in found]
    assert (
        len({one["NODE_KEY_FILE"] for one in workers})
        == len({one["INFERENCE_SERVICE_PORT"] for one in workers if "INFERENCE_SERVICE_PORT" in one} | {"3003"})
        == 4
    )


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_UPSTREAMS"])
def test_the_first_worker_may_be_the_one_of_a_backend(home: StackHome, variable: str) -> None:
    found = _environments(_plan(home, INFERENCE_BACKEND="openai", **{variable: "x"}))
    assert [name for name in found if name in stack_plan.WORKERS] == ["inference"]
    assert {variable, f"{variable}_FILE"} & found["inference"].keys()


def test_servers_that_administrators_add_have_the_worker_of_openai(home: StackHome) -> None:
    assert "inference-openai" not in _environments(_plan(home))
    found = _environments(_plan(home, REMOTE_MODEL_HOSTS="vllm.lan,*.example.org"))
    assert [name for name, one in found.items() if "REMOTE_MODEL_HOSTS" in one] == ["inference-openai"]
    assert found["inference-openai"]["INFERENCE_BACKEND"] == "openai"
