"""Configures the servers of the `openai` backend: their addresses, keys and models.

`parse` and `single` are pure; `read` touches files. A file of upstreams is TOML with one table each:

    [vllm]
    url = "http://10.0.0.5:8000/v1"
    dialect = "vllm"
    key_file = "/run/secrets/vllm"
"""

import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from yarl import URL

from shared import errors
from shared.config_documents import TargetTask
from shared.gguf.gguf_header import MAX_CONTEXT_TOKENS
from shared.types import Ability, ModelName

#: Each upstream has a pool of connections and is polled every 2 s.
MAX_UPSTREAMS = 32
#: 32 upstreams with long lists of models need a tenth of it.
MAX_FILE_BYTES = 256 * 1024
#: Provider keys have 40 to 200 characters, JSON web tokens up to a few thousand.
MAX_KEY_CHARACTERS = 8192
#: The name of the only upstream, if there is no file, in messages, `aicli models` and the log.
ONLY = "openai"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}\Z")
_KEY = re.compile(r"[!-~]+\Z")
_OPENAI_HOST = "api.openai.com"
_READABLE_BY_OTHERS = 0o004
_WORLD_READABLE = "the key is in a file that everyone on this machine can read: run chmod 600 on it, or use key_file"


class Dialect(StrEnum):
    """A kind of server with OpenAI's API; `rules.dialects` has the table."""

    #: OpenAI itself, which refuses unknown parameters.
    OPENAI = "openai"
    #: The parameters that all servers with this API share.
    COMPATIBLE = "compatible"
    #: Also Ray Serve's LLM applications, which use vLLM.
    VLLM = "vllm"
    SGLANG = "sglang"
    #: trtllm-serve.
    TENSORRT_LLM = "tensorrt_llm"
    #: mlx_lm.server.
    MLX = "mlx"
    LLAMA_CPP = "llama_cpp"
    TGI = "tgi"
    LM_STUDIO = "lm_studio"
    OLLAMA = "ollama"
    AIMESH = "aimesh"


@dataclass(frozen=True, slots=True)
class Key:
    """A server's key. Its repr does not show it."""

    text: str = field(repr=False)

    def hidden_in(self, text: str) -> str:
        """Remove the key from a text: some servers repeat it in their errors."""
        return text.replace(self.text, "…")


class _ServerTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of one server's table that are taken as they are."""

    #: Includes the API version, as in http://127.0.0.1:8000/v1.
    url: str
    #: None: recognized by its answers.
    dialect: Dialect | None = None
    #: Who gets the prompts, if the server is external.
    provider: Annotated[str, Meta(pattern=f"^{_NAME.pattern}")] = ""
    #: None: by its address.
    external: bool | None = None
    #: moderation: its models only moderate.
    task: TargetTask | None = None
    #: Where the server is, for people.
    region: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,31}\Z")] = ""
    prefix: Annotated[str, Meta(max_length=64)] = ""
    #: The offered name -> the server's name for the model.
    aliases: dict[str, str] = {}
    #: The server's names; empty offers all of its models.
    only_models: tuple[str, ...] = ()
    #: SHA-256 of its only model, as the owner states it; empty if unknown.
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] = ""
    #: The context of its models in tokens, and whether they see images, call tools and think; None: as its list of models says.
    context: Annotated[int, Meta(ge=64, le=MAX_CONTEXT_TOKENS)] | None = None
    images: bool | None = None
    tools: bool | None = None
    reasoning: bool | None = None
    #: It runs what has a lower ``priority`` first, as vLLM with ``--scheduling-policy priority``; batch requests get 1.
    priority: bool = False
    #: Concurrent answers per model; None for ENGINE_SLOTS.
    slots: Annotated[int, Meta(ge=1, le=1024)] | None = None
    connect_seconds: Annotated[float, Meta(ge=0.1, le=60)] = 10.0
    #: Until the first piece of an answer; a server may need minutes to load the model.
    first_token_seconds: Annotated[float, Meta(ge=1, le=3600)] = 300.0
    idle_seconds: Annotated[float, Meta(ge=1, le=3600)] = 60.0


class Upstream(_ServerTerms, frozen=True, kw_only=True):
    """One server with OpenAI's API."""

    name: str
    key: Key | None = None
    key_setting: str = "OPENAI_API_KEY"

    def offers(self, own_name: str) -> tuple[ModelName, ...]:
        """Return the names under which this worker offers the server's model ``own_name``; empty if it doesn't."""
        if self.only_models and own_name not in self.only_models:
            return ()
        aliases = tuple(ModelName(alias) for alias, named in self.aliases.items() if named == own_name)
        return aliases or (ModelName(self.prefix + own_name),)

    def alias_of(self, own_name: str) -> ModelName | None:
        return next((ModelName(alias) for alias, named in self.aliases.items() if named == own_name), None)

    def abilities(self, listed: Collection[str]) -> tuple[Ability, ...]:
        """Return what its models can do, if its list says that they can do what is ``listed``."""
        declared = {Ability.TOOLS: self.tools, Ability.REASONING: self.reasoning, Ability.IMAGES: self.images}
        return tuple(ability for ability, is_able in declared.items() if (ability in listed if is_able is None else is_able))


class _Table(_ServerTerms, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file."""

    key: str | None = None
    key_file: str | None = None


@dataclass(frozen=True, slots=True)
class Secrets:
    """The sources of the keys of a file of upstreams."""

    keys: Mapping[str, str]
    #: Whether the file may hold keys: only its owner and group can read it.
    file_is_private: bool
    #: Returns the text of a key_file; raises OSError or UnicodeDecodeError.
    read: Callable[[str], str]


def read(path: Path, keys: Mapping[str, str]) -> tuple[Upstream, ...]:
    """Read a file of upstreams; ``keys`` are the keys from the environment. Raises BadSettings, which lists all mistakes."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        text = content.decode("utf-8")
        is_private = not path.stat().st_mode & _READABLE_BY_OTHERS
    except (OSError, UnicodeDecodeError) as error:
        raise errors.BadSettings(f"OPENAI_UPSTREAMS: cannot read {path}: {_why(error)}") from error
    if len(content) > MAX_FILE_BYTES:
        raise errors.BadSettings(f"OPENAI_UPSTREAMS: {path} is larger than {MAX_FILE_BYTES} bytes")

    def read_key(name: str) -> str:
        with (path.parent / Path(name).expanduser()).open("rb") as file:
            return file.read(MAX_KEY_CHARACTERS + 2).decode("utf-8")

    return parse(text, Secrets(keys, is_private, read_key))


def parse(text: str, secrets: Secrets) -> tuple[Upstream, ...]:
    """Return the upstreams in the order of the file: of those that have the same model, the first decides whether it is external."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise errors.BadSettings(f"OPENAI_UPSTREAMS: the file is not TOML: {error}") from error
    mistakes = [f"OPENAI_UPSTREAM_KEYS: there is no upstream {name[:32]!r}" for name in secrets.keys if name not in tables]
    if not 1 <= len(tables) <= MAX_UPSTREAMS:
        mistakes.append(f"OPENAI_UPSTREAMS: the file has {len(tables)} upstreams; write 1 to {MAX_UPSTREAMS}, a table each")
    found = []
    for name, table in tables.items():
        try:
            found.append(_upstream(name, table, secrets))
        except ValueError as error:
            mistakes.append(f"OPENAI_UPSTREAMS: {name[:40]}: {error}")
    if mistakes:
        raise errors.BadSettings("the upstreams cannot work:\n  " + "\n  ".join(mistakes), hint="see docs/howto/other-backends.md")
    return tuple(found)


def single(url: str, key: str | None) -> Upstream:
    """Return the upstream of OPENAI_BASE_URL and OPENAI_API_KEY. Raises BadSettings."""
    mistakes = [f"OPENAI_BASE_URL: {wrong}" for wrong in _url_mistakes(url)]
    if key is not None:
        mistakes += [f"OPENAI_API_KEY: {wrong}" for wrong in _key_mistakes(key)]
    if mistakes:
        raise errors.BadSettings("\n  ".join(mistakes), hint="see docs/howto/other-backends.md")
    return Upstream(name=ONLY, url=url, dialect=dialect_of(url), key=None if key is None else Key(key))


def check(setting: str, url: str, key: Key | None = None) -> None:
    """Raises BadSettings for an unusable URL or key."""
    for wrong in (*_url_mistakes(url), *(_key_mistakes(key.text) if key is not None else ())):
        raise errors.BadSettings(f"{setting}: {wrong}", hint="see docs/howto/other-backends.md")


def _upstream(name: str, table: object, secrets: Secrets) -> Upstream:
    """Raises ValueError, whose message never shows a key."""
    if not _NAME.match(name):
        raise ValueError("a name is 1 to 32 lower-case letters, digits, - and _")
    try:
        fields = msgspec.convert(table, _Table)
    except msgspec.ValidationError as error:
        raise ValueError(f"{error}") from error
    wrong = [*_url_mistakes(fields.url), *_key_places(name, fields, secrets)]
    key, setting = (None, "") if wrong else _key(name, fields, secrets)
    wrong += [] if key is None else [f"{setting}: {mistake}" for mistake in _key_mistakes(key)]
    if fields.only_models:
        wrong += [f"aliases: {named!r} is not among only_models" for named in fields.aliases.values() if named not in fields.only_models]
    if fields.digest and len(fields.only_models) != 1:
        wrong.append("digest: name the model that has it in only_models, and no other")
    if wrong:
        raise ValueError("; ".join(wrong))
    given = {each: value for each, value in msgspec.structs.asdict(fields).items() if value not in (None, "")}
    given |= {"key": None if key is None else Key(key), "key_setting": setting or f"key_file of {name}"}
    given.pop("key_file", None)
    return Upstream(**{"name": name, "dialect": dialect_of(fields.url), "provider": name, **given})


def _key_places(name: str, fields: _Table, secrets: Secrets) -> Iterator[str]:
    places = [place for place, key in (("key", fields.key), ("key_file", fields.key_file), ("", secrets.keys.get(name))) if key is not None]
    if len(places) > 1:
        yield "its key is given twice; keep one of key, key_file and OPENAI_UPSTREAM_KEYS"
    if fields.key is not None and not secrets.file_is_private:
        yield _WORLD_READABLE


def _key(name: str, fields: _Table, secrets: Secrets) -> tuple[str | None, str]:
    if fields.key_file is not None:
        try:
            return secrets.read(fields.key_file).strip(), f"key_file of {name}"
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"key_file: cannot read {fields.key_file}: {_why(error)}") from error
    if fields.key is not None:
        return fields.key, f"key of {name}"
    return secrets.keys.get(name), f"OPENAI_UPSTREAM_KEYS, {name}"


def _key_mistakes(key: str) -> Iterator[str]:
    if not _KEY.match(key) or len(key) > MAX_KEY_CHARACTERS:
        yield f"a key has 1 to {MAX_KEY_CHARACTERS} visible ASCII characters without spaces"


def _url_mistakes(url: str) -> Iterator[str]:
    try:
        parts = URL(url)
        str(parts.raw_host).encode("idna")  # the length of labels
    except ValueError:
        # Not the library's message, which repeats the URL and with it a password.
        yield "the URL is not valid"
        return
    if parts.user is not None or parts.password is not None:
        yield "the URL contains a password: set the key instead"
    elif parts.scheme not in ("http", "https") or not parts.host or parts.query_string or parts.fragment or not url.isprintable():
        yield "the URL must be http:// or https:// with a host and no query, such as http://127.0.0.1:8000/v1"


def dialect_of(url: str) -> Dialect | None:
    return Dialect.OPENAI if URL(url).host == _OPENAI_HOST else None


def _why(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not UTF-8"
