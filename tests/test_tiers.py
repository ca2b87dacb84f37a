"""`make test` and `make test-all` run what they claim to, and list what they leave out."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import capabilities, parallel, tiers

EXAMPLE = """
import pytest
from tests import capabilities, tiers

def test_everywhere():
    print(f"volume {tiers.volume(1000)}, seed {tiers.seed('EXAMPLE_SEED')}")

@pytest.mark.nightly("long")
def test_at_night():
    pass

def test_in_a_browser():
    capabilities.require("browser")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with its own tests and the same plugins."""
    folder = tmp_path / "project"
    folder.mkdir()
    folder.joinpath("pytest.ini").write_text("[pytest]\naddopts = --strict-markers -p no:cacheprovider -p no:schemathesis -p no:faker -s\n")
    folder.joinpath("conftest.py").write_text('pytest_plugins = ("tests.parallel", "tests.tiers")\n')
    folder.joinpath("test_example.py").write_text(EXAMPLE)
    return folder


def run(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", capabilities.VARIABLE))}
    # No program is installed on this PATH.
    environment = {**kept, "PATH": "/nowhere", "PYTHONPATH": str(tiers.ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=900
    )


@pytest.fixture
def without_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "find_program", lambda *_: None)


NOT_RUN = re.compile(r"^=+ not run =+\n(.*?)^=", re.MULTILINE | re.DOTALL)


def test_make_test_lists_what_it_leaves_out(project: Path) -> None:
    if Path(capabilities.find_browser() or "/usr/bin/none").parent != Path("/usr/bin"):
        pytest.skip("Chromium is in a folder that is searched without a PATH")
    done = run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    found = NOT_RUN.search(done.stdout)
    assert found, done.stdout
    assert found[1].strip().splitlines() == [
        "Nightly tests, which `make test-all` runs: 1",
        f"      1  long: {tiers.NIGHTLY['long']}",
        "Tests of what this machine lacks (see `make test-system`): 1",
        "      1  needs browser: not installed: chromium",
    ]


def test_processes_collect_a_file_when_they_run_it(project: Path) -> None:
    project.joinpath("test_at_night.py").write_text("import pytest\n\n@pytest.mark.nightly('long')\ndef test_it():\n    pass\n")
    project.joinpath("test_broken.py").write_text("import a_module_that_is_not_there\n")
    done = run(project, "-n", "2", "-o", "console_output_style=classic")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "ModuleNotFoundError: No module named 'a_module_that_is_not_there'" in done.stdout
    assert re.search(r"^=+ 1 passed, 1 skipped, 1 error in ", done.stdout, re.MULTILINE), done.stdout
    assert "Nightly tests, which `make test-all` runs: 2\n" in done.stdout


def test_a_named_test_runs_in_several_processes_too(project: Path) -> None:
    done = run(project, "-n", "2", "test_example.py::test_everywhere", "test_example.py::test_at_night")
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_make_test_all_runs_everything_with_full_volumes(project: Path) -> None:
    done = run(project, "--nightly", EXAMPLE_SEED="23")
    assert "2 passed, 1 skipped" in done.stdout
    assert "volume 1000, seed 23\n" in done.stdout
    assert "Nightly tests" not in done.stdout


def test_a_nightly_test_runs_when_its_file_is_named(project: Path) -> None:
    done = run(project, "test_example.py")
    assert "2 passed, 1 skipped" in done.stdout
    assert f"volume {1000 // tiers.FRACTION}, seed 1\n" in done.stdout


def test_a_seed_is_fixed_and_drawn_at_night(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "_is_nightly", False)
    assert tiers.seed("EXAMPLE_SEED") == tiers.seed("EXAMPLE_SEED") == 1
    monkeypatch.setattr(tiers, "_is_nightly", True)
    assert tiers.seed("EXAMPLE_SEED") != tiers.seed("EXAMPLE_SEED")


def test_a_required_capability_that_is_missing_ends_the_run_before_the_first_test(project: Path) -> None:
    done = run(project, AIMESH_REQUIRE="browser")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "AIMESH_REQUIRE names browser, which this machine lacks: not installed: chromium" in done.stderr
    assert "collected" not in done.stdout


def test_an_unknown_group_ends_the_run(project: Path) -> None:
    project.joinpath("test_example.py").write_text(EXAMPLE.replace('"long"', '"lnog"'))
    done = run(project)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_at_night: nightly needs one of chaos," in done.stderr + done.stdout


def test_a_misspelled_capability_gets_the_nearest_one() -> None:
    assert capabilities.find_mistakes("") == []
    assert capabilities.find_mistakes("chromium, brwoser") == [
        f"AIMESH_REQUIRE names chromium, which is no capability: there are {', '.join(capabilities.CAPABILITIES)}",
        "AIMESH_REQUIRE names brwoser, which is no capability; did you mean browser?",
    ]


@pytest.mark.usefixtures("without_browser")
def test_a_missing_capability_skips_the_test_and_names_itself() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"^needs browser: not installed: chromium$") as caught:
        capabilities.require("browser")
    assert capabilities.find_capability(str(caught.value)) == "browser"


def test_skips_for_other_reasons_are_listed_too() -> None:
    lines = tiers.describe_left_out(Counter(), ["only 256 files may be open", "needs nat: not installed: ip", "only 256 files may be open"])
    assert lines == [
        "Tests of what this machine lacks (see `make test-system`): 1",
        "      1  needs nat: not installed: ip",
        "Tests skipped for other reasons: 2",
        "      2  only 256 files may be open",
    ]


def test_the_folders_of_the_tables_exist_and_have_known_groups() -> None:
    assert [path for path in (*tiers.FOLDERS, *parallel.SHARED) if not (tiers.ROOT / path).exists()] == []
    assert set(tiers.FOLDERS.values()) - {""} <= tiers.NIGHTLY.keys()
    assert set(parallel.SHARED.values()) - {""} <= set(parallel.FIRST)
    assert [scope for scope in parallel.FIRST if scope not in parallel.SHARED.values() and not (tiers.ROOT / scope).is_file()] == []


def test_every_group_has_tests() -> None:
    marked = {
        match[1]
        for path in (tiers.ROOT / "tests").rglob("test_*.py")
        if path != Path(__file__)
        for match in re.finditer(r'mark\.nightly\("(\w+)"\)', path.read_text(encoding="utf-8"))
    }
    assert marked | set(tiers.FOLDERS.values()) - {""} == tiers.NIGHTLY.keys()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("tests/chaos/test_kills.py", "chaos"),
        ("tests/chaos/faults/test_faults.py", ""),
        ("tests/chaos/test_oracle.py", ""),
        ("tests/chaos_of_another_kind/test_it.py", ""),
        ("tests/nat/test_mesh.py", "nat"),
        ("tests/shared/test_amounts.py", ""),
    ],
)
def test_the_longest_path_decides_about_the_tier(path: str, expected: str) -> None:
    assert parallel.find_longest(path, tiers.FOLDERS) == expected


def test_files_that_load_a_model_run_in_one_process_and_others_by_file() -> None:
    assert parallel.scope("tests/services/inference/backends/test_llama.py::test_answer_streams") == "model"
    assert parallel.scope("tests/services/inference/engine/test_llama_model.py::test_it[a::b]") == "model"
    assert parallel.scope("tests/integration/test_usage.py::test_it") == "stack"
    assert parallel.scope("tests/integration/test_swarm_attacks.py::test_it") == "tests/integration/test_swarm_attacks.py"
    alone = "tests/services/inference/engine/test_engine_loop.py"
    assert parallel.scope(f"{alone}::test_it") == alone
