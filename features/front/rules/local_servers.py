"""The servers that run on a machine, as the worker's programs and `aicli` tell each other. Data only."""

from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from shared.types import Ability


class LocalProgram(NamedTuple):
    """A kind of server that people run at home."""

    #: A value of `Dialect`.
    kind: str
    title: str
    #: It listens there unless its owner chose another one.
    port: int


#: Of those with one port, the first that is recognized.
PROGRAMS = (
    LocalProgram("ollama", "Ollama", 11434),
    LocalProgram("lm_studio", "LM Studio", 1234),
    LocalProgram("llama_cpp", "llama-server", 8080),
    LocalProgram("mlx", "mlx_lm.server", 8080),
    LocalProgram("vllm", "vLLM", 8000),
    LocalProgram("sglang", "SGLang", 30000),
)


def offered_name(own_name: str) -> str:
    """Return what the mesh calls a model: of a path on this machine, only the file's name, and without Ollama's usual tag."""
    is_path = PurePosixPath(own_name).is_absolute() or PureWindowsPath(own_name).is_absolute()
    return PureWindowsPath(own_name).name.removesuffix(".gguf") if is_path else own_name.removesuffix(":latest")


def title_of(kind: str) -> str:
    return next((program.title for program in PROGRAMS if program.kind == kind), kind)


class LocalModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a server lists."""

    name: str
    context_tokens: int = 0
    abilities: tuple[Ability, ...] = ()
    only_embeds: bool = False
    #: As the server writes it, such as Q4_K_M.
    quantization: str = ""
    size_bytes: int = 0
    digest: str = ""
    #: To whom the server forwards its prompts; empty if they stay there.
    provider: str = ""
    #: Made on this machine, and not pulled.
    is_made_there: bool = False

    @property
    def is_shared_by_name(self) -> bool:
        """Return whether it is shared only if somebody names it: its prompts would leave the machine."""
        return bool(self.provider)

    @property
    def is_asked_for(self) -> bool:
        """Return whether its owner is asked for it alone: few want an embedding model shared, or what they made."""
        return not self.is_shared_by_name and (self.only_embeds or self.is_made_there)


class LocalServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server that was recognized on loopback."""

    #: A value of `Dialect`.
    kind: str
    title: str
    url: str
    models: tuple[LocalModel, ...] = ()
    needs_key: bool = False
    #: Other machines reach it, and it asks for no key.
    is_open_to_others: bool = False
    #: Why there are no models; empty if there are some.
    trouble: str = ""


class SharedServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What its owner shares of one server."""

    kind: str
    url: str
    #: The server's names.
    models: Annotated[tuple[str, ...], Meta(min_length=1, max_length=256)]
    key_file: str = ""
