"""Writes strings and numbers of a JSON schema as GBNF.  Pure."""

import math
from collections.abc import Callable

from services.inference.structured_output import gbnf, keywords, patterns
from services.inference.structured_output.gbnf import SchemaRefused
from services.inference.structured_output.keywords import Schema

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

#: The most digits of a bound, as JavaScript's largest integers have; schemas of zod name them. A longer bound is ignored.
MOST_DIGITS = 16
#: The most digits of an integer, so that a model can't write them forever; 64 bits have 19.
MOST_WRITTEN_DIGITS = 19

_BEYOND = int("1" + "0" * MOST_DIGITS)
_ANY_FRACTION = '("." [0-9]{1,15})?'
_NO_FRACTION = '("." "0"{1,3})?'


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
    return between(low, high)


def number(schema: Schema, path: str, rules: gbnf.GbnfRules) -> str:
    """Round bounds outward to whole numbers and treat exclusive ones as inclusive: exact decimals would need an endless grammar."""
    low = _bound(schema, path, _LOW, math.floor, 0)
    high = _bound(schema, path, _HIGH, math.ceil, 0)
    if low is None and high is None:
        return rules.built_in("number")
    _check(low, high, path)
    return real_between(low, high)


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
    return stricter if is_written_out(stricter) else None


def _check(low: int | None, high: int | None, path: str) -> None:
    if low is not None and high is not None and low > high:
        raise SchemaRefused(f"{path}: there is no number from {low} to {high}")


def is_written_out(bound: int) -> bool:
    return abs(bound) < _BEYOND


def between(low: int | None, high: int | None) -> str:
    """Match exactly the integers from ``low`` to ``high``, without leading zeros. None is no bound; low must not exceed high."""
    alternatives = []
    if low is None or low < 0:
        most = None if low is None else -low
        least = 1 if high is None or high >= 0 else -high
        if most is None or least <= most:
            alternatives.append('"-" ' + gbnf.one_of(_magnitudes(least, most)))
    if high is None or high >= 0:
        alternatives += _magnitudes(max(low or 0, 0), high)
    return gbnf.one_of(alternatives)


def real_between(low: int | None, high: int | None) -> str:
    """Match the numbers from ``low`` to ``high`` with up to 15 decimals."""
    alternatives = []
    if low is None or low < 0:
        alternatives.append('"-" ' + _real_magnitudes(max(0, -high) if high is not None else 0, None if low is None else -low))
    if high is None or high >= 0:
        alternatives.append(_real_magnitudes(max(low or 0, 0), high))
    return gbnf.one_of(alternatives)


def _real_magnitudes(least: int, most: int | None) -> str:
    if most is None:
        return f"{gbnf.one_of(_magnitudes(least, None))} {_ANY_FRACTION}"
    at_the_end = f"{gbnf.literal(str(most))} {_NO_FRACTION}"
    if least >= most:
        return at_the_end
    return gbnf.one_of([f"{gbnf.one_of(_magnitudes(least, most - 1))} {_ANY_FRACTION}", at_the_end])


def _magnitudes(least: int, most: int | None) -> list[str]:
    """Return alternatives for non-negative integers from ``least`` to ``most``."""
    shortest = len(str(least))
    longest = shortest if most is None else len(str(most))
    end = 10**shortest - 1 if most is None or longest > shortest else most
    alternatives = _same_length(str(least), str(end))
    if most is None:
        return [*alternatives, f"[1-9] [0-9]{{{shortest},{MOST_WRITTEN_DIGITS - 1}}}"]
    if longest - shortest > 1:
        alternatives.append(f"[1-9] [0-9]{{{shortest},{longest - 2}}}")
    if longest > shortest:
        alternatives += _same_length("1" + "0" * (longest - 1), str(most))
    return alternatives


def _same_length(low: str, high: str) -> list[str]:
    """Return alternatives for the strings of digits from ``low`` to ``high``, which have the same length."""
    rest = len(low) - 1
    if rest == 0:
        return [_digit(low, high)]
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return [f"{_digit(low[0], high[0])} [0-9]{{{rest}}}"]
    if low[0] == high[0]:
        return [f"{gbnf.literal(low[0])} {tail}" for tail in _same_length(low[1:], high[1:])]
    # Split off the incomplete first and last ranges; the range between them is complete.
    alternatives = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        alternatives += [f"{gbnf.literal(low[0])} {tail}" for tail in _same_length(low[1:], "9" * rest)]
        first += 1
    if high[1:] != "9" * rest:
        alternatives += [f"{gbnf.literal(high[0])} {tail}" for tail in _same_length("0" * rest, high[1:])]
        last -= 1
    if first <= last:
        alternatives.append(f"{_digit(str(first), str(last))} [0-9]{{{rest}}}")
    return alternatives


def _digit(low: str, high: str) -> str:
    return gbnf.literal(low) if low == high else f"[{low}-{high}]"
