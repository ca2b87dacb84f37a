"""The cost of traces: requests a second of stacks that make none, keep 1 of 100, and keep all, and the processor time of a request.

    python -m bench.tracing [--quick] [--rounds 6] [--seconds 4] [--json FILE]

The stacks run side by side and take turns, so that each ratio is of one run. The whole path is included: the gateway, the worker, the
metrics service that reads the spans; only export by OTLP is not. Processor time says more than the rate if the machine has other guests.
"""

from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from bench import processes, report, tenants
from bench import rounds as turns
from bench.gateway_rates import PLAIN, STREAMED, Contender, check
from tests.stacks import RunningStack, stack

AT_ONCE = 16
OFF = "no traces"
#: Settings, and the share of the rate without traces that has to be left.
STACKS = {
    OFF: ({"OTEL_SDK_DISABLED": "true"}, None),
    "1 % kept": ({"OTEL_TRACES_SAMPLER_ARG": "0.01"}, 0.97),
    "all kept": ({"OTEL_TRACES_SAMPLER_ARG": "1"}, 0.92),
}


@dataclass(slots=True)
class Costs:
    """One stack's figures, one for each turn."""

    rates: list[float] = field(default_factory=list)
    #: Microseconds a request.
    gateway: list[float] = field(default_factory=list)
    everywhere: list[float] = field(default_factory=list)


async def _measure(table: report.Table, rounds: int, seconds: float) -> None:
    async with AsyncExitStack() as opened:
        everyone: list[tuple[RunningStack, Contender]] = []
        for name, (settings, _) in STACKS.items():
            running = await opened.enter_async_context(stack(**tenants.UNREACHED, **settings, AIMESH_ECHO="1", LOG_LEVEL="warning"))
            everyone.append((running, Contender(name, tenants.gateway_port(running), await tenants.register(running), "echo")))
        costs: dict[tuple[str, bool], Costs] = defaultdict(Costs)
        with table.part(f"{rounds} rounds") as rows:
            for number in range(rounds):
                await _measure_round(everyone, number, seconds, costs)
                rows[:] = _rows_of_all(costs)


async def _measure_round(
    everyone: list[tuple[RunningStack, Contender]], number: int, seconds: float, costs: dict[tuple[str, bool], Costs]
) -> None:
    for words, streams, _ in (PLAIN, STREAMED):
        for running, one in turns.in_turn(everyone, number):
            before = await _spent_ms(running)
            outcome = check(await one.asked(words, AT_ONCE, seconds, stream=streams), one.name)
            spent = {name: ms - before[name] for name, ms in (await _spent_ms(running)).items()}
            found = costs[one.name, streams]
            found.rates.append(outcome.rate())
            found.gateway.append(1000 * spent["gateway"] / len(outcome.good))
            found.everywhere.append(1000 * sum(spent.values()) / len(outcome.good))


async def _spent_ms(running: RunningStack) -> dict[str, float]:
    return {name: processes.spent_ms(pid) for name, pid in (await running.pids()).items() if pid is not None}


def _rows_of_all(costs: dict[tuple[str, bool], Costs]) -> list[report.Row]:
    return [
        row
        for streams, what in ((False, "plain"), (True, "streams of 20"))
        for name, (_, at_least) in STACKS.items()
        if at_least is not None
        for row in _rows(f"{name}, {what}", costs[name, streams], costs[OFF, streams], at_least)
    ]


def _rows(claim: str, found: Costs, without: Costs, at_least: float) -> list[report.Row]:
    return [
        turns.paired(f"{claim}, {AT_ONCE} at once", "req/s", found.rates, OFF, without.rates, at_least=at_least),
        turns.paired(f"{claim}: processor, gateway", "µs", found.gateway, OFF, without.gateway, at_most=round(1 / at_least, 3)),
        turns.paired(f"{claim}: processor, all programs", "µs", found.everywhere, OFF, without.everywhere),
    ]


if __name__ == "__main__":
    report.run(__doc__, _measure, limits=(900.0, 240.0), rounds=(6, 2), seconds=(4.0, 2.0))
