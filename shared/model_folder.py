"""Finds the models in a folder: their names, and the GGUF files that belong to each."""

import re
from dataclasses import dataclass
from pathlib import Path

from shared.types import ModelName

#: How llama.cpp names the parts of a split model. It opens the first part and finds the others.
PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_MAX_PARTS = 1000
_PROJECTOR = "mmproj"
#: The model that is installed with a worker, and served if its settings name no other.
PACKAGED_MODEL = ModelName("smollm2")


@dataclass(frozen=True, slots=True)
class Clash:
    """Two files with the same model name."""

    name: str
    first: Path
    second: Path


@dataclass(frozen=True, slots=True)
class FoundModels:
    models: dict[str, Path]
    clashes: tuple[Clash, ...]


def find(folder: Path) -> FoundModels:
    """Return every model, named after its file without the suffix. Raises OSError if the folder cannot be read."""
    models: dict[str, Path] = {}
    clashes: list[Clash] = []
    for path in sorted(folder.iterdir()):
        name = _name_of(path)
        if name is None or not path.is_file():
            continue
        if name in models:
            clashes.append(Clash(name, models[name], path))
        models.setdefault(name, path)
    return FoundModels(models, tuple(clashes))


def parts(file: Path) -> tuple[Path, ...]:
    part = PART.fullmatch(file.stem)
    if part is None:
        return (file,)
    count = min(int(part["count"]), _MAX_PARTS)
    return tuple(file.with_name(f"{part['name']}-{number:05}-of-{part['count']}{file.suffix}") for number in range(1, count + 1))


def find_projector(model: Path) -> Path | None:
    """Return the projector beside a model, if there is exactly one."""
    try:
        found = [path for path in model.parent.glob("*.gguf") if path.name.lower().startswith(_PROJECTOR) and path != model]
    except OSError:
        return None
    return found[0] if len(found) == 1 else None


def is_model(path: str) -> bool:
    """Return whether the file is a model, or its first part."""
    return _name_of(Path(path)) is not None


def _name_of(path: Path) -> str | None:
    if path.suffix.lower() != ".gguf" or path.name.lower().startswith(_PROJECTOR):
        return None
    part = PART.fullmatch(path.stem)
    if part is None:
        return path.stem
    return part["name"] if int(part["number"]) == 1 else None
