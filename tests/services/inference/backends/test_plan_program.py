"""`aicli worker --plan` shows what a worker would do."""

from pathlib import Path

import pytest

from services.inference.backends import plan_program
from services.inference.models.memory import MemoryBudget
from services.inference.settings import InferenceSettings
from shared import errors, model_folder
from tests import gguf_files
from tests.gguf_files import LlamaShape

GIB = 2**30
SHAPE = LlamaShape(layers=4, embedding=64, heads=4, kv_heads=4, feed_forward=64, vocabulary=300, context=4096)


def settings(tmp_path: Path, **more: object) -> InferenceSettings:
    return InferenceSettings(node_key_file=tmp_path / "node.nk", **more)  # type: ignore[arg-type]


def test_file_is_planned_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    gguf_files.write_llama(file, SHAPE, weights="q8_0", seed=1)
    lines = list(plan_program.describe(settings(tmp_path), str(file), MemoryBudget(GIB, "a test", (GIB,))))
    assert lines[:4] == [
        f"mine: {file}",
        "devices: all 4 layers on GPU 0",
        "context: 4096 tokens per slot, the model's own",
        "slots: 32, the most on a GPU",
    ]


def test_model_of_the_settings_is_planned_beside_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        gguf_files.write_llama(tmp_path / f"{name}.gguf", SHAPE, weights="q8_0", seed=1)
    found = settings(tmp_path, models_dir=tmp_path, slots=8, context_tokens=64)
    lines = list(plan_program.describe(found, "b", MemoryBudget(GIB, "a test")))
    assert lines[2:4] == ["context: 64 tokens per slot, as set", "slots: 8, as set"]


def test_adapters_count_and_are_checked(tmp_path: Path) -> None:
    gguf_files.write_llama(tmp_path / "a.gguf", SHAPE, weights="q8_0", seed=1)
    gguf_files.write_adapter(tmp_path / "b.gguf", SHAPE, seed=2)
    models = tmp_path / "models.yaml"
    models.write_text("- {name: a, file: a.gguf}")
    plain = list(plan_program.describe(settings(tmp_path, models_yaml=models), "a", MemoryBudget(GIB, "a test")))
    models.write_text("- {name: a, file: a.gguf, adapters: {b: {file: b.gguf}, c: {file: a.gguf}}}")
    lines = list(plan_program.describe(settings(tmp_path, models_yaml=models), "a:b", MemoryBudget(GIB, "a test")))
    assert "adapters: 2, in memory with the model" in lines
    assert lines[-1].startswith("a:c will fail: ")
    assert lines[-1].endswith("it is not a LoRA adapter: general.type is None, and adapter.type is None")
    (memory,), (more,) = ([line for line in each if line.startswith("memory: ")] for each in (plain, lines))
    assert memory != more


def test_model_that_will_be_refused(tmp_path: Path) -> None:
    lines = list(plan_program.describe(settings(tmp_path), model_folder.PACKAGED_MODEL, MemoryBudget(2**20, "a test")))
    assert lines[-1].startswith("it will be refused: it needs ")
    assert lines[-1].endswith("but models may use 1.0 MiB")


@pytest.mark.parametrize(("model", "reason"), [("nothing", "no model and no file nothing"), (__file__, "not a GGUF file")])
def test_no_model(tmp_path: Path, model: str, reason: str) -> None:
    with pytest.raises(errors.BadSettings, match=reason):
        list(plan_program.describe(settings(tmp_path), model, MemoryBudget(GIB, "a test")))
