"""Reads settings: once at start, from the environment, into one frozen struct, with all mistakes reported together.

A program declares a ``Settings`` whose fields are ``Annotated[type, Variable(...)]``; ``load`` fills it. Every variable may
also come as ``NAME_FILE``, the path of a file that holds the value, so that a secret need not stand in an environment, where
every child process inherits it.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from shared import errors

#: 0 asks the system for a free one, or turns off what would listen there.
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

_WORDS_FOR_BOOL = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Variable:
    """Where a setting comes from and what it means; the settings reference is made of these."""

    name: str
    help: str
    #: Never shown; values of secrets are kept out of every message.
    secret: bool = False
    #: A variable that goes before this one: AUTH_DATABASE_URL before DATABASE_URL.
    override: str | None = None
    #: The name before a rename: it works for one more release, with a warning.
    formerly: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every variable that sets this setting. The first one that is set counts."""
        return tuple(name for name in (self.override, self.name, self.formerly) if name is not None)


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the settings reference."""

    variable: Variable
    field: str
    type: Any
    #: None for a setting that must be given.
    default: str | None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a program reads at its start."""

    def mistakes(self) -> Iterator[str]:
        """What no single field can show: values that do not go together. One sentence each, beginning with the variable."""
        return iter(())


S = TypeVar("S", bound=Settings)


def settings_of(kind: type[msgspec.Struct]) -> Iterator[Setting]:
    """The settings that ``kind`` declares, in order."""
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            continue
        inner, *extras = get_args(hint)
        variable = next(extra for extra in extras if isinstance(extra, Variable))
        # Bounds (msgspec.Meta) belong to the type and are checked with it.
        for bounds in (extra for extra in extras if isinstance(extra, msgspec.Meta)):
            inner = Annotated[inner, bounds]
        default = None
        if field.default is not msgspec.NODEFAULT:
            default = _shown(field.default)
        elif field.default_factory is not msgspec.NODEFAULT:
            default = _shown(field.default_factory())
        yield Setting(variable, field.name, inner, default)


def shown(settings: Settings) -> Iterator[tuple[Setting, str]]:
    """Each setting with the value that holds; of a secret only whether it is set."""
    for setting in settings_of(type(settings)):
        value = _shown(getattr(settings, setting.field))
        yield setting, ("set" if value else "") if setting.variable.secret else value


def find_outdated_names(kind: type[msgspec.Struct], environment: Mapping[str, str]) -> Iterator[str]:
    """One warning for each variable with the former name of a setting, or with nearly the name of one. Pure."""
    settings = list(settings_of(kind))
    for variable in (setting.variable for setting in settings):
        if variable.formerly is not None and {variable.formerly, f"{variable.formerly}_FILE"} & environment.keys():
            yield f"{variable.formerly} is now {variable.name}; the old name stops working in the next release"
    yield from find_misspelled_names({name for setting in settings for name in setting.variable.names}, environment)


def find_misspelled_names(known: Collection[str], environment: Mapping[str, str]) -> Iterator[str]:
    """One warning for each variable whose name is nearly that of a setting. Pure."""
    everything = {*known, *(f"{name}_FILE" for name in known)}
    # OTEL_… are variables of OpenTelemetry, of which we read only some.
    for name in sorted(name for name in environment.keys() - everything if not name.startswith("OTEL_")):
        # 0.85 tells SSL_CERT_FILE, of other programs, from TLS_CERT_FILE, and the settings of our services from each other.
        for nearest in difflib.get_close_matches(name, everything, n=1, cutoff=0.85):
            yield f"{name} is not a setting; did you mean {nearest}?"


def load(kind: type[S], environment: Mapping[str, str]) -> S:
    """Fill ``kind``; raises BadSettings, which names every missing and every unusable variable at once."""
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for setting in settings_of(kind):
        try:
            if (value := _value(setting, environment)) is not None:
                values[setting.field] = value
        except ValueError as error:
            mistakes.append(str(error))
    if not mistakes:
        settings = kind(**values)
        mistakes = list(settings.mistakes())
        if not mistakes:
            return settings
    raise errors.BadSettings("the settings cannot work:\n  " + "\n  ".join(mistakes), hint="see docs/reference/settings.md")


def _value(setting: Setting, environment: Mapping[str, str]) -> Any:
    """None where the default holds; raises ValueError with a sentence for people."""
    variable = setting.variable
    for name in variable.names:
        try:
            raw = _read(name, environment)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ValueError(f"{name}_FILE: cannot read {environment[f'{name}_FILE']}: {why}") from error
        if raw is None:
            continue
        try:
            return _convert(raw, setting.type)
        except (msgspec.ValidationError, ValueError) as error:
            shown = "its value" if variable.secret else repr(raw)
            raise ValueError(f"{name}: {shown} does not fit: {error} ({variable.help})") from error
    if setting.default is None:
        names = variable.name if variable.override is None else f"{variable.name} or {variable.override}"
        raise ValueError(f"{names} is not set ({variable.help})")
    return None


def _read(name: str, environment: Mapping[str, str]) -> str | None:
    if path := environment.get(f"{name}_FILE"):
        return Path(path).read_text(encoding="utf-8").strip()
    # An empty variable is what `NAME=` in an env file gives: it means "not set", for strings too.
    return environment.get(name, "").strip() or None


def _convert(raw: str, kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):  # `Path | None`: not being set is what None stands for
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if kind is bool:
        if raw.lower() not in _WORDS_FOR_BOOL:
            raise ValueError("say true or false")
        return _WORDS_FOR_BOOL[raw.lower()]
    if kind is Path:
        return Path(raw).expanduser()
    if get_origin(kind) is tuple:
        return tuple(_convert(part.strip(), get_args(kind)[0]) for part in raw.split(",") if part.strip())
    if get_origin(kind) is dict and raw.startswith("{"):
        return msgspec.json.decode(raw, type=kind)
    if get_origin(kind) is dict:
        return dict(_pair(part) for part in raw.split(",") if part.strip())
    # DEBUG is what many write for debug.
    return msgspec.convert(raw.lower() if get_origin(kind) is Literal else raw, kind, strict=False)


def _pair(part: str) -> tuple[str, str]:
    name, equals, value = part.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise ValueError("say name=value, several with commas between them")
    return name.strip(), value.strip()


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "true" if default else "false"
    if isinstance(default, tuple):
        return ",".join(str(part) for part in default)
    if isinstance(default, dict):
        return ",".join(f"{name}={value}" for name, value in default.items())
    return "" if default is None else str(default)
