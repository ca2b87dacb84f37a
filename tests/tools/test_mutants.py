from pathlib import Path

import msgspec
import pytest

from tools import mutants
from tools.mutants import Mutant

FINE = "def double(number: int) -> int:\n    return 2 * number\n"
FAULT = Mutant(group="money", why="", file="double.py", function="double", old="2 * number", new="number", tests=("test_double.py",))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / ".venv").symlink_to(mutants.ROOT / ".venv")
    (tmp_path / "conftest.py").write_text('from hypothesis import settings\n\nsettings.register_profile("mutants")\n')
    (tmp_path / "double.py").write_text(FINE)
    (tmp_path / "test_double.py").write_text(
        "from double import double\n\n\ndef test_double():\n    assert double(2) > 1\n    assert double(3) == 6\n"
    )
    (tmp_path / "test_else.py").write_text("from double import double\n\n\ndef test_else():\n    assert double(0) == 0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        pytest.param({}, "killed", id="a test fails"),
        pytest.param({"tests": ("test_else.py",)}, "SURVIVED", id="no test fails"),
        pytest.param({"new": "2 *"}, "WRONG ENTRY: pytest exits with 2", id="no Python", marks=pytest.mark.nightly("long")),
        pytest.param({"tests": ("test_gone.py",)}, "WRONG ENTRY: pytest exits with 4", id="no tests"),
        pytest.param({"old": "number"}, "WRONG ENTRY: double in double.py has this text 2 times", id="a text that is not the only one"),
        pytest.param({"function": "halve"}, "WRONG ENTRY: double.py has no halve", id="no such function"),
        pytest.param({"new": "double(number)", "timeout_seconds": 0.01}, "SURVIVED: its tests ran out of time", id="too slow"),
    ],
)
def test_outcome_of_a_mutant_and_the_tree_is_restored(tree: Path, changed: dict[str, object], outcome: str) -> None:
    assert mutants.outcome_of(msgspec.structs.replace(FAULT, **changed), tree).startswith(outcome)
    assert (tree / "double.py").read_text() == FINE


@pytest.mark.nightly("long")
def test_mutant_of_the_same_length_and_second_is_not_hidden_by_bytecode(tree: Path) -> None:
    """Python reuses a compiled file if the source's second and size are the same."""
    same_length = msgspec.structs.replace(FAULT, new="3 * number")
    assert mutants.run_tests(tree, FAULT.tests, 60)[0] == 0
    assert mutants.outcome_of(same_length, tree) == "killed"
    assert mutants.run_tests(tree, FAULT.tests, 60)[0] == 0


@pytest.mark.parametrize(
    ("file", "function", "changed"),
    [
        (
            "a.py",
            "LIMIT",
            "LIMIT = 0\n\nclass A:\n    def f(self):\n        return 1\n\n    @staticmethod\n    async def g():\n        return 1\n",
        ),
        (
            "a.py",
            "A.f",
            "LIMIT = 1\n\nclass A:\n    def f(self):\n        return 0\n\n    @staticmethod\n    async def g():\n        return 1\n",
        ),
        (
            "a.py",
            "A.g",
            "LIMIT = 1\n\nclass A:\n    def f(self):\n        return 1\n\n    @staticmethod\n    async def g():\n        return 0\n",
        ),
        ("a.sql", "f", "CREATE FUNCTION f() AS $$ SELECT 0 $$;\nCREATE OR REPLACE FUNCTION g() AS $$ SELECT 1 $$;\n"),
        ("a.sql", "g", "CREATE FUNCTION f() AS $$ SELECT 1 $$;\nCREATE OR REPLACE FUNCTION g() AS $$ SELECT 0 $$;\n"),
        ("a.sql", "f", "CREATE FUNCTION f(a text) AS $$ SELECT 0 $$;\nCREATE FUNCTION f() AS $$ SELECT f('') $$;\n"),
        ("queries.sql", "g", "-- name: f\nSELECT 1;\n\n-- name: g\nSELECT 0;\n"),
    ],
)
def test_fault_is_made_in_its_function_alone(file: str, function: str, changed: str) -> None:
    fault = msgspec.structs.replace(FAULT, file=file, function=function, old="1", new="0")
    assert mutants.apply(changed.replace("0", "1"), fault) == changed
