"""Run every fault several times, at times drawn from a seed, and write the page of faults.

    python -m tests.chaos.run [--seed N] [--repeats 3] [--minutes 75] [--only NAME …] [--short] [--page FILE]

The exit status is 1 if anything was wrong, or if the time was over before the last scenario: then no page is written. The output begins
with the seed that repeats the run, and has the result of each scenario.
"""

import argparse
import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos import table, world
from tests.chaos.world import Outcome, World

#: Longer than any scenario, including the wait until all is at rest.
SCENARIO_SECONDS = 600.0
#: For three repeats of all scenarios. One took 20 minutes on two busy cores.
MINUTES = 75.0


class OutOfTime(Exception):
    """Not every scenario has run as often as it should."""


def _machine(seed: int) -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return f"{datetime.now(UTC).date().isoformat()}, {_commit()}, {len(os.sched_getaffinity(0))} cores of {processor}, seed {seed}."


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(("git", *words), cwd=Path(__file__).parent, check=True, capture_output=True, text=True).stdout.strip()

    # The page itself is written by the run.
    is_changed = any(not line.endswith(table.PAGE.name) for line in git("status", "--porcelain").splitlines())
    return f"commit {git('rev-parse', '--short=12', 'HEAD')}{' with changes' if is_changed else ''}"


async def one(running: World, name: str) -> Outcome:
    """Run a scenario. Raises the errors of the harness itself."""
    await running.mend()
    async with asyncio.timeout(SCENARIO_SECONDS):
        return await table.SCENARIOS[name](running)


async def _told(running: World, name: str) -> Outcome:
    """Run a scenario. If it can't continue because something did not recover in time, return that as its outcome."""
    try:
        return await one(running, name)
    except (AssertionError, TimeoutError, ExceptionGroup) as error:
        fault = name.partition("_")[0].upper()
        return Outcome(
            fault=fault, what=name, calls=0, ends={}, failing_seconds=0, longest_pause=0, recovered_seconds=0, books="not looked at",
            violations=(f"it could not go on: {_deepest(error)}"[:500],),
        )  # fmt: skip


def _deepest(error: BaseException) -> BaseException:
    return _deepest(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


async def everything(options: argparse.Namespace) -> dict[str, list[Outcome]]:
    """Return the outcomes of each scenario. Raises OutOfTime."""
    names = options.only or (table.SHORT if options.short else tuple(table.SCENARIOS))
    found: dict[str, list[Outcome]] = {name: [] for name in names}
    ends_at = time.monotonic() + options.minutes * 60
    rng = random.Random(options.seed)
    for repeat in range(options.repeats):
        async with world.opened(world.SHORT if options.short else world.LONG, rng.getrandbits(32)) as running:
            for name in rng.sample(names, len(names)):
                began = time.monotonic()
                if began > ends_at:
                    raise OutOfTime(f"{options.minutes:g} minutes were over before {name}, repeat {repeat + 1} of {options.repeats}")
                outcome = await _told(running, name)
                found[name].append(outcome)
                _tell(name, outcome, time.monotonic() - began)
    return found


def _tell(name: str, outcome: Outcome, seconds: float) -> None:
    verdict = "ok" if not outcome.violations else f"{len(outcome.violations)} WRONG"
    print(
        f"{name}: {verdict}; {outcome.ends}; pause {outcome.longest_pause:.1f} s, failing {outcome.failing_seconds:.1f} s, "
        f"back {outcome.recovered_seconds:.1f} s; {outcome.books}; {outcome.more}; it took {seconds:.0f} s",
        flush=True,
    )
    for what in outcome.violations[:10]:
        print(f"  {what}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--only", nargs="+", choices=list(table.SCENARIOS))
    parser.add_argument("--short", action="store_true", help="the small load of `make test`")
    parser.add_argument("--page", type=Path, default=None, help="write the table of faults to this file")
    options = parser.parse_args(arguments)
    if options.page is not None and (options.only or options.short):
        parser.error("--page is for all scenarios at their full load")
    if options.seed is None:
        options.seed = random.randrange(2**32)
    print(f"seed {options.seed}", flush=True)
    try:
        found = asyncio.run(everything(options))
    except OutOfTime as error:
        print(f"out of time: {error}; allow more with --minutes", flush=True)
        return 1
    if options.page is not None:
        options.page.write_text(table.page(found, _machine(options.seed), repeats=options.repeats), encoding="utf-8")
    return int(any(outcome.violations for outcomes in found.values() for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
