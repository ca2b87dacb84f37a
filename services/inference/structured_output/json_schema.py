"""Prepares a JSON schema for llguidance: refuses what it would ignore, with the place, and rewrites what it reads differently.  Pure.

Answers have at most one space after `:` and `,`, properties in the schema's order, and no additional properties unless
additionalProperties allows them. Without `type`, other keywords imply it. oneOf works like anyOf. Annotations are left out.
"""

import math
import re
import sys
from collections import deque
from collections.abc import Mapping
from fractions import Fraction
from typing import cast
from urllib.parse import unquote

import msgspec

from services.inference.structured_output.lark import FormatRefused

#: What msgspec decodes JSON to.
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Schema = dict[str, Json]

#: SECURITY.md, T6. Real tool schemas have a few kilobytes, mostly descriptions.
MAX_BYTES = 64 * 1024
#: Nesting depth of subschemas; a $ref starts at 0 again. And of values in const and enum: serde_json stops at 128.
MAX_DEEP = 16
MAX_SUBSCHEMAS = 500
#: In one enum, and in all together.
MAX_ENUM_VALUES = 500
MAX_VALUES = 1000
#: The largest minLength, minItems and minProperties.
MAX_REPEATS = 1000
MAX_PATTERN_CHARACTERS = 256
#: llguidance compares each with each.
MAX_PATTERNS = 16
#: The least common multiple of all multipleOf, in units of the finest: allOf may combine them, and it has as many states.
MAX_MULTIPLE = 10_000
MAX_UNIT = 1_000_000

#: Keywords whose values are one schema, a list of them, or schemas by name.
_ONE = {"items", "additionalProperties"}
_LISTS = {"allOf", "anyOf", "oneOf", "prefixItems"}
_NAMED = {"properties", "patternProperties"}
_COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_BOUNDS = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties"), ("minimum", "maximum"))
#: Keywords that assert something and that llguidance does not support.
UNSUPPORTED = {
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "contains", "minContains", "maxContains"),
    *("uniqueItems", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef", "extends", "disallow", "divisibleBy"),
    #: An option of llguidance's own, which could switch checks off.
    "x-guidance",
}
_DATE = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_DAYS = "([0-9]+Y([0-9]+M([0-9]+D)?)?|[0-9]+M([0-9]+D)?|[0-9]+D)"
_HOURS = "T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S)"
_HOST = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = "[0-9A-Fa-f]{1,4}"
#: With what a text of the format matches.
FORMATS = {
    "date-time": f"{_DATE}[tT]{_TIME}",
    "time": _TIME,
    "date": _DATE,
    "duration": f"P([0-9]+W|{_DAYS}({_HOURS})?|{_HOURS})",
    "email": rf"{_ATOM}(\.{_ATOM})*@{_HOST}(\.{_HOST})*",
    "hostname": rf"{_HOST}(\.{_HOST})*",
    "ipv4": rf"({_OCTET}\.){{3}}{_OCTET}",
    "ipv6": "|".join((
        *(f"({_HEX}:){{1,{7 - count}}}(:{_HEX}){{1,{count}}}" for count in range(1, 7)),
        *(f"({_HEX}:){{7}}{_HEX}", f"({_HEX}:){{1,7}}:", f":(:{_HEX}){{1,7}}", "::"),
    )),
    "uuid": "[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:([!#$&'()*+,/:;=?@\[\]A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+",
}  # fmt: skip
_KEYWORDS_BY_TYPE = {
    "object": {"properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": _NUMBERS,
}
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
#: Keywords about the same value as the schema that contains them.
_IN_PLACE = {"allOf", "anyOf", "oneOf", "$ref"}
_LOOK_AROUND = re.compile(r"\(\?<?[=!]")
#: The pieces of a regular expression: an escape, a class, or another character. Those that match a place are only supported at the ends.
_PIECES = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|.", re.DOTALL)
_PLACES = {"^", "$", r"\b", r"\B", r"\A", r"\z", r"\Z"}
#: As in JavaScript.
_ASCII = {r"\d": "0-9", r"\w": "0-9A-Za-z_"}
_OPTIONS: Schema = {
    "item_separator": ", ?",
    "key_separator": ": ?",
    "whitespace_flexible": False,
    "coerce_one_of": True,
    # Without \u, which could write half of a character.
    "json_allowed_escapes": 'nrbtf\\"',
}


def prepared(text: str, pointer: str = "") -> str:
    """Return a schema, or what a JSON pointer leads to in it, as JSON for llguidance. Raises FormatRefused, which names the place."""
    size = len(text.encode("utf-8", "replace"))
    if size > MAX_BYTES:
        raise FormatRefused(f"the schema has {size} bytes, at most {MAX_BYTES}")
    try:
        document: Json = msgspec.json.decode(text.encode("utf-8", "replace"))
    except (msgspec.DecodeError, RecursionError) as error:
        raise FormatRefused(f"the schema is not valid JSON: {error}") from error
    return msgspec.json.encode(_Preparation(document).run({"$ref": f"#{pointer}"} if pointer else document)).decode()


class _Preparation:
    """The preparation of one schema."""

    def __init__(self, document: Json) -> None:
        self._document = document
        #: $ref, and whether its target stays open -> name of its definition.
        self._references: dict[tuple[str, bool], str] = {}
        #: Definitions that aren't prepared yet: name, schema, path, is_open.
        self._waiting: deque[tuple[str, Json, str, bool]] = deque()
        self._subschemas = 0
        self._values = 0
        self._multiples: set[Fraction] = set()

    def run(self, schema: Json) -> Schema:
        root = self._prepare(schema, "$", 0)
        if root is False:
            raise FormatRefused("$: no value fits `false`")
        definitions: Schema = {}
        while self._waiting:
            name, schema, path, is_open = self._waiting.popleft()
            definitions[name] = self._prepare(schema, path, 0, is_open=is_open)
        rest: Schema = {"$defs": definitions} if definitions else {}
        return {**(root if isinstance(root, dict) else {}), **rest, "x-guidance": _OPTIONS}

    def _prepare(self, schema: Json, path: str, depth: int, *, is_open: bool = False) -> Json:
        """``is_open``: the schema is one of several for the same value, so the others may have further properties."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise FormatRefused(f"{path}: a schema must be an object, true or false")
        self._enter(path, depth)
        schema = _modern({key: value for key, value in schema.items() if value is not None or key == "const"}, path)
        is_shared = is_open or bool(schema.keys() & _IN_PLACE and schema.keys() - _IN_PLACE) or len(list_of(schema.get("allOf"))) > 1
        found: Schema = {}
        for keyword, value in schema.items():
            if (kept := self._keyword(schema, keyword, f"{path}.{keyword}", depth, is_open=is_shared)) is not None or value is None:
                found[keyword] = kept
        _check_bounds(found, path)
        if types := _types(schema, path):
            found["type"] = cast("Json", types)
        if "properties" in found and not is_open and _is_closed(schema):
            _close(found)
        return found

    def _enter(self, path: str, depth: int) -> None:
        self._subschemas += 1
        if self._subschemas > MAX_SUBSCHEMAS:
            raise FormatRefused(f"{path}: more than {MAX_SUBSCHEMAS} subschemas, counted with those that $ref leads to")
        if depth > MAX_DEEP:
            raise FormatRefused(f"{path}: nested deeper than {MAX_DEEP} subschemas")

    def _keyword(self, schema: Schema, keyword: str, path: str, depth: int, *, is_open: bool) -> Json:
        """Return the prepared value of a keyword; None for one without effect."""
        value = schema[keyword]
        if keyword in _ONE:
            return self._prepare(value, path, depth + 1)
        if keyword in _LISTS:
            inner = is_open and keyword in _IN_PLACE
            listed = enumerate(_elements(value, path))
            return [self._prepare(one, f"{path}[{index}]", depth + 1, is_open=inner) for index, one in listed]
        if keyword in _NAMED:
            return self._named(value, keyword, path, depth)
        if keyword == "$ref":
            return self._refer(value, path, is_open=is_open)
        counted = {"enum": self._enum, "multipleOf": self._multiple}.get(keyword)
        return _plain(schema, keyword, path) if counted is None else counted(value, path)

    def _named(self, value: Json, keyword: str, path: str, depth: int) -> Json:
        if not isinstance(value, dict):
            raise FormatRefused(f"{path} must be an object")
        if keyword == "patternProperties":
            if len(value) > MAX_PATTERNS:
                raise FormatRefused(f"{path} has {len(value)} patterns, at most {MAX_PATTERNS}")
            for pattern in value:
                _check_pattern(pattern, path)
        return {name: self._prepare(one, f"{path}.{name}", depth + 1) for name, one in value.items()}

    def _refer(self, reference: Json, path: str, *, is_open: bool) -> Json:
        if not isinstance(reference, str):
            raise FormatRefused(f"{path} must be a string")
        if (reference, is_open) not in self._references:
            target = _target(self._document, reference, path)
            self._references[reference, is_open] = name = f"r{len(self._references)}"
            at = "$" + reference.removeprefix("#").replace("/", ".")
            self._waiting.append((name, target, at, is_open))
        return f"#/$defs/{self._references[reference, is_open]}"

    def _multiple(self, value: Json, path: str) -> float:
        number = _number(value, path)
        if not 0 < number <= MAX_MULTIPLE:
            raise FormatRefused(f"{path} must be more than 0, and at most {MAX_MULTIPLE}")
        self._multiples.add(Fraction(str(number)))
        unit = math.lcm(*(one.denominator for one in self._multiples))
        if unit > MAX_UNIT or math.lcm(*(int(one * unit) for one in self._multiples)) > MAX_MULTIPLE:
            raise FormatRefused(f"{path}: the values of multipleOf in this schema have too large a common multiple")
        return number

    def _enum(self, value: Json, path: str) -> Json:
        values = _elements(value, path)
        if len(values) > MAX_ENUM_VALUES:
            raise FormatRefused(f"{path} has {len(values)} values, at most {MAX_ENUM_VALUES}")
        self._values += len(values)
        if self._values > MAX_VALUES:
            raise FormatRefused(f"{path}: more than {MAX_VALUES} values in all enums of the schema")
        for one in values:
            _check_value(one, path)
        return values


def _elements(value: Json, path: str) -> list[Json]:
    if not isinstance(value, list) or not value:
        raise FormatRefused(f"{path} must be a list with at least one element")
    return value


def _target(document: Json, reference: str, path: str) -> Json:
    """Only places of this very schema: nothing is fetched."""
    pointer, found = reference.removeprefix("#"), document
    if not reference.startswith("#") or (pointer and not pointer.startswith("/")):
        raise FormatRefused(f"{path}: {reference!r} must point into this schema, as #/$defs/name does")
    for part in pointer.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and len(name) < 6 and int(name) < len(found):
            found = found[int(name)]
        else:
            raise FormatRefused(f"{path}: {reference!r} points to nothing")
    return found


def resolved(document: Json, pointer: str) -> tuple[str, Schema]:
    """Follow the references of the schema at a JSON pointer. Return where they lead to; an empty schema if that is nowhere."""
    found: Json = None
    for _ in range(MAX_DEEP):
        try:
            found = _target(document, f"#{pointer}", "$")
        except FormatRefused:
            break
        if not isinstance(found, dict) or not isinstance(reference := found.get("$ref"), str):
            break
        pointer, found = reference.removeprefix("#"), None
    return pointer, found if isinstance(found, dict) else {}


def _modern(schema: Schema, path: str) -> Schema:
    """Rewrite what older drafts, OpenAPI and zod write. Raises FormatRefused for an unsupported keyword."""
    if impossible := sorted(UNSUPPORTED & schema.keys()):
        raise FormatRefused(f"{path}: `{impossible[0]}` is not supported; leave it out or use other keywords")
    found = dict(schema)
    if isinstance(found.get("items"), list):
        found["prefixItems"] = found.pop("items")
        if "additionalItems" in found:
            found["items"] = found.pop("additionalItems")
    if "prefixItems" in found:
        found.setdefault("items", False)
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(found.get(exclusive), bool) and found.pop(exclusive) and bound in found:
            found[exclusive] = found.pop(bound)
    # In draft 3, it doesn't concern this schema's properties.
    if isinstance(found.get("required"), bool):
        del found["required"]
    _rewrite_nullable(found, path)
    _rewrite_property_names(found, path)
    return found


def _rewrite_nullable(found: Schema, path: str) -> None:
    if found.pop("nullable", False) is True:
        if "type" not in found:
            raise FormatRefused(f"{path}: `nullable` needs `type` beside it")
        types: list[Json] = found["type"] if isinstance(found["type"], list) else [found["type"]]
        found["type"] = types if "null" in types else [*types, "null"]


def _rewrite_property_names(found: Schema, path: str) -> None:
    if (names := found.pop("propertyNames", True)) in (True, {}, {"type": "string"}):
        return
    pattern = names.get("pattern") if isinstance(names, dict) and names.keys() <= {"type", "pattern"} else None
    if not isinstance(pattern, str) or found.keys() & {"properties", "patternProperties"}:
        raise FormatRefused(f"{path}: `propertyNames` is only supported with `pattern`, and not beside `properties`")
    found["patternProperties"] = {pattern: found.get("additionalProperties", True)}
    found["additionalProperties"] = False


def _plain(schema: Schema, keyword: str, path: str) -> Json:
    """Return the checked value of a keyword without subschemas; None for an annotation."""
    value = schema[keyword]
    if keyword in _COUNTS:
        return _count(value, path, is_least=keyword.startswith("min"))
    if keyword in _NUMBERS:
        return _number(value, path)
    if keyword == "required" and (not isinstance(value, list) or not all(isinstance(name, str) for name in value)):
        raise FormatRefused(f"{path} must be a list of strings")
    if keyword == "const":
        _check_value(value, path)
    if keyword in ("required", "const"):
        return value
    if keyword == "format":
        return _format(schema, path)
    return _check_pattern(value, path) if keyword == "pattern" else None


def _number(value: Json, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise FormatRefused(f"{path} must be a number")
    return value


def _check_bounds(found: Schema, path: str) -> None:
    for least, most in _BOUNDS:
        if least in found and most in found and cast("float", found[least]) > cast("float", found[most]):
            raise FormatRefused(f"{path}: {least} {found[least]} is above {most} {found[most]}")


def _types(schema: Schema, path: str) -> list[str]:
    """Return the types that a value may have; empty if the schema doesn't restrict them."""
    declared = schema.get("type")
    if declared is None:
        is_fixed = schema.keys() & {"const", "enum", "$ref"}
        return [] if is_fixed else [name for name, implying in _KEYWORDS_BY_TYPE.items() if implying & schema.keys()]
    types = declared if isinstance(declared, list) else [declared]
    if not types or not all(isinstance(name, str) and name in TYPES for name in types):
        raise FormatRefused(f"{path}.type must be one of {', '.join(TYPES)}, or a list of some of them")
    return cast("list[str]", types)


def _is_closed(schema: Schema) -> bool:
    """Whether the schema has all properties of its value: none are in the schemas beside it."""
    parts = [part for keyword in ("allOf", "anyOf", "oneOf") for part in list_of(schema.get(keyword))]
    elsewhere = _IN_PLACE | {"properties", "patternProperties", "additionalProperties"}
    beside = any(isinstance(part, dict) and part.keys() & elsewhere for part in parts)
    return not beside and not schema.keys() & {"$ref", "additionalProperties", "patternProperties"}


def _close(found: Schema) -> None:
    properties, required = cast("Schema", found["properties"]), cast("list[str]", found.get("required", []))
    found["properties"] = {**properties, **{name: True for name in required if name not in properties}}
    found["additionalProperties"] = False


def list_of(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _count(value: Json, path: str, *, is_least: bool) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FormatRefused(f"{path} must be a non-negative whole number")
    if is_least and value > MAX_REPEATS:
        raise FormatRefused(f"{path}: {value} is more than the maximum of {MAX_REPEATS}")
    return min(value, 2**31)


def _check_pattern(value: Json, path: str) -> str:
    if not isinstance(value, str):
        raise FormatRefused(f"{path} must be a string")
    if len(value) > MAX_PATTERN_CHARACTERS:
        raise FormatRefused(f"{path} has {len(value)} characters, at most {MAX_PATTERN_CHARACTERS}")
    if _LOOK_AROUND.search(value):
        raise FormatRefused(f"{path}: look-around is not supported")
    return value


def regexes(schema: Schema, path: str) -> list[str]:
    """Return what a whole text must match that has these keywords. Raises FormatRefused."""
    if schema.get("type", "string") != "string":
        return []
    found = [_whole(_check_pattern(schema["pattern"], path), path)] if "pattern" in schema else []
    return [*found, FORMATS[kind]] if "format" in schema and (kind := _format(schema, path)) else found


def _whole(pattern: str, path: str) -> str:
    """Rewrite what is searched in a text for the whole text."""
    alternatives: list[list[str]] = [[]]
    depth = 0
    for piece in _PIECES.findall(pattern):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and not depth:
            alternatives.append([])
        elif piece in _ASCII:
            alternatives[-1].append(f"[{_ASCII[piece]}]")
        else:
            is_class = piece.startswith("[")
            alternatives[-1].append(re.sub(r"\\.", lambda found: _ASCII.get(found[0], found[0]), piece) if is_class else piece)
    written = []
    for pieces in alternatives:
        begins, ends = pieces[:1] == ["^"], pieces[-1:] == ["$"]
        inside = pieces[begins : len(pieces) - ends]
        if _PLACES.intersection(inside):
            raise FormatRefused(f"{path}.pattern: ^ and $ are only supported at its ends, and \\b isn't")
        written.append(f"{'' if begins else '(?s:.*)'}{''.join(inside)}{'' if ends else '(?s:.*)'}")
    return "|".join(written)


def _format(schema: Schema, path: str) -> str | None:
    """A format restricts only strings."""
    value, types = schema["format"], schema.get("type", "string")
    if types != "string" and not (isinstance(types, list) and "string" in types):
        return None
    if value not in FORMATS:
        raise FormatRefused(f"{path} must be one of {', '.join(FORMATS)}, not {value!r}")
    return str(value)


def _check_value(value: Json, path: str, depth: int = 0) -> None:
    if depth > MAX_DEEP:
        raise FormatRefused(f"{path}: a value is nested deeper than {MAX_DEEP} levels")
    if isinstance(value, int | float) and not _is_finite(value):
        raise FormatRefused(f"{path}: a number is too large")
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _check_value(inner, path, depth + 1)


def _is_finite(value: float) -> bool:
    """Also of whole numbers, which may be too large for a float."""
    return abs(value) <= sys.float_info.max
