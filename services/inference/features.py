"""What a feature may use of a worker, and what it may add. Nothing here names one.

Only a worker that needs a part loads it, because parts take megabytes.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from services.inference.backend_interface import Backend, Watcher
from services.inference.backends import backend_selection
from services.inference.backends.model_cache import JudgeModel, StartProgram
from services.inference.settings import InferenceSettings
from shared import features
from shared.node import Node


class WorkerWatcher(Watcher, Protocol):
    def lack_models(self, reason: str) -> None:
        """Announce why this worker has no model, while it has none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a backend may use."""

    settings: InferenceSettings
    node: Node
    watcher: WorkerWatcher


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPart:
    #: Name, as in `feature.py` -> what opens it. It raises BadSettings.
    backends: Mapping[str, Callable[[Site], AbstractAsyncContextManager[Backend]]] = field(default_factory=dict)
    start_program: StartProgram | None = None


def opened(site: Site, print_line: Callable[[str], None] | None, judge: JudgeModel) -> AbstractAsyncContextManager[Backend]:
    """Open the backend of the settings. ``print_line`` and ``judge`` are for the core's. Raises BadSettings."""
    name = site.settings.backend
    if name in features.backends():
        return next(part.backends[name] for part in _parts() if name in part.backends)(site)
    return backend_selection.opened(site.settings, site.watcher, print_line, judge, find_program_starter)


def find_program_starter() -> StartProgram | None:
    return next((part.start_program for part in _parts() if part.start_program is not None), None)


def _parts() -> list[WorkerPart]:
    return [*features.parts("worker.part", WorkerPart).values()]
