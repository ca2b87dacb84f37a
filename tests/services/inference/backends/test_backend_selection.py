"""The settings choose the backend."""

from pathlib import Path

import pytest

from services.inference.backends import backend_selection
from services.inference.models import digests
from services.inference.settings import InferenceSettings
from tests import gguf_files
from tests.services.inference.standins import Watch, until


async def test_digests_are_stored_beside_the_mesh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "TICK_NS", 0)
    folder, state = tmp_path / "models", tmp_path / "state"
    folder.mkdir()
    state.mkdir()
    pairs = {"general.architecture": gguf_files.text("llama")}
    (folder / "a.gguf").write_bytes(gguf_files.joined(gguf_files.file(pairs, [])))
    settings = InferenceSettings(node_key_file=state / "node.nk", models_dir=folder, gpu_layers=0, model_memory="1GiB")
    async with backend_selection.opened(settings, Watch(), None) as backend:
        await until(lambda: backend.models()[0].digest)
        assert backend.models()[0].digest in (state / "node.digests").read_text()
