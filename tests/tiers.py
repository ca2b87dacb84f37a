"""The two tiers of tests, as a pytest plugin: `make test` leaves out nightly tests, `make test-all` (``--nightly``) runs everything.

    @pytest.mark.nightly("storms")      # a test, or pytestmark for a module; FOLDERS for whole folders

A nightly test also runs if the command line names its file. With ``--nightly``, fuzz tests use random seeds and their full volume;
without it, fixed seeds and a fraction. The end of a run lists what did not run, and why.
"""

import gc
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from xdist.workermanage import WorkerController

from tests import capabilities, parallel, stopwatch

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
#: Group of nightly tests -> what it contains.
NIGHTLY = {
    "chaos": "faults in a whole stack under load; make test has one of each kind",
    "drill": "accidents of the disaster runbook, with the time until people are served again",
    "recovery": "backups and restores in every state; `make test` makes, restores and verifies one",
    "stacks": "other whole stacks than the one of `make test`: replicas, proxies, Compose, other servers; and details of that one",
    "nat": "machines behind NATs of several kinds",
    "outages": "alerts and pages while a machine is away",
    "rolling": "the release before this one, beside it and in its place",
    "containers": "images, Compose, podman and Swarm with real engines, which have to be installed: make deploy-tools",
    "clients": "clients and frameworks as installed from their indexes; every example of our own clients, at both addresses",
    "pages": "every page in every theme and width, and what is beside the main paths",
    "access": "every caller against every method of a whole stack",
    "schemathesis": "the whole HTTP API against its OpenAPI document",
    "storms": "hundreds of callers at the same time",
    "install": "setup, start and repair, as a new user does it",
    "long": "longer than 5 seconds; a shorter test covers the same code",
    "clock": "the duration is what they prove, which needs an idle machine",
}
#: Folder or file -> the group of all its tests; empty for tests in a nightly folder that are not nightly. The longest path decides.
FOLDERS = {
    "tests/chaos": "chaos",
    "tests/chaos/faults": "",
    "tests/chaos/test_invariants.py": "",
    "tests/chaos/test_oracle.py": "",
    "tests/clients": "clients",
    "tests/deploy/chart/test_chart_processes.py": "stacks",
    "tests/deploy/proxies/test_proxies.py": "stacks",
    "tests/deploy/real": "containers",
    "tests/drill": "drill",
    "tests/full_stack": "stacks",
    "tests/install": "install",
    "tests/install/test_typed_lines.py": "",
    "tests/nat": "nat",
    "tests/outages": "outages",
    "tests/rolling": "rolling",
}
#: `make test` divides the full volume of fuzz tests by this.
FRACTION = 5

_left_out = pytest.StashKey[Counter[str]]()
_is_nightly = False

# --- for tests ------------------------------------------------------------------------------------------------------------------


def volume(full: int, least: int = 1) -> int:
    """Return how many examples, rounds or bytes a fuzz test tries: all with ``--nightly``, else a fraction."""
    return full if _is_nightly else max(least, full // FRACTION)


def by_day(values: Iterable[T], *kept: T, group: str) -> list[Any]:
    """Return the parameters of a test, with all values but the kept ones in a nightly group."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.nightly(group)) for value in values]


def is_nightly() -> bool:
    """Return whether this run includes the nightly tests."""
    return _is_nightly


def seed(name: str) -> int:
    """Return the seed of a test, which prints it: from this environment variable, else random with ``--nightly`` and 1 without."""
    return int(os.environ.get(name) or (random.randrange(2**32) if _is_nightly else 1))


# --- which tests run ------------------------------------------------------------------------------------------------------------


def find_group(item: pytest.Item) -> str:
    """Return the nightly group of a test; empty if the test is in every run."""
    marker = item.get_closest_marker("nightly")
    if marker is None:
        return parallel.find_longest(item.nodeid.partition("::")[0], FOLDERS)
    if len(marker.args) != 1 or marker.args[0] not in NIGHTLY:
        raise pytest.UsageError(f"{item.nodeid}: nightly needs one of {', '.join(NIGHTLY)}")
    return str(marker.args[0])


def _named_files(config: pytest.Config) -> set[Path]:
    named = ((config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args)
    return {path for path in named if path.is_file()}


# --- hooks ----------------------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run nightly tests too; random seeds and full volumes for fuzz tests")


def pytest_configure(config: pytest.Config) -> None:
    global _is_nightly  # noqa: PLW0603 - tests read their volume on import
    _is_nightly = stopwatch.bounds_hold = config.getoption("--nightly")
    config.addinivalue_line("markers", f"nightly(group): not run by `make test`. Groups: {', '.join(NIGHTLY)}")
    # The time of an example depends on how busy the machine is, not on the code.
    untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("test", untimed, derandomize=True, database=None, max_examples=volume(100))
    settings.register_profile("nightly", untimed, max_examples=100, print_blob=True)
    # For `make mutants`: the same examples each time, without shrinking failures.
    settings.register_profile("mutants", untimed, phases=(Phase.explicit, Phase.generate), derandomize=True, database=None)
    settings.load_profile(config.getoption("--hypothesis-profile") or ("nightly" if _is_nightly else "test"))
    is_worker = hasattr(config, "workerinput")
    if not is_worker and (mistakes := capabilities.find_mistakes(os.environ.get(capabilities.VARIABLE, ""))):
        raise pytest.UsageError("\n".join(mistakes))
    config.stash[_left_out] = Counter()
    # Most garbage collections run between modules: see tests/conftest.py.
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    # Collecting tests creates millions of objects and drops few, so garbage collections find nothing and take a tenth of the time.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    parallel.put_longest_first(items)
    if any(isinstance(item, parallel.FileItem) for item in items):
        return
    groups = {item: find_group(item) for item in items}
    for item, group in groups.items():
        if group and item.get_closest_marker("nightly") is None:
            # For `-m nightly`, which pytest applies after this hook.
            item.add_marker(pytest.mark.nightly(group))
    if not _is_nightly:
        named = _named_files(config)
        left_out = [item for item in items if groups[item] and item.path not in named]
        config.stash[_left_out].update(groups[item] for item in left_out)
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


# --- the end of a run -----------------------------------------------------------------------------------------------------------


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Processes that do not collect late have all collected the same tests, so only one reports.
    if hasattr(session.config, "workeroutput") and (parallel.is_late(session.config) or os.environ["PYTEST_XDIST_WORKER"] == "gw0"):
        session.config.workeroutput["nightly"] = dict(session.config.stash[_left_out])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    found: dict[str, int] = getattr(node, "workeroutput", {}).get("nightly", {})
    node.config.stash[_left_out].update(found)


def describe_left_out(nightly: Counter[str], skip_reasons: list[str]) -> list[str]:
    """Return the lines about what did not run, by group and by capability; none if everything ran."""
    lines = []
    if nightly:
        lines.append(f"Nightly tests, which `make test-all` runs: {nightly.total()}")
        lines += [f"  {count:5}  {group}: {NIGHTLY[group]}" for group, count in sorted(nightly.items())]
    lacking = Counter(reason for reason in skip_reasons if capabilities.find_capability(reason))
    if lacking:
        lines.append(f"Tests of what this machine lacks (see `make test-system`): {lacking.total()}")
        lines += [f"  {count:5}  {reason}" for reason, count in sorted(lacking.items())]
    others = Counter(reason for reason in skip_reasons if not capabilities.find_capability(reason))
    if others:
        lines.append(f"Tests skipped for other reasons: {others.total()}")
        lines += [f"  {count:5}  {reason}" for reason, count in sorted(others.items())]
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reasons = [str(report.longrepr[2]).removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])]
    if lines := describe_left_out(config.stash[_left_out], reasons):
        terminalreporter.section("not run")
        for line in lines:
            terminalreporter.write_line(line)
