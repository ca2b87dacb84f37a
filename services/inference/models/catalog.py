"""The catalog of a worker's models: their names, files and options.  Pure; `models_file` reads it."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from services.inference.engine.engine_messages import KvMode, KvTypes, SplitMode
from shared.models.manifest import Version
from shared.types import LoadPurpose, ModelName

#: Names and aliases together: each takes about 200 bytes of the announcement, which may have 16 KiB.
MAX_NAMES = 64
MAX_NAME_CHARACTERS = 100
#: For one model.
MAX_ADAPTERS = 16
#: For a model in another server, if nothing names them.
SERVER_SLOTS = 4
#: The largest models.yaml; a hundred models with comments need a tenth of it.
MAX_CHARACTERS = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelProgram:
    """An inference server with OpenAI's API that this worker runs for one model."""

    #: ``{port}`` stands for the port to listen on.
    command: tuple[str, ...]
    #: What kind of server it is; None: recognized by its answers.
    dialect: str | None = None
    #: From its start until it must answer.
    ready_seconds: float = 600.0
    #: Whether its model can call tools, as the entry says.
    tools: bool = False


@dataclass(frozen=True, slots=True)
class CatalogAdapter:
    """A LoRA adapter, served as a separate model."""

    name: ModelName
    file: Path
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The fields for which the worker's settings have values."""

    #: Per slot. `load_plan` decides what is None, and how many layers of -1 are on a GPU.
    context_tokens: int | None = None
    slots: int | None = None
    gpu_layers: int = -1
    kv_mode: KvMode | None = None
    #: None: f16, or for agents q8_0 if f16 doesn't fit.
    kv_type: KvTypes | None = None
    purpose: LoadPurpose = LoadPurpose.CHATS
    #: None: until another model needs the memory.
    keep_alive_seconds: float | None = None

    def entry(self, **overrides: Any) -> "CatalogEntry":
        """Create an entry; ``overrides`` replace these values."""
        return CatalogEntry(**{**asdict(self), **overrides})


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry(Defaults):
    """One model, with defaults filled in."""

    name: ModelName
    #: The model's, or the program's.
    file: Path
    #: The file's expected SHA-256 in hex; None accepts any file.
    digest: str | None = None
    #: What it is a version of; None for a model from elsewhere, and for a version whose manifest is damaged.
    version: Version | None = None
    aliases: tuple[ModelName, ...] = ()
    #: The memory to count; None: estimated from the file.
    memory_bytes: int | None = None
    #: Engine processes, each with its own slots; fewer if the memory doesn't suffice. None: one for each GPU that has room for the model.
    replicas: int | None = 1
    #: Layers whose experts stay on the processor.
    cpu_experts: int | None = None
    pinned: bool = False
    preload: bool = False
    device: int | None = None
    #: Each GPU's share of the model; empty lets llama.cpp decide.
    tensor_split: tuple[float, ...] = ()
    split_mode: SplitMode | None = None
    #: Patterns of tensors with the device that holds them.
    override_tensor: tuple[str, ...] = ()
    #: Whether text that repeats may be guessed and computed several tokens at a time.
    speculates: bool = True
    #: For requests that set none; None: the same default for all models.
    temperature: float | None = None
    top_p: float | None = None
    repeat_penalty: float | None = None
    #: Whether the model thinks if a request doesn't say; None: as its chat template has it.
    reasoning: bool | None = None
    #: Tokens of thoughts if a request doesn't say; None for no limit.
    reasoning_budget: int | None = None
    #: A file that makes embeddings of images; None for a model that sees none.
    projector: Path | None = None
    #: It was found beside the model. If it doesn't fit, the model is served without it.
    projector_is_optional: bool = False
    #: What runs it; None for the built-in engine.
    program: ModelProgram | None = None
    adapters: tuple[CatalogAdapter, ...] = ()
    #: Where it was written, for messages.
    place: str = field(default="", compare=False)

    @property
    def names(self) -> tuple[ModelName, ...]:
        return (self.name, *self.aliases, *(adapter.name for adapter in self.adapters))


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model in a registry of services that has no file here; the backend `http` serves it."""

    name: ModelName
    #: A host, or a URL.
    service: str
    path: str
    #: A JSON pointer to the text or vector in the service's answers; None for the usual places.
    answer: str | None = None
    aliases: tuple[ModelName, ...] = ()
    #: 0 if unknown.
    context_tokens: int = 0
    slots: int | None = None
    #: For a service that is a host; None: 80.
    port: int | None = None
    #: A file with the bearer token that the service requires.
    token_file: Path | None = None

    @property
    def names(self) -> tuple[ModelName, ...]:
        return (self.name, *self.aliases)


@dataclass(frozen=True, slots=True)
class Catalog:
    entries: tuple[CatalogEntry, ...]
    elsewhere: tuple[RemoteModel, ...] = ()


@dataclass(slots=True)
class CatalogReading:
    """The entries read so far, and all mistakes, so that they can be reported together."""

    entries: list[CatalogEntry] = field(default_factory=list)
    elsewhere: list[RemoteModel] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)


def check_name(text: str) -> ModelName:
    """Raises ValueError with a message for people."""
    if not text or len(text) > MAX_NAME_CHARACTERS:
        raise ValueError(f"a name has 1 to {MAX_NAME_CHARACTERS} characters")
    if not text.isprintable() or text != text.strip() or set(text) & {"=", ","}:
        raise ValueError(f"{text[:40]!r}: a name must not contain =, commas or line breaks, or start or end with a space")
    return ModelName(text)


def contradictions(entries: Iterable[CatalogEntry]) -> Iterator[str]:
    """Find names of two models, and more names than can be announced; yields one sentence each."""
    owners: dict[ModelName, str] = {}
    for entry in entries:
        for name in entry.names:
            if name in owners:
                yield f"{entry.place}: the name {name} is already used by {owners[name]}"
            else:
                owners[name] = entry.place
    if len(owners) > MAX_NAMES:
        yield f"{len(owners)} names and aliases are more than the {MAX_NAMES} that a worker can announce; use several workers"
