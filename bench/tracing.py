"""What traces cost at the gateway: requests a second of stacks that make none, keep 1 of 100, and keep all; and the processor time of a
request, in the gateway and in all programs, which says more where the machine has other guests.

    python -m bench.tracing [--quick] [--rounds 6] [--seconds 4] [--json FILE]

The stacks stand side by side and take turns, so that each ratio is of one run. All of the way is in it: the gateway, the worker, the
metrics service that reads the spans; only nobody takes them by OTLP.
"""

import argparse
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from bench import processor, report, rounds, tenants
from bench.gateway_rates import PLAIN, STREAMED, Contender, check
from tests.stacks import RunningStack, stack

AT_ONCE = 16
MOST_SECONDS, QUICK_MOST_SECONDS = 900.0, 240.0
#: Rounds, and seconds of a measurement.
QUICK = (2, 2.0)
OFF = "no traces"
#: Settings, and the share of the rate without traces that has to be left.
STACKS = {
    OFF: ({"OTEL_SDK_DISABLED": "true"}, None),
    "1 % kept": ({"OTEL_TRACES_SAMPLER_ARG": "0.01"}, 0.97),
    "all kept": ({"OTEL_TRACES_SAMPLER_ARG": "1"}, 0.92),
}


@dataclass(slots=True)
class Costs:
    """Of one stack, a figure for each turn."""

    rates: list[float] = field(default_factory=list)
    #: In microseconds a request.
    gateway: list[float] = field(default_factory=list)
    everywhere: list[float] = field(default_factory=list)


async def measure(table: report.Table, count: int, seconds: float) -> None:
    async with AsyncExitStack() as opened:
        everyone: list[tuple[RunningStack, Contender]] = []
        for name, (settings, _) in STACKS.items():
            running = await opened.enter_async_context(stack(**tenants.UNREACHED, **settings, AIMESH_ECHO="1", LOG_LEVEL="warning"))
            everyone.append((running, Contender(name, tenants.gateway_port(running), await tenants.register(running), "echo")))
        costs: dict[tuple[str, bool], Costs] = defaultdict(Costs)
        with table.part(f"{count} rounds") as rows:
            for number in range(count):
                await _round(everyone, number, seconds, costs)
                rows[:] = _rows_of_all(costs)


async def _round(everyone: list[tuple[RunningStack, Contender]], number: int, seconds: float, costs: dict[tuple[str, bool], Costs]) -> None:
    for words, streams, _ in (PLAIN, STREAMED):
        for running, one in rounds.in_turn(everyone, number):
            before = await _worked(running)
            outcome = check(await one.asked(words, AT_ONCE, seconds, stream=streams), one.name)
            worked = {name: ms - before[name] for name, ms in (await _worked(running)).items()}
            found = costs[one.name, streams]
            found.rates.append(outcome.rate())
            found.gateway.append(1000 * worked["gateway"] / len(outcome.good))
            found.everywhere.append(1000 * sum(worked.values()) / len(outcome.good))


def _rows_of_all(costs: dict[tuple[str, bool], Costs]) -> list[report.Row]:
    return [
        row
        for streams, what in ((False, "plain"), (True, "streams of 20"))
        for name, (_, at_least) in STACKS.items()
        if at_least is not None
        for row in _rows(f"{name}, {what}", costs[name, streams], costs[OFF, streams], at_least)
    ]


async def _worked(running: RunningStack) -> dict[str, float]:
    """Milliseconds of each program of a stack since it began."""
    return {name: processor.spent_ms(pid) for name, pid in (await running.pids()).items() if pid is not None}


def _rows(claim: str, found: Costs, without: Costs, at_least: float) -> list[report.Row]:
    return [
        rounds.paired(f"{claim}, {AT_ONCE} at once", "req/s", found.rates, OFF, without.rates, at_least=at_least),
        rounds.paired(f"{claim}: processor, gateway", "µs", found.gateway, OFF, without.gateway, at_most=round(1 / at_least, 3)),
        rounds.paired(f"{claim}: processor, all programs", "µs", found.everywhere, OFF, without.everywhere),
    ]


def main() -> None:
    parser: argparse.ArgumentParser = report.arguments(
        __doc__, limits=(MOST_SECONDS, QUICK_MOST_SECONDS), quick=f"{QUICK[0]} rounds of {QUICK[1]:g} s each"
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4, help="of one measurement")
    options = parser.parse_args()
    with report.opened(options) as table:
        table.run(measure(table, *(QUICK if options.quick else (options.rounds, options.seconds))))


if __name__ == "__main__":
    main()
