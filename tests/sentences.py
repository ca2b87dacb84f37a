"""Reads from the source what its errors say to people: a line for each error, with its message and its hint.

A message that tests in several folders assert is a constant of the source, and they assert the constant. So a sentence that is changed is
changed in the source and in a recording beside the tests of its surface, and nowhere else. To record them after a change that is meant:

    python -m tests.sentences
"""

import ast
import builtins
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from shared import errors

ROOT = Path(__file__).parents[1]
#: Where sentences come from that people read. A feature's are few, and asserted beside it.
SURFACES = ("cli", "services/auth", "services/gateway", "services/inference", "services/metrics", "services/web", "shared", "stack")
_KINDS = {kind.__name__ for kind in errors.BY_CODE.values()} | {"AimeshError"}


def recording(surface: str) -> Path:
    return ROOT / "tests" / surface / "sentences.txt"


def said_by(surface: str) -> str:
    """Return the recording of a surface as it should be. An f-string's values are `{}`: their names are no part of what is said."""
    paths = sorted((ROOT / surface).rglob("*.py"))
    return "".join(f"{line}\n" for line in sorted({line for path in paths for line in _said_in(path)}))


def _said_in(path: Path) -> Iterator[str]:
    tree = _tree(path)
    makers = {name: kind for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for name, kind in _maker(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (kind := _kind(node) or makers.get(_name(node.func), "")):
            texts = [_text(each, tree) for each in (*node.args, *(each.value for each in node.keywords if each.arg == "hint"))]
            if any(" " in text.replace("{}", "") for text in texts):
                yield f"{kind}: {' | '.join(filter(None, texts))}"


def _maker(function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """Yield a function that makes an error of a message that it is given, with the error's class."""
    given = {each.arg for each in function.args.args}
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Call)
            and (kind := _kind(node))
            and any(isinstance(each, ast.Name) and each.id in given for each in node.args)
        ):
            yield function.name, kind


def _kind(call: ast.Call) -> str:
    of = isinstance(call.func, ast.Attribute) and call.func.attr == "of"
    name = _name(call.func.value) if of else _name(call.func)
    return name if name in _KINDS and not hasattr(builtins, name) else ""


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _text(node: ast.expr, tree: ast.Module) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr():
            return "".join(_text(each.value, tree) if isinstance(each, ast.FormattedValue) else _text(each, tree) for each in node.values)
        case ast.IfExp():
            return f"{_text(node.body, tree)} / {_text(node.orelse, tree)}"
        case ast.Name():
            return _constant(node.id, tree)
    return "{}"


def _constant(name: str, tree: ast.Module) -> str:
    """Return the text of a constant of this module, or of the one that it is imported from."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(_name(each) == name for each in node.targets):
            return _text(node.value, tree)
        if isinstance(node, ast.ImportFrom) and any(each.name == name for each in node.names):
            path = ROOT.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            return _constant(name, _tree(path)) if path.exists() else "{}"
    return "{}"


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for each in SURFACES:
        recording(each).write_text(said_by(each), encoding="utf-8")
