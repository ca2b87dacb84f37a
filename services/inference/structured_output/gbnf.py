"""Writes GBNF: literals, classes, choices, repeats, and the rules of a grammar.  Pure.

An expression is text that can be part of a sequence; alternatives are in parentheses or in a rule.
"""

from itertools import groupby


class SchemaRefused(Exception):
    """The message, for the caller, has the place and the reason. `output_formats` turns it into a BadRequest with the field's name."""


#: Longer expressions get a rule, so that repeated text is written once and parentheses don't nest.
MOST_INLINE_CHARACTERS = 40
#: llama.cpp creates a rule for every optional repeat; a larger upper bound is dropped (SECURITY.md, T6).
MOST_REPEATS = 1000
#: How deep alternatives share prefixes. llama.cpp tries every alternative on the whole vocabulary, so a long enum without shared
#: prefixes would cost as much as a model.
MOST_SHARED_BEGINNINGS = 12
#: A text with a longer prefix in common with an excluded text is excluded too.
MOST_EXCLUDED_CHARACTERS = 12

LAST_CODE_POINT = 0x10FFFF

#: name -> body and the built-in rules that it uses. Repeats of blanks and digits are bounded, or a model could write them forever.
#: There are no \u escapes: UTF-8 doesn't need them, and half a surrogate pair would not be text.
_BUILT_IN: dict[str, tuple[str, tuple[str, ...]]] = {
    "gap": ('" "?', ()),
    "plain": (r'[^"\\\x00-\x1F]', ()),
    "char": (r'plain | "\\" ["\\/bfnrt]', ("plain",)),
    "string": (r'"\"" char* "\""', ("char",)),
    "whole": ('"0" | [1-9] [0-9]{0,18}', ()),
    "integer": ('"-"? whole', ("whole",)),
    "fraction": ('("." [0-9]{1,15})?', ()),
    "number": ('"-"? whole fraction ([eE] [+-]? [0-9]{1,2})?', ("whole", "fraction")),
    "boolean": ('"true" | "false"', ()),
    "null": ('"null"', ()),
    "member": (r'string ":" gap value', ("string", "gap", "value")),
    "object": (r'"{" (member ("," gap member)*)? "}"', ("member", "gap")),
    "array": ('"[" (value ("," gap value)*)? "]"', ("value", "gap")),
    "value": ("object | array | string | number | boolean | null", ("object", "array", "string", "number", "boolean", "null")),
    "year": ('"19" [0-9] [0-9] | "20" [0-9] [0-9]', ()),
    "month": ('"0" [1-9] | "1" [0-2]', ()),
    "day": ('"0" [1-9] | [12] [0-9] | "3" [01]', ()),
    "date": ('year "-" month "-" day', ("year", "month", "day")),
    "hour": ('[01] [0-9] | "2" [0-3]', ()),
    "sixty": ("[0-5] [0-9]", ()),
    "clock": ('hour ":" sixty ":" sixty ("." [0-9]{1,9})?', ("hour", "sixty")),
    "zone": ('"Z" | [+-] hour ":" sixty', ("hour", "sixty")),
    "hex": ("[0-9a-fA-F]", ()),
    "byte": ('"25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9] [0-9] | [0-9]', ()),
    "domain": ("[a-zA-Z0-9] [a-zA-Z0-9-]{0,30} [a-zA-Z0-9] | [a-zA-Z0-9]", ()),
    "local": ("[a-zA-Z0-9_%+-]{1,32}", ()),
}


def literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def character_class(ranges: list[tuple[int, int]]) -> str:
    """Return a class of these ranges of code points, inclusive."""
    return "[" + "".join(_spell(low) if low == high else f"{_spell(low)}-{_spell(high)}" for low, high in ranges) + "]"


def one_of(expressions: list[str]) -> str:
    """Return a choice of the distinct expressions."""
    different = list(dict.fromkeys(expressions))
    return different[0] if len(different) == 1 else "(" + " | ".join(different) + ")"


def choice(texts: list[str]) -> str:
    """Return a choice of exactly these texts."""
    return _share(sorted(set(texts)), 0)


class GbnfRules:
    """The rules of one grammar. Equal bodies share a rule."""

    def __init__(self) -> None:
        self._bodies: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._made = 0

    def reserve(self) -> str:
        """Return the name of a rule that is defined later."""
        self._made += 1
        return f"r{self._made}"

    def define(self, name: str, body: str) -> None:
        self._bodies[name] = body

    def named(self, body: str) -> str:
        """Return the name of the rule with this body."""
        if body not in self._names:
            self._names[body] = name = self.reserve()
            self.define(name, body)
        return self._names[body]

    def place(self, expression: str) -> str:
        return expression if len(expression) <= MOST_INLINE_CHARACTERS else self.named(expression)

    def built_in(self, name: str) -> str:
        waiting = [name]
        while waiting:
            wanted = waiting.pop()
            if wanted not in self._bodies:
                body, needs = _BUILT_IN[wanted]
                self.define(wanted, body)
                waiting.extend(needs)
        return name

    def repeated(self, expression: str, least: int, most: int | None) -> str:
        """Repeat an expression; an upper bound above MOST_REPEATS is dropped. A longer expression becomes a rule, because llama.cpp
        limits the rules inside a repeated group."""
        is_class = expression.startswith("[") and expression.endswith("]") and " " not in expression
        unit = expression if expression.isalnum() or is_class else self.named(expression)
        if most is None or most > MOST_REPEATS:
            return unit + {0: "*", 1: "+"}.get(least, f"{{{least},}}")
        return unit + ("?" if (least, most) == (0, 1) else f"{{{least}}}" if least == most else f"{{{least},{most}}}")

    def quoted_other_than(self, names: list[str]) -> str:
        """Return a JSON string without escapes other than these names."""
        self.built_in("plain")
        return self.place(r'"\"" ' + _differ(sorted(set(names)), 0) + r' "\""')

    def render(self, root: str) -> str:
        return "\n".join(f"{name} ::= {body}" for name, body in (("root", root), *self._bodies.items())) + "\n"


def _spell(code_point: int) -> str:
    if chr(code_point).isalnum() and code_point < 0x80:
        return chr(code_point)
    if code_point <= 0xFF:
        return f"\\x{code_point:02X}"
    return f"\\u{code_point:04X}" if code_point <= 0xFFFF else f"\\U{code_point:08X}"


def _share(texts: list[str], depth: int) -> str:
    """Write sorted texts with their shared prefixes written once."""
    if depth == MOST_SHARED_BEGINNINGS:
        return one_of([literal(text) for text in texts])
    ends_here = texts[0] == ""
    alternatives = []
    for _, group in groupby(texts[1:] if ends_here else texts, key=lambda text: text[0]):
        members = list(group)
        shared = _common_beginning(members[0], members[-1])
        if len(members) == 1:
            alternatives.append(literal(shared))
        else:
            alternatives.append(f"{literal(shared)} {_share([text[len(shared) :] for text in members], depth + 1)}")
    if not alternatives:
        return '""'
    if ends_here:
        return "(" + " | ".join(alternatives) + ")?"
    return alternatives[0] if len(alternatives) == 1 else "(" + " | ".join(alternatives) + ")"


def _common_beginning(first: str, last: str) -> str:
    """Return the common prefix of two texts, and so of all texts sorted between them."""
    length = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last)))
    return first[:length]


def _differ(names: list[str], depth: int) -> str:
    """Match any plain characters except these sorted names."""
    if not names:
        return "plain*"
    ends_here = names[0] == ""
    following = [name for name in names if name]
    firsts = sorted({name[0] for name in following if name[0] >= " " and name[0] not in '"\\'})
    excluded = "".join(_spell(ord(first)) for first in firsts)
    alternatives = [rf'[^"\\\x00-\x1F{excluded}] plain*']
    if depth < MOST_EXCLUDED_CHARACTERS:
        for first in firsts:
            rests = [name[1:] for name in following if name[0] == first]
            alternatives.append(f"{literal(first)} {_differ(rests, depth + 1)}")
    body = "(" + " | ".join(alternatives) + ")"
    return body if ends_here else body + "?"
