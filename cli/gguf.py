"""Which model files a folder has, and under which names a worker serves them."""

import re
from pathlib import Path

from shared import errors

#: llama.cpp's names for the parts of one model; it is opened by the first and finds the others itself.
_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-\d{5}")
#: Projectors of vision models lie beside the models and are none.
_PROJECTOR = "mmproj"


def find_models(folder: Path) -> dict[str, Path]:
    """Every GGUF file under its name without the suffix; raises BadSettings if there is none, or one that cannot be named."""
    if not folder.is_dir():
        raise errors.BadSettings(f"there is no folder {folder}", hint="give --models the folder that your .gguf files are in")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".gguf" or not path.is_file() or path.name.lower().startswith(_PROJECTOR):
            continue
        part = _PART.fullmatch(path.stem)
        if part is not None and int(part["number"]) != 1:
            continue
        name = path.stem if part is None else part["name"]
        if name in found:
            raise errors.BadSettings(f"{path} and {found[name]} would both be served as {name}", hint="rename one of them")
        if "=" in name or "," in str(path):
            raise errors.BadSettings(f"{path}: a model's name has no = and its path no comma", hint="rename it, or make a link to it")
        found[name] = path
    if not found:
        raise errors.BadSettings(f"no .gguf file is in {folder}", hint="put a model there, or name one with --model NAME=PATH")
    return found
