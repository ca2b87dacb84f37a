"""Runs one share of the test files: `-p tests.sharding --shard 2/4`. CI runs the shares on separate machines.

Files are never split, because the tests of a file share servers. Files outside the share are never imported.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: Estimated seconds for each test of a folder; the longest matching folder counts. Servers and whole stacks take long to start.
SECONDS_PER_TEST = {
    "tests": 0.3,
    "tests/acceptance": 15.0,
    "tests/chaos": 20.0,
    "tests/install": 20.0,
    "tests/integration": 8.0,
    "tests/nat": 10.0,
    "tests/outages": 15.0,
    "tests/services/inference": 1.0,
}
TEST = re.compile(r"^\s*(?:async )?def test_", re.MULTILINE)


class Shard:
    """Ignores the files of the other shards."""

    def __init__(self, number: int, of: int) -> None:
        self._name = f"{number}/{of}"
        files = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py")}
        shards = split({name: estimate_seconds(name, text) for name, text in files.items()}, of)
        self._others = {ROOT / name for name in files.keys() - shards[number - 1]}

    def pytest_report_header(self) -> str:
        return f"shard {self._name}: without {len(self._others)} files"

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        return True if collection_path in self._others else None

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        # A run of few files may have none in this shard.
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", metavar="N/OF", help="run only the Nth of OF shares of the test files")


def pytest_configure(config: pytest.Config) -> None:
    if wanted := config.getoption("--shard"):
        config.pluginmanager.register(Shard(*read_shard(wanted)), "shard")


def read_shard(words: str) -> tuple[int, int]:
    """Parse `2/4` into two numbers; raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,2})/([0-9]{1,2})", words)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise pytest.UsageError(f"--shard is {words!r}; write for example 2/4")
    return int(match[1]), int(match[2])


def estimate_seconds(name: str, text: str) -> float:
    folder = max((folder for folder in SECONDS_PER_TEST if name.startswith(f"{folder}/")), key=len)
    return SECONDS_PER_TEST[folder] * max(1, len(TEST.findall(text)))


def split(seconds: Mapping[str, float], of: int) -> list[frozenset[str]]:
    """Split the files into shares of about equal time, the same on every machine. Pure."""
    shares: list[set[str]] = [set() for _ in range(of)]
    loads = [0.0] * of
    for name in _longest_first(seconds):
        lightest = loads.index(min(loads))
        shares[lightest].add(name)
        loads[lightest] += seconds[name]
    return [frozenset(share) for share in shares]


def _longest_first(seconds: Mapping[str, float]) -> Iterable[str]:
    return sorted(seconds, key=lambda name: (-seconds[name], name))
