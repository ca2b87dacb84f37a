"""Describe struct types in words: field names on the wire, types, and the comments beside the fields."""

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from functools import cache
from uuid import UUID

import msgspec

WORDS: dict[object, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    bytes: "bytes",
    UUID: "UUID",
    datetime: "time",
    date: "date",
    type(None): "null",
    msgspec.Raw: "msgpack",
    typing.Any: "anything",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One row of a struct's table."""

    name: str
    type: str
    default: str
    meaning: str


class Shapes:
    """The structs that a page has mentioned, so that each is described once."""

    def __init__(self, *, linked: bool = True) -> None:
        self._linked = linked
        self._named: dict[str, type[msgspec.Struct]] = {}

    def show(self, kind: object) -> str:
        """Return a type in words; structs link to their own section."""
        kind = plain(kind)
        if kind in WORDS:
            return WORDS[kind]
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if self._named.setdefault(kind.__name__, kind) is not kind:
                raise ValueError(f"two structs of the contract are called {kind.__name__}: one must have another name")
            return f"[{kind.__name__}](#{kind.__name__.lower()})" if self._linked else kind.__name__
        if isinstance(kind, type) and issubclass(kind, Enum):
            return " / ".join(f"`{member.value}`" for member in kind)
        return self._show_container(kind)

    def _show_container(self, kind: object) -> str:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            return " or ".join(self.show(part) for part in arguments)
        if origin in (tuple, list, frozenset, set):
            return f"list of {self.show(arguments[0])}"
        if origin is dict:
            return f"map of {self.show(arguments[0])} to {self.show(arguments[1])}"
        if origin is typing.Literal:
            return " / ".join(f"`{value}`" for value in arguments)
        return str(getattr(kind, "__name__", kind))

    def reachable(self) -> Iterator[type[msgspec.Struct]]:
        """Return every struct that was mentioned, and those in their fields, by name."""
        done: set[str] = set()
        while new := sorted(set(self._named) - done):
            for name in new:
                done.add(name)
                fields(self._named[name], self)
        for name in sorted(done):
            yield self._named[name]


def plain(kind: object) -> object:
    """Remove NewType and Annotated."""
    while True:
        if isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        elif typing.get_origin(kind) is typing.Annotated:
            kind = typing.get_args(kind)[0]
        else:
            return kind


def fields(kind: type[msgspec.Struct], shapes: Shapes) -> list[Field]:
    hints = typing.get_type_hints(kind, include_extras=True)
    meanings = {name: _description(hint) for name, hint in hints.items()} | comments(kind)
    return [
        Field(field.encode_name, shapes.show(hints[field.name]), _default(field), meanings[field.name])
        for field in msgspec.structs.fields(kind)
    ]


def _description(hint: object) -> str:
    found = (each.description for each in getattr(hint, "__metadata__", ()) if isinstance(each, msgspec.Meta))
    return next(filter(None, found), "")


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is msgspec.NODEFAULT:
        return "–"
    match value:
        case Enum():
            shown = f"`{value.value}`"
        case bool() | None:
            shown = {True: "true", False: "false", None: "null"}[value]
        case int() | float():
            shown = f"`{value}`"
        case str() | bytes() | tuple() | list() | dict():
            shown = f"`{value!r}`" if value else "empty"
        case _:
            shown = "(its own defaults)"
    return shown


def docstring(kind: type) -> str:
    """Return its own docstring as one paragraph, not an inherited one."""
    return " ".join(inspect.cleandoc(kind.__dict__.get("__doc__") or "").split("\n\n")[0].split()).replace("``", "`")


@cache
def comments(kind: type) -> dict[str, str]:
    """Return field -> its `#:` comment, parents included."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if not issubclass(parent, msgspec.Struct) or parent is msgspec.Struct:
            continue
        lines = textwrap.dedent(inspect.getsource(parent)).splitlines()
        (body,) = ast.parse("\n".join(lines)).body
        assert isinstance(body, ast.ClassDef)
        for statement in body.body:
            if isinstance(statement, ast.AnnAssign) and (words := _comment_above(lines, statement.lineno - 1)):
                found[ast.unparse(statement.target)] = words
    return found


def _comment_above(lines: list[str], index: int) -> str:
    words: list[str] = []
    while index > 0 and lines[index - 1].strip().startswith("#:"):
        index -= 1
        words.insert(0, lines[index].strip().removeprefix("#:").strip())
    return " ".join(words).replace("``", "`")
