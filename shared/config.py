"""Reads settings from the environment into one frozen struct, once at start, and reports all mistakes together.

A program declares a ``Settings`` struct with fields ``Annotated[type, Variable(...)]``; ``load`` fills it. For every variable,
``NAME_FILE`` may give the path of a file with the value, so that secrets need not be in the environment, which child processes inherit.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from shared import errors, features

#: 0 picks a free port, or disables the listener.
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

S = TypeVar("S", bound="Settings")
_WORDS_FOR_BOOL = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Variable:
    """The environment variable of a setting. The settings reference is generated from these."""

    name: str
    help: str
    #: Secret values are never shown, also not in messages.
    secret: bool = False
    #: A variable that takes precedence, such as AUTH_DATABASE_URL over DATABASE_URL.
    override: str | None = None
    #: A replica without it would fail requests that others answer, so it does not start if a running replica has it.
    on_all_replicas: bool = False
    #: A folder, or the address of an object store.
    is_store: bool = False
    #: Where a store is in the home of a stack that names no other.
    folder: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Return every variable that sets this setting. If several are set, the first one counts."""
        return tuple(name for name in (self.override, self.name) if name is not None)


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the settings reference."""

    variable: Variable
    field: str
    type: Any
    default: str | None
    #: The struct that has the field: the service's own, or that of a feature.
    declared_by: "type[msgspec.Struct]"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    #: The service that reads them, for which features may have more.
    SERVICE: ClassVar[str] = ""
    #: Those of features.
    more: "tuple[Settings, ...]" = ()

    def of(self, kind: type[S]) -> S:
        """Return the settings of a feature, which has declared them for this service."""
        return next((one for one in self.more if isinstance(one, kind)), None) or kind()

    def mistakes(self) -> Iterator[str]:
        """Return mistakes that no single field shows, one sentence each, beginning with the variable."""
        return iter(())

    def mistakes_beside(self, own: "Settings") -> Iterator[str]:
        """Return mistakes of a feature's settings beside the service's ``own``."""
        return iter(())


class CheckedVariables(msgspec.Struct, frozen=True):
    """See ``check_variables``."""

    names: tuple[str, ...]
    mistakes: tuple[str, ...]


#: Stands for a required setting that is not given; a valid value of each: a text, a path, a long secret, 32 bytes in base64.
_ANY_VALUE = "A" * 43 + "="


def settings_of(kind: type[msgspec.Struct]) -> Iterator[Setting]:
    """Return the settings that ``kind`` declares, in order."""
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            continue
        inner, *extras = get_args(hint)
        variable = next(extra for extra in extras if isinstance(extra, Variable))
        for bounds in (extra for extra in extras if isinstance(extra, msgspec.Meta)):
            inner = Annotated[inner, bounds]
        default = None
        if field.default is not msgspec.NODEFAULT:
            default = _shown(field.default)
        elif field.default_factory is not msgspec.NODEFAULT:
            default = _shown(field.default_factory())
        yield Setting(variable, field.name, inner, default, kind)
    for more in _kinds_of_features(kind):
        yield from settings_of(more)


def _kinds_of_features(kind: type[msgspec.Struct]) -> list[type[Settings]]:
    service = getattr(kind, "SERVICE", "")
    found = features.parts("settings", dict, "SETTINGS").values() if service else ()
    return [one[service] for one in found if service in one]


def settings_of_features() -> Iterator[tuple[str, Setting]]:
    """Return the settings of features, each with a service that reads it."""
    for kinds in features.parts("settings", dict, "SETTINGS").values():
        for service, kind in kinds.items():
            for setting in settings_of(kind):
                yield service, setting


def shown(settings: Settings) -> Iterator[tuple[Setting, str]]:
    """Return each setting with its current value. For a secret, only whether it is set."""
    for setting in settings_of(type(settings)):
        value = _shown(_read_field(settings, setting))
        yield setting, ("set" if value else "") if setting.variable.secret else value


def _read_field(settings: Settings, setting: Setting) -> object:
    return getattr(settings if setting.declared_by is type(settings) else settings.of(setting.declared_by), setting.field)


def value_of(settings: Settings, variable: str) -> object:
    """Return the value of the setting with this variable; None if there is no such one."""
    found = next((each for each in settings_of(type(settings)) if each.variable.name == variable), None)
    return None if found is None else _read_field(settings, found)


def names_for_replicas(settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the settings that all replicas need if one has them: those that are set, and those that are not."""
    needed = [setting for setting in settings_of(type(settings)) if setting.variable.on_all_replicas]
    found = [setting.variable.name for setting in needed if _read_field(settings, setting)]
    return tuple(found), tuple(setting.variable.name for setting in needed if setting.variable.name not in found)


def find_misspelled_names(known: Collection[str], environment: Mapping[str, str]) -> Iterator[str]:
    """Return a warning for each variable whose name is nearly that of a setting. Pure."""
    everything = {*known, *(f"{name}_FILE" for name in known)}
    # We read only some of OpenTelemetry's variables.
    for name in sorted(name for name in environment.keys() - everything if not name.startswith("OTEL_")):
        # The cutoff tells SSL_CERT_FILE, which other programs use, from TLS_CERT_FILE, and our services' settings from each other.
        # Of a short name, another letter makes another word: LANG is not LAN.
        for nearest in difflib.get_close_matches(name, (each for each in everything if len(each) > 4), n=1, cutoff=0.85):
            yield f"{name} is not a setting; did you mean {nearest}?"


def load(kind: type[S], environment: Mapping[str, str]) -> S:
    """Fill ``kind``. Raises BadSettings, which names every missing and invalid variable at once."""
    settings, mistakes = _fill(kind, environment)
    if settings is None or mistakes:
        raise errors.BadSettings("invalid settings:\n  " + "\n  ".join(mistakes), hint="see docs/reference/settings.md")
    return settings


def check_variables(kind: type[Settings], environment: Mapping[str, str]) -> CheckedVariables:
    """Return what ``kind`` reads, and what ``load`` would refuse of ``environment``. Missing variables are no mistake."""
    names: list[str] = []
    absent: list[str] = []
    for setting in settings_of(kind):
        names += setting.variable.names
        if setting.default is None and not any(environment.get(name) or environment.get(f"{name}_FILE") for name in setting.variable.names):
            absent.append(setting.variable.name)
    filled, mistakes = _fill(kind, {**environment, **dict.fromkeys(absent, _ANY_VALUE)})
    wrong = {_subject(mistake) for mistake in mistakes}
    valid = {name: value for name, value in environment.items() if not {name, name.removesuffix("_FILE")} & wrong}
    if filled is None and len(valid) < len(environment):
        # Mistakes that no single value shows can only be found without the invalid values.
        mistakes += check_variables(kind, valid).mistakes
    return CheckedVariables(tuple(names), tuple(mistake for mistake in mistakes if _subject(mistake) not in absent))


def _subject(mistake: str) -> str:
    return re.split(r"\W", mistake, maxsplit=1)[0]


def _fill(kind: type[S], environment: Mapping[str, str]) -> tuple[S | None, list[str]]:
    values: dict[type, dict[str, Any]] = {}
    mistakes: list[str] = []
    for setting in settings_of(kind):
        try:
            of_kind = values.setdefault(setting.declared_by, {})
            if (value := _value(setting, environment)) is not None:
                of_kind[setting.field] = value
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        return None, mistakes
    more = tuple(each(**given) for each, given in values.items() if each is not kind)
    settings = kind(**values.get(kind, {}), more=more)
    return settings, [
        *(mistake for each in (settings, *more) for mistake in each.mistakes()),
        *(mistake for each in more for mistake in each.mistakes_beside(settings)),
    ]


def _value(setting: Setting, environment: Mapping[str, str]) -> Any:
    """Return None if the default applies. Raises ValueError with a sentence for users."""
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
            raise ValueError(f"{name}: {shown} is not valid: {error} ({variable.help})") from error
    if setting.default is None:
        names = variable.name if variable.override is None else f"{variable.name} or {variable.override}"
        raise ValueError(f"{names} is not set ({variable.help})")
    return None


def _read(name: str, environment: Mapping[str, str]) -> str | None:
    if path := environment.get(f"{name}_FILE"):
        return Path(path).read_text(encoding="utf-8").strip() or None
    # `NAME=` in an env file, or an empty secret file, means "not set", for strings too.
    return environment.get(name, "").strip() or None


def _convert(raw: str, kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):  # `Path | None`: None means "not set"
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if kind is bool:
        if raw.lower() not in _WORDS_FOR_BOOL:
            raise ValueError("use true or false")
        return _WORDS_FOR_BOOL[raw.lower()]
    if kind is Path:
        return Path(raw).expanduser()
    if get_origin(kind) is tuple:
        return tuple(_convert(part.strip(), get_args(kind)[0]) for part in raw.split(",") if part.strip())
    if get_origin(kind) is dict and raw.startswith("{"):
        return msgspec.json.decode(raw, type=kind)
    if get_origin(kind) is dict:
        return dict(_pair(part) for part in raw.split(",") if part.strip())
    # Literals are lowercase, but many people write DEBUG.
    return msgspec.convert(raw.lower() if get_origin(kind) is Literal else raw, kind, strict=False)


def _pair(part: str) -> tuple[str, str]:
    name, equals, value = part.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise ValueError("write name=value, separated by commas")
    return name.strip(), value.strip()


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "true" if default else "false"
    if isinstance(default, tuple):
        return ",".join(str(part) for part in default)
    if isinstance(default, dict):
        return ",".join(f"{name}={value}" for name, value in default.items())
    return "" if default is None else str(default)
