"""The table of what was run where, and README's sentence about what never was."""

from datetime import date
from pathlib import Path

import pytest

from tools import generated, run_on, setup_steps


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / run_on.FILE.name
    copy.write_text(run_on.FILE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(run_on, "FILE", copy)
    return copy


def test_a_run_is_recorded_in_its_row_alone(file: Path) -> None:
    before = run_on.load()
    for day in (date(2026, 12, 1), date(2026, 12, 2)):
        run_on.record("worker-line", "Debian 13", day, "0123abcd")
    changed = [run for run in run_on.load() if run not in before]
    assert [(run.id, run.where, run.day, run.commit) for run in changed] == [("worker-line", "Debian 13", "2026-12-02", "0123abcd")]
    assert len(run_on.load()) == len(before)
    assert "| the line that adds a worker, without a GPU | Debian 13 | 2026-12-02 | `0123abcd` |" in run_on.page()


def test_what_has_no_row_is_refused(file: Path) -> None:
    with pytest.raises(setup_steps.SetupFailed, match="has no row 'worker-line' on 'BeOS'; it has client-line on Debian 12"):
        run_on.record("worker-line", "BeOS", date(2026, 12, 1), "0123abcd")


def test_rows_are_unique_and_those_without_a_day_say_never_run() -> None:
    runs = run_on.load()
    assert len({(run.id, run.where) for run in runs}) == len(runs)
    assert run_on.page().count("| never run | – |") == sum(not run.day for run in runs)


def test_readme_names_what_was_never_run() -> None:
    readme = " ".join((generated.ROOT / "README.md").read_text(encoding="utf-8").split())
    sentence = readme.partition("Never run: ")[2].partition(".")[0]
    never = {run.readme for run in run_on.load() if run.readme and not run.day}
    assert sorted(sentence.replace(", and ", ", ").split(", ")) == sorted(never)
    # It no longer says so once it was run.
    assert not {run.readme for run in run_on.load() if run.readme and run.day} & never
