"""Match texts against GBNF, and generate texts from it, without llama.cpp. Small and slow, with its own GBNF parser."""

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from services.inference.structured_output import gbnf, grammar_limits, schema

_TOKENS = re.compile(
    r'"(?P<literal>(?:\\.|[^"\\])*)"|\[(?P<negated>\^?)(?P<members>(?:\\.|[^\]\\])*)\]'
    r"|(?P<name>[a-zA-Z0-9-]+)|(?P<repeat>[*+?]|\{\d+(?:,\d*)?\})|(?P<sign>[()|.])|(?P<space>[ \t]+)",
    re.DOTALL,
)
_MEMBER = re.compile(r"(\\x..|\\u....|\\U........|\\.|.)(?:-(\\x..|\\u....|\\U........|\\.|[^\]]))?", re.DOTALL)
_LAST = 0x10FFFF


def compact(value: object) -> str:
    """JSON as a grammar of ours has it written."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def grammar_of(wanted: object) -> str:
    """Of a schema, checked as that of a request is."""
    return grammar_of_text(json.dumps(wanted))


def grammar_of_text(text: str, *, before: str = "", after: str = "") -> str:
    rules = gbnf.GbnfRules()
    grammar = rules.render(schema.expression_of(text, rules, before=before, after=after))
    grammar_limits.check(grammar)
    return grammar


@dataclass(frozen=True)
class Literal:
    text: str


@dataclass(frozen=True)
class Class:
    ranges: tuple[tuple[int, int], ...]
    negated: bool

    def holds(self, character: str) -> bool:
        return any(low <= ord(character) <= high for low, high in self.ranges) != self.negated


@dataclass(frozen=True)
class Name:
    name: str


@dataclass(frozen=True)
class Repeat:
    one: "Element"
    least: int
    most: int | None


@dataclass(frozen=True)
class Choice:
    sequences: "tuple[tuple[Element, ...], ...]"


Element = Literal | Class | Name | Repeat | Choice
Grammar = dict[str, Choice]


@cache
def parsed(text: str) -> Grammar:
    rules: Grammar = {}
    for line in text.removesuffix("\n").split("\n"):
        name, _, body = line.partition(" ::= ")
        assert name not in rules
        tokens = [match for match in _TOKENS.finditer(body) if match.lastgroup != "space"]
        assert "".join(match[0] for match in _TOKENS.finditer(body)) == body, f"unreadable: {line}"
        rules[name], rest = _choice(tokens)
        assert not rest
    return rules


def _choice(tokens: list[re.Match[str]]) -> tuple[Choice, list[re.Match[str]]]:
    sequences: list[list[Element]] = [[]]
    while tokens and tokens[0][0] != ")":
        token, tokens = tokens[0], tokens[1:]
        if token["sign"] == "|":
            sequences.append([])
        elif token["sign"] == "(":
            group, tokens = _choice(tokens)
            assert tokens[0][0] == ")"
            tokens = tokens[1:]
            sequences[-1].append(group)
        elif token["repeat"]:
            sequences[-1].append(_repeat(sequences[-1].pop(), token["repeat"]))
        else:
            sequences[-1].append(_terminal(token))
    return Choice(tuple(tuple(sequence) for sequence in sequences)), tokens


def _repeat(one: Element, sign: str) -> Repeat:
    if sign in "*+?":
        return Repeat(one, *{"*": (0, None), "+": (1, None), "?": (0, 1)}[sign])
    low, comma, high = sign[1:-1].partition(",")
    return Repeat(one, int(low), int(high) if high else None if comma else int(low))


def _terminal(token: re.Match[str]) -> Element:
    if token["name"]:
        return Name(token["name"])
    if token["sign"] == ".":
        return Class(((0, _LAST),), False)
    if token["members"] is not None:
        ranges = [(_code(low), _code(high or low)) for low, high in _MEMBER.findall(token["members"])]
        return Class(tuple(ranges), bool(token["negated"]))
    return Literal("".join(chr(_code(part)) for part in re.findall(r"\\x..|\\u....|\\U........|\\.|.", token["literal"], re.DOTALL)))


def _code(spelled: str) -> int:
    if spelled[0] != "\\" or spelled == "\\":
        return ord(spelled)
    if spelled[1] in "xuU":
        return int(spelled[2:], 16)
    return ord({"n": "\n", "r": "\r", "t": "\t"}.get(spelled[1], spelled[1]))


def fits(grammar: str, text: str) -> bool:
    """Return whether the grammar allows the whole text."""
    return len(text) in _Matching(parsed(grammar), text).ends(Name("root"), 0)


class _Matching:
    """Where each element can end in one text, for every place where it can begin."""

    def __init__(self, rules: Grammar, text: str) -> None:
        self._rules = rules
        self._text = text
        self._known: dict[tuple[Element, int], frozenset[int]] = {}

    def ends(self, element: Element, at: int) -> frozenset[int]:
        if (element, at) not in self._known:
            self._known[element, at] = frozenset(self._find(element, at))
        return self._known[element, at]

    def _find(self, element: Element, at: int) -> Iterable[int]:
        match element:
            case Literal(literal):
                return [at + len(literal)] if self._text.startswith(literal, at) else []
            case Class():
                return [at + 1] if at < len(self._text) and element.holds(self._text[at]) else []
            case Name(name):
                return self.ends(self._rules[name], at)
            case Repeat():
                return self._repeated(element, at)
            case Choice(sequences):
                return {end for sequence in sequences for end in self._in_order(sequence, at)}

    def _in_order(self, sequence: tuple[Element, ...], at: int) -> set[int]:
        places = {at}
        for element in sequence:
            places = {end for place in places for end in self.ends(element, place)}
        return places

    def _repeated(self, repeat: Repeat, at: int) -> set[int]:
        places, found, count = {at}, set[int](), 0
        while places:
            if count >= repeat.least:
                places -= found
                found |= places
            if count == repeat.most:
                break
            places = {end for place in places for end in self.ends(repeat.one, place)}
            count += 1
        return found


def drawn(grammar: str, rng: random.Random) -> str:
    """Some text that the grammar allows; short where rules lead back to themselves."""
    rules = parsed(grammar)
    heights: dict[str, int] = {}
    for _ in rules:
        for name, choice in rules.items():
            if (height := _height(choice, heights)) is not None:
                heights[name] = min(heights.get(name, height), height)
    return _draw(rules["root"], rules, heights, rng, 0)


def _height(element: Element, heights: dict[str, int]) -> int | None:
    """How many rules deep the shortest way through goes; None where no way is known yet."""
    match element:
        case Name(name):
            return heights[name] + 1 if name in heights else None
        case Repeat(one, least, _):
            return _height(one, heights) if least else 0
        case Choice(sequences):
            ways = [[_height(part, heights) for part in sequence] for sequence in sequences]
            whole = [max([part for part in way if part is not None], default=0) for way in ways if None not in way]
            return min(whole) if whole else None
        case _:
            return 0


def _draw(element: Element, rules: Grammar, heights: dict[str, int], rng: random.Random, depth: int) -> str:
    go: Callable[[Element], str] = lambda part: _draw(part, rules, heights, rng, depth + 1)  # noqa: E731 - one line, used below
    match element:
        case Literal(literal):
            return literal
        case Class(ranges, negated):
            if negated:
                return rng.choice([character for character in "abcxyzäß中🦊 09-_" if element.holds(character)])
            return chr(rng.randint(*rng.choice(ranges)))
        case Name(name):
            return go(rules[name])
        case Repeat(one, least, most):
            count = least if depth > 40 else rng.randint(least, least + 3 if most is None else min(most, least + 3))
            return "".join(go(one) for _ in range(count))
        case Choice(sequences):
            if depth > 40:
                sequences = (min(sequences, key=lambda sequence: max([_height(part, heights) or 0 for part in sequence], default=0)),)
            return "".join(go(part) for part in rng.choice(sequences))
