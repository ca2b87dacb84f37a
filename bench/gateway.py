"""The gateway's speed and size with all of its pipeline on: keys, limits and ledger, with real PostgreSQL, Valkey and NATS.

    python -m bench.gateway [--quick] [--rounds 3] [--seconds 10] [--only SECTION …] [--save FILE] [--json FILE]

first_token  what gateway and mesh add to the time to the first token, at 100 requests a second of 50 tenants
rates        requests a second against LiteLLM's proxy in front of the same instant upstream, and of one hot tenant alone
crowd        1,000 streams at once, the memory they take, and 2,000 of which half must be told so
flood        5,000 requests of one tenant at once, and what ten others notice

Everything shares one machine, the load generator too; a ratio of one run keeps its meaning where a figure does not.
"""

import argparse
import asyncio
import contextlib
import io
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from bench import gateway_crowd, gateway_first_token, gateway_flood, gateway_rates, litellm, report

QUICK_SECONDS = 3.0
#: Of the whole; a run that takes longer has met a machine that cannot do it.
MOST_SECONDS = 1800.0


async def _first_token(_rounds: int, seconds: float) -> list[report.Row]:
    return await gateway_first_token.measure(seconds)


async def _crowd(_rounds: int, _seconds: float) -> list[report.Row]:
    return await gateway_crowd.measure()


async def _flood(_rounds: int, _seconds: float) -> list[report.Row]:
    return await gateway_flood.measure()


#: Each with the number of rounds and the seconds of one measurement.
SECTIONS: dict[str, Callable[[int, float], Awaitable[list[report.Row]]]] = {
    "first_token": _first_token,
    "rates": gateway_rates.measure,
    "crowd": _crowd,
    "flood": _flood,
}


def where() -> str:
    """The machine, for whoever reads the figures later."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    processor = next(
        (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "unknown processor"
    )
    return f"{datetime.now(UTC).date().isoformat()}, {len(os.sched_getaffinity(0))} cores of {processor}, {litellm.version()}"


async def measure(options: argparse.Namespace) -> list[report.Row]:
    rounds, seconds = (1, QUICK_SECONDS) if options.quick else (options.rounds, options.seconds)
    async with asyncio.timeout(MOST_SECONDS):
        return [row for name in options.only or SECTIONS for row in await SECTIONS[name](rounds, seconds)]


def main() -> None:
    parser = report.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of one measurement")
    parser.add_argument("--quick", action="store_true", help=f"one round of {QUICK_SECONDS:g} s each")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="measure only these")
    parser.add_argument("--save", type=Path, help="also write the table to this file, with the machine")
    options = parser.parse_args()
    litellm.ensure()  # outside the time of the run
    rows = uvloop.run(measure(options))
    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        report.publish(rows, options.json)
    text = f"{where()}\n\n{table.getvalue()}"
    print(text, end="")
    if options.save is not None:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
