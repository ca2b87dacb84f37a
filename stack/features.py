"""What a feature may add to a stack. Nothing here names one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from shared import features
from stack.settings import StackSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreWorker:
    """A worker beside the first, for a backend of a feature."""

    is_wanted: bool
    #: None: not chosen yet.
    port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPart:
    #: Returns a worker for each of its backends, by name.
    workers: Callable[[StackSettings], Mapping[str, MoreWorker]]
    #: Returns the providers whose servers may be outside.
    providers: Callable[[StackSettings], Iterable[str]]


def parts() -> list[StackPart]:
    return [*features.parts("stack.part", StackPart).values()]


def workers(settings: StackSettings) -> dict[str, MoreWorker]:
    return {name: worker for part in parts() for name, worker in part.workers(settings).items()}
