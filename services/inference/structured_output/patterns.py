"""Writes a safe subset of regular expressions as GBNF, inside a JSON string.  Pure.

It supports literals, classes, groups, alternatives and repeats, but no lookaround, backreferences, word boundaries or flags. `^` and `$`
are only allowed at the ends of the pattern or of an outermost alternative; without them, any text may precede or follow.
"""

from dataclasses import dataclass

from services.inference.structured_output import gbnf
from services.inference.structured_output.gbnf import SchemaRefused

#: SECURITY.md, T6.
MOST_CHARACTERS = 256
#: The reader is recursive.
MOST_GROUPS_DEEP = 16

Ranges = list[tuple[int, int]]

_DIGIT: Ranges = [(0x30, 0x39)]
_WORD: Ranges = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_BLANK: Ranges = [(0x09, 0x0D), (0x20, 0x20)]
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _BLANK}
_CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "0": 0x00}
#: Characters that a JSON string must escape.
_JSON_ESCAPES = {0x22: '\\"', 0x5C: "\\\\", 0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0C: "\\f", 0x0D: "\\r"}
#: Characters that a JSON string need not escape: no control characters, quotes, backslashes or surrogates.
_PLAIN: Ranges = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, gbnf.LAST_CODE_POINT)]
_REFUSED_ESCAPES = {
    **dict.fromkeys("bB", "a word boundary"),
    **dict.fromkeys("pP", "a Unicode class"),
    **dict.fromkeys("AZz", "an anchor"),
    **dict.fromkeys("k123456789", "a backreference"),
}
_REFUSED_GROUPS = {"=": "a lookahead", "!": "a lookahead", "<": "a lookbehind or a named group", "P": "a named group"}


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a pattern, as GBNF."""

    text: str
    #: Such a part can't be repeated without a bound: for llama.cpp that is left recursion.
    may_be_empty: bool


def content_of(pattern: str, rules: gbnf.GbnfRules) -> str:
    """Write the content of a JSON string that matches the pattern, without quotes. Raises SchemaRefused."""
    if len(pattern) > MOST_CHARACTERS:
        raise SchemaRefused(f"has {len(pattern)} characters, at most {MOST_CHARACTERS}")
    return _PatternReader(pattern, rules).read()


class _PatternReader:
    def __init__(self, pattern: str, rules: gbnf.GbnfRules) -> None:
        self._pattern = pattern
        self._rules = rules
        self._at = 0

    def read(self) -> str:
        alternatives = [self._anchored()]
        while self._take("|"):
            alternatives.append(self._anchored())
        if self._at < len(self._pattern):
            raise self._refuse("`)` without `(`")
        return self._rules.place(gbnf.one_of(alternatives))

    def _anchored(self) -> str:
        anywhere = "" if self._take("^") else f"{self._rules.built_in('char')}* "
        text = self._sequence(0).text
        return f"{anywhere}{text}" if self._take("$") else f"{anywhere}{text} {self._rules.built_in('char')}*"

    def _alternatives(self, depth: int) -> _Part:
        parts = [self._sequence(depth)]
        while self._take("|"):
            parts.append(self._sequence(depth))
        return _Part(gbnf.one_of([part.text for part in parts]), any(part.may_be_empty for part in parts))

    def _sequence(self, depth: int) -> _Part:
        parts = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            if self._pattern[self._at] == "$" and self._pattern[self._at + 1 : self._at + 2] in ("", "|") and depth == 0:
                break
            parts.append(self._repeated(self._one(depth)))
        if not parts:
            return _Part('""', True)
        return _Part(" ".join(part.text for part in parts), all(part.may_be_empty for part in parts))

    def _repeated(self, part: _Part) -> _Part:
        bounds = self._bounds()
        if bounds is None:
            return part
        self._take("?")  # A lazy repeat matches the same texts.
        least, most = bounds
        if self._pattern[self._at : self._at + 1] in ("*", "+", "?") or self._bounds() is not None:
            raise self._refuse("a repeat of a repeat")
        endless = most is None or most > gbnf.MOST_REPEATS
        if part.may_be_empty and endless:
            raise self._refuse("an unbounded repeat of something that may be empty")
        if least > gbnf.MOST_REPEATS:
            raise self._refuse(f"more than {gbnf.MOST_REPEATS} repeats")
        if most == 0:
            return _Part('""', True)
        return _Part(self._rules.repeated(part.text, least, most), part.may_be_empty or least == 0)

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        end = self._pattern.find("}", self._at)
        if self._pattern[self._at : self._at + 1] != "{" or end < 0:
            return None
        low, comma, high = self._pattern[self._at + 1 : end].partition(",")
        if not _is_count(low) or (high and not _is_count(high)):
            return None
        self._at = end + 1
        least = int(low)
        most = least if not comma else int(high) if high else None
        if most is not None and most < least:
            raise self._refuse("a repeat whose maximum is below its minimum")
        return least, most

    def _one(self, depth: int) -> _Part:
        sign = self._pattern[self._at]
        if sign in "*+?":
            raise self._refuse(f"`{sign}` with nothing to repeat")
        if sign in "^$":
            raise self._refuse(f"`{sign}` in the middle")
        if sign == "(":
            return self._group(depth)
        if sign == "[":
            return _characters(self._class(), self)
        self._at += 1
        if sign == ".":
            return _characters(_without([(0x0A, 0x0A), (0x0D, 0x0D)]), self)
        ranges = self._escape() if sign == "\\" else [(ord(sign), ord(sign))]
        return _characters(ranges, self)

    def _group(self, depth: int) -> _Part:
        self._at += 1
        if depth == MOST_GROUPS_DEEP:
            raise self._refuse(f"groups nested deeper than {MOST_GROUPS_DEEP}")
        if self._take("?") and not self._take(":"):
            kind = _REFUSED_GROUPS.get(self._pattern[self._at : self._at + 1], "a flag")
            raise self._refuse(f"{kind} (`(?`)")
        part = self._alternatives(depth + 1)
        if not self._take(")"):
            raise self._refuse("`(` without `)`")
        return part

    def _class(self) -> Ranges:
        self._at += 1
        negated = self._take("^")
        ranges: Ranges = []
        first = True
        while first or not self._take("]"):
            first = False
            low = self._class_member()
            if self._pattern[self._at : self._at + 1] == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._class_member()
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or low[0][0] > high[0][0]:
                    raise self._refuse("a range in `[…]` that is out of order")
                ranges.append((low[0][0], high[0][1]))
            else:
                ranges += low
        return _without(ranges) if negated else ranges

    def _class_member(self) -> Ranges:
        if self._at >= len(self._pattern):
            raise self._refuse("`[` without `]`")
        sign = self._pattern[self._at]
        self._at += 1
        if sign == "\\":
            if self._take("b"):
                return [(0x08, 0x08)]
            return self._escape()
        return [(ord(sign), ord(sign))]

    def _escape(self) -> Ranges:
        sign = self._pattern[self._at : self._at + 1]
        if not sign:
            raise self._refuse("a backslash at the end")
        if sign in _REFUSED_ESCAPES:
            raise self._refuse(f"{_REFUSED_ESCAPES[sign]} (`\\{sign}`)")
        self._at += 1
        if sign.lower() in _CLASSES:
            ranges = _CLASSES[sign.lower()]
            return ranges if sign.islower() else _without(ranges)
        if sign in _CONTROLS:
            return [(_CONTROLS[sign], _CONTROLS[sign])]
        code_point = self._hexadecimal({"x": 2, "u": 4}[sign]) if sign in "xu" else ord(sign)
        if sign.isalnum() and sign not in "xu":
            raise self._refuse(f"the escape `\\{sign}`")
        return [(code_point, code_point)]

    def _hexadecimal(self, length: int) -> int:
        digits = self._pattern[self._at : self._at + length]
        if len(digits) < length or not set(digits) <= set("0123456789abcdefABCDEF"):
            raise self._refuse(f"an escape without its {length} hexadecimal digits")
        self._at += length
        return int(digits, 16)

    def _take(self, sign: str) -> bool:
        if self._pattern.startswith(sign, self._at):
            self._at += 1
            return True
        return False

    def _refuse(self, what: str) -> SchemaRefused:
        return SchemaRefused(f"{what} at character {self._at + 1} is not supported (only literals, classes, groups, |, repeats)")

    def refuse_empty(self) -> SchemaRefused:
        return self._refuse("a class without any character of a JSON string")


def _characters(ranges: Ranges, reader: _PatternReader) -> _Part:
    """Match one of these characters, as JSON spells it."""
    plain = _common(ranges, _PLAIN)
    alternatives = []
    if len(plain) == 1 and plain[0][0] == plain[0][1]:
        alternatives.append(gbnf.literal(chr(plain[0][0])))
    elif plain:
        alternatives.append(gbnf.character_class(plain))
    for code_point, escaped in _JSON_ESCAPES.items():
        if _common(ranges, [(code_point, code_point)]):
            alternatives.append(gbnf.literal(escaped))
    if not alternatives:
        raise reader.refuse_empty()
    return _Part(gbnf.one_of(alternatives), False)


def _common(first: Ranges, second: Ranges) -> Ranges:
    found = {(max(low, least), min(high, most)) for low, high in first for least, most in second if max(low, least) <= min(high, most)}
    return sorted(found)


def _without(ranges: Ranges) -> Ranges:
    others, start = [], 0
    for low, high in sorted(ranges):
        if start < low:
            others.append((start, low - 1))
        start = max(start, high + 1)
    return [*others, (start, gbnf.LAST_CODE_POINT)] if start <= gbnf.LAST_CODE_POINT else others


def _is_count(digits: str) -> bool:
    return digits.isascii() and digits.isdigit()
