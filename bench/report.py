"""The rows of a bench: measured within a time limit, printed as a table, and written as JSON for `bench.baseline`.

    report.run(__doc__, {"calls": _measure_calls, "memory": _measure_memory}, limits=(300, 120), setting=_servers, rounds=(3, 1))

A bench declares its parts, the seconds allowed for its full and its short form, what all parts share, and amounts that differ between the
forms. Each part is ``async def part(rows, shared, options)``; it adds rows as soon as it has them.
"""

import argparse
import asyncio
import json
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

import uvloop

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)

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


class Target(TypedDict, total=False):
    """The limit of a row's ratio, or of its value if it has no ratio."""

    at_most: float | None
    at_least: float | None


class Rows(list[Row]):
    """The rows of one part of a bench."""

    def alone(self, claim: str, value: float, unit: str, **target: Unpack[Target]) -> None:
        """Add a figure without a rival."""
        self.append(_judge(Row(claim, value, unit), **target))

    def against(self, claim: str, value: float, unit: str, rival: str, rival_value: float, **target: Unpack[Target]) -> None:
        """Compare with a rival of the same run."""
        # A rival that did nothing must not discard the other rows; NaN meets no target.
        ratio = value / rival_value if rival_value else math.nan
        self.append(_judge(Row(claim, value, unit, rival, rival_value, ratio), **target))

    def paired(self, claim: str, values: Sequence[float], unit: str, rival: str, others: Sequence[float], **target: Unpack[Target]) -> None:
        """Compare the pairs of each round.

        The speed of a machine drifts by more than the measured differences. Two figures of one round are minutes apart at most, so their
        ratio is meaningful; the median of the ratios leaves out a round in which something else was running.
        """
        ratios = [value / other if other else math.nan for value, other in zip(values, others, strict=True)]
        # NaN cannot be ordered, so the median of the others would depend on its place.
        ratio = math.nan if any(map(math.isnan, ratios)) else statistics.median(ratios)
        row = Row(claim, statistics.median(values), unit, rival, statistics.median(others), ratio, between=(min(ratios), max(ratios)))
        self.append(_judge(row, **target))


def _judge(row: Row, at_most: float | None = None, at_least: float | None = None) -> Row:
    """Add the target, whether the row meets it, and which ratios are better."""
    judged, before, after = (row.value, "", f" {row.unit}") if row.ratio is None else (row.ratio, "ratio ", "")
    target, met, better = None, None, None
    if at_most is not None:
        target, met, better = f"{before}<= {at_most:g}{after}", judged <= at_most, Better.LOWER
    elif at_least is not None:
        target, met, better = f"{before}>= {at_least:g}{after}", judged >= at_least, Better.HIGHER
    elif row.ratio is not None:
        better = better_of(row.unit)
    return replace(row, target=target, met=met, better=None if row.ratio is None else better)


def better_of(unit: str) -> Better:
    """Rates should be high; times and sizes should be low."""
    if unit.endswith("/s"):
        return Better.HIGHER
    if unit in {"us", "µs", "ms", "s", "kB", "MB", "MiB", "GPU h"}:
        return Better.LOWER
    raise ValueError(f"nobody knows whether more {unit!r} is better: give the row a target, or add the unit to bench/report.py")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def in_turn(everyone: Iterable[T], number: int) -> list[T]:
    """Start each round with another contender."""
    order = list(everyone)
    first = number % len(order)
    return [*order[first:], *order[:first]]


async def take_turns(
    ways: Mapping[Key, Callable[[], Awaitable[T]]], rounds: int, after_turn: Callable[[Mapping[Key, Sequence[T]]], None] = lambda _: None
) -> dict[Key, list[T]]:
    """Measure each of them once in each round. Return the figures of all rounds; ``after_turn`` gets those so far."""
    figures: dict[Key, list[T]] = {key: [] for key in ways}
    for number in range(rounds):
        for key in in_turn(ways, number):
            figures[key].append(await ways[key]())
            after_turn(figures)
    return figures


def by_name(figures: Mapping[Key, Sequence[Mapping[str, float]]]) -> dict[Key, dict[str, list[float]]]:
    """Sort what `take_turns` returns, if each way has several figures."""
    return {key: {name: [each[name] for each in rounds] for name in rounds[0]} for key, rounds in figures.items()}


#: The arguments of a bench: its amounts, `quick`, and where to write the rows.
Options = argparse.Namespace
#: Gets its rows, what all parts share, and the options.
Part = Callable[[Rows, Any, Options], Coroutine[Any, Any, None]]
#: Opens what all parts share.
Setting = Callable[[Options], AbstractAsyncContextManager[Any]]


def _share_nothing(_options: Options) -> AbstractAsyncContextManager[None]:
    return nullcontext()


def run(
    description: str | None,
    parts: Mapping[str, Part],
    *,
    limits: tuple[float, float],
    setting: Setting = _share_nothing,
    quick_parts: Sequence[str] = (),
    before: Callable[[Options], str] = lambda _options: "",
    serve: Callable[..., Coroutine[Any, Any, None]] | None = None,
    **amounts: tuple[Any, Any],
) -> None:
    """Run a bench from the command line, or with --serve, its other process: ``serve``.

    ``before`` prepares what the time limit must not include, and returns a heading.
    """
    if serve is not None and sys.argv[1:2] == ["--serve"]:
        uvloop.run(serve(*sys.argv[2:]))
        return
    options = arguments(description, {"time_limit": limits, **amounts}, parts, quick_parts)
    Table(options, before(options)).run(parts, setting)


class Table:
    """The rows of one run, by part. A run that fails or runs out of time still prints them."""

    def __init__(self, options: Options, heading: str = "") -> None:
        self.rows: dict[str, Rows] = {name: Rows() for name in options.only}
        #: The parts that have not ended.
        self.unfinished: list[str] = list(options.only)
        self._options, self._heading = options, heading

    def run(self, parts: Mapping[str, Part], setting: Setting = _share_nothing) -> None:
        """Measure the parts, and print the table on any exit. Exits with OUT_OF_TIME when the time is over, or on SIGTERM."""
        try:
            if uvloop.run(self._is_measured_in_time(parts, setting)):
                return
            missing = ", ".join(self.unfinished)
            print(f"out of time ({self._options.time_limit:g} s); not measured to its end: {missing}", file=sys.stderr)
            sys.exit(OUT_OF_TIME)
        finally:
            publish([row for rows in self.rows.values() for row in rows], self._options, self._heading)

    async def _is_measured_in_time(self, parts: Mapping[str, Part], setting: Setting) -> bool:
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(self._options.time_limit)

        def end_now() -> None:
            # A second SIGTERM, or one after the time is over, changes nothing.
            if not limit.expired():
                limit.reschedule(loop.time())

        try:
            async with limit:
                loop.add_signal_handler(signal.SIGTERM, end_now)
                await self._measure(parts, setting)
        except TimeoutError:
            if not limit.expired():
                raise
        return not limit.expired()

    async def _measure(self, parts: Mapping[str, Part], setting: Setting) -> None:
        began = time.monotonic()
        async with setting(self._options) as shared:
            for name, rows in self.rows.items():
                # Here the end is noticed after a part without an await.
                await asyncio.sleep(0.001)
                await parts[name](rows, shared, self._options)
                self.unfinished.remove(name)
                print(f"{name}: {len(rows)} rows after {time.monotonic() - began:.0f} s", file=sys.stderr)


def arguments(
    description: str | None,
    amounts: Mapping[str, tuple[Any, Any]],
    parts: Iterable[str] = (),
    quick_parts: Iterable[str] = (),
    words: Sequence[str] | None = None,
) -> Options:
    """Parse the arguments of a bench. Each amount is an option with two defaults: for the full and the short form."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="the short form")
    parser.add_argument("--only", nargs="+", choices=list(parts), help="measure only these parts")
    for name, (full, short) in amounts.items():
        meaning = f"then print the rows measured so far and exit with {OUT_OF_TIME}; " if name == "time_limit" else ""
        words_of = f"{meaning}default: {full:,}, with --quick {short:,}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(full), metavar="NUMBER", help=words_of)
    options = parser.parse_args(words)
    for name, forms in {"only": (tuple(parts), tuple(quick_parts or parts)), **amounts}.items():
        if getattr(options, name) is None:
            setattr(options, name, forms[options.quick])
    return options


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
            "" if row.ratio is None else f"{row.ratio:.2f}" + (" ({:.2f}–{:.2f})".format(*row.between) if row.between else ""),
            row.target or "",
            {True: "yes", False: "NO", None: ""}[row.met],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    table = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in (head, *lines))
    return "\n".join(table) + "\n"


def publish(rows: Sequence[Row], options: Options, heading: str = "") -> None:
    """Print the table, and write the rows to the file in the options."""
    facts = (datetime.now(UTC).date().isoformat(), machine(), heading)
    print(f"{', '.join(filter(None, facts))}\n\n{render(rows)}", end="")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
