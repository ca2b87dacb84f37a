"""What a feature may use of a worker, and what it may add. Nothing here names one.

Only a worker that needs a part loads it, because parts take megabytes.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from services.inference.backend_interface import Backend, Watcher
from services.inference.backends.model_cache import StartProgram
from services.inference.settings import InferenceSettings
from shared import features
from shared.node import Node


class WorkerWatcher(Watcher, Protocol):
    def lack_models(self, reason: str) -> None:
        """Announce why this worker has no model, while it has none."""
        ...

    def inform(self, summary: str, lines: tuple[str, ...]) -> None:
        """Tell the machine's owner something that is no problem: ``summary`` goes to the mesh, ``lines`` to `aicli worker status`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a backend may use."""

    settings: InferenceSettings
    node: Node
    watcher: WorkerWatcher


#: Raises BadSettings.
OpenBackend = Callable[[Site], AbstractAsyncContextManager[Backend]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPart:
    #: By their names in `feature.py`.
    backends: Mapping[str, OpenBackend] = field(default_factory=dict)
    start_program: StartProgram | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask:
    """Runs beside the backend of every worker, until it returns or the worker ends."""

    name: str
    run: Callable[[Site], Awaitable[None]]


def find_backend(name: str) -> OpenBackend | None:
    """Return None for one of the core's."""
    if name not in features.backends():
        return None
    return next(part.backends[name] for part in _parts() if name in part.backends)


def find_program_starter() -> StartProgram | None:
    return next((part.start_program for part in _parts() if part.start_program is not None), None)


def tasks() -> list[WorkerTask]:
    return [*features.parts("worker.background", WorkerTask).values()]


def _parts() -> list[WorkerPart]:
    return [*features.parts("worker.part", WorkerPart).values()]
