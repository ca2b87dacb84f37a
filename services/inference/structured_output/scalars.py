"""Writes strings and numbers of a JSON schema as GBNF.  Pure."""

import math
from collections.abc import Callable

from services.inference.structured_output import gbnf, integers, keywords, patterns
from services.inference.structured_output.keywords import Schema
from services.inference.structured_output.schema_errors import SchemaRefused

#: Supported formats; the others are annotations, as JSON schema allows. `date` allows 31 days in any month, and `email` only common
#: forms.
_FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "date": ("date", ("date",)),
    "time": ("clock zone", ("clock", "zone")),
    "date-time": ('date "T" clock zone', ("date", "clock", "zone")),
    "uuid": ('hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}', ("hex",)),
    "email": ('local ("." local){0,4} "@" domain ("." domain){1,4}', ("local", "domain")),
    "ipv4": ('byte "." byte "." byte "." byte', ("byte",)),
}

_LOW = ("minimum", "exclusiveMinimum")
_HIGH = ("maximum", "exclusiveMaximum")


def string(schema: Schema, path: str, rules: gbnf.GbnfRules) -> str:
    if (pattern := keywords.text_of(schema, "pattern", path)) is not None:
        try:
            return rf'"\"" {patterns.content_of(pattern, rules)} "\""'
        except SchemaRefused as refused:
            raise SchemaRefused(f"{path}.pattern: {refused}") from None
    if (name := keywords.text_of(schema, "format", path)) in _FORMATS:
        content, needs = _FORMATS[name]
        for need in needs:
            rules.built_in(need)
        return rf'"\"" {content} "\""'
    least = keywords.count_of(schema, "minLength", path) or 0
    most = keywords.count_of(schema, "maxLength", path)
    if most is not None and least > most:
        raise SchemaRefused(f"{path}: minLength {least} is above maxLength {most}")
    if least > gbnf.MOST_REPEATS:
        raise SchemaRefused(f"{path}.minLength: {least} is more than the maximum of {gbnf.MOST_REPEATS}")
    if least == 0 and (most is None or most > gbnf.MOST_REPEATS):
        return rules.built_in("string")
    if most == 0:
        return r'"\"\""'
    return rf'"\"" {rules.repeated(rules.built_in("char"), least, most)} "\""'


def integer(schema: Schema, path: str, rules: gbnf.GbnfRules) -> str:
    low = _bound(schema, path, _LOW, math.ceil, 1)
    high = _bound(schema, path, _HIGH, math.floor, -1)
    if low is None and high is None:
        return rules.built_in("integer")
    _check(low, high, path)
    return integers.between(low, high)


def number(schema: Schema, path: str, rules: gbnf.GbnfRules) -> str:
    """Round bounds outward to whole numbers and treat exclusive ones as inclusive: exact decimals would need an endless grammar."""
    low = _bound(schema, path, _LOW, math.floor, 0)
    high = _bound(schema, path, _HIGH, math.ceil, 0)
    if low is None and high is None:
        return rules.built_in("number")
    _check(low, high, path)
    return integers.real_between(low, high)


def _bound(schema: Schema, path: str, names: tuple[str, str], rounded: Callable[[float], int], step: int) -> int | None:
    """Return the stricter of two keywords as a whole number; None if there is no bound."""
    inclusive, exclusive = names
    limit = keywords.number_of(schema, inclusive, path)
    found = [] if limit is None else [rounded(limit)]
    if isinstance(is_exclusive := schema.get(exclusive), bool):
        # Draft 4: a flag beside the inclusive keyword.
        if is_exclusive and limit is not None and limit == rounded(limit):
            found = [rounded(limit) + step]
    elif (beyond := keywords.number_of(schema, exclusive, path)) is not None:
        found.append(rounded(beyond) + (step if beyond == rounded(beyond) else 0))
    if not found:
        return None
    stricter = max(found) if names is _LOW else min(found)
    return stricter if integers.is_written_out(stricter) else None


def _check(low: int | None, high: int | None, path: str) -> None:
    if low is not None and high is not None and low > high:
        raise SchemaRefused(f"{path}: there is no number from {low} to {high}")
