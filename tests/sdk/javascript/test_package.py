"""The JavaScript package alone: its tests, its types, its contents, and the gateway errors that it knows."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pyhyperswarm import find_node

from shared import errors
from tests.stacks import REPOSITORY

PACKAGE = REPOSITORY / "sdk" / "javascript"
SECONDS = 200
MAX_LINES = 400
#: A quick download.
MAX_BYTES = 64 * 1024


def node(*arguments: str, folder: Path = PACKAGE) -> subprocess.CompletedProcess[str]:
    command = [str(find_node()), *arguments]
    return subprocess.run(
        command, cwd=folder, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False, timeout=SECONDS
    )


def test_package_tests_pass() -> None:
    done = node("--test", "--test-reporter=spec", "test/*.test.js")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.findall(r"tests (\d+)\n", done.stdout)[-1]) > 100


def test_declared_types_match_the_code() -> None:
    compiler = PACKAGE / "node_modules" / "typescript" / "bin" / "tsc"
    assert compiler.exists(), f"there in {PACKAGE}: npm ci --ignore-scripts"
    done = node(str(compiler))
    assert done.returncode == 0, done.stdout


def test_every_gateway_error_is_known_with_its_retryability() -> None:
    program = "import { KINDS } from './src/errors.js'; console.log(JSON.stringify([...KINDS].map(([code, [, retry]]) => [code, retry])))"
    known = dict(json.loads(node("--input-type=module", "--eval", program).stdout))
    assert known == {code: kind.retryable for code, kind in errors.BY_CODE.items()}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PACKAGE / name).read_text(encoding="utf-8"))
    return found


def test_package_has_no_dependencies() -> None:
    package = read("package.json")
    assert not {"dependencies", "optionalDependencies", "peerDependencies"} & package.keys()
    for script in ("preinstall", "install", "postinstall", "prepare"):
        assert script not in package["scripts"]


def test_lock_names_no_registry_and_has_every_hash() -> None:
    packages = read("package-lock.json")["packages"]
    assert '"resolved"' not in (PACKAGE / "package-lock.json").read_text(encoding="utf-8")
    wanted = read("package.json")["devDependencies"]
    assert {name.removeprefix("node_modules/"): each["version"] for name, each in packages.items() if name} == wanted
    assert all(each["integrity"].startswith("sha512-") for name, each in packages.items() if name)
    assert not [name for name, each in packages.items() if each.get("hasInstallScript")]


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/*.js")), ids=lambda path: path.name)
def test_each_file_states_its_one_purpose(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    if path.parent.name == "src":
        assert lines[0].startswith("// ")


def test_package_stays_small_and_imports_nothing_from_node() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in (PACKAGE / "src").glob("*.js")}
    assert sum(map(len, sources.values())) <= MAX_BYTES
    assert sources
    for name, text in sources.items():
        imported = re.findall(r"""^(?:import|export)[^'"]*from ['"]([^'"]+)""", text, re.MULTILINE)
        assert all(each.startswith("./") for each in imported), name
        assert not re.search(r"\b(process|Buffer|require|__dirname)\b", text), name
