"""Check that the tests detect faults: apply each entry of the lists in tests/ in a copy of the tree. A test has to fail."""

import argparse
import ast
import itertools
import os
import queue
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

ROOT = Path(__file__).parent.parent
#: A feature has its own list.
LISTS = ("tests/mutants.toml", "tests/features/*/mutants.toml")
#: The profile is in tests/conftest.py. The tests' own timeout is disabled, because it would look like a failure.
PYTEST = (".venv/bin/python", "-m", "pytest", "-xq", "--no-header", "-p", "no:cacheprovider", "--hypothesis-profile=mutants", "--timeout=0")
#: Ignored by git and needed by the tests.
LINKED = (".venv", "packages/pyhyperswarm/src/pyhyperswarm/sidecar/node_modules", "services/web/npm/node_modules")
#: For all tests of the list, without a mutant.
BASELINE_SECONDS = 1800.0
#: `timeout` exits with 124; if a second signal is needed, it is killed together with the tests.
_FAILED, _TIMED_OUT = 1, {124, 137, -9}
_IMPORTS = "import cli, services, shared; print(cli.__file__, services.__file__, shared.__file__)"
#: Python recompiles a file only if its second or its size has changed, and a mutant may exist for less than a second.
_seconds = itertools.count(int(time.time()))


class Mutant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One plausible fault."""

    group: str
    #: The consequence of the fault.
    why: str
    file: str
    #: The qualified name of a function, class or constant; in SQL, of a function or query.
    function: str
    #: A text that occurs once in the function, or in one of those with its name.
    old: str
    new: str
    tests: tuple[str, ...]
    timeout_seconds: float = 300.0


def load() -> list[Mutant]:
    paths = [path for pattern in LISTS for path in sorted(ROOT.glob(pattern))]
    return [mutant for path in paths for mutant in msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8"))["mutant"], list[Mutant])]


def apply(text: str, mutant: Mutant) -> str:
    """Return the file's text with the fault. Raises ValueError if the entry does not fit it."""
    # In SQL, functions of different arguments may share a name.
    found = [span for name, *span in _named(text, mutant.file) if name == mutant.function]
    if not found:
        raise ValueError(f"{mutant.file} has no {mutant.function}")
    counts = [text.count(mutant.old, *span) for span in found]
    if sum(counts) != 1:
        raise ValueError(f"{mutant.function} in {mutant.file} has this text {sum(counts)} times, not once: {mutant.old}")
    start, end = found[counts.index(1)]
    return text[:start] + text[start:end].replace(mutant.old, mutant.new) + text[end:]


def _named(text: str, file: str) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each function, class, constant or query, and where it starts and ends."""
    if file.endswith(".py"):
        lines = [0, *itertools.accumulate(len(line) for line in text.splitlines(keepends=True))]
        for name, node in _definitions(ast.parse(text), ""):
            yield name, lines[node.lineno - 1], lines[node.end_lineno or node.lineno]
    else:
        starts = [*re.finditer(r"^(?:-- name: |CREATE (?:OR REPLACE )?FUNCTION |local function )(\w+)", text, re.MULTILINE)]
        ends = [*(match.start() for match in starts[1:]), len(text)]
        yield from ((match[1], match.start(), end) for match, end in zip(starts, ends, strict=True))


def _definitions(parent: ast.AST, prefix: str) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name, node
            yield from _definitions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((prefix + target.id, node) for target in targets if isinstance(target, ast.Name))


def make_copy(tree: Path) -> None:
    listed = _run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT).stdout.split("\0")
    for name in [name for name in listed if (ROOT / name).is_file()]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    for name in LINKED:
        (tree / name).symlink_to(ROOT / name, target_is_directory=True)
    # The environment has an editable installation of the checkout.
    seen = _run([".venv/bin/python", "-c", _IMPORTS], tree)
    if seen.returncode or not all(Path(file).is_relative_to(tree) for file in seen.stdout.split()):
        raise SystemExit(f"the copy in {tree} imports from elsewhere: {seen.stdout}{seen.stderr}")


def run_tests(tree: Path, tests: Sequence[str], seconds: float) -> tuple[int, str]:
    """Return the exit code and the end of the output. After a SIGINT pytest stops the servers that it has started."""
    done = _run(["timeout", "--signal=INT", "--kill-after=10", f"{seconds}", *PYTEST, *dict.fromkeys(tests)], tree)
    return done.returncode, (done.stdout + done.stderr)[-3000:]


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - our own words


def outcome_of(mutant: Mutant, tree: Path) -> str:
    """Return ``killed``, or why the mutant survived. Restores the tree."""
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    try:
        fault = apply(text, mutant)
    except ValueError as error:
        return f"WRONG ENTRY: {error}"
    try:
        _write(path, fault)
        code, output = run_tests(tree, mutant.tests, mutant.timeout_seconds)
    finally:
        _write(path, text)
    if code in _TIMED_OUT:
        return "SURVIVED: its tests ran out of time"
    if code in {0, _FAILED}:
        return "killed" if code == _FAILED else "SURVIVED"
    return f"WRONG ENTRY: pytest exits with {code}\n{output}"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    second = next(_seconds)
    os.utime(path, (second, second))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="numbers or groups; all if there are none")
    options = parser.parse_args()
    chosen = [(n, each) for n, each in enumerate(load(), 1) if not options.only or {str(n), each.group} & set(options.only)]
    if not chosen:
        raise SystemExit("no entry has this number or group")
    at_once = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="aimesh-mutants-") as folder, ThreadPoolExecutor(at_once) as threads:
        copies = [Path(folder).resolve() / f"{n}" for n in range(at_once)]
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for copy in copies:
            make_copy(copy)
            trees.put(copy)
        code, output = run_tests(copies[0], [test for _, each in chosen for test in each.tests], BASELINE_SECONDS)
        if code:
            raise SystemExit(f"without a mutant the tests have to pass:\n{output}")

        def judge(n: int, mutant: Mutant) -> str:
            tree, began = trees.get(), time.monotonic()
            try:
                outcome = outcome_of(mutant, tree)
            finally:
                trees.put(tree)
            print(f"{n:3} {mutant.group:12} {outcome} in {time.monotonic() - began:.0f} s: {mutant.why}", flush=True)
            return "" if outcome == "killed" else f"{n} {mutant.file}: {mutant.why}: {outcome}"

        survivors = [outcome for outcome in threads.map(judge, *zip(*chosen, strict=True)) if outcome]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were killed", *survivors, sep="\n")
    raise SystemExit(bool(survivors))


if __name__ == "__main__":
    main()
