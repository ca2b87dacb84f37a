"""docs/reference/audit.md names every act that the services record."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "reference" / "audit.md"
#: Functions that create an act. The first argument is the action.
MAKES = re.compile(r"(^|\.)(audit_records\.(done|done_by|of_mesh|refused)|_?audit_reporting\.report_action|_report_action)$")
MODULES = re.compile("audit_records|audit_reporting")
ACTION = re.compile(r"[a-z_]+\.[a-z_]+")


def recorded(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and node.args and MAKES.search(ast.unparse(node.func)):
            for part in ast.walk(node.args[0]):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


@functools.cache
def all_recorded() -> frozenset[str]:
    texts = (path.read_text(encoding="utf-8") for folder in ("services", "features") for path in (ROOT / folder).rglob("*.py"))
    return frozenset(action for text in texts if MODULES.search(text) for action in recorded(text))


def described() -> set[str]:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return {action for row in rows for action in re.findall(r"`([a-z_]+\.[a-z_]+)`", row.split("|")[1])}


def test_the_reference_describes_exactly_the_recorded_actions() -> None:
    assert described() == all_recorded() | {"audit.overflow"}


def test_actions_have_the_form_that_filters_expect() -> None:
    assert [action for action in all_recorded() if not ACTION.fullmatch(action)] == []


@pytest.mark.parametrize(
    "line",
    [
        'audit_records.done("key.burn", who)',
        'audit_records.of_mesh("key.burn" if hot else "key.burn", None)',
        'self.audit_reporting.report_action("key.burn", who)',
        'self._audit_reporting.report_action("key.burn", who)',
    ],
)
def test_an_undescribed_action_would_be_found(line: str) -> None:
    assert set(recorded(line)) == {"key.burn"}
