"""Which GGUF files of a folder are models and under which names, and which files one model consists of."""

import re
from dataclasses import dataclass
from pathlib import Path

#: llama.cpp's names for the parts of one model; it is opened by the first and finds the others itself.
_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
#: More parts than these are a slip in the name and no model.
_MOST_PARTS = 1000
#: Projectors of vision models lie beside the models and are none.
_PROJECTOR = "mmproj"


@dataclass(frozen=True, slots=True)
class Clash:
    """Two files that would both be served under one name."""

    name: str
    #: The one that has the name.
    first: Path
    second: Path


@dataclass(frozen=True, slots=True)
class FoundModels:
    #: A model's name -> the file that it is opened by, in the order of the files.
    models: dict[str, Path]
    clashes: tuple[Clash, ...]


def find(folder: Path) -> FoundModels:
    """Every model under its file's name without the suffix; raises OSError for a folder that cannot be read."""
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
    """The files of one model: itself, or all parts of one that was split."""
    part = _PART.fullmatch(file.stem)
    if part is None:
        return (file,)
    count = min(int(part["count"]), _MOST_PARTS)
    return tuple(file.with_name(f"{part['name']}-{number:05}-of-{part['count']}{file.suffix}") for number in range(1, count + 1))


def _name_of(path: Path) -> str | None:
    """None for what is no model, or no model's first part."""
    if path.suffix.lower() != ".gguf" or path.name.lower().startswith(_PROJECTOR):
        return None
    part = _PART.fullmatch(path.stem)
    if part is None:
        return path.stem
    return part["name"] if int(part["number"]) == 1 else None
