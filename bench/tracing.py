"""The cost of traces: requests a second of stacks that make none, keep 1 of 100, and keep all, and the processor time of a request.

The stacks run side by side and take turns, so that each ratio is of one run. The whole path is included: the gateway, the worker, the
metrics service that reads the spans; only export by OTLP is not. Processor time says more than the rate if the machine has other guests.
"""

from collections import defaultdict
from contextlib import AsyncExitStack

from bench import processes, report, tenants
from bench.gateway import FORMS, Contender
from bench.report import Options, Rows
from tests.stacks import RunningStack

AT_ONCE = 16
OFF = "no traces"
#: Settings, and the share of the rate without traces that has to be left.
STACKS = {
    OFF: ({"OTEL_SDK_DISABLED": "true"}, 1.0),
    "1 % kept": ({"OTEL_TRACES_SAMPLER_ARG": "0.01"}, 0.97),
    "all kept": ({"OTEL_TRACES_SAMPLER_ARG": "1"}, 0.92),
}

#: The figures of all rounds: by stack, form of request, and unit or whose processor time.
Figures = defaultdict[tuple[str, str, str], list[float]]


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    async with AsyncExitStack() as opened:
        everyone: list[tuple[RunningStack, Contender]] = []
        for name, (settings, _) in STACKS.items():
            running = await opened.enter_async_context(tenants.stack(**settings))
            everyone.append((running, Contender(name, tenants.gateway_port(running), await tenants.register(running), "echo")))
        figures = Figures(list)
        for number in range(options.rounds):
            for form in FORMS:
                for running, one in report.in_turn(everyone, number):
                    before = await _spent_ms(running)
                    outcome = await one.ask(form, AT_ONCE, options.seconds)
                    spent = {name: ms - before[name] for name, ms in (await _spent_ms(running)).items()}
                    figures[one.name, form.what, "rate"].append(outcome.rate())
                    figures[one.name, form.what, "gateway"].append(1000 * spent["gateway"] / len(outcome.good))
                    figures[one.name, form.what, "everywhere"].append(1000 * sum(spent.values()) / len(outcome.good))
            rows[:] = _compare(figures)


async def _spent_ms(running: RunningStack) -> dict[str, float]:
    return {name: processes.spent_ms(pid) for name, pid in (await running.pids()).items() if pid is not None}


def _compare(figures: Figures) -> Rows:
    rows = Rows()
    for what in (form.what for form in FORMS):
        rate, gateway, everywhere = (figures[OFF, what, figure] for figure in ("rate", "gateway", "everywhere"))
        for name, (_, left) in list(STACKS.items())[1:]:
            claim = f"{name}, {what}"
            rows.paired(f"{claim}, {AT_ONCE} at once", figures[name, what, "rate"], "req/s", OFF, rate, at_least=left)
            most = round(1 / left, 3)
            rows.paired(f"{claim}: processor, gateway", figures[name, what, "gateway"], "µs", OFF, gateway, at_most=most)
            rows.paired(f"{claim}: processor, all programs", figures[name, what, "everywhere"], "µs", OFF, everywhere)
    return rows


if __name__ == "__main__":
    report.run(__doc__, {"rounds": _measure}, limits=(900.0, 240.0), rounds=(6, 2), seconds=(4.0, 2.0))
