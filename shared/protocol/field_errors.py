"""Says in our words what msgspec finds wrong with a message: the field, and what its type allows there. Pure.

A form or a command knows the request and the field of a value, and asks here for its bounds.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from shared import errors

T = TypeVar("T")

_AT = re.compile(r"(?P<what>.*?) - at (?P<key>`key` in )?`\$\.?(?P<path>.*)`$", re.DOTALL)
_FIELD = re.compile(r"Object (?P<what>contains unknown|missing required) field `(?P<field>[^`]*)`")
#: Of msgspec's words.
_MAX_SAID = 200
#: The largest number that every part of a message may be.
_WIRE_MAX = 2**63 - 1
_STEP = re.compile(r"[^.\[]+|\[[^\]]*\]")
_KINDS: dict[str, type] = {
    "Expected `int` ": inspect.IntType, "Expected `float` ": inspect.FloatType, "Expected `str` ": inspect.StrType,
    "Expected `array` ": inspect.CollectionType, "Expected `object` ": inspect.DictType,
}  # fmt: skip


class Mistake(NamedTuple):
    #: The path of the invalid field; "" for the whole message.
    field: str
    #: The rest of a sentence that says what it must be.
    must: str
    #: The path without a name that the sender made up.
    known: str


def explain(error: msgspec.ValidationError, kind: type) -> Mistake:
    """Return what is wrong with a message that should be a ``kind``."""
    at = _AT.match(str(error))
    what, path = (at["what"], at["path"]) if at else (str(error), "")
    if field := _FIELD.match(what):
        name = f"{path}.{field['field']}" if path else field["field"]
        is_unknown = field["what"] == "contains unknown"
        return Mistake(name, "is not a supported field" if is_unknown else "is missing", path if is_unknown else name)
    if len(what) > _MAX_SAID:
        what = f"{what[:_MAX_SAID]}…"  # it has the sender's text
    lowered = what[:1].lower() + what[1:]
    if at and at["key"]:
        return Mistake(path, f"has an invalid key: {lowered}", path)
    found = [each for each in _find_types(_type_info(kind), _STEP.findall(path)) if not isinstance(each, inspect.NoneType)]
    if len(found) > 1:
        found = [each for each in found for words, of_words in _KINDS.items() if isinstance(each, of_words) and what.startswith(words)]
    must = _bounds(found[0], what) if found else ""
    if not path:
        return Mistake("", must or what, "")
    if must:
        of_each = path.removesuffix("[...]")  # msgspec names no keys
        return Mistake(of_each, must if of_each == path else f"{must} for each entry", of_each)
    return Mistake(path, f"is invalid: {lowered}", path)


def convert(field: str, value: object, kind: type[T], refuse: Callable[[str, str], errors.BadRequest]) -> T:
    """Convert the value of one field. Raises what ``refuse`` returns for the field and what it must be."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise refuse(field, explain(error, kind).must) from error


def sentence(error: msgspec.ValidationError, kind: type) -> str:
    field, must, _ = explain(error, kind)
    return f"{field} {must}".strip()


def type_of(kind: type[msgspec.Struct], field: str) -> Any:
    """Return the annotation of a field of this message."""
    return next(each.type for each in msgspec.structs.fields(kind) if each.name == field)


def bounds_of(kind: type[msgspec.Struct], field: str) -> inspect.Type:
    """Return the type of a field, or of each of its entries, without None."""
    found = next(each for each in _find_types(_type_info(type_of(kind, field)), ()) if not isinstance(each, inspect.NoneType))
    return found.item_type if isinstance(found, inspect.CollectionType) else found


@lru_cache(maxsize=512)  # the requests of all methods and routes
def _type_info(kind: type) -> inspect.Type:
    return inspect.type_info(kind)


def _find_types(info: inspect.Type, steps: Sequence[str]) -> Iterator[inspect.Type]:
    """Return the types that a value at this path may have."""
    match info:
        case inspect.Metadata():
            yield from _find_types(info.type, steps)
        case inspect.UnionType():
            for each in info.types:
                yield from _find_types(each, steps)
        case _ if not steps:
            yield info
        case inspect.StructType():
            for field in info.fields:
                if field.encode_name == steps[0]:
                    yield from _find_types(field.type, steps[1:])
        case inspect.DictType():
            yield from _find_types(info.value_type, steps[1:])
        case inspect.CollectionType():
            yield from _find_types(info.item_type, steps[1:])


def _bounds(info: inspect.Type, what: str) -> str:
    """Return what a value of this type must be; "" if it has no bounds, or if a value with a length has the wrong type."""
    match info:
        case inspect.EnumType() | inspect.LiteralType() if what.startswith("Invalid enum value"):
            words = info.values if isinstance(info, inspect.LiteralType) else [each.value for each in info.cls]
            return f"must be one of {', '.join(map(str, words))}"
        case inspect.IntType() | inspect.FloatType():
            number, show = ("a whole number", str) if isinstance(info, inspect.IntType) else ("a number", "{:.15g}".format)
            # What the wire can carry bounds only the values beyond it.
            most = None if info.le == _WIRE_MAX and "<=" not in what else info.le
            bounds = {"at least": info.ge, "above": info.gt, "at most": most, "below": info.lt}
            said = {how: show(bound) for how, bound in bounds.items() if bound is not None}
            if list(said) == ["at least", "at most"]:
                return f"must be {number} from {said['at least']} to {said['at most']}"
            return f"must be {number} that is {' and '.join(map(' '.join, said.items()))}" if said else ""
        case inspect.StrType() | inspect.CollectionType() | inspect.DictType() if " of length " in what:
            return _lengths(info, what)
    return ""


def _lengths(info: inspect.StrType | inspect.CollectionType | inspect.DictType, what: str) -> str:
    if what.endswith(" >= 1"):
        return "is empty"
    unit = "characters" if isinstance(info, inspect.StrType) else "entries"
    if info.min_length and info.max_length is not None:
        return f"must have {info.min_length} to {info.max_length} {unit}"
    return f"must have at least {info.min_length} {unit}" if info.min_length else f"must have at most {info.max_length} {unit}"
