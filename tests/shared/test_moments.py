"""A time that crosses a wire has a zone: one without is refused where it arrives, and raises nowhere later."""

import importlib
import pkgutil
from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

import msgspec
import pytest
from msgspec import inspect

import cli
import features
import services
import shared
import stack
from shared.api.inference import Receipt
from shared.types import RequestId

#: Unions that only hold structs of ours, and are never decoded.
NEVER_DECODED = {"KeptAnswer", "Done", "Admitted"}


def structs(kind: type[msgspec.Struct] = msgspec.Struct) -> Iterator[type[msgspec.Struct]]:
    for one in kind.__subclasses__():
        yield one
        yield from structs(one)


def is_naive(found: inspect.Type) -> bool:
    """Return whether a type has a time without a zone; the fields of other structs are their own."""
    if isinstance(found, inspect.DateTimeType):
        return found.tz is not True
    if isinstance(found, inspect.StructType | inspect.DataclassType):
        return False
    parts = [getattr(found, name, ()) for name in ("types", "item_type", "item_types", "key_type", "value_type", "type")]
    all_parts = [part for each in parts for part in (each if isinstance(each, tuple) else (each,))]
    return any(is_naive(part) for part in all_parts if isinstance(part, inspect.Type))


def test_every_time_of_every_struct_has_a_zone() -> None:
    for package in (shared, services, features, cli, stack):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    ours = {one for one in structs() if one.__module__.partition(".")[0] in {"shared", "services", "features", "cli", "stack"}}
    unknown, naive = set(), []
    for one in ours:
        try:
            info = inspect.type_info(one)
        except TypeError:
            unknown.add(one.__name__)
            continue
        assert isinstance(info, inspect.StructType)
        naive += [f"{one.__module__}.{one.__qualname__}.{each.name}" for each in info.fields if is_naive(each.type)]
    assert len(ours) > 500
    assert naive == [], "say Moment, not datetime"
    assert unknown == NEVER_DECODED


def test_a_receipt_without_a_zone_is_refused() -> None:
    text = msgspec.msgpack.encode(Receipt(RequestId(UUID(int=1)), 1, 0, 1, "stop", datetime(2026, 1, 1)))  # noqa: DTZ001
    with pytest.raises(msgspec.ValidationError, match="timezone"):
        msgspec.msgpack.decode(text, type=Receipt)
