"""Which models a worker may serve, under which names and how each is run.  Pure; `models_file` reads what people write."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from services.inference.engine.engine_messages import KvType
from services.inference.engine.kv_slots import KvMode
from shared.types import ModelName

#: Names and aliases together: each is about 200 bytes of the announcement, which may have 16 KiB.
MAX_NAMES = 64
#: As above; and a name stands in URLs, in metrics and on people's screens.
MAX_NAME_CHARACTERS = 100
#: Of a models.yaml; a hundred models with comments have a tenth of it.
MAX_CHARACTERS = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What holds where a model says nothing."""

    slots: int = 4
    context_tokens: int | None = None
    gpu_layers: int = -1
    #: None: until another model needs the room.
    keep_alive_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One model, complete: what the file does not say has been filled in from the worker's settings."""

    name: ModelName
    file: Path
    #: SHA-256 in hex that the file must have; None: any file will do.
    digest: str | None = None
    #: Other names that callers may use.
    aliases: tuple[ModelName, ...] = ()
    #: Per slot; None: the engine's own choice, or the model's limit where that is less.
    context_tokens: int | None = None
    slots: int = 4
    #: What to count it as; None: estimated from the file.
    memory_bytes: int | None = None
    #: Engine processes, each with slots of its own, as far as the memory goes.
    replicas: int = 1
    #: -1 is all of them.
    gpu_layers: int = -1
    #: How long it stays in memory without a request; None: until another model needs the room.
    keep_alive_seconds: float | None = None
    #: Never unloaded to make room, and not when it is idle.
    pinned: bool = False
    #: Loaded at start, if there is room.
    preload: bool = False
    #: None: the engine's default.
    kv_mode: KvMode | None = None
    kv_type: KvType | None = None
    #: The number of the only GPU to use; None: all of them.
    device: int | None = None
    #: How much of it each GPU gets; empty leaves it to llama.cpp.
    tensor_split: tuple[float, ...] = ()

    @property
    def names(self) -> tuple[ModelName, ...]:
        return (self.name, *self.aliases)


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that a registry of services names and that has no file here: another worker of the mesh announces it."""

    name: ModelName
    service: str
    path: str


@dataclass(frozen=True, slots=True)
class Catalog:
    entries: tuple[CatalogEntry, ...]
    elsewhere: tuple[RemoteModel, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """An entry and where it was written, for people."""

    place: str
    entry: CatalogEntry


@dataclass(slots=True)
class CatalogReading:
    """What has been read so far, mistakes included, so that all of them are told at once."""

    placed: list[Placed] = field(default_factory=list)
    elsewhere: list[RemoteModel] = field(default_factory=list)
    #: One sentence each, beginning with the place.
    mistakes: list[str] = field(default_factory=list)

    def catalogue(self) -> Catalog:
        """Whole and without contradictions once ``mistakes`` and ``contradictions`` are empty."""
        return Catalog(tuple(one.entry for one in self.placed), tuple(self.elsewhere))


def check_name(text: str) -> ModelName:
    """Raises ValueError with a sentence for people."""
    if not text or len(text) > MAX_NAME_CHARACTERS:
        raise ValueError(f"a name has 1 to {MAX_NAME_CHARACTERS} characters")
    if not text.isprintable() or text != text.strip() or set(text) & {"=", ","}:
        raise ValueError(f"{text[:40]!r}: a name has no =, no comma, no line break and no space at its ends")
    return ModelName(text)


def contradictions(placed: Iterable[Placed]) -> Iterator[str]:
    """What no single entry can show, one sentence each: names that mean two models, and more names than can be announced."""
    owners: dict[ModelName, str] = {}
    for one in placed:
        for name in one.entry.names:
            if name in owners:
                yield f"{one.place}: the name {name} is taken by {owners[name]}"
            else:
                owners[name] = one.place
    if len(owners) > MAX_NAMES:
        yield f"{len(owners)} names and aliases are more than the {MAX_NAMES} that a worker can announce; share them out among workers"
