"""A model's file that changed between its check and the end of its load is not served."""

import os
from pathlib import Path

import pytest

from services.inference.engine import engine_messages, file_stamps
from services.inference.models import model_discovery
from services.inference.supervision.engine_supervisor import SupervisedEngine
from shared.api.inference import ModelState
from shared.types import ModelName
from tests.services.inference.standins import PlainChat, Watch


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    return file


def test_an_untouched_file_has_not_changed(model: Path) -> None:
    stamps = file_stamps.stamps_of([model])
    model.read_bytes()
    assert file_stamps.find_changed(stamps, [model]) == ""
    assert file_stamps.find_changed((), [model]) == ""


@pytest.mark.parametrize("way", ["written", "replaced", "swapped and back", "shortened", "gone"])
def test_every_change_is_found(model: Path, way: str) -> None:
    before = model.stat()
    stamps, other = file_stamps.stamps_of([model]), model.with_name("other")
    match way:
        case "written":
            model.write_bytes(b"EVIL")
            os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "replaced":
            other.write_bytes(b"EVIL")
            os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
            other.replace(model)
        case "swapped and back":
            model.rename(other)
            model.write_bytes(b"EVIL")
            other.replace(model)
        case "shortened":
            model.write_bytes(b"")
        case "gone":
            model.unlink()
    assert file_stamps.find_changed(stamps, [model]) == str(model)


async def test_an_engine_does_not_serve_a_file_that_was_swapped_during_its_load(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(model_discovery.installed().read_bytes())
    stamps = file_stamps.stamps_of([model])
    os.utime(model)
    load = engine_messages.LoadCommand(str(model), 1, 64, 1, 0, stamps=stamps)
    engine = SupervisedEngine(ModelName("m"), load, Watch(), PlainChat())
    await engine.run()
    assert engine.state is ModelState.FAILED
    assert engine.detail.startswith(f"{model} has changed since it was checked")
