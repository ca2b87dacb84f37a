"""The workers of a machine's own servers in its stack."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from features.front.machine import part as machine
from features.front.rules import sharing
from features.front.rules.local_servers import LocalModel, LocalServer, SharedServer
from features.front.stack import part
from shared import errors
from stack import stack_home as homes
from stack.stack_home import StackHome
from tests.stack.test_stack_plan import _environments, _plan

OLLAMA = LocalServer(kind="ollama", title="Ollama", url="http://127.0.0.1:11434", models=(LocalModel(name="qwen3:8b"),))
VLLM = LocalServer(kind="vllm", title="vLLM", url="http://127.0.0.1:8000/v1", models=(LocalModel(name="Qwen/Qwen3-8B"),))
NOTHING: dict[str, Any] = {"share": (), "unshare": (), "server_key_file": (), "no_detect": False}


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    return homes.locate({"AIMESH_HOME": str(tmp_path / "h")})


@pytest.fixture(autouse=True)
def _both_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_look", lambda _root, _environment: (OLLAMA, VLLM))


def shared(home: StackHome) -> list[str]:
    return [server.kind for server in sharing.read(sharing.choice_file(home.root / "front")).servers]


def test_what_is_named_is_shared_and_gets_workers_with_keys_of_their_own(home: StackHome) -> None:
    _plan(home)
    part.PART.before_start(home, NOTHING | {"share": ("all",)}, print)
    assert shared(home) == ["ollama", "vllm"]
    found = _environments(_plan(home, MODELS="a=/m.gguf", OPENAI_API_KEY="sk-x"))
    workers = {name: one for name, one in found.items() if name.startswith("front-")}
    assert list(workers) == ["front-ollama", "front-vllm"]
    assert len({one["NODE_KEY_FILE"] for one in found.values() if "NODE_KEY_FILE" in one}) == len(workers) + 6
    for name, kind in {"front-ollama": "ollama", "front-vllm": "vllm"}.items():
        server = msgspec.json.decode(Path(workers[name]["FRONT_SERVER_FILE"]).read_bytes(), type=SharedServer)
        assert (server.kind, workers[name]["INFERENCE_BACKEND"]) == (kind, "front")
        assert {"MODELS", "OPENAI_API_KEY_FILE"}.isdisjoint(workers[name])
    assert "FRONT_SERVER_FILE" not in found["inference"]
    assert ["FRONT_CHOICE_FILE" in one for one in workers.values()] == [True, False]


def test_nothing_is_looked_for_without_a_person_or_a_name(home: StackHome) -> None:
    part.PART.before_start(home, NOTHING, pytest.fail)
    assert not (home.root / "front").exists()
    assert not [name for name in _environments(_plan(home)) if name.startswith("front-")]


@pytest.mark.parametrize("given", [{"OLLAMA_URL": "http://localhost:11434"}, {"OPENAI_UPSTREAMS": "upstreams.toml"}])
def test_a_server_that_has_a_worker_is_not_shared_twice(
    home: StackHome, tmp_path: Path, given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "upstreams.toml").write_text('[box]\nurl = "http://127.0.0.1:11434/v1"\n')
    monkeypatch.chdir(tmp_path)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    part.PART.before_start(home, NOTHING | {"share": ("all",)}, print)
    assert shared(home) == ["vllm"]


def test_what_is_not_here_is_refused(home: StackHome) -> None:
    with pytest.raises(errors.BadRequest, match="there is no such server on this machine"):
        part.PART.before_start(home, NOTHING | {"share": ("sglang",)}, print)


def test_a_file_that_nobody_can_read_says_how_to_go_on(home: StackHome) -> None:
    _plan(home)
    (home.root / "front").mkdir()
    sharing.choice_file(home.root / "front").write_text("{")
    with pytest.raises(errors.BadSettings, match="cannot read") as refused:
        _plan(home)
    assert "delete it" in refused.value.hint
