"""Finds the features and their parts. It names none: a folder of `features` is a feature, and a file in it is a part.

A program asks for its own part, so that no program imports what only another one needs: the gateway asks for `gateway.part`, `aicli` for
nothing but `feature`, which is data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TypeVar

P = TypeVar("P")
V = TypeVar("V")

FOLDER = Path(__file__).parents[1] / "features"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of `aicli`."""

    name: str
    #: The heading in the help under which it stands, behind the core's; `admin` or `models` for a command of that group.
    section: str
    #: `module:attribute`, imported when it runs.
    place: str
    #: Its line of the help: how its own text begins.
    summary: str

    @property
    def line(self) -> str:
        """Return what people type."""
        return f"aicli {self.section} {self.name}" if self.section in ("admin", "models") else f"aicli {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acts:
    """Rows of the audit log."""

    #: For the reference: what the rows tell.
    meaning: str
    #: Those that restrict nobody.
    harmless: tuple[str, ...] = ()
    #: Those that restrict someone, and why a restored database may undo them.
    restricting: tuple[str, ...] = ()
    why_not_replayed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpApi:
    """The API of a vendor, at paths of its own. Its routes are the gateway's; web and the mesh forward these paths."""

    #: Its paths begin with this: `/acme/`.
    prefix: str
    vendor: str
    #: A server at localhost (`aicli serve`) has its `/` and `/api/`, because its programs expect them there. Of one feature at most.
    is_at_root: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBackend:
    """A value of INFERENCE_BACKEND."""

    name: str
    #: Workers with another backend get none of these, because some are secrets.
    variables: tuple[str, ...] = ()
    #: Whether it serves models of MODELS and MODELS_YAML.
    has_catalog: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """What is known of a feature without importing its parts. Its `feature.py` has it as FEATURE, and imports only this module."""

    #: The features whose modules it imports. They come before it in every order.
    needs: frozenset[str] = frozenset()
    commands: tuple[Command, ...] = ()
    acts: tuple[Acts, ...] = ()
    #: Kinds of items of its background work that are put aside after a failure, and of those that are only logged and counted.
    items: tuple[str, ...] = ()
    counted_items: tuple[str, ...] = ()
    http_api: HttpApi | None = None
    backends: tuple[WorkerBackend, ...] = ()
    #: Path of the gateway or the pages -> how many bytes a body may have there and below. Elsewhere, they are smaller.
    large_bodies: Mapping[str, int] = field(default_factory=dict)


@lru_cache
def known() -> Mapping[str, Feature]:
    """Return the features, each after those that it needs, else by name. Raises ValueError for one that needs a missing one, or itself."""
    names = sorted(path.parent.name for path in FOLDER.glob("*/feature.py"))
    found = {name: _attribute(f"features.{name}.feature", "FEATURE", Feature) for name in names}
    for name, feature in found.items():
        if missing := feature.needs - found.keys():
            raise ValueError(f"the feature {name} needs {', '.join(sorted(missing))}: put it back, or delete {name}, too")
    sorter = TopologicalSorter({name: sorted(found[name].needs) for name in names})
    try:
        return {name: found[name] for name in sorter.static_order()}
    except CycleError as error:
        raise ValueError(f"features need each other: {error.args[1]}") from error


def commands() -> list[Command]:
    return [command for feature in known().values() for command in feature.commands]


def acts() -> list[Acts]:
    return [each for feature in known().values() for each in feature.acts]


def http_apis() -> list[HttpApi]:
    return [feature.http_api for feature in known().values() if feature.http_api is not None]


def backends() -> dict[str, WorkerBackend]:
    return {backend.name: backend for feature in known().values() for backend in feature.backends}


def parts(place: str, kind: type[P], attribute: str = "PART") -> Mapping[str, P]:
    """Return feature -> what its module ``place`` (such as `gateway.part`) declares, for the features that have it."""
    return {name: _attribute(f"features.{name}.{place}", attribute, kind) for name in having(place)}


def modules(place: str) -> list[ModuleType]:
    return [import_module(f"features.{name}.{place}") for name in having(place)]


def merged(own: Mapping[str, V], place: str, attribute: str) -> dict[str, V]:
    """Return a table of the core with the rows of features. Raises ValueError for a row that is there: nothing may change another's."""
    found = dict(own)
    for module in modules(place):
        rows: Mapping[str, V] = getattr(module, attribute, {})
        if twice := found.keys() & rows.keys():
            raise ValueError(f"{module.__name__}: {', '.join(sorted(twice))} is declared already")
        found |= rows
    return found


def owner_of(*kinds: type) -> str | None:
    """Return the feature that declares one of these types."""
    places = (kind.__module__.split(".") for kind in kinds)
    return next((place[1] for place in places if place[0] == FOLDER.name), None)


def files(name: str) -> list[Path]:
    """Return the files or folders of this name, such as `gateway.sql`, in the order of the features."""
    return [path for feature in known() if (path := FOLDER / feature / name).exists()]


@lru_cache
def having(place: str) -> tuple[str, ...]:
    """Return the features with this module. It is asked for each mail and each notice, the disk only once."""
    path = Path(*place.split("."))
    return tuple(name for name in known() if (FOLDER / name / path.with_suffix(".py")).exists())


def _attribute(module: str, attribute: str, kind: type[P]) -> P:
    found = getattr(import_module(module), attribute)
    if not isinstance(found, kind):
        raise TypeError(f"{module}.{attribute} is no {kind.__name__}")
    return found
