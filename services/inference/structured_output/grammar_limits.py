"""Checks the limits of a grammar before llama.cpp sees it.  Pure.

It parses GBNF at least as strictly as llama.cpp, in linear time, and refuses grammars on which llama.cpp's parser or sampler would
crash, hang or run out of memory. References to tokens (`<name>`, `<[7]>`) are refused: llama.cpp accepts a token whose beginning already
matched other elements, and then aborts because it doesn't fit.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.inference.structured_output.gbnf import SchemaRefused

#: SECURITY.md, T6, like the next four.
MOST_BYTES = 32 * 1024
MOST_RULES = 500
MOST_PARENTHESES_DEEP = 64
MOST_REPEATS = 1000
#: Elements after llama.cpp has expanded all repeats, at dozens of bytes each: about 10 MB per running sequence.
MOST_ELEMENTS = 100_000
#: Paths from one rule to another without a character between. llama.cpp follows each of them when it looks for left recursion.
MOST_WAYS = 100_000

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_ESCAPE = r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}|[trn\\"\[\]-])'
_CHARACTER = re.compile(rf"{_ESCAPE}|.", re.DOTALL)
_LITERAL = re.compile(rf'"((?:{_ESCAPE}|[^"\\])*)"')
_CLASS = re.compile(rf"\[\^?((?:{_ESCAPE}|[^\]\\])*)\]")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_REPEAT = re.compile(r"\{[ \t]*([0-9]{1,9})[ \t]*(?:(,)[ \t]*([0-9]{1,9})?[ \t]*)?\}")
_SIGNS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


@dataclass(slots=True)
class _Item:
    """Characters or another node, with a repeat."""

    #: None for characters.
    node: "_Node | None"
    #: Elements in llama.cpp's rule.
    size: int
    least: int = 1
    most: int | None = 1
    is_repeated: bool = False


@dataclass(slots=True, eq=False)
class _Node:
    """A rule, or a group in parentheses, which llama.cpp also turns into a rule."""

    name: str
    is_defined: bool = False
    alternatives: list[list[_Item]] = field(default_factory=lambda: [[]])
    may_be_empty: bool = False
    #: Its number of paths, itself included; None until counted.
    ways: int | None = None


def check(text: str) -> None:
    """Raises SchemaRefused with the place of the first mistake."""
    size = len(text.encode("utf-8", "replace"))
    if size > MOST_BYTES:
        raise SchemaRefused(f"the grammar has {size} bytes, at most {MOST_BYTES}")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise SchemaRefused("the grammar contains characters that are not text")
    nodes = _GrammarReader(text).read()
    _find_empty(nodes)
    _check_size(nodes)
    _check_recursion(nodes)


class _GrammarReader:
    """Parses the text in one pass."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._rules: dict[str, _Node] = {}
        self._nodes: list[_Node] = []
        #: The current rule and its open groups.
        self._open: list[_Node] = []

    def read(self) -> list[_Node]:
        """Return all rules and groups; groups follow the rule that contains them."""
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._text):
            self._rule()
            self._skip(_SPACE_AND_LINES)
        for node in self._rules.values():
            if not node.is_defined:
                raise SchemaRefused(f"the rule {_short(node.name)} is used but not defined")
        if "root" not in self._rules:
            raise SchemaRefused("there is no rule `root`, which every answer starts with")
        return self._nodes

    def _rule(self) -> None:
        node = self._named()
        if node.is_defined:
            raise self._refuse(f"the rule {_short(node.name)} is defined a second time")
        node.is_defined = True
        self._skip(_SPACE)
        if not self._text.startswith("::=", self._at):
            raise self._refuse("`::=` is missing after a rule's name")
        self._at += 3
        self._skip(_SPACE_AND_LINES)
        self._open = [node]
        while self._open and self._at < len(self._text):
            if len(self._open) == 1 and self._text[self._at] in "\r\n":
                return
            self._element(self._text[self._at])
            self._skip(_SPACE if len(self._open) == 1 else _SPACE_AND_LINES)
        if len(self._open) > 1:
            raise self._refuse("`(` without `)`")

    def _element(self, sign: str) -> None:
        if sign == "|":
            self._at += 1
            self._open[-1].alternatives.append([])
            self._skip(_SPACE_AND_LINES)
        elif sign == "(":
            self._begin_group()
        elif sign == ")":
            self._end_group()
        elif sign in "*+?{":
            self._repeat(sign)
        elif sign == '"':
            self._characters(_LITERAL, "a text in quotes has no end, or an unknown escape")
        elif sign == "[":
            self._characters(_CLASS, "a class in brackets has no end, or an unknown escape")
        elif sign == ".":
            self._at += 1
            self._add(_Item(None, 1))
        elif sign in "<!":
            raise self._refuse("references to tokens are not supported; write the characters in quotes")
        elif _NAME.match(self._text, self._at):
            self._add(_Item(self._named(), 1))
        else:
            raise self._refuse(f"{sign!r} is not expected")

    def _begin_group(self) -> None:
        if len(self._open) > MOST_PARENTHESES_DEEP:
            raise self._refuse(f"parentheses are nested deeper than {MOST_PARENTHESES_DEEP}")
        self._at += 1
        group = _Node(f"a group of {self._open[0].name}", is_defined=True)
        self._nodes.append(group)
        self._add(_Item(group, 1))
        self._open.append(group)

    def _end_group(self) -> None:
        if len(self._open) == 1:
            raise self._refuse("`)` without `(`")
        self._at += 1
        self._open.pop()

    def _repeat(self, sign: str) -> None:
        sequence = self._open[-1].alternatives[-1]
        if not sequence or sequence[-1].is_repeated or sequence[-1].size == 0:
            raise self._refuse(f"`{sign}` needs exactly one thing before it to repeat")
        item = sequence[-1]
        item.is_repeated = True
        if sign in _SIGNS:
            self._at += 1
            item.least, item.most = _SIGNS[sign]
            return
        match = _REPEAT.match(self._text, self._at)
        if match is None:
            raise self._refuse("a repeat is written {2}, {2,} or {2,5}")
        self._at = match.end()
        item.least = int(match[1])
        item.most = item.least if match[2] is None else int(match[3]) if match[3] else None
        if max(item.least, item.most or 0) > MOST_REPEATS:
            raise self._refuse(f"a repeat of more than {MOST_REPEATS}")
        if item.most is not None and item.most < item.least:
            raise self._refuse("a repeat whose maximum is below its minimum")

    def _characters(self, form: re.Pattern[str], otherwise: str) -> None:
        match = form.match(self._text, self._at)
        if match is None:
            raise self._refuse(otherwise)
        if form is _CLASS and not match[1]:
            raise self._refuse("a class in brackets is empty")
        self._at = match.end()
        self._add(_Item(None, len(_CHARACTER.findall(match[1]))))

    def _named(self) -> _Node:
        match = _NAME.match(self._text, self._at)
        if match is None:
            raise self._refuse("the name of a rule is missing")
        self._at = match.end()
        name = match[0]
        if name not in self._rules:
            if len(self._rules) == MOST_RULES:
                raise self._refuse(f"more than {MOST_RULES} rules")
            self._rules[name] = _Node(name)
            self._nodes.append(self._rules[name])
        return self._rules[name]

    def _add(self, item: _Item) -> None:
        self._open[-1].alternatives[-1].append(item)

    def _skip(self, space: re.Pattern[str]) -> None:
        match = space.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _refuse(self, what: str) -> SchemaRefused:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - (self._text.rfind("\n", 0, self._at) + 1) + 1
        return SchemaRefused(f"line {line}, character {column}: {what}")


def _find_empty(nodes: list[_Node]) -> None:
    """Find the nodes that can match nothing, by propagating from each one to the nodes that contain it."""
    waiting: dict[_Node, list[tuple[_Node, list[int]]]] = {}
    found: list[_Node] = []
    for node in nodes:
        for sequence in node.alternatives:
            needs = [item for item in sequence if item.least > 0 and item.size > 0]
            if any(item.node is None for item in needs):
                continue
            count = [len(needs)]
            for item in needs:
                assert item.node is not None
                waiting.setdefault(item.node, []).append((node, count))
            if not needs and not node.may_be_empty:
                node.may_be_empty = True
                found.append(node)
    while found:
        for node, count in waiting.pop(found.pop(), []):
            count[0] -= 1
            if count[0] == 0 and not node.may_be_empty:
                node.may_be_empty = True
                found.append(node)


def _check_size(nodes: list[_Node]) -> None:
    elements = 0
    for node in nodes:
        for sequence in node.alternatives:
            for item in sequence:
                optional = 1 if item.most is None else item.most - item.least
                elements += item.least * item.size + optional * (item.size + 3) + 1
                if elements > MOST_ELEMENTS:
                    raise SchemaRefused(f"the rule {_short(node.name)}: more than {MOST_ELEMENTS} elements after expanding all repeats")


def _check_recursion(nodes: list[_Node]) -> None:
    """Search depth first without recursion, because a chain of rules may be as long as the text."""
    for start in nodes:
        if start.ways is not None:
            continue
        path: list[tuple[_Node, Iterator[_Node]]] = [(start, _beginnings(start))]
        on_path, totals = {start}, [1]
        while path:
            node, beginnings = path[-1]
            following = next(beginnings, None)
            if following is None:
                path.pop()
                on_path.discard(node)
                node.ways = totals.pop()
                following = node
                if not totals:
                    break
            if following in on_path:
                raise SchemaRefused(f"the rule {_short(following.name)} starts with itself (left recursion)")
            if following.ways is None:
                path.append((following, _beginnings(following)))
                on_path.add(following)
                totals.append(1)
                continue
            totals[-1] += following.ways
            if totals[-1] > MOST_WAYS:
                raise SchemaRefused(f"the rule {_short(node.name)} can start in more than {MOST_WAYS} ways")


def _beginnings(node: _Node) -> Iterator[_Node]:
    """Yield the nodes that a node can start with. Raises SchemaRefused for an unbounded repeat of a node that can be empty, which is
    left recursion too."""
    for sequence in node.alternatives:
        at_start = True
        for item in sequence:
            if item.node is not None:
                if item.most is None and item.node.may_be_empty:
                    raise SchemaRefused(f"the rule {_short(node.name)}: an unbounded repeat of something that may be empty")
                if at_start:
                    yield item.node
            may_be_empty = item.least == 0 or item.size == 0 or (item.node is not None and item.node.may_be_empty)
            at_start = at_start and may_be_empty


def _short(name: str) -> str:
    return name if len(name) <= 60 else name[:57] + "…"
