"""The cost of traces: requests a second of stacks that make none, keep 1 of 100, and keep all, and the processor time of a request.

The stacks run side by side and take turns, so that each ratio is of one run. The whole path is included: the gateway, the worker, the
metrics service that reads the spans; only export by OTLP is not. Processor time says more than the rate if the machine has other guests.
"""

from contextlib import AsyncExitStack

from bench import report, tenants
from bench.gateway import FORMS
from bench.report import Options, Rows

AT_ONCE = 16
OFF = "no traces"
#: Settings, and the share of the rate without traces that has to be left.
STACKS = {
    OFF: ({"OTEL_SDK_DISABLED": "true"}, 1.0),
    "1 % kept": ({"OTEL_TRACES_SAMPLER_ARG": "0.01"}, 0.97),
    "all kept": ({"OTEL_TRACES_SAMPLER_ARG": "1"}, 0.92),
}


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    async with AsyncExitStack() as opened:
        stacks = {name: await opened.enter_async_context(tenants.opened(**settings)) for name, (settings, _) in STACKS.items()}
        turns = {(form, name): form.turn(one.port, one.keys, "echo", AT_ONCE, one.pids) for form in FORMS for name, one in stacks.items()}
        figures = await tenants.take_turns(turns, options)
    for form in FORMS:
        off = figures[form, OFF]
        for name, (_, left) in list(STACKS.items())[1:]:
            claim, kept, at_most = f"{name}, {form.what}", figures[form, name], round(1 / left, 3)
            rows.paired(f"{claim}, {AT_ONCE} at once", kept["rate"], "req/s", OFF, off["rate"], at_least=left)
            rows.paired(f"{claim}: processor, gateway", kept["gateway"], "µs", OFF, off["gateway"], at_most=at_most)
            rows.paired(f"{claim}: processor, all programs", kept["everywhere"], "µs", OFF, off["everywhere"])


if __name__ == "__main__":
    report.run(__doc__, {"rounds": _measure}, limits=(900.0, 240.0), rounds=(6, 2), seconds=(4.0, 2.0))
