"""The servers that the `openai` backend asks: where each is, under which key, and which of its models are offered.

`parse` and `single` are pure; `read` is the little that touches files. A file of upstreams is TOML with one table for each:

    [vllm]
    url = "http://10.0.0.5:8000/v1"
    dialect = "vllm"
    key_file = "/run/secrets/vllm"
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from shared import errors
from shared.types import ModelName

#: More are a mistake in the file rather than a worker's neighbours; each has a pool of connections and is looked at every 10 s.
MAX_UPSTREAMS = 32
#: 32 upstreams with long lists of models take a tenth of it.
MAX_FILE_BYTES = 256 * 1024
#: Provider keys have 40 to 200 characters, JSON web tokens up to some thousands.
MAX_KEY_CHARACTERS = 8192
#: The name that messages, `aicli models` and the log know the only upstream by, where there is no file of them.
ONLY = "openai"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}\Z")
#: What an HTTP header may carry. Whatever else were in a key, the HTTP library would show it in its complaint.
_KEY = re.compile(r"[!-~]+\Z")
_OPENAI_HOST = "api.openai.com"
_READABLE_BY_OTHERS = 0o004
_WORLD_READABLE = "the key stands in a file that everybody on this machine can read: chmod 600, or say key_file"


class Dialect(StrEnum):
    """Which parameters beyond OpenAI's a server takes; `backends.openai_chat` has the table."""

    #: OpenAI itself, which refuses what it does not know.
    OPENAI = "openai"
    #: What every server with this API has in common.
    COMPATIBLE = "compatible"
    #: Also Ray Serve's LLM applications, which are vLLM inside.
    VLLM = "vllm"
    LLAMA_CPP = "llama_cpp"
    TGI = "tgi"
    #: Another mesh's gateway.
    AIMESH = "aimesh"


@dataclass(frozen=True, slots=True)
class Key:
    """A server's key. Its repr does not show it."""

    text: str = field(repr=False)

    def hidden_in(self, text: str) -> str:
        """``text`` without the key, which some servers repeat in what they complain of."""
        return text.replace(self.text, "…")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One server with OpenAI's API."""

    name: str
    #: With the version in it, as in http://127.0.0.1:8000/v1.
    url: str
    dialect: Dialect
    key: Key | None = None
    #: Which setting to look at when the key is refused.
    key_setting: str = "OPENAI_API_KEY"
    #: Before the names of its models, where these would be another upstream's too.
    prefix: str = ""
    #: The name that is offered -> the server's own name for the model.
    aliases: Mapping[str, str] = field(default_factory=dict)
    #: The server's own names; empty offers all it has.
    only_models: tuple[str, ...] = ()
    #: Answers that one of its models writes at the same time; None takes ENGINE_SLOTS.
    slots: int | None = None
    connect_seconds: float = 10.0
    #: From the request to the first piece of the answer: a server may load a model for minutes before it.
    first_token_seconds: float = 300.0
    #: Between two pieces of an answer; a batch under load gives one within seconds.
    idle_seconds: float = 60.0

    def offers(self, own_name: str) -> tuple[ModelName, ...]:
        """The names that the server's model ``own_name`` is offered by here; none if it is not."""
        if self.only_models and own_name not in self.only_models:
            return ()
        aliases = tuple(ModelName(alias) for alias, named in self.aliases.items() if named == own_name)
        return aliases or (ModelName(self.prefix + own_name),)


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table of the file, as it is written."""

    url: str
    dialect: Dialect | None = None
    key: str | None = None
    key_file: str | None = None
    prefix: Annotated[str, Meta(max_length=64)] = ""
    aliases: dict[str, str] = {}
    only_models: tuple[str, ...] = ()
    slots: Annotated[int, Meta(ge=1, le=256)] | None = None
    connect_seconds: Annotated[float, Meta(ge=0.1, le=60)] = 10.0
    first_token_seconds: Annotated[float, Meta(ge=1, le=3600)] = 300.0
    idle_seconds: Annotated[float, Meta(ge=1, le=3600)] = 60.0


@dataclass(frozen=True, slots=True)
class Secrets:
    """Where the keys of a file of upstreams come from."""

    #: Upstream -> key, from OPENAI_UPSTREAM_KEYS.
    given: Mapping[str, str]
    #: Whether the file itself may hold keys: not everybody on the machine can read it.
    file_is_private: bool
    #: Gives the text of a key_file; raises OSError or UnicodeDecodeError.
    read: Callable[[str], str]


def read(path: Path, keys: Mapping[str, str]) -> tuple[Upstream, ...]:
    """The upstreams of a file; ``keys`` are those that came by the environment. Raises BadSettings with all mistakes."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        text = content.decode("utf-8")
        is_private = not path.stat().st_mode & _READABLE_BY_OTHERS
    except (OSError, UnicodeDecodeError) as error:
        raise errors.BadSettings(f"OPENAI_UPSTREAMS: cannot read {path}: {_why(error)}") from error
    if len(content) > MAX_FILE_BYTES:
        raise errors.BadSettings(f"OPENAI_UPSTREAMS: {path} has more than {MAX_FILE_BYTES} bytes")

    def read_key(name: str) -> str:
        with (path.parent / Path(name).expanduser()).open("rb") as file:
            return file.read(MAX_KEY_CHARACTERS + 2).decode("utf-8")

    return parse(text, Secrets(keys, is_private, read_key))


def parse(text: str, secrets: Secrets) -> tuple[Upstream, ...]:
    """The upstreams in the order of the file, which decides whose a model is that two of them have."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise errors.BadSettings(f"OPENAI_UPSTREAMS: the file is not TOML: {error}") from error
    mistakes = [f"OPENAI_UPSTREAM_KEYS: there is no upstream {name[:32]!r}" for name in secrets.given if name not in tables]
    if not 1 <= len(tables) <= MAX_UPSTREAMS:
        mistakes.append(f"OPENAI_UPSTREAMS: the file names {len(tables)} upstreams; say 1 to {MAX_UPSTREAMS}, a table for each")
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
    """The upstream of OPENAI_BASE_URL and OPENAI_API_KEY. Raises BadSettings."""
    mistakes = [f"OPENAI_BASE_URL: {wrong}" for wrong in _url_mistakes(url)]
    if key is not None:
        mistakes += [f"OPENAI_API_KEY: {wrong}" for wrong in _key_mistakes(key)]
    if mistakes:
        raise errors.BadSettings("\n  ".join(mistakes), hint="see docs/howto/other-backends.md")
    return Upstream(name=ONLY, url=url, dialect=_dialect_of(url), key=None if key is None else Key(key))


def check_url(setting: str, url: str) -> None:
    """Raises BadSettings for what cannot be the address of a server."""
    if wrong := list(_url_mistakes(url)):
        raise errors.BadSettings(f"{setting}: {wrong[0]}", hint="see docs/howto/other-backends.md")


def _upstream(name: str, table: object, secrets: Secrets) -> Upstream:
    """Raises ValueError with a sentence that shows no key."""
    if not _NAME.match(name):
        raise ValueError("a name is 1 to 32 lower-case letters, digits, - and _")
    try:
        said = msgspec.convert(table, _Table)
    except msgspec.ValidationError as error:
        raise ValueError(f"{error}") from error
    wrong = [*_url_mistakes(said.url), *_key_places(name, said, secrets)]
    key, setting = (None, "") if wrong else _key(name, said, secrets)
    wrong += [] if key is None else [f"{setting}: {mistake}" for mistake in _key_mistakes(key)]
    if said.only_models:
        wrong += [f"aliases: {named!r} is not among only_models" for named in said.aliases.values() if named not in said.only_models]
    if wrong:
        raise ValueError("; ".join(wrong))
    return Upstream(
        name=name,
        url=said.url,
        dialect=said.dialect or _dialect_of(said.url),
        key=None if key is None else Key(key),
        key_setting=setting or f"key_file of {name}",
        prefix=said.prefix,
        aliases=said.aliases,
        only_models=said.only_models,
        slots=said.slots,
        connect_seconds=said.connect_seconds,
        first_token_seconds=said.first_token_seconds,
        idle_seconds=said.idle_seconds,
    )


def _key_places(name: str, said: _Table, secrets: Secrets) -> Iterator[str]:
    places = [place for place, key in (("key", said.key), ("key_file", said.key_file), ("", secrets.given.get(name))) if key is not None]
    if len(places) > 1:
        yield "its key is given twice; keep one of key, key_file and OPENAI_UPSTREAM_KEYS"
    if said.key is not None and not secrets.file_is_private:
        yield _WORLD_READABLE


def _key(name: str, said: _Table, secrets: Secrets) -> tuple[str | None, str]:
    """The key and the setting that it came from."""
    if said.key_file is not None:
        try:
            return secrets.read(said.key_file).strip(), f"key_file of {name}"
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"key_file: cannot read {said.key_file}: {_why(error)}") from error
    if said.key is not None:
        return said.key, f"key of {name}"
    return secrets.given.get(name), f"OPENAI_UPSTREAM_KEYS, {name}"


def _key_mistakes(key: str) -> Iterator[str]:
    if not _KEY.match(key) or len(key) > MAX_KEY_CHARACTERS:
        yield f"a key is 1 to {MAX_KEY_CHARACTERS} visible ASCII characters without blanks"


def _url_mistakes(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # Without the library's words, which repeat the URL and a password in it.
        yield "the URL cannot be read"
        return
    if parts.username is not None or parts.password is not None:
        yield "the URL holds a password: give the key by key_file or by the environment"
    elif parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or not url.isprintable():
        yield "the URL must be http:// or https:// with a host and no query, such as http://127.0.0.1:8000/v1"


def _dialect_of(url: str) -> Dialect:
    return Dialect.OPENAI if urlsplit(url).hostname == _OPENAI_HOST else Dialect.COMPATIBLE


def _why(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not UTF-8"
