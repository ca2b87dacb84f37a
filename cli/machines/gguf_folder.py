"""The models of a folder for `aicli worker --models`."""

from pathlib import Path

from shared import errors, model_folder


def find_models(folder: Path) -> dict[str, Path]:
    """Return every model with its name. Raises BadSettings if there is none, or an invalid name."""
    if not folder.is_dir():
        raise errors.BadSettings(f"there is no folder {folder}", hint="set --models to the folder that contains your .gguf files")
    found = model_folder.find(folder)
    for clash in found.clashes:
        raise errors.BadSettings(f"{clash.second} and {clash.first} would both be served as {clash.name}", hint="rename one of them")
    for name, path in found.models.items():
        if "=" in name or "," in str(path):
            raise errors.BadSettings(
                f"{path}: model names can't contain = and paths can't contain commas", hint="rename it, or create a link to it"
            )
    if not found.models:
        raise errors.BadSettings(f"no .gguf files in {folder}", hint="put a model there, or use --model NAME=PATH")
    return found.models
