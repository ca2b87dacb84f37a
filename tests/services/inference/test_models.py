from pathlib import Path

import pytest

from services.inference import models
from services.inference.models import ModelFile
from shared import errors
from shared.types import ModelName


def test_the_default_model_is_the_packaged_one() -> None:
    (file,) = models.find_files({})
    assert file.name == "smollm2"
    assert file.path.suffix == ".gguf"
    assert file.path.read_bytes()[:4] == b"GGUF"


def test_the_setting_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.touch()
    assert models.find_files({"a": str(path), "b": str(path)}) == (ModelFile(ModelName("a"), path), ModelFile(ModelName("b"), path))


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.BadSettings) as refused:
        models.find_files({"a": str(tmp_path / "a.gguf"), "b": str(tmp_path)})
    assert "a.gguf" in refused.value.message
    assert f"b: {tmp_path}" in refused.value.message


def test_a_missing_package_is_said_with_the_command_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DEFAULT_PACKAGE", "no-such-package-here")
    with pytest.raises(errors.BadSettings, match="not installed") as refused:
        models.find_files({})
    assert "make setup" in refused.value.hint
