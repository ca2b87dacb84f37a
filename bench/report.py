"""The rows of a bench: measured within a time limit, printed as a table, and written as JSON for `bench.baseline`."""

import argparse
import asyncio
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

#: The exit code of a bench with incomplete rows, as for timeout(1).
OUT_OF_TIME = 124


class Better(StrEnum):
    """Which ratios are better."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Row:
    """One claim and its measurement."""

    claim: str
    value: float
    unit: str
    rival: str | None = None
    rival_value: float | None = None
    #: value / rival_value, or the median of the rounds' ratios.
    ratio: float | None = None
    #: In words, such as "ratio <= 1.1".
    target: str | None = None
    #: None without a target.
    met: bool | None = None
    #: None without a ratio.
    better: Better | None = None
    #: The range of the rounds' ratios.
    between: tuple[float, float] | None = None


def against(
    claim: str, value: float, unit: str, rival: str, rival_value: float, *, at_most: float | None = None, at_least: float | None = None
) -> Row:
    """Build a row whose target is a ratio to a rival of the same run."""
    # A rival that did nothing must not discard the other rows; NaN meets no target.
    ratio = value / rival_value if rival_value else math.nan
    return judge(Row(claim, value, unit, rival, rival_value, ratio), at_most=at_most, at_least=at_least)


def judge(row: Row, *, at_most: float | None = None, at_least: float | None = None) -> Row:
    """Add the target, whether the row's ratio meets it, and which ratios are better."""
    assert row.ratio is not None
    if at_most is not None:
        return replace(row, target=f"ratio <= {at_most:g}", met=row.ratio <= at_most, better=Better.LOWER)
    if at_least is not None:
        return replace(row, target=f"ratio >= {at_least:g}", met=row.ratio >= at_least, better=Better.HIGHER)
    return replace(row, better=better_of(row.unit))


def better_of(unit: str) -> Better:
    """Rates should be high; times and sizes should be low."""
    if unit.endswith("/s"):
        return Better.HIGHER
    if unit in {"us", "µs", "ms", "s", "kB", "MB", "MiB"}:
        return Better.LOWER
    raise ValueError(f"nobody knows whether more {unit!r} is better: give the row a target, or add the unit to bench/report.py")


def alone(claim: str, value: float, unit: str, *, at_most: float | None = None, at_least: float | None = None) -> Row:
    """Build a row with an absolute target, or none."""
    if at_most is not None:
        return Row(claim, value, unit, target=f"<= {at_most:g} {unit}", met=value <= at_most)
    if at_least is not None:
        return Row(claim, value, unit, target=f">= {at_least:g} {unit}", met=value >= at_least)
    return Row(claim, value, unit)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# --- a run with a time limit ---------------------------------------------------------------------------------------------


class OutOfTime(Exception):
    """The bench has used up its time. `opened` catches this."""


class Table:
    """The rows of one run, kept so that a run that fails or runs out of time still prints them."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._ends_at = clock() + seconds
        self._parts: dict[str, list[Row]] = {}
        self._unfinished: list[str] = []

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self._parts.values() for row in rows]

    @property
    def unfinished(self) -> Sequence[str]:
        """The parts that were expected or started, and have not ended."""
        return self._unfinished

    def expect(self, parts: Iterable[str]) -> None:
        """Name the parts in advance, so that a run that ends early can name the missing ones."""
        self._unfinished += parts

    def add(self, rows: Iterable[Row]) -> None:
        self._parts.setdefault("", []).extend(rows)

    @contextmanager
    def part(self, name: str) -> Iterator[list[Row]]:
        """Yield the rows of one part, for the caller to fill. Raises OutOfTime if the time is over."""
        if self._clock() >= self._ends_at:
            raise OutOfTime
        if name not in self._unfinished:
            self._unfinished.append(name)
        rows = self._parts.setdefault(name, [])
        yield rows
        self._unfinished.remove(name)
        print(f"{name}: {len(rows)} rows after {self._clock() - self._ends_at + self.seconds:.0f} s", file=sys.stderr)

    def run(self, measuring: Coroutine[Any, Any, T]) -> T:
        """Run it on uvloop. Raises OutOfTime when the time is over, or on SIGTERM."""
        return uvloop.run(self._within_time(measuring))

    async def _within_time(self, measuring: Coroutine[Any, Any, T]) -> T:
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(max(0.0, self._ends_at - self._clock()))
        try:
            async with limit:
                loop.add_signal_handler(signal.SIGTERM, _end_now, limit)
                return await measuring
        except TimeoutError:
            if limit.expired():
                raise OutOfTime from None
            raise


def _end_now(limit: asyncio.Timeout) -> None:
    # A second SIGTERM, or one after the time is over, changes nothing.
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time())


def arguments(
    description: str | None, *, limits: tuple[float, float], quick: str = "", **amounts: tuple[float, float]
) -> argparse.ArgumentParser:
    """Build the argument parser of a bench. ``limits`` are the seconds allowed for the full and the short form.

    Each of ``amounts`` becomes an option with two defaults: for the full and the short form. `amount_of` reads it.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(limits=limits, amounts=amounts)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--save", type=Path, help="also write the table and the machine to this file")
    quick = quick or ", ".join(f"{name} {short:,}" for name, (_, short) in amounts.items())
    parser.add_argument("--quick", action="store_true", help=f"the short form: {quick}")
    for name, (full, short) in amounts.items():
        parser.add_argument(f"--{name}", type=type(full), help=f"default: {full:,}, with --quick {short:,}")
    default = "default: {:g}, with --quick {:g}".format(*limits)
    parser.add_argument(
        "--time-limit", type=float, metavar="SECONDS", help=f"then print the rows measured so far and exit with {OUT_OF_TIME}; {default}"
    )
    return parser


def amount_of(options: argparse.Namespace, name: str) -> Any:
    """Return an option of `arguments`: as given, or the default of the form that runs."""
    given = getattr(options, name)
    full, short = options.amounts[name]
    return given if given is not None else short if options.quick else full


Measure = Callable[..., Coroutine[Any, Any, None]]


def run(
    description: str | None,
    measure: Measure,
    *,
    limits: tuple[float, float],
    serve: Callable[..., Coroutine[Any, Any, None]] | None = None,
    **amounts: tuple[float, float],
) -> None:
    """Run a bench from the command line: `measure(table, rounds=…)`, or with --serve, as its other process, `serve(…)`."""
    if serve is not None and sys.argv[1:2] == ["--serve"]:
        uvloop.run(serve(*sys.argv[2:]))
        return
    options = arguments(description, limits=limits, quick="", **amounts).parse_args()
    with opened(options) as table:
        table.run(measure(table, **{name: amount_of(options, name) for name in amounts}))


@contextmanager
def opened(options: argparse.Namespace, heading: str = "", clock: Callable[[], float] = time.monotonic) -> Iterator[Table]:
    """Open a table whose time starts now, and print it on any exit. Exits with OUT_OF_TIME if the time was too short.

    Enter this before starting servers, so that they have ended when the rows are printed.
    """
    full, short = options.limits
    default = short if options.quick else full
    table = Table(default if options.time_limit is None else options.time_limit, clock)
    try:
        yield table
    except OutOfTime:
        publish(table.rows, options, heading)
        missing = ", ".join(table.unfinished) or "everything"
        print(f"out of time ({table.seconds:g} s); not measured to its end: {missing}", file=sys.stderr)
        sys.exit(OUT_OF_TIME)
    except BaseException:
        publish(table.rows, options, heading)
        raise
    publish(table.rows, options, heading)


# --- printing ------------------------------------------------------------------------------------------------------------


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    return f"{len(os.sched_getaffinity(0))} cores of {next(names, 'unknown processor')}"


def render(rows: Sequence[Row]) -> str:
    head = ("claim", "value", "rival", "ratio", "target", "met")
    lines = [
        (
            row.claim,
            f"{row.value:,.4g} {row.unit}",
            "" if row.rival_value is None else f"{row.rival} {row.rival_value:,.4g} {row.unit}",
            _ratio(row),
            row.target or "",
            {True: "yes", False: "NO", None: ""}[row.met],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    table = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in (head, *lines))
    return "\n".join(table) + "\n"


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    return f"{row.ratio:.2f}" if row.between is None else f"{row.ratio:.2f} ({row.between[0]:.2f}–{row.between[1]:.2f})"


def publish(rows: Sequence[Row], options: argparse.Namespace, heading: str = "") -> None:
    """Print the table, and write it to the files in the options."""
    facts = (datetime.now(UTC).date().isoformat(), machine(), heading)
    text = f"{', '.join(filter(None, facts))}\n\n{render(rows)}"
    print(text, end="")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    if options.save is not None:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.write_text(text, encoding="utf-8")
