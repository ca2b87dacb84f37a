import random

import pytest

from services.gateway.facts.placements import ANYWHERE
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.requests import generation
from services.gateway.scheduling import worker_choice, worker_records
from services.gateway.scheduling.worker_records import QUARANTINE_SECONDS, WITHIN_SECONDS, DishonestWorkers, WorkerStats
from shared import errors
from shared.types import ModelName, Role
from tests.services.gateway.fakes import USER, FakeDirectory, node_id

DISHONEST, OTHER = node_id(1), node_id(2)


def test_the_third_strike_within_an_hour_starts_a_quarantine_of_an_hour() -> None:
    known = DishonestWorkers()
    assert [known.strike(DISHONEST, now) for now in (0.0, 1.0, 2.0)] == [False, False, True]
    assert known.seconds_left(DISHONEST, 2.0) == QUARANTINE_SECONDS
    assert known.seconds_left(OTHER, 2.0) == 0
    # Requests that started before don't extend the quarantine; after its end, the count starts again.
    assert not known.strike(DISHONEST, 3.0)
    back_at = 2.0 + QUARANTINE_SECONDS
    assert known.seconds_left(DISHONEST, back_at) == 0
    assert [known.strike(DISHONEST, back_at + more) for more in (0.0, 1.0, 2.0)] == [False, False, True]


def test_strikes_expire_one_by_one() -> None:
    known = DishonestWorkers()
    assert not any(known.strike(DISHONEST, number * (WITHIN_SECONDS / 2 + 1)) for number in range(10))


def test_quarantines_of_other_gateways_apply() -> None:
    known = DishonestWorkers()
    known.strike(DISHONEST, 0.0)
    known.learn({OTHER: 50.0}, 1.0)
    assert (known.seconds_left(OTHER, 1.0), known.seconds_left(DISHONEST, 1.0)) == (50.0, 0.0)
    # Strikes from before still count.
    assert [known.strike(DISHONEST, now) for now in (2.0, 3.0)] == [False, True]
    # PostgreSQL doesn't have the third strike yet.
    known.learn({}, 4.0, unless={DISHONEST})
    assert known.seconds_left(DISHONEST, 4.0) > 0
    # Both workers were pardoned.
    known.learn({}, 5.0)
    assert (known.seconds_left(DISHONEST, 5.0), known.seconds_left(OTHER, 5.0)) == (0.0, 0.0)
    assert not known.strike(DISHONEST, 6.0)


@pytest.mark.parametrize(
    ("claimed", "came", "answers", "wrong"),
    [
        pytest.param(100, 100, 1, False, id="the right number"),
        pytest.param(101, 100, 1, False, id="with the end token"),
        pytest.param(12, 8, 4, False, id="with the end tokens of four answers"),
        pytest.param(1020, 1000, 1, False, id="two percent"),
        pytest.param(1021, 1000, 1, True, id="more than two percent"),
        pytest.param(110, 100, 1, True, id="a tenth more"),
        pytest.param(1000, 100, 1, True, id="ten times as many"),
        pytest.param(2**63, 100, 1, True, id="2^63"),
        pytest.param(-1, 100, 1, True, id="negative"),
        pytest.param(-1, 0, 1, True, id="negative, without token ids"),
        pytest.param(0, 100, 1, True, id="zero for an answer with tokens"),
        pytest.param(5000, 0, 1, False, id="unknown: no token ids were sent"),
    ],
)
def test_which_counts_are_wrong(claimed: int, came: int, answers: int, wrong: bool) -> None:
    assert generation.is_wrong(claimed, came, answers) == wrong


def test_a_quarantined_worker_is_not_eligible_and_the_error_says_why() -> None:
    known, directory, requirements = (
        WorkerStats(),
        FakeDirectory(),
        WorkerRequirements(ModelName("m"), USER, USER, 1, 1, placement=ANYWHERE),
    )
    for number in (1, 2):
        directory.worker(number, "m")
    for _ in range(worker_records.STRIKES):
        known.dishonest_workers.strike(DISHONEST, 10.0)
    rows = worker_choice.eligible(requirements, worker_choice.list_candidates(known, requirements, directory.usable(Role.WORKER), 11.0))
    assert [row.node for row in rows] == [OTHER]
    # Unlike a failing worker, a dishonest one is excluded even if it is the last. The error and `aicli nodes` show the reason.
    directory.mark_gone(OTHER, "stopped")
    with pytest.raises(errors.NotReachable, match="in quarantine for 60 min: it reported wrong token counts"):
        worker_choice.eligible(requirements, worker_choice.list_candidates(known, requirements, directory.usable(Role.WORKER), 11.0))
    after = worker_choice.list_candidates(known, requirements, directory.usable(Role.WORKER), 10.0 + QUARANTINE_SECONDS)
    assert worker_choice.choose_worker(requirements, worker_choice.eligible(requirements, after), random.Random(1)) is not None


def test_a_restarted_worker_stays_in_quarantine() -> None:
    known, directory = WorkerStats(), FakeDirectory()
    directory.worker(1, "m")
    (entry,) = directory.usable(Role.WORKER)
    known.apply_change(entry, 0.0, entry.since)
    for _ in range(worker_records.STRIKES):
        known.dishonest_workers.strike(DISHONEST, 10.0)
    directory.mark_gone(DISHONEST, "stopped")
    (entry,) = directory.entries(Role.WORKER)
    known.apply_change(entry, 11.0, entry.since)
    assert known.dishonest_workers.seconds_left(DISHONEST, 11.0) > 0
