"""What traces cost at the gateway: requests a second of stacks that make none, keep 1 of 100, and keep all.

    python -m bench.tracing [--rounds 30] [--seconds 1] [--json FILE]

The stacks stand side by side and take turns, so that each ratio is of one run; short turns and many of them, because what else a machine
does lasts longer than a second. All of the way is in it: the gateway, the worker, the
metrics service that reads the spans; only nobody takes them by OTLP.
"""

import argparse
import asyncio
from contextlib import AsyncExitStack

import uvloop

from bench import report, rounds, tenants
from bench.gateway_rates import PLAIN, STREAMED, Contender, check
from tests.stacks import stack

AT_ONCE = 16
MOST_SECONDS = 900.0
OFF = "no traces"
#: Settings, and the share of the rate without traces that has to be left.
STACKS = {
    OFF: ({"OTEL_SDK_DISABLED": "true"}, None),
    "1 % kept": ({"OTEL_TRACES_SAMPLER_ARG": "0.01"}, 0.97),
    "all kept": ({"OTEL_TRACES_SAMPLER_ARG": "1"}, 0.92),
}


async def measure(count: int, seconds: float) -> list[report.Row]:
    async with asyncio.timeout(MOST_SECONDS), AsyncExitStack() as opened:
        everyone = []
        for name, (settings, _) in STACKS.items():
            running = await opened.enter_async_context(stack(**tenants.UNREACHED, **settings, AIMESH_ECHO="1", LOG_LEVEL="warning"))
            everyone.append(Contender(name, tenants.gateway_port(running), await tenants.register(running), "echo"))
        rates: dict[tuple[str, bool], list[float]] = {}
        for number in range(count):
            for words, streams, _ in (PLAIN, STREAMED):
                for one in rounds.in_turn(everyone, number):
                    outcome = check(await one.asked(words, AT_ONCE, seconds, stream=streams), one.name)
                    rates.setdefault((one.name, streams), []).append(outcome.rate())
    return [
        rounds.paired(f"{name}, {what}, {AT_ONCE} at once", "req/s", rates[name, streams], OFF, rates[OFF, streams], at_least=at_least)
        for streams, what in ((False, "plain"), (True, "streams of 20"))
        for name, (_, at_least) in STACKS.items()
        if at_least is not None
    ]


def main() -> None:
    parser: argparse.ArgumentParser = report.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1, help="of one measurement")
    options = parser.parse_args()
    report.publish(uvloop.run(measure(options.rounds, options.seconds)), options.json)


if __name__ == "__main__":
    main()
