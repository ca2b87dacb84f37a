"""Only a ratio that is worse than recorded fails the check."""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bench import baseline, report
from bench.baseline import Record, Recorded, Run
from bench.report import Better, Row
from tests import feature_parts

RATE = Recorded("calls", "theirs", Better.HIGHER, ratio=2.0, spread=0.1)
TIME = Recorded("wait", "theirs", Better.LOWER, ratio=2.0, spread=0.1)
CALLS = ("calls", "theirs")
NOISY = Recorded("calls", "theirs", Better.HIGHER, ratio=2.0, spread=1.0)


def _row(recorded: Recorded, ratio: float) -> Row:
    return Row(recorded.claim, 0.0, "calls/s", recorded.rival, 0.0, ratio, better=recorded.better)


def _alone(claim: str) -> Row:
    return Row(claim, 1.0, "s")


def _record(*rows: Recorded) -> Record:
    return Record("2026-01-02", report.machine(), 5, rows)


def _runs(*runs: Run) -> Callable[[str], Run]:
    """Return a bench that can run only as often as there are runs."""
    left = iter(runs)
    return lambda _bench: next(left)


# --- one run -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "ratio", "fault"),
    [
        pytest.param(RATE, 2.0, "", id="the same"),
        pytest.param(RATE, 1.71, "", id="lower by 14.5 %"),
        pytest.param(RATE, 1.69, "WORSE", id="lower by 15.5 %"),
        pytest.param(RATE, 9.0, "", id="a rate that has become much higher"),
        pytest.param(TIME, 2.29, "", id="longer by 14.5 %"),
        pytest.param(TIME, 2.31, "WORSE", id="longer by 15.5 %"),
        pytest.param(TIME, 0.1, "", id="a time that has become much shorter"),
        pytest.param(NOISY, 1.1, "", id="lower by 45 %, within the spread"),
        pytest.param(NOISY, 0.9, "WORSE", id="lower by more than the spread"),
        pytest.param(RATE, math.nan, "NO RATIO", id="no number"),
        pytest.param(TIME, 0.0, "NO RATIO", id="a time of nothing is no good time"),
        pytest.param(TIME, math.inf, "NO RATIO", id="a rival of nothing"),
    ],
)
def test_a_ratio_is_judged_by_tolerance_and_spread(recorded: Recorded, ratio: float, fault: str) -> None:
    assert baseline.find_fault(recorded, ratio) == fault


def test_missing_and_new_rows_are_told_apart() -> None:
    findings = baseline.compare({CALLS: RATE}, Run(0, [_row(TIME, 1.0), _alone("a figure without a rival")]))
    assert findings == {CALLS: ("MISSING", None), ("wait", "theirs"): ("", 1.0)}


def test_the_same_claim_against_two_rivals_is_two_rows() -> None:
    other = Row("calls", 0.0, "calls/s", "others", 0.0, 0.5, better=Better.HIGHER)
    findings = baseline.compare({CALLS: RATE}, Run(0, [other, _row(RATE, 2.0)]))
    assert findings == {CALLS: ("", 2.0), ("calls", "others"): ("", 0.5)}


def test_two_rows_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two rows are called calls / theirs"):
        baseline.compare({}, Run(0, [_row(RATE, 1.0), _row(RATE, 2.0)]))


# --- twice in a row ------------------------------------------------------------------------------------------------------

GOOD, BAD = _row(RATE, 2.0), _row(RATE, 1.0)


@pytest.mark.parametrize(
    ("runs", "passes", "line"),
    [
        pytest.param([Run(0, [GOOD])], True, "ok: calls / theirs: recorded 2, spread 0.1, higher is better; seen 2", id="good"),
        pytest.param([Run(0, [BAD]), Run(0, [GOOD])], True, "worse once: calls / theirs", id="worse once"),
        pytest.param([Run(0, [BAD]), Run(0, [BAD])], False, "WORSE: calls / theirs", id="worse twice"),
        pytest.param([Run(0, []), Run(0, [])], False, "MISSING: calls / theirs", id="missing twice"),
        pytest.param([Run(0, []), Run(0, [GOOD])], True, "missing once: calls / theirs", id="missing once"),
        pytest.param([Run(0, []), Run(0, [BAD])], False, "seen nothing, then 1", id="missing, then worse"),
        pytest.param([Run(1, []), Run(0, [GOOD])], True, "broken once: exit code 1", id="failed once"),
        pytest.param([Run(1, []), Run(1, [])], False, "BROKEN: exit code 1, then 1", id="failed twice"),
        pytest.param([Run(124, [GOOD]), Run(124, [GOOD])], False, "BROKEN: exit code 124, then 124", id="out of time, with this row"),
        pytest.param([Run(0, [BAD]), Run(1, [GOOD])], True, "broken once: exit code 1", id="worse, then failed"),
    ],
)
def test_only_what_is_bad_twice_in_a_row_fails(runs: Sequence[Run], passes: bool, line: str) -> None:
    passed, lines = baseline.check_bench("mesh", _record(RATE), _runs(*runs))
    assert passed is passes
    assert any(line in each for each in lines), lines


def test_two_rows_that_are_bad_once_each_pass() -> None:
    first, second = Run(0, [BAD, _row(TIME, 2.0)]), Run(0, [GOOD, _row(TIME, 4.0)])
    passed, lines = baseline.check_bench("mesh", _record(RATE, TIME), _runs(first, second))
    assert passed
    assert [line.split(":")[0].strip() for line in lines] == ["worse once", "worse once"]


def test_the_check_names_the_benches_that_failed_and_those_that_are_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"mesh": Run(0, [BAD]), "engine": Run(0, [GOOD]), "pages": Run(1, [])}
    failed = baseline.check(list(runs), {"mesh": _record(RATE)}, runs.__getitem__)
    assert failed == ["mesh", "pages"]
    out = capsys.readouterr().out
    assert "bench.mesh: recorded 2026-01-02, 5 runs\n" in out
    assert "bench.engine: not recorded; on an idle machine, run: python -m bench.baseline --record engine" in out
    assert "not recorded: calls / theirs: recorded nothing; seen 2" in out


# --- recording -----------------------------------------------------------------------------------------------------------


def test_the_record_is_the_median_and_the_spread_of_the_runs() -> None:
    runs = [Run(0, [_row(RATE, ratio), _alone("a figure")]) for ratio in (2.5, 1.9, 2.0, 2.1, 1.8)]
    made, problems = baseline.record_bench("mesh", 5, _runs(*runs))
    assert made is not None
    assert problems == []
    assert (made.runs, made.rows) == (5, (Recorded("calls", "theirs", Better.HIGHER, 2.0, 2.5 - 1.8),))


@pytest.mark.parametrize("second", [[], [_row(RATE, math.nan)], [_row(RATE, 0.0)]], ids=["missing", "no number", "zero"])
def test_a_row_without_a_ratio_in_some_run_is_not_recorded(second: list[Row]) -> None:
    made, problems = baseline.record_bench("mesh", 2, _runs(Run(0, [_row(RATE, 2.0)]), Run(0, second)))
    assert made is not None
    assert made.rows == ()
    assert problems == ["bench.mesh: calls / theirs had no ratio in some run; it was not recorded"]


def test_a_run_that_fails_is_not_recorded() -> None:
    made, problems = baseline.record_bench("mesh", 2, _runs(Run(0, [GOOD]), Run(124, [GOOD])))
    assert made is None
    assert problems == ["bench.mesh: run 2 ended with exit code 124; nothing was recorded"]


def test_the_file_keeps_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    assert baseline.read(path) == {}
    kept = {"mesh": _record(RATE), "engine": _record(TIME, NOISY)}
    baseline.write(path, kept)
    assert baseline.read(path) == kept
    assert path.read_text().index("engine") < path.read_text().index("mesh")


# --- running -------------------------------------------------------------------------------------------------------------

#: Its last argument is the file for the rows.
WRITES = """
import pathlib, sys
row = '{"claim": "calls", "value": NaN, "unit": "calls/s", "ratio": NaN, "better": "higher", "between": [1, 2]}'
pathlib.Path(sys.argv[-1]).write_text(f"[{row}]")
sys.exit(3)
"""


def test_a_run_is_its_exit_code_and_the_rows_that_it_wrote() -> None:
    run = baseline.run_command([sys.executable, "-c", WRITES])
    (row,) = run.rows
    assert (run.exit_code, row.claim, row.better, row.between) == (3, "calls", Better.HIGHER, (1, 2))
    assert row.ratio is not None
    assert math.isnan(row.ratio)


def test_a_run_that_does_not_end_is_ended() -> None:
    assert baseline.run_command([sys.executable, "-c", "import signal; signal.pause()"], seconds=0.1) == Run(report.OUT_OF_TIME, [])


def test_every_bench_is_checked_and_no_other_is_recorded() -> None:
    folder = Path(baseline.__file__).parent
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    texts |= {path.parent.name: path.read_text(encoding="utf-8") for path in folder.glob("*/__main__.py")}
    texts |= {path.parent.name: path.read_text(encoding="utf-8") for path in feature_parts.files("bench.py")}
    benches = {name for name, text in texts.items() if '\nif __name__ == "__main__":\n' in text and "report.run(" in text}
    assert benches == set(baseline.BENCHES)
    assert len(set(baseline.BENCHES)) == len(baseline.BENCHES)
    assert baseline.read(baseline.BASELINE).keys() <= benches
