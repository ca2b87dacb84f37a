"""Reads bodies of vendors' APIs, whose next release must break nothing: unknown fields are ignored and named, and null is absent. Pure.

The structs stay strict. Many bodies have only what their struct has and are decoded at once; others are first freed of the rest.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import request_bodies

S = TypeVar("S", bound=msgspec.Struct)
#: The names and positions on the way to a value, the last one first.
_Way = tuple["_Way", str | int] | None

#: What the metric counts fields as that are in no table.
OTHER = "other"
#: What may be said of a caller's own names: longer ones and those with other characters may be text.
_SAYABLE = re.compile(r"[A-Za-z0-9_.\[\]-]{1,60}")
_MAX_SAID = 7


@dataclass(frozen=True, slots=True)
class ParameterRule:
    """The rule for a known field that no struct has, or for a type of list entries. Null always counts as absent."""

    #: Why it is ignored, or for a refused one, what to do instead.
    description: str
    #: Returns whether a value is accepted, because it asks for what happens anyway.
    accepts: Callable[[object], bool] = lambda _value: False
    #: Whether every value is ignored.
    ignored: bool = False


@dataclass(frozen=True)
class BodyDialect(Generic[S]):
    """How one API writes a request.

    A rule's key is the path of its field without positions (`messages.audio`), `*.NAME` for a field at any depth, or the path of a list
    with the type of its entries (`tools[web_search]`; `tools[*]` for all other types).
    """

    name: str
    body: type[S]
    rules: Mapping[str, ParameterRule] = field(default_factory=dict)
    #: The types of list entries that have none, by the path of their list.
    default_types: Mapping[str, str] = field(default_factory=dict)
    #: The path of the object that the other paths begin at.
    root: str = ""

    @cached_property
    def node(self) -> "_BodyNode":
        return _node(inspect.type_info(self.body), "", self.root) or _BodyNode("")

    @cached_property
    def decode(self) -> Callable[[bytes], S]:
        return msgspec.json.Decoder(self.body).decode


class Ignored:
    """The fields of one body that have no effect."""

    def __init__(self) -> None:
        #: By path without positions: the key of its rule, or ``OTHER``.
        self.labels: dict[str, str] = {}

    def __str__(self) -> str:
        """Return the names as a header and a log may say them."""
        said = [name for name in self.labels if _SAYABLE.fullmatch(name)][:_MAX_SAID]
        rest = len(self.labels) - len(said)
        return ", ".join([*said, *([f"{rest} more"] if rest else [])])


def read(content: bytes, dialect: BodyDialect[S], ignored: Ignored, *, strict: bool = False) -> S:
    """Parse a body; add to ``ignored`` what has no effect. Raises BadRequest that names the field; for unknown ones only if ``strict``."""
    # Otherwise, the long way finds the mistake if there is one.
    with suppress(msgspec.MsgspecError, OverflowError, RecursionError, UnicodeDecodeError):
        body = dialect.decode(content)
        request_bodies.ensure_sendable(body)
        return body
    return convert(request_bodies.read_object(content), dialect, ignored, strict=strict)


def convert(found: dict[str, object], dialect: BodyDialect[S], ignored: Ignored, *, strict: bool = False) -> S:
    """Like ``read``, for a parsed body, which is changed."""
    cleaned = _Cleaner(dialect, ignored, strict=strict).clean(found, dialect.node, None)
    assert isinstance(cleaned, dict)
    return request_bodies.convert(cleaned, dialect.body)


class _StructFields(NamedTuple):
    names: frozenset[str]
    #: Those whose values have structs.
    nested: tuple[tuple[str, "_BodyNode"], ...]


@dataclass(slots=True)
class _BodyNode:
    """Where the values of a type have structs: for an object by their tag, and for the entries of a list."""

    path: str
    tag_field: str | None = None
    structs: dict[object, _StructFields] = field(default_factory=dict)
    entries: "_BodyNode | None" = None


def _node(info: inspect.Type, path: str, root: str) -> _BodyNode | None:
    if path and path == root:
        path = ""
    match info:
        case inspect.Metadata():
            return _node(info.type, path, root)
        case inspect.StructType():
            before = f"{path}." if path else ""
            below = [(each.encode_name, _node(each.type, before + each.encode_name, root)) for each in info.fields]
            names = frozenset([name for name, _ in below] + ([info.tag_field] if info.tag_field else []))
            nested = tuple((name, node) for name, node in below if node is not None)
            return _BodyNode(path, info.tag_field, {info.tag: _StructFields(names, nested)})
        case inspect.CollectionType():
            entries = _node(info.item_type, path, root)
            return None if entries is None else _BodyNode(path, entries=entries)
        case inspect.UnionType():
            nodes = [node for each in info.types if (node := _node(each, path, root)) is not None]
            if not nodes:
                return None
            structs = {tag: fields for node in nodes for tag, fields in node.structs.items()}
            tag_field = next((node.tag_field for node in nodes if node.tag_field), None)
            return _BodyNode(path, tag_field, structs, next((node.entries for node in nodes if node.entries), None))
    return None


_DROPPED = object()
_CONTAINERS = (list, dict)


class _Cleaner:
    def __init__(self, dialect: BodyDialect[S], ignored: Ignored, *, strict: bool) -> None:
        self._rules = dialect.rules
        self._default_types = dialect.default_types
        self._ignored = ignored.labels
        self._strict = strict
        #: Unknown names by path: most are in many objects.
        self._unknown: set[tuple[str, str]] = set()

    def clean(self, value: object, node: _BodyNode, way: _Way) -> object:
        """Remove what the value's type does not have; return ``_DROPPED`` for an entry to leave out. Raises BadField for refused ones."""
        if isinstance(value, list):
            if node.entries is not None:
                cleaned = [self.clean(entry, node.entries, (way, index)) for index, entry in enumerate(value)]
                return [entry for entry in cleaned if entry is not _DROPPED]
        elif isinstance(value, dict) and node.structs:
            return self._clean_object(value, node, way)
        return value

    def _clean_object(self, value: dict[str, object], node: _BodyNode, way: _Way) -> object:
        tag: object = None
        if (tag_field := node.tag_field) is not None:
            tag = value.get(tag_field) or self._default_types.get(node.path)
            if tag is None and len(node.structs) == 1:
                tag = next(iter(node.structs))
            if tag is None:
                value.pop(tag_field, None)
            else:
                value[tag_field] = tag
        fields = node.structs.get(tag) if tag is None or isinstance(tag, str) else None
        if fields is None:
            return self._entry_of(tag, value, node, way)
        names, nested = fields
        for name in [name for name, inner in value.items() if inner is None or name not in names]:
            inner = value.pop(name)
            if inner is not None or (self._strict and name not in names):
                self._pass_over(node.path, name, inner, (way, name))
        for name, below in nested:
            if type(inner := value.get(name)) in _CONTAINERS:
                value[name] = self.clean(inner, below, (way, name))
        return value

    def _entry_of(self, tag: object, value: object, node: _BodyNode, way: _Way) -> object:
        """Return an entry of a type without a struct."""
        key = f"{node.path}[{tag}]"
        label = key if key in self._rules else f"{node.path}[*]"
        rule = self._rules.get(label)
        if rule is None or not isinstance(tag, str):
            return value  # the conversion says what its type may be
        if not rule.ignored:
            raise BadField(_written(way), f"{rule.description}; it is of the type {tag[:64]!r}", known=_written(way))
        self._ignored[key] = label
        return _DROPPED

    def _pass_over(self, at: str, name: str, value: object, way: _Way) -> None:
        if (at, name) in self._unknown:
            return
        path = f"{at}.{name}" if at else name
        label = path if path in self._rules else f"*.{name}"
        rule = self._rules.get(label)
        if value is None and rule is not None:
            return
        if rule is None and self._strict:
            raise BadField(_written(way), "is not a supported field", known=_written(way and way[0]))
        if rule is None or rule.ignored:
            self._ignored[path] = label if rule is not None else OTHER
            self._unknown.add((at, name))
        elif not rule.accepts(value):
            raise BadField(_written(way), rule.description)


def _written(way: _Way) -> str:
    """Return a path with its positions, such as `messages[3].content`."""
    steps: list[str] = []
    while way is not None:
        way, step = way
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return "".join(reversed(steps)).lstrip(".")
