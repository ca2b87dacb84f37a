"""Random histories of requests: rules that hold for all of them, and a few hundred that give the same as when they were last looked at."""

from pathlib import Path

import pytest

from tests import tiers
from tests.services.gateway.requests import histories
from tests.services.gateway.requests.histories import History, Outcome

GOLDEN = Path(__file__).with_name("histories.txt")


def test_histories_give_the_same_chunks_ends_rows_bills_and_resume_points() -> None:
    golden = dict(map(str.split, GOLDEN.read_text(encoding="ascii").splitlines()))
    different: list[str] = []

    def compare(seed: int, told: History, outcome: Outcome) -> None:
        histories.check(told, outcome)
        if golden[str(seed)] != outcome.digest:
            different.append(str(seed))

    histories.run(range(len(golden)), compare)
    assert not different, "look at these before and after the change; the docstring of histories.py says how, and how to write the new ones"


@pytest.mark.nightly("long")
def test_20000_histories_keep_the_rules() -> None:
    first = tiers.seed("HISTORIES_SEED")
    print(f"HISTORIES_SEED={first}")
    histories.run(range(first, first + 20_000), lambda _seed, told, outcome: histories.check(told, outcome))
