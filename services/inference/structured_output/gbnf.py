"""Turns a caller's GBNF into Lark, in linear time and within limits.  Pure.

llguidance cuts an answer into the longest terminals that fit, and never looks back. So everything that isn't recursive becomes one
terminal, whose parts may overlap as in llama.cpp. References to tokens (`<name>`, `<[7]>`) are refused: they depend on the model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.inference.structured_output import lark
from services.inference.structured_output.lark import FormatRefused

#: SECURITY.md, T6, like the next three.
MAX_BYTES = 32 * 1024
MAX_RULES = 500
#: Our own grammars of tools are larger by this factor: a request may have 128 tools.
TOOLS_FACTOR = 16
MAX_PARENTHESES_DEEP = 64
MAX_REPEATS = 1000

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_ESCAPE = r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}|[trn\\"\[\]-])'
_CHARACTER = re.compile(rf"{_ESCAPE}|.", re.DOTALL)
_RANGE = re.compile(rf"({_ESCAPE}|.)(?:-({_ESCAPE}|.))?", re.DOTALL)
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_ELEMENT = re.compile(
    rf'"(?P<text>(?:{_ESCAPE}|[^"\\])*)"'
    rf"|\[(?P<negation>\^?)(?P<members>(?:{_ESCAPE}|[^\]\\])*)\]"
    r"|\{[ \t]*(?P<least>[0-9]{1,9})[ \t]*(?P<rest>,[ \t]*(?P<most>[0-9]{1,9})?[ \t]*)?\}"
    r"|(?P<name>[a-zA-Z0-9-]+)|(?P<sign>[|()*+?.])"
)
_TOKENS = "references to tokens are not supported; write the characters in quotes"
#: By the character where no element is.
_MISTAKES = {
    '"': "a text in quotes has no end, or an unknown escape",
    "[": "a class in brackets has no end, or an unknown escape",
    "{": "a repeat is written {2}, {2,} or {2,5}",
    "<": _TOKENS,
    "!": _TOKENS,
}
_CONTROLS = {"t": "\t", "r": "\r", "n": "\n"}


@dataclass(slots=True)
class _Item:
    """Characters or another node, with a repeat."""

    #: In Lark; empty for a node.
    characters: str
    node: "_Node | None" = None
    repeat: str = ""


@dataclass(slots=True, eq=False)
class _Node:
    """A rule, or a group in parentheses."""

    number: int
    #: Empty until it is defined.
    alternatives: list[list[_Item]] = field(default_factory=list)
    #: Its definition in Lark.
    given: str = ""
    #: Whether it doesn't lead back to itself.
    is_terminal: bool = False


def to_lark(text: str, *, factor: int = 1, otherwise: str = "", given: Mapping[str, str] | None = None) -> str:
    """Raises FormatRefused with the place of the first mistake. ``otherwise``, in Lark, is another form that answers may have; ``given``
    are definitions in Lark by name, which begin with a colon or options."""
    size = len(text.encode("utf-8", "replace"))
    if size > MAX_BYTES * factor:
        raise FormatRefused(f"the grammar has {size} bytes, at most {MAX_BYTES * factor}")
    lark.ensure_text(text, "the grammar")
    nodes, root = _GrammarReader(text, MAX_RULES * factor).read(given or {})
    _find_terminals(nodes)
    rules: list[str] = []
    for node in nodes:
        written = node.given or f": {' | '.join(_sequence(node, items, rules) for items in node.alternatives)}"
        rules.append(f"{_reference(node)}{written}")
    return lark.grammar(f"{_reference(root)} | {otherwise}" if otherwise else _reference(root), *rules)


class _GrammarReader:
    """Parses the text in one pass."""

    def __init__(self, text: str, most_rules: int) -> None:
        self._text = text
        self._most_rules = most_rules
        self._at = 0
        self._rules: dict[str, _Node] = {}
        self._nodes: list[_Node] = []
        #: The current rule and its open groups.
        self._open: list[_Node] = []

    def read(self, given: Mapping[str, str]) -> tuple[list[_Node], _Node]:
        """Return all rules and groups, and the rule that answers start with."""
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._text):
            self._rule()
            self._skip(_SPACE_AND_LINES)
        for name, node in self._rules.items():
            node.given = given.get(name, "")
            if not node.given and not node.alternatives:
                raise FormatRefused(f"the rule {name} is used but not defined")
        if "root" not in self._rules:
            raise FormatRefused("there is no rule `root`, which every answer starts with")
        return self._nodes, self._rules["root"]

    def _rule(self) -> None:
        name = _NAME.match(self._text, self._at)
        if name is None:
            raise self._refuse("the name of a rule is missing")
        node = self._named(name[0])
        if node.alternatives:
            raise self._refuse(f"the rule {name[0]} is defined a second time")
        node.alternatives = [[]]
        self._at = name.end()
        self._skip(_SPACE)
        if not self._text.startswith("::=", self._at):
            raise self._refuse("`::=` is missing after a rule's name")
        self._at += 3
        self._skip(_SPACE_AND_LINES)
        self._open = [node]
        while self._at < len(self._text) and not (len(self._open) == 1 and self._text[self._at] in "\r\n"):
            self._element()
        if len(self._open) > 1:
            raise self._refuse("`(` without `)`")

    def _element(self) -> None:
        found = _ELEMENT.match(self._text, self._at)
        if found is None:
            sign = self._text[self._at]
            raise self._refuse(_MISTAKES.get(sign, f"{sign!r} is not expected"))
        match found.lastgroup:
            case "text":
                self._add(_Item(lark.literal("".join(map(_character, _CHARACTER.findall(found["text"]))))))
            case "members":
                self._add(_Item(self._class(found["negation"], found["members"])))
            case "name":
                self._add(_Item("", self._named(found["name"])))
            case "least" | "rest":
                self._repeat(self._bounds(found))
            case _:
                self._sign(found["sign"])
        self._at = found.end()
        may_end = len(self._open) == 1 and found["sign"] != "|"
        self._skip(_SPACE if may_end else _SPACE_AND_LINES)

    def _sign(self, sign: str) -> None:
        match sign:
            case "|":
                self._open[-1].alternatives.append([])
            case "(":
                if len(self._open) > MAX_PARENTHESES_DEEP:
                    raise self._refuse(f"parentheses are nested deeper than {MAX_PARENTHESES_DEEP}")
                group = self._node()
                group.alternatives = [[]]
                self._add(_Item("", group))
                self._open.append(group)
            case ")":
                if len(self._open) == 1:
                    raise self._refuse("`)` without `(`")
                self._open.pop()
            case ".":
                self._add(_Item("/(?s:.)/"))
            case _:
                self._repeat(sign)

    def _repeat(self, repeat: str) -> None:
        sequence = self._open[-1].alternatives[-1]
        if not sequence or sequence[-1].repeat or sequence[-1].characters == '""':
            raise self._refuse(f"`{repeat[0]}` needs exactly one thing before it to repeat")
        sequence[-1].repeat = repeat

    def _bounds(self, found: re.Match[str]) -> str:
        least, most = int(found["least"]), int(found["most"] or found["least"])
        if max(least, most) > MAX_REPEATS:
            raise self._refuse(f"a repeat of more than {MAX_REPEATS}")
        if most < least:
            raise self._refuse("a repeat whose maximum is below its minimum")
        return f"{{{least},{'' if found['rest'] and not found['most'] else most}}}"

    def _class(self, negation: str, members: str) -> str:
        if not members:
            raise self._refuse("a class in brackets is empty")
        ranges = []
        for first, last in _RANGE.findall(members):
            bounds = [ord(_character(one)) for one in (first, last) if one]
            if bounds != sorted(bounds):
                raise self._refuse("a range whose end is before its beginning")
            ranges.append("-".join(f"\\x{{{bound:x}}}" for bound in bounds))
        return f"/[{negation}{''.join(ranges)}]/"

    def _named(self, name: str) -> _Node:
        if name not in self._rules:
            if len(self._rules) == self._most_rules:
                raise self._refuse(f"more than {self._most_rules} rules")
            self._rules[name] = self._node()
        return self._rules[name]

    def _node(self) -> _Node:
        self._nodes.append(_Node(len(self._nodes)))
        return self._nodes[-1]

    def _add(self, item: _Item) -> None:
        self._open[-1].alternatives[-1].append(item)

    def _skip(self, space: re.Pattern[str]) -> None:
        match = space.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _refuse(self, what: str) -> FormatRefused:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - (self._text.rfind("\n", 0, self._at) + 1) + 1
        return FormatRefused(f"line {line}, character {column}: {what}")


def _find_terminals(nodes: list[_Node]) -> None:
    """Find the nodes that only lead to characters, by propagating from each one to the nodes that contain it."""
    containing: dict[_Node, list[_Node]] = {}
    missing = {node: int(node.given != "") for node in nodes}
    for node in nodes:
        for item in (item for sequence in node.alternatives for item in sequence if item.node is not None):
            assert item.node is not None
            containing.setdefault(item.node, []).append(node)
            missing[node] += 1
    found = [node for node in nodes if not missing[node]]
    while found:
        node = found.pop()
        node.is_terminal = True
        for outer in containing.get(node, []):
            missing[outer] -= 1
            if not missing[outer]:
                found.append(outer)


def _sequence(node: _Node, items: list[_Item], rules: list[str]) -> str:
    """Return one alternative. In a rule that isn't a terminal, adjacent terminals become one, which is added to ``rules``."""
    if node.is_terminal:
        return " ".join(_written(item) for item in items) or '""'
    written: list[str] = []
    run: list[str] = []
    for item in [*items, None]:
        if item is not None and (item.node is None or item.node.is_terminal):
            run.append(_written(item))
            continue
        if len(run) > 1:
            rules.append(f"RUN{len(rules)}: {' '.join(run)}")
            run = [f"RUN{len(rules) - 1}"]
        written += run if item is None else [*run, _written(item)]
        run = []
    return " ".join(written) or '""'


def _written(item: _Item) -> str:
    return (item.characters or _reference(item.node)) + item.repeat


def _reference(node: _Node | None) -> str:
    assert node is not None
    return f"T{node.number}" if node.is_terminal else f"r{node.number}"


def _character(written: str) -> str:
    if len(written) == 1:
        return written
    code = written[2:]
    return chr(int(code, 16)) if code else _CONTROLS.get(written[1], written[1])
