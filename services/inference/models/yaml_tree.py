"""Parses YAML into nodes with their lines, within limits against bombs of aliases and brackets.  Pure.

Every scalar stays text, so that no tag can construct an object, and each field decides what ``no`` or ``1_000`` means.
"""

from collections.abc import Iterator

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

#: A catalog of a hundred models has a tenth of it.
MAX_NODES = 10_000
#: A catalog is five levels deep.
MAX_DEPTH = 32

_NULL_TAG = "tag:yaml.org,2002:null"


class NotReadable(Exception):
    """The text is not YAML or exceeds a limit; the message, for people, says where."""


def read(text: str) -> Node | None:
    """Parse the document in ``text``; None if it is empty. The names of fields are scalars. Raises NotReadable."""
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise NotReadable(f"{where}{error.problem or error.context or 'it is not YAML'}") from error
    except yaml.YAMLError as error:
        raise NotReadable(f"it is not YAML: {' '.join(str(error).split())[:200]}") from error
    # An alias's nodes count each time it is used: nine aliases of nine aliases are quick to parse but endless to walk.
    for count, (_, depth) in enumerate([] if root is None else _walk(root, 0), start=1):
        _check_size(count, depth)
    return root


def line(node: Node) -> int:
    return node.start_mark.line + 1


def is_null(node: Node) -> bool:
    """Return whether a field has no value: empty, ``null`` or ``~``, without quotes."""
    return node.tag == _NULL_TAG


def find(fields: Node | None, name: str) -> Node | None:
    """Return the value of a field; None if it is missing, or if there are no fields."""
    return next((value for key, value in fields.value if key.value == name), None) if isinstance(fields, MappingNode) else None


class _Loader(yaml.SafeLoader):
    """Checks the limits while it parses, so that it stops early in a huge text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._nodes += 1
        self._depth += 1
        _check_size(self._nodes, self._depth)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _walk(node: Node, depth: int) -> Iterator[tuple[Node, int]]:
    """Yield the nodes with their depth. Raises NotReadable."""
    yield node, depth
    children = node.value if isinstance(node, SequenceNode) else ()
    if isinstance(node, MappingNode):
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise NotReadable(f"line {line(key)}: a field's name must be a single value")
        children = [child for pair in node.value for child in pair]
    for child in children:
        yield from _walk(child, depth + 1)


def _check_size(nodes: int, depth: int) -> None:
    if nodes > MAX_NODES:
        raise NotReadable(f"it has more than {MAX_NODES} values, counting aliases each time they are used")
    if depth > MAX_DEPTH:
        raise NotReadable(f"it is nested more than {MAX_DEPTH} levels deep")
