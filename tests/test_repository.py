"""Rules for the whole repository: locked dependencies, each with a reason; no trace of the machine it was made on."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tools import locks, mutants

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))

# The brackets keep this file from matching itself.
MARK = re.compile(r"\b([T]ODO|[F]IXME|[X]XX)\b")
WITH_ISSUE = re.compile(r"(issue |#)\d+")
REGISTRIES = re.compile(r"pypi[.]org|python[h]osted[.]org|registry[.]npmjs|registry[.]yarnpkg|quay[.]io")
MACHINE_PATHS = re.compile(r"(?<![\w.~-])/([w]ork/(main|shared|\.)|[r]oot/|[h]ome/[a-z]+/|[o]pt/(wheels|pypi))")
TEXT = {".py", ".md", ".toml", ".lock", ".yaml", ".yml", ".sql", ".lua", ".sh", ".html", ".css", ".js", ".json", ".cfg", ".txt", ""}


@cache
def files() -> tuple[Path, ...]:
    """Return the text files that are tracked or not ignored by git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return tuple(path for path in paths if path.is_file() and path.suffix in TEXT and path.name != "LICENSE")


def find(pattern: re.Pattern[str]) -> Iterator[tuple[str, str, str]]:
    """Yield `path:line`, the match and its line for every match in a text file."""
    for path in files():
        text = path.read_text(encoding="utf-8")
        for match in pattern.finditer(text):
            number = text.count("\n", 0, match.start()) + 1
            yield f"{path.relative_to(ROOT)}:{number}", match[0], text.split("\n")[number - 1]


def test_what_is_left_to_do_has_an_issue_number() -> None:
    found = [f"{where} {line.strip()}" for where, _, line in find(MARK) if not WITH_ISSUE.search(line)]
    assert not found, "\n" + "\n".join(found)


def test_no_package_index_is_named() -> None:
    found = [f"{where} names {match}" for where, match, _ in find(REGISTRIES)]
    assert not found, "\n" + "\n".join(found)


def test_no_path_of_one_machine() -> None:
    found = [f"{where} names {match}" for where, match, _ in find(MACHINE_PATHS)]
    assert not found, "\n" + "\n".join(found)


def test_nothing_secret_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert not [name for name in listed if name.startswith(".aimesh/") or name.endswith((".nk", ".pem", ".key"))]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_with_hashes_and_names_no_index(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|--trusted-host", text)
    # A requirement and its continuation lines are one logical line.
    for requirement in re.sub(r"\\\n", " ", text).splitlines():
        if requirement.strip() and not requirement.lstrip().startswith("#"):
            assert re.match(r"[a-z0-9][a-z0-9.\-]*==\S+", requirement), f"{lock.name}: {requirement[:60]} is not pinned"
            assert "--hash=sha256:" in requirement, f"{lock.name}: {requirement[:60]} has no hash"


def declared() -> set[str]:
    """Return every distribution that pyproject.toml requires, in any group."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["build-system"]["requires"], *locks.read_dependencies()]
    for group in (*project["project"]["optional-dependencies"].values(), *project["dependency-groups"].values()):
        wanted += [entry for entry in group if isinstance(entry, str)]
    return {match[0].lower() for entry in wanted if (match := re.match(r"[A-Za-z0-9_.\-]+", entry))}


def locked() -> set[str]:
    return {match[1] for lock in LOCKS for match in re.finditer(r"^([a-z0-9.\-]+)==", lock.read_text(encoding="utf-8"), re.MULTILINE)}


def test_every_dependency_has_its_reason() -> None:
    page = (ROOT / "docs/decisions/0002-dependencies.md").read_text(encoding="utf-8")
    missing = sorted(name for name in declared() if f"| `{name}` |" not in page)
    assert not missing, f"docs/decisions/0002-dependencies.md has no row for: {', '.join(missing)}"


def test_every_dependency_is_locked() -> None:
    assert declared() - locked() == set()


def test_every_lock_matches_what_it_is_made_from() -> None:
    stale = locks.find_stale()
    assert not stale, "\nRun `make lock`:\n" + "\n".join(stale)


def test_every_mutant_still_has_its_text_and_its_tests() -> None:
    """Check what `make mutants` needs, because that takes minutes to run."""
    mistakes = []
    for number, mutant in enumerate(mutants.load(), 1):
        try:
            mutants.apply(text_of(mutant.file), mutant)
        except ValueError as error:
            mistakes.append(f"{number}: {error}")
        later = [path for path in (ROOT / mutant.file).parent.glob("*_pre_*.sql") if path > ROOT / mutant.file]
        mistakes += [
            f"{number}: {path.name} replaces it" for path in later if f"OR REPLACE FUNCTION {mutant.function}(" in text_of(f"{path}")
        ]
        mistakes += [] if mutant.tests and mutant.old != mutant.new else [f"{number}: the entry changes nothing or names no tests"]
        mistakes += [f"{number}: there is no test {test}" for test in mutant.tests if not is_there(test)]
    assert not mistakes, "\n" + "\n".join(mistakes)


def test_the_list_of_mutants_covers_what_must_not_break() -> None:
    assert {mutant.group for mutant in mutants.load()} == {"money", "access", "certificates", "recovery", "failover"}


def is_there(test: str) -> bool:
    path, *names = test.partition("[")[0].split("::")
    text = text_of(path)
    return bool(text) and all(re.search(rf"^\s*((async )?def|class) {name}\b|^{name} = ", text, re.MULTILINE) for name in names)


@cache
def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
