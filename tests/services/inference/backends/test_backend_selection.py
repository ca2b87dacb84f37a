"""The settings choose the backend."""

import time
from pathlib import Path

import pytest

from services.inference.backends import backend_selection
from services.inference.models import model_files, store_program
from services.inference.models.catalog import CatalogEntry
from services.inference.settings import InferenceSettings
from shared import errors
from shared.api.inference import ModelState, StoreRequest
from shared.models.trust_rules import TRUSTED, Verdict
from shared.types import ModelName
from tests import gguf_files, stopwatch
from tests.services.inference.models import ranged_server
from tests.services.inference.standins import Watch, until


def trust_all(_entry: CatalogEntry, _hashes: tuple[str, ...]) -> Verdict:
    return TRUSTED


def no_programs() -> None:
    """The features of the test have none."""


async def test_digests_are_stored_beside_the_mesh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "TICK_NS", 0)
    folder, state = tmp_path / "models", tmp_path / "state"
    folder.mkdir()
    state.mkdir()
    pairs = {"general.architecture": gguf_files.text("llama")}
    (folder / "a.gguf").write_bytes(gguf_files.joined(gguf_files.file(pairs, [])))
    settings = InferenceSettings(node_key_file=state / "node.nk", models_dir=folder, gpu_layers=0, model_memory="1GiB")
    printed: list[str] = []
    async with backend_selection.opened(settings, Watch(), printed.append, trust_all, no_programs) as backend:
        await until(lambda: backend.models()[0].digest)
        with pytest.raises(errors.Unavailable, match="a cannot be loaded on this worker"):
            await backend.load(ModelName("a"))
        assert backend.models()[0].digest in (state / "node.digests").read_text()
    assert "loading a\n  devices: the processor, as set\n  context: 8192 tokens per slot" in printed[-1]


async def test_added_model_is_served_without_a_restart_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(ranged_server.model_bytes())
    (tmp_path / "configured").mkdir()
    (tmp_path / "configured/other.gguf").write_bytes(ranged_server.model_bytes())
    settings = InferenceSettings(node_key_file=tmp_path / "node.nk", models_dir=tmp_path / "configured", gpu_layers=0, model_memory="1GiB")
    store = str(tmp_path / "models")
    async with backend_selection.opened(settings, Watch(), None, trust_all, no_programs) as backend:
        began = time.monotonic()
        store_program.carry_out(StoreRequest(command="add", folder=store, target=str(file)))
        await until(lambda: {status.model_id: status.state for status in backend.models()}.get(ModelName("mine")) is ModelState.UNLOADED)
        assert time.monotonic() - began < stopwatch.patience(3)
        store_program.carry_out(StoreRequest(command="remove", folder=store, target="mine"))
        await until(lambda: [status.model_id for status in backend.models()] == ["other"])


async def test_a_program_that_no_feature_runs_prevents_the_start(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("- name: big\n  program: sh serve --port {port}\n  memory: 1GB\n")
    settings = InferenceSettings(node_key_file=tmp_path / "node.nk", models_yaml=file, gpu_layers=0)
    with pytest.raises(errors.BadSettings, match=r"models\.yaml line 1, .*: no feature of this worker runs programs"):
        async with backend_selection.opened(settings, Watch(), None, trust_all, no_programs):
            pass
