"""Parses YAML into a small tree with line numbers, safe against bombs of aliases and brackets.  Pure.

Every scalar stays text, so that no tag can construct an object, and each field decides what ``no`` or ``1_000`` means.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

#: A catalog of a hundred models has a tenth of it.
MAX_NODES = 10_000
#: A catalog is five levels deep.
MAX_DEPTH = 32

_NULL_TAG = "tag:yaml.org,2002:null"


class NotReadable(Exception):
    """The text is not YAML or exceeds a limit; the message, for people, says where."""


@dataclass(frozen=True, slots=True)
class Scalar:
    line: int
    text: str
    #: Empty, ``null`` or ``~``, without quotes.
    is_null: bool = False


@dataclass(frozen=True, slots=True)
class YamlList:
    line: int
    items: tuple["Tree", ...]


@dataclass(frozen=True, slots=True)
class YamlFields:
    line: int
    #: In order; the reader must refuse repeated names.
    pairs: tuple[tuple[Scalar, "Tree"], ...]

    def find(self, name: str) -> "Tree | None":
        return next((value for key, value in self.pairs if key.text == name), None)


Tree = Scalar | YamlList | YamlFields


def read(text: str) -> Tree | None:
    """Parse the document in ``text``; None if it is empty. Raises NotReadable."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise NotReadable(f"{where}{error.problem or error.context or 'it is not YAML'}") from error
    except yaml.YAMLError as error:
        raise NotReadable(f"it is not YAML: {' '.join(str(error).split())[:200]}") from error
    return None if node is None else _YamlConversion().convert(node, depth=0)


class _Loader(yaml.SafeLoader):
    """Checks the limits while it parses, so that it stops early in a huge text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        _check_size(self._nodes, self._depth)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _YamlConversion:
    """Counts an alias's nodes each time it is used: nine aliases of nine aliases are quick to parse but endless to walk."""

    def __init__(self) -> None:
        self._nodes = 0

    def convert(self, node: yaml.Node, depth: int) -> Tree:
        self._nodes += 1
        _check_size(self._nodes, depth)
        line = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode):
            return Scalar(line, str(node.value), node.tag == _NULL_TAG)
        if isinstance(node, yaml.SequenceNode):
            return YamlList(line, tuple(self.convert(item, depth + 1) for item in node.value))
        assert isinstance(node, yaml.MappingNode)
        return YamlFields(line, tuple(self._pairs(node, depth + 1)))

    def _pairs(self, node: yaml.MappingNode, depth: int) -> Iterator[tuple[Scalar, Tree]]:
        for key, value in node.value:
            name = self.convert(key, depth)
            if not isinstance(name, Scalar):
                raise NotReadable(f"line {name.line}: a field's name must be a single value")
            yield name, self.convert(value, depth)


def _check_size(nodes: int, depth: int) -> None:
    if nodes > MAX_NODES:
        raise NotReadable(f"it has more than {MAX_NODES} values, counting aliases each time they are used")
    if depth > MAX_DEPTH:
        raise NotReadable(f"it is nested more than {MAX_DEPTH} levels deep")
