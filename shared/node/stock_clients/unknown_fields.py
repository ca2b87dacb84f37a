"""Finds fields that a method does not have. Nodes ignore them, so that versions can mix; for a user they are typing mistakes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect


@dataclass(slots=True)
class _Shape:
    """Where fields are within a type. Types without any have no shape: looking at a million strings would stop the loop for seconds."""

    fields: "dict[str, _Shape | None] | None" = None
    tag: str | None = None
    item: "_Shape | None" = None
    #: The parts of a union. The contract has no union of two structs.
    others: "list[_Shape]" = field(default_factory=list)


def find_unknown_field(kind: type[msgspec.Struct], value: object) -> str | None:
    """The path of the first field of ``value``, as it was decoded without a type, that ``kind`` does not have."""
    shape = _shape_of(kind)
    return None if shape is None else _find(shape, value, "")


def _find(shape: _Shape, value: Any, path: str) -> str | None:
    if shape.fields is not None and isinstance(value, dict):
        for name, inner in value.items():
            if name == shape.tag:
                continue
            inner_path = f"{path}.{name}" if path else str(name)
            if name not in shape.fields:
                return inner_path
            if (inner_shape := shape.fields[name]) is not None and (found := _find(inner_shape, inner, inner_path)):
                return found
    if shape.item is not None and isinstance(value, list):
        for position, inner in enumerate(value):
            if found := _find(shape.item, inner, f"{path}.{position}"):
                return found
    return next((found for other in shape.others if (found := _find(other, value, path))), None)


@lru_cache(maxsize=512)
def _shape_of(kind: type[msgspec.Struct]) -> _Shape | None:
    return _compile(inspect.type_info(kind), {})


def _compile(kind: inspect.Type, known: dict[type, _Shape]) -> _Shape | None:
    match kind:
        case inspect.StructType():
            if kind.cls not in known:
                shape = known[kind.cls] = _Shape(fields={}, tag=kind.tag_field)
                shape.fields = {one.encode_name: _compile(one.type, known) for one in kind.fields}
            return known[kind.cls]
        case inspect.UnionType():
            others = list(_all(kind.types, known))
            return _Shape(others=others) if others else None
        case inspect.VarTupleType() | inspect.ListType():
            item = _compile(kind.item_type, known)
            return None if item is None else _Shape(item=item)
        case _:
            return None


def _all(kinds: tuple[inspect.Type, ...], known: dict[type, _Shape]) -> Iterator[_Shape]:
    for kind in kinds:
        if (shape := _compile(kind, known)) is not None:
            yield shape
