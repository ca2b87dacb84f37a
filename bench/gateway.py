"""The gateway's speed and size with its whole pipeline: keys, limits and ledger, with real PostgreSQL, Valkey and NATS.

    python -m bench.gateway [--quick] [--rounds 3] [--seconds 10] [--only SECTION …] [--time-limit SECONDS] [--json FILE] [--save FILE]

first_token  what gateway and mesh add to the time to first token, at 100 requests a second of 50 tenants
rates        requests a second against LiteLLM's proxy in front of the same instant upstream, and of one hot tenant alone
crowd        1,000 streams at once and their memory, and 2,000 of which half must be rejected
flood        5,000 requests of one tenant at once, and their effect on ten others

Everything shares one machine, including the load generator, so compare ratios of one run rather than figures.
"""

from collections.abc import Awaitable, Callable, Sequence

from bench import gateway_crowd, gateway_first_token, gateway_flood, gateway_rates, litellm, report

QUICK_SECONDS = 3.0
#: The time limits of a whole run.
MOST_SECONDS, QUICK_MOST_SECONDS = 1800.0, 600.0


async def _first_token(rows: list[report.Row], _rounds: int, seconds: float) -> None:
    rows += await gateway_first_token.measure(seconds)


async def _crowd(rows: list[report.Row], _rounds: int, _seconds: float) -> None:
    await gateway_crowd.measure(rows)


async def _flood(rows: list[report.Row], _rounds: int, _seconds: float) -> None:
    rows += await gateway_flood.measure()


#: A section adds its rows as soon as it has them; it gets the number of rounds and the seconds of one measurement.
SECTIONS: dict[str, Callable[[list[report.Row], int, float], Awaitable[None]]] = {
    "first_token": _first_token,
    "rates": gateway_rates.measure,
    "crowd": _crowd,
    "flood": _flood,
}


async def measure(table: report.Table, names: Sequence[str], rounds: int, seconds: float) -> None:
    table.expect(names)
    for name in names:
        with table.part(name) as rows:
            await SECTIONS[name](rows, rounds, seconds)


def main() -> None:
    parser = report.arguments(__doc__, limits=(MOST_SECONDS, QUICK_MOST_SECONDS), quick=f"one round of {QUICK_SECONDS:g} s each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of one measurement")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="measure only these")
    options = parser.parse_args()
    litellm.ensure()  # before the time limit starts
    rounds, seconds = (1, QUICK_SECONDS) if options.quick else (options.rounds, options.seconds)
    with report.opened(options, litellm.version()) as table:
        table.run(measure(table, options.only or tuple(SECTIONS), rounds, seconds))


if __name__ == "__main__":
    main()
