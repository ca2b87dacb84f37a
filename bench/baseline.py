"""Record the ratios of the benches on a quiet machine, and fail if one of them has become worse.

    python -m bench.baseline --record [BENCH …] [--runs 5]
    python -m bench.baseline --check [BENCH …]                  make bench-check does this for all

Both run the short form of each bench. Only ratios count, because both sides of a ratio ran on the same machine in the same minutes. A row
is worse if its ratio is off by more than 15 % and by more than the spread of the recorded runs. A bench with such a row, with a missing
row, or with an exit code other than 0 runs once more; the check fails if the same row is bad again.

The record is bench/baseline.json. Record on an idle machine, and only after a change that is meant to move a ratio.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench import report
from bench.report import Better, Row
from tests import feature_parts

BASELINE = Path(__file__).with_name("baseline.json")
#: A ratio may be worse by this share of the recorded one.
TOLERANCE = 0.15
#: A bench has its own time limit, but may first build or install its rival.
MAX_SECONDS, STOP_SECONDS = 1800.0, 60.0

#: Theirs are `tests/features/NAME/bench.py`.
OF_FEATURES = tuple(path.parent.name for path in feature_parts.files("bench.py"))
#: The benches of a check, the quickest first. Some have no ratio; they run to show that they still work.
BENCHES = ("ledger", "money", "models", "jobs", "swarm", "mesh", "reach", "first_answer", "fairness", "engine", "gateway", *OF_FEATURES)

#: Claim and rival.
Key = tuple[str, str]


class Recorded(msgspec.Struct, frozen=True):
    """The ratio of one row over several runs."""

    claim: str
    rival: str
    better: Better
    #: The median.
    ratio: float
    #: The range of the ratios.
    spread: float


class Record(msgspec.Struct, frozen=True):
    """The record of one bench."""

    date: str
    machine: str
    runs: int
    rows: tuple[Recorded, ...]


class Run(NamedTuple):
    """The result of one run of a bench."""

    exit_code: int
    rows: Sequence[Row]


RunBench = Callable[[str], Run]


class Finding(NamedTuple):
    """One row of a run, compared with its record."""

    #: What is wrong; empty if nothing is.
    fault: str
    #: None if the row is missing; the exit code of a run that broke.
    seen: float | None


#: The key of what is wrong with the whole run.
WHOLE_RUN: Key = ("", "")


def ratios_of(rows: Iterable[Row]) -> dict[Key, Row]:
    """Return the rows that have a ratio. Raises ValueError if two of them have the same name."""
    found: dict[Key, Row] = {}
    for row in rows:
        if row.ratio is None:
            continue
        key = (row.claim, row.rival or "")
        if key in found:
            raise ValueError(f"two rows are called {name_of(key)}: give them different claims")
        found[key] = row
    return found


def is_usable(ratio: float) -> bool:
    """Return whether both sides were measured: a side that did nothing gives 0 or no number."""
    return math.isfinite(ratio) and ratio > 0


def compare(recorded: Mapping[Key, Recorded], run: Run) -> dict[Key, Finding]:
    """Judge the run, each recorded row, and the rows that are new, which have no fault."""
    seen = {key: row.ratio for key, row in ratios_of(run.rows).items()}
    findings = {WHOLE_RUN: Finding("BROKEN", run.exit_code)} if run.exit_code else {}
    findings |= {key: Finding(find_fault(one, seen.get(key)), seen.get(key)) for key, one in recorded.items()}
    return findings | {key: Finding("", ratio) for key, ratio in seen.items() if key not in recorded}


def find_fault(recorded: Recorded, ratio: float | None) -> str:
    """Return what is wrong with a ratio; empty if nothing is."""
    if ratio is None:
        return "MISSING"
    if not is_usable(ratio):
        return "NO RATIO"
    worse_by = recorded.ratio - ratio if recorded.better is Better.HIGHER else ratio - recorded.ratio
    return "WORSE" if worse_by > max(TOLERANCE * recorded.ratio, recorded.spread) else ""


def check_bench(bench: str, record: Record | None, run: RunBench) -> tuple[bool, list[str]]:
    """Run a bench, and again if a row is bad. Return whether it passed, and a line for each row."""
    recorded = {(one.claim, one.rival): one for one in (record.rows if record else ())}
    runs = [compare(recorded, run(bench))]
    if any(finding.fault for finding in runs[0].values()):
        runs.append(compare(recorded, run(bench)))
    bad = [{key for key, finding in findings.items() if finding.fault} for findings in runs]
    lines = [
        _describe(key, recorded.get(key), [findings[key] for findings in runs if key in findings], len(runs))
        for key in dict.fromkeys(key for findings in runs for key in findings)
    ]
    return not set.intersection(*bad), lines


def record_bench(bench: str, count: int, run: RunBench) -> tuple[Record | None, list[str]]:
    """Run a bench ``count`` times. Return what to record, None if a run failed; and a line for each problem."""
    runs = []
    for number in range(1, count + 1):
        one = run(bench)
        if one.exit_code:
            return None, [f"bench.{bench}: run {number} ended with exit code {one.exit_code}; nothing was recorded"]
        runs.append(ratios_of(one.rows))
    recorded, problems = [], []
    # A dict keeps the order of the table.
    for key in dict.fromkeys(key for rows in runs for key in rows):
        rows = [each[key] for each in runs if key in each]
        ratios = [row.ratio for row in rows if row.ratio is not None and is_usable(row.ratio)]
        if len(ratios) == count and rows[0].better is not None:
            recorded.append(Recorded(*key, rows[0].better, statistics.median(ratios), max(ratios) - min(ratios)))
        else:
            problems.append(f"bench.{bench}: {name_of(key)} had no ratio in some run; it was not recorded")
    return Record(datetime.now(UTC).date().isoformat(), report.machine(), count, tuple(recorded)), problems


def name_of(key: Key) -> str:
    return " / ".join(filter(None, key))


def _describe(key: Key, recorded: Recorded | None, findings: Sequence[Finding], runs: int) -> str:
    faults = [finding.fault for finding in findings if finding.fault]
    verdict = "ok" if recorded else "not recorded"
    if faults:
        verdict = faults[-1] if len(faults) == runs else f"{faults[-1].lower()} once"
    seen = ", then ".join("nothing" if finding.seen is None else f"{finding.seen:.3g}" for finding in findings)
    if key == WHOLE_RUN:
        return f"  {verdict}: exit code {seen} ({report.OUT_OF_TIME}: out of time)"
    was = f"{recorded.ratio:.3g}, spread {recorded.spread:.2g}, {recorded.better} is better" if recorded else "nothing"
    return f"  {verdict}: {name_of(key)}: recorded {was}; seen {seen}"


def _title(bench: str, record: Record | None) -> str:
    if record is None:
        return f"bench.{bench}: not recorded; on an idle machine, run: python -m bench.baseline --record {bench}"
    title = f"bench.{bench}: recorded {record.date}, {record.runs} runs"
    return title if record.machine == report.machine() else f"{title} on {record.machine}, which is another machine: the ratios may differ"


def run_bench(bench: str) -> Run:
    """Run the short form; its own table goes to stdout."""
    module = f"tests.features.{bench}.bench" if bench in OF_FEATURES else f"bench.{bench}"
    print(f"== {module}", flush=True)
    return run_command([sys.executable, "-m", module, "--quick"])


def run_command(command: Sequence[str], seconds: float = MAX_SECONDS) -> Run:
    """Run a bench; after ``seconds``, ask it to end with the rows it has."""
    with tempfile.TemporaryDirectory(prefix="aimesh-baseline-") as folder:
        rows = Path(folder, "rows.json")
        # Not by timeout(1): macOS has none, and Ctrl-C would not reach the bench.
        with subprocess.Popen([*command, "--json", str(rows)]) as process:
            try:
                exit_code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                exit_code = report.OUT_OF_TIME
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
        # Benches write NaN, which msgspec does not accept as JSON.
        found = json.loads(rows.read_text(encoding="utf-8")) if rows.exists() else []
    return Run(exit_code, msgspec.convert(found, list[Row]))


def check(benches: Sequence[str], baseline: Mapping[str, Record], run: RunBench) -> list[str]:
    """Check these benches and print the findings. Return the names of those that failed."""
    failed, lines = [], []
    for bench in benches:
        passed, found = check_bench(bench, baseline.get(bench), run)
        lines += [_title(bench, baseline.get(bench)), *found]
        if not passed:
            failed.append(bench)
    print("== compared with the baseline", *lines, sep="\n")
    return failed


def read(path: Path) -> dict[str, Record]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Record]) if path.exists() else {}


def write(path: Path, baseline: Mapping[str, Record]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(dict(sorted(baseline.items()))), indent=2) + b"\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--record", action="store_true", help="run each bench several times and record its ratios")
    action.add_argument("--check", action="store_true", help="run each bench and fail if a ratio is worse than recorded")
    parser.add_argument("--runs", type=int, choices=range(1, 100), metavar="NUMBER", default=5, help="of each bench that is recorded")
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=f"default: all of {', '.join(BENCHES)}")
    options = parser.parse_args()
    if unknown := set(options.benches) - set(BENCHES):
        parser.error(f"there is no bench {', '.join(sorted(unknown))} with a short form")
    baseline, problems = read(BASELINE), list[str]()
    if options.record:
        for bench in options.benches or BENCHES:
            made, found = record_bench(bench, options.runs, run_bench)
            problems += found
            if made is not None:
                baseline[bench] = made
                # Save after each bench, because all of them take hours.
                write(BASELINE, baseline)
    else:
        failed = check(options.benches or BENCHES, baseline, run_bench)
        problems += [f"worse than recorded, or failed, twice in a row: {', '.join(failed)}"] if failed else []
    print(*problems, sep="\n", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
