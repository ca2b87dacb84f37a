"""Imports of the SDK's modules: only httpx besides the standard library; and which modules are pure."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SDK = Path(__file__).resolve().parents[3] / "sdk" / "python"
MODULES = sorted((SDK / "src" / "aimesh").glob("*.py"))
#: These send, wait and read the environment; all others only decide.
SHELLS = {"__init__", "async_client", "async_io", "async_wire", "client", "settings", "sync_io", "wire"}
NOT_PURE = {"asyncio", "os", "random", "socket", "threading", "time", "uuid"}


def imported(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_modules_import_only_the_standard_library_httpx_and_each_other(module: Path) -> None:
    tops = {name.partition(".")[0] for name in imported(module)}
    assert tops <= {*sys.stdlib_module_names, "aimesh", "httpx"}
    if module.stem not in SHELLS:
        assert not tops & NOT_PURE
        assert not {name.split(".")[1] for name in imported(module) if name.startswith("aimesh.")} & SHELLS
