"""Run every fault several times, at times drawn from a seed, and write the page of faults.

    python -m tests.chaos.run [--seed N] [--repeats 3] [--minutes 40] [--only NAME …] [--short] [--page FILE]

The exit status is 1 if anything was wrong. The output begins with the seed that repeats the run, and has the result of each scenario.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos import table, world
from tests.chaos.world import Outcome, World

#: Longer than any scenario, including the wait until all is at rest.
SCENARIO_SECONDS = 600.0


def _machine(seed: int) -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return f"{datetime.now(UTC).date().isoformat()}, {len(os.sched_getaffinity(0))} cores of {processor}, seed {seed}."


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
    names = options.only or (table.SHORT if options.short else tuple(table.SCENARIOS))
    found: dict[str, list[Outcome]] = {name: [] for name in names}
    ends_at = time.monotonic() + options.minutes * 60
    rng = random.Random(options.seed)
    for repeat in range(options.repeats):
        async with world.opened(world.SHORT if options.short else world.LONG, rng.getrandbits(32)) as running:
            for name in rng.sample(names, len(names)):
                if time.monotonic() > ends_at:
                    print(f"out of time before {name}, repeat {repeat + 1}", flush=True)
                    return found
                outcome = await _told(running, name)
                found[name].append(outcome)
                _tell(name, outcome)
    return found


def _tell(name: str, outcome: Outcome) -> None:
    verdict = "ok" if not outcome.violations else f"{len(outcome.violations)} WRONG"
    print(
        f"{name}: {verdict}; {outcome.ends}; pause {outcome.longest_pause:.1f} s, failing {outcome.failing_seconds:.1f} s, "
        f"back {outcome.recovered_seconds:.1f} s; {outcome.books}; {outcome.more}",
        flush=True,
    )
    for what in outcome.violations[:10]:
        print(f"  {what}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--only", nargs="+", choices=list(table.SCENARIOS))
    parser.add_argument("--short", action="store_true", help="the small load of `make test`")
    parser.add_argument("--page", type=Path, default=None, help="write the table of faults to this file")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.randrange(2**32)
    print(f"seed {options.seed}", flush=True)
    found = asyncio.run(everything(options))
    if options.page is not None:
        options.page.write_text(table.page(found, _machine(options.seed)), encoding="utf-8")
    return int(any(outcome.violations for outcomes in found.values() for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
