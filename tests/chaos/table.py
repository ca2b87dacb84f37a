"""The list of faults, and the page with the results of a run."""

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from tests import feature_parts
from tests.chaos import scenarios_clients, scenarios_money, scenarios_servers, scenarios_workers
from tests.chaos.world import Outcome, World

Scenario = Callable[[World], Awaitable[Outcome]]

_OF_FEATURES = feature_parts.modules("chaos.scenarios")
SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        scenarios_workers.f1_worker_dies_before_the_first_token,
        scenarios_workers.f2_worker_dies_in_mid_stream,
        scenarios_servers.f3_gateway_dies,
        scenarios_servers.f4_worker_is_told_to_stop,
        scenarios_servers.f4_gateway_is_told_to_stop,
        scenarios_servers.f5_auth_dies,
        scenarios_servers.f7_nats_dies,
        scenarios_servers.f9_postgres_restarts,
        scenarios_servers.f9_postgres_crashes,
        scenarios_servers.f9_postgres_stalls,
        scenarios_servers.f11_valkey_dies,
        scenarios_servers.f11_valkey_forgets,
        scenarios_servers.f11_valkey_stalls,
        scenarios_clients.f18_client_reads_nothing,
        scenarios_workers.f19_engine_dies,
        scenarios_workers.f20_request_that_ends_engines,
        scenarios_workers.f20_request_that_ends_workers,
        scenarios_clients.f21_burst,
        scenarios_workers.f22_half_of_the_attempts_fail,
        scenarios_clients.f23_clients_leave,
        scenarios_clients.f24_requests_are_repeated,
        scenarios_workers.f25_worker_hangs_and_wakes,
        scenarios_servers.f25_gateway_hangs_and_wakes,
        *(scenario for part in _OF_FEATURES for scenario in part.SCENARIOS),
        scenarios_money.f30_money_is_exact,
    )
}

#: The scenarios of `make test`: one of every kind, in about two minutes.
SHORT = (
    "f2_worker_dies_in_mid_stream",
    "f3_gateway_dies",
    "f9_postgres_crashes",
    "f11_valkey_dies",
    "f20_request_that_ends_engines",
    "f23_clients_leave",
    "f24_requests_are_repeated",
    *(name for part in _OF_FEATURES for name in part.SHORT),
    "f30_money_is_exact",
)

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "reference" / "faults.md"
HEAD = """\
# Fault tests

`make chaos` writes this page. It breaks one part of a running stack at a time, under load, and compares what clients received with the
ledger. Runs per row: {repeats}. Times are in seconds; if runs differ, a cell shows minimum, median and maximum.

| column | meaning |
|---|---|
| pause | the longest time without text in a stream that was running at the fault and ended well |
| failing | how long after the fault new requests could still fail |
| back | when everything worked again |
| wrong | broken guarantees: a wrong or missing answer, a hanging request, or a wrong charge |

{machine}

| fault | what was done | requests | outcome | pause | failing | back | ledger | wrong |
|---|---|---|---|---|---|---|---|---|
"""


def page(found: Mapping[str, Sequence[Outcome]], machine: str, *, repeats: int) -> str:
    """Return the text of the page. Raises ValueError if a scenario ran less often. Pure."""
    if missing := [name for name, outcomes in found.items() if len(outcomes) < repeats]:
        raise ValueError(f"fewer than {repeats} runs of {', '.join(missing)}")
    rows = [_row(outcomes) for outcomes in found.values()]
    notes = [
        f"- {outcomes[0].fault}, {outcomes[0].what}: {outcomes[-1].more}" for outcomes in found.values() if outcomes and outcomes[-1].more
    ]
    wrong = [f"- {each.fault}, {each.what}: {what}" for outcomes in found.values() for each in outcomes for what in each.violations[:3]]
    text = HEAD.format(repeats=repeats, machine=machine) + "\n".join(rows) + "\n"
    if notes:
        text += "\n## Notes\n\n" + "\n".join(notes) + "\n"
    if wrong:
        text += "\n## Wrong\n\n" + "\n".join(wrong) + "\n"
    return text


def _row(outcomes: Sequence[Outcome]) -> str:
    first = outcomes[0]
    ends: dict[str, int] = {}
    for outcome in outcomes:
        for end, times in outcome.ends.items():
            ends[end] = ends.get(end, 0) + times
    cells = (
        first.fault,
        first.what,
        f"{sum(outcome.calls for outcome in outcomes):,}",
        ", ".join(f"{times:,} {end}" for end, times in ends.items()),
        _range([outcome.longest_pause for outcome in outcomes]),
        _range([outcome.failing_seconds for outcome in outcomes]),
        _range([outcome.recovered_seconds for outcome in outcomes]),
        outcomes[-1].books,
        str(sum(len(outcome.violations) for outcome in outcomes)),
    )
    return "| " + " | ".join(cells) + " |"


def _range(values: Sequence[float]) -> str:
    least, most = min(values), max(values)
    if most - least < 0.05:
        return f"{most:.1f}"
    return f"{least:.1f} / {statistics.median(values):.1f} / {most:.1f}"
