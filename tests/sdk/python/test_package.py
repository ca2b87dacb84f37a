"""The published package: one small wheel with its types that needs only httpx; and which of its modules are pure."""

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SDK = Path(__file__).resolve().parents[3] / "sdk" / "python"
MODULES = sorted((SDK / "src" / "aimesh").glob("*.py"))
#: They send, wait, and read the environment; all others decide.
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


def test_wheel_has_the_modules_their_types_and_the_version(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", str(SDK), "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    subprocess.run(command, check=True, timeout=100, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("aimesh_client-0.2.0-py3-none-any")
    assert wheel.stat().st_size < 64 * 1024
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    assert names == {f"aimesh/{module.name}" for module in MODULES} | {"aimesh/py.typed"}
    assert [line for line in metadata.splitlines() if line.startswith("Requires-Dist")] == ["Requires-Dist: httpx>=0.28"]
