"""Finds fields that a method does not have. Nodes ignore them, so that versions can mix; for a user they are typing mistakes."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec

_type_info = lru_cache(maxsize=512)(msgspec.inspect.type_info)


def find_unknown_field(kind: type[msgspec.Struct], value: object) -> str | None:
    """The path of the first field of ``value``, as it was decoded without a type, that ``kind`` does not have."""
    return _find(_type_info(kind), value, "")


def _find(kind: msgspec.inspect.Type, value: object, path: str) -> str | None:
    for name, inner_kind, inner in _inner(kind, value):
        inner_path = f"{path}.{name}" if path and name else path or name
        if inner_kind is None:
            return inner_path
        if found := _find(inner_kind, inner, inner_path):
            return found
    return None


def _inner(kind: msgspec.inspect.Type, value: Any) -> Iterator[tuple[str, msgspec.inspect.Type | None, Any]]:
    """What is to be looked at within a value: its name, its type, itself. None is the type of a field that is unknown."""
    match kind, value:
        case msgspec.inspect.StructType(), dict():
            known = {field.encode_name: field.type for field in kind.fields}
            yield from ((name, known.get(name), inner) for name, inner in value.items() if name != kind.tag_field)
        case msgspec.inspect.UnionType(), _:
            # The contract has no union of two structs.
            yield from (("", one, value) for one in kind.types)
        case msgspec.inspect.VarTupleType() | msgspec.inspect.ListType(), list():
            yield from ((str(position), kind.item_type, inner) for position, inner in enumerate(value))
