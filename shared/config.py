"""Reads settings: once at start, from the environment, into one frozen struct, with all mistakes reported together.

A program declares a frozen msgspec Struct whose fields are ``Annotated[type, Variable(...)]``; ``load`` fills it. Every
variable may also come as ``NAME_FILE``, the path of a file that holds the value, so that a secret need not stand in an
environment, where every child process inherits it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from shared import errors

S = TypeVar("S", bound=msgspec.Struct)

_WORDS_FOR_BOOL = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Variable:
    """Where a setting comes from and what it means; the settings reference is made of these."""

    name: str
    help: str
    #: Never shown; values of secrets are kept out of every message.
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the settings reference."""

    variable: Variable
    field: str
    type: Any
    #: None for a setting that must be given.
    default: str | None


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


def load(kind: type[S], environment: Mapping[str, str]) -> S:
    """Fill ``kind``; raises BadSettings, which names every missing and every unusable variable at once."""
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for setting in settings_of(kind):
        name = setting.variable.name
        try:
            raw = _read(name, environment)
        except OSError as error:
            mistakes.append(f"{name}_FILE: cannot read {error.filename}: {error.strerror}")
            continue
        if raw is None:
            if setting.default is None:
                mistakes.append(f"{name} is not set ({setting.variable.help})")
            continue
        try:
            values[setting.field] = _convert(raw, setting.type)
        except (msgspec.ValidationError, ValueError) as error:
            shown = "its value" if setting.variable.secret else repr(raw)
            mistakes.append(f"{name}: {shown} does not fit: {error} ({setting.variable.help})")
    if mistakes:
        raise errors.BadSettings("the settings cannot work:\n  " + "\n  ".join(mistakes), hint="see docs/reference/settings.md")
    return kind(**values)


def _read(name: str, environment: Mapping[str, str]) -> str | None:
    if path := environment.get(f"{name}_FILE"):
        return Path(path).read_text(encoding="utf-8").strip()
    # An empty variable is what `NAME=` in an env file gives: it means "not set", for strings too.
    return environment.get(name, "").strip() or None


def _convert(raw: str, kind: Any) -> Any:
    if isinstance(kind, UnionType):  # `Path | None`: not being set is what None stands for
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if kind is bool:
        if raw.lower() not in _WORDS_FOR_BOOL:
            raise ValueError("say true or false")
        return _WORDS_FOR_BOOL[raw.lower()]
    if kind is Path:
        return Path(raw).expanduser()
    if get_origin(kind) is tuple:
        return tuple(_convert(part.strip(), get_args(kind)[0]) for part in raw.split(",") if part.strip())
    if get_origin(kind) is dict:
        return dict(_pair(part) for part in raw.split(",") if part.strip())
    return msgspec.convert(raw, kind, strict=False)


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
