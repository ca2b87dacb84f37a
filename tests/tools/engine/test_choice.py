from pathlib import Path

import pytest

from services.inference import gpus
from tools.engine import choice, compiled, wheel
from tools.engine.choice import EngineChoice
from tools.setup_steps import SetupFailed

OLD = f"file:///x/llama_cpp_python-0.0.1-py3-none-any.whl#sha256={'0' * 64}"
WHEEL = f"llama_cpp_python-{wheel.engine_version()}-py3-none-linux_x86_64.whl"
DIGEST = f"#sha256={'0' * 64}"
URL, FILE = f"https://x/{WHEEL}{DIGEST}", f"file:///x/{WHEEL}{DIGEST}"
COMPILED = EngineChoice("cuda", is_compiled=True)


@pytest.mark.parametrize(
    ("saved", "asked", "environment", "expected"),
    [
        pytest.param(EngineChoice(), "", {}, EngineChoice(), id="the first time"),
        pytest.param(EngineChoice(), "cuda", {}, EngineChoice("cuda"), id="make worker-cuda"),
        pytest.param(EngineChoice("vulkan"), "", {"ENGINE": "cuda"}, EngineChoice("cuda"), id="ENGINE=cuda"),
        pytest.param(EngineChoice(), "cuda", {"BUILD": "1"}, COMPILED, id="BUILD=1 make worker-cuda"),
        pytest.param(COMPILED, "", {}, COMPILED, id="a later make up keeps it"),
        pytest.param(COMPILED, "cpu", {}, EngineChoice("cpu"), id="make worker-cpu goes back"),
        pytest.param(EngineChoice(), "", {"BUILD": "1"}, EngineChoice("cpu", is_compiled=True), id="BUILD=1 make up"),
        pytest.param(COMPILED, "", {"BUILD": "0"}, EngineChoice("cuda"), id="BUILD=0 make up"),
        pytest.param(EngineChoice(), "rocm", {"BUILD": "1"}, EngineChoice("rocm", is_compiled=True), id="BUILD=1 make worker-rocm"),
        pytest.param(
            COMPILED,
            "",
            {"ENGINE_WHEEL": URL},
            EngineChoice("cuda", True, URL),
            id="a URL",
        ),
        pytest.param(EngineChoice(), "", {"ENGINE_WHEEL": f"/x/{WHEEL}{DIGEST}"}, EngineChoice(wheel=FILE), id="a file"),
        pytest.param(EngineChoice(wheel=FILE), "", {}, EngineChoice(wheel=FILE), id="kept"),
        pytest.param(EngineChoice(wheel=FILE), "cpu", {}, EngineChoice("cpu"), id="make worker-cpu without it"),
    ],
)
def test_engine_is_chosen_and_kept(saved: EngineChoice, asked: str, environment: dict[str, str], expected: EngineChoice) -> None:
    assert choice.decide(saved, asked, environment, has_prebuilt=True) == expected


def test_machine_without_prebuilt_libraries_compiles() -> None:
    assert choice.decide(EngineChoice(), "", {}, has_prebuilt=False) == EngineChoice("cpu", is_compiled=True)
    assert choice.decide(EngineChoice(), "metal", {}, has_prebuilt=False) == EngineChoice("metal", is_compiled=True)


@pytest.mark.parametrize(
    ("asked", "environment", "reason"),
    [
        pytest.param("rocm", {}, "for rocm: compile it with BUILD=1 make worker-rocm, or use make worker-vulkan", id="rocm"),
        pytest.param("", {"ENGINE": "rocket"}, "no prebuilt engine for rocket", id="an unknown one"),
        pytest.param("", {"ENGINE": "rocket", "BUILD": "1"}, "ENGINE is rocket, but it must be one of", id="an unknown one, compiled"),
        pytest.param("", {"ENGINE_WHEEL": f"/x/{WHEEL}"}, "has no hash: add #sha256=", id="no hash"),
        pytest.param("", {"ENGINE_WHEEL": f"/x/{WHEEL}#sha256=00"}, "has no hash: add #sha256=", id="a short hash"),
        pytest.param(
            "",
            {"ENGINE_WHEEL": OLD},
            "this release needs llama_cpp_python-",
            id="another version",
        ),
    ],
)
def test_impossible_engine_is_refused_with_a_remedy(asked: str, environment: dict[str, str], reason: str) -> None:
    with pytest.raises(SetupFailed, match=reason):
        choice.decide(EngineChoice(), asked, environment, has_prebuilt=True)


def test_saved_wheel_of_an_older_release_is_refused() -> None:
    saved = EngineChoice(wheel=OLD)
    with pytest.raises(SetupFailed, match="this release needs llama_cpp_python-"):
        choice.decide(saved, "", {}, has_prebuilt=True)


def test_choice_is_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(choice, "FILE", tmp_path / "engine")
    assert choice.read() == EngineChoice()
    choice.save(COMPILED)
    assert choice.read() == COMPILED
    # Of an earlier version.
    (tmp_path / "engine").write_text("cuda\n")
    assert choice.read() == EngineChoice()


def test_each_engine_has_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "look", lambda: gpus.GpuFacts("cuda", frozenset({gpus.VULKAN})))
    engines = [EngineChoice(), EngineChoice("cpu"), EngineChoice("cpu", is_compiled=True), COMPILED, EngineChoice(wheel=DIGEST)]
    assert len({engine.key() for engine in engines}) == len(engines)
    assert EngineChoice().key() == EngineChoice("vulkan").key()
    assert EngineChoice("cpu", is_compiled=True).key() == compiled.wheel_folder("cpu").name


def test_gpu_gets_its_plug_in_and_the_processor_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "look", lambda: gpus.GpuFacts("rocm", frozenset({gpus.VULKAN})))
    monkeypatch.setattr(wheel, "ensure", lambda machine="", plug_in="": Path(f"engine{plug_in}.whl"))
    assert EngineChoice().ensure() == ["engine.whl", "enginevulkan.whl"]
    assert EngineChoice("cpu").ensure() == ["engine.whl"]
    assert EngineChoice(wheel="own.whl").ensure() == ["own.whl", "enginevulkan.whl"]
