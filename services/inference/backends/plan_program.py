"""Shows how this machine would load a model, for `aicli worker --plan`: `python -m services.inference.backends.plan_program MODEL`.

MODEL is a name in the worker's settings, or a file. It reads headers only, and loads nothing.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from services.inference.backends import backend_selection
from services.inference.models import load_plan, memory, model_discovery
from services.inference.models.catalog import CatalogEntry
from services.inference.models.memory import MemoryBudget
from services.inference.models.model_store import ModelStore
from services.inference.settings import InferenceSettings
from shared import config, errors, model_folder
from shared.gguf import gguf_header
from shared.gguf.gguf_header import NotAModel
from shared.types import ModelName


def describe(settings: InferenceSettings, model: str, budget: MemoryBudget) -> Iterator[str]:
    """Raises BadSettings."""
    entry, others = _find(settings, model)
    try:
        header = gguf_header.check_parts(entry.file)
    except NotAModel as error:
        raise errors.BadSettings(f"{model} can't be loaded: {error}", hint="name another file or model") from error
    projector = memory.projector_bytes(entry.projector)
    plan = load_plan.plan(header, _size(entry), entry, budget, [_size(other) for other in others], projector_bytes=projector)
    yield f"{entry.name}: {entry.file}"
    yield from plan.reasons
    for adapter, problem in zip(entry.adapters, gguf_header.check_adapters(entry.file, [one.file for one in entry.adapters]), strict=True):
        if problem:
            yield f"{adapter.name} will fail: {problem}"
    if not plan.need.fits(budget.total):
        yield f"it will be refused: it needs {plan.need}, but models may use {budget.total}"


def _find(settings: InferenceSettings, model: str) -> tuple[CatalogEntry, list[CatalogEntry]]:
    """Return the model, and the others that are served beside it."""
    defaults = settings.model_defaults()
    pulls = bool(settings.models_pull)
    known = model_discovery.find(settings.models, settings.models_yaml, settings.models_dir, defaults, pulls=pulls).entries
    known += model_discovery.in_store(ModelStore(settings.store_path), defaults, settings.models_pull)
    for entry in known:
        if model in entry.names:
            return entry, [other for other in known if other is not entry]
    if Path(model).is_file():
        return defaults.entry(name=ModelName(Path(model).stem), file=Path(model)), []
    names = ", ".join(entry.name for entry in known)
    raise errors.BadSettings(f"there is no model and no file {model}", hint=f"this worker's models are {names}")


def _size(entry: CatalogEntry) -> int:
    files = (*model_folder.parts(entry.file), *(adapter.file for adapter in entry.adapters))
    return sum(file.stat().st_size for file in files if file.is_file())


async def _run(model: str) -> None:
    # A plan needs no node; its settings require a key.
    settings = config.load(InferenceSettings, {"NODE_KEY_FILE": "none", **os.environ})
    found, _, budget = await backend_selection.find_devices(settings)
    for line in (*found, *describe(settings, model, budget)):
        print(line)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        asyncio.run(_run(sys.argv[1]))
    except errors.AimeshError as error:
        sys.exit(f"error: {error.message}" + (f" – {error.hint}" if error.hint else ""))


if __name__ == "__main__":
    main()
