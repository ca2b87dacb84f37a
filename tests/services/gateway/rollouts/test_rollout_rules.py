"""How outcomes move a rollout from state to state."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from services.gateway.rollouts import rollout_evidence, rollout_rules
from services.gateway.rollouts.rollout_evidence import ArmTotals, Guard, RequestOutcome
from shared.api.configuration import RolloutGuards, RolloutState
from shared.config_documents import Sticky
from tests.services.gateway.rollouts.simulation import BEGAN, NOBODY, after, outcome, outcomes, rollout

QUICK: dict[str, Any] = {"steps": (10.0, 100.0), "step_seconds": 10, "step_requests": 4}


def good(count: int = 2) -> list[RequestOutcome]:
    return outcomes(count, 0, is_candidate=True) + outcomes(count, 0, is_candidate=False)


def test_a_step_takes_its_time_and_its_requests() -> None:
    found = rollout(**QUICK)
    assert after(found, good(9), seconds=9).share == 10, "too early"
    assert after(found, good(3), seconds=11).share == 10, "too few requests of the candidate"
    stepped = after(found, good(4), seconds=10)
    assert (stepped.share, stepped.progress.step, stepped.progress.step_requests) == (100, 1, 0)
    assert stepped.progress.step_began_at == BEGAN + timedelta(seconds=10)


def test_the_last_step_promotes_at_100_percent_only() -> None:
    promoted = after(rollout(**QUICK), good(4), good(4), seconds=10)
    assert (promoted.state, promoted.share, promoted.ended_at) == (RolloutState.PROMOTED, 0, BEGAN + timedelta(seconds=20))
    stays = after(rollout(**QUICK | {"steps": (10.0, 50.0)}), good(4), good(4), good(4), seconds=10)
    assert (stays.state, stays.share) == (RolloutState.RUNNING, 50)


def test_without_outcomes_it_holds_and_takes_no_step() -> None:
    found = after(rollout(**QUICK), good(4), seconds=5)
    held = rollout_rules.look(found, [], BEGAN + timedelta(seconds=21))
    assert (held.state, held.share, held.reason) == (RolloutState.HOLDING, 10, "no outcomes for 15 s")
    assert rollout_rules.look(found, [], BEGAN + timedelta(seconds=20)).state is RolloutState.RUNNING
    assert rollout_rules.look(found, [], BEGAN + timedelta(seconds=12)).share == 10, "nobody says that the candidate still works"
    again = rollout_rules.look(held, good(1), BEGAN + timedelta(seconds=25))
    assert (again.state, again.reason, again.share) == (RolloutState.RUNNING, "", 100)


def test_a_paused_one_keeps_its_share_but_is_rolled_back() -> None:
    paused = rollout(state=RolloutState.PAUSED, **QUICK)
    assert after(paused, good(9), good(9), [], seconds=20).state is RolloutState.PAUSED
    bad = outcomes(40, 30, is_candidate=True) + outcomes(200, 1, is_candidate=False)
    assert after(paused, bad, bad).state is RolloutState.ROLLED_BACK
    resumed = rollout_rules.resume(after(paused, good(9), seconds=20), BEGAN + timedelta(seconds=30))
    assert (resumed.progress.step_requests, resumed.progress.step_began_at) == (0, BEGAN + timedelta(seconds=30))


def test_a_rollback_says_why_in_one_sentence() -> None:
    first = outcomes(12, 3, is_candidate=True) + outcomes(188, 1, is_candidate=False)
    second = outcomes(29, 9, is_candidate=True) + outcomes(200, 1, is_candidate=False)
    found = after(rollout(), first, second)
    assert found.state is RolloutState.ROLLED_BACK
    assert found.reason.startswith("next: 12 of 41 answers failed, local: 2 of 388; evidence 1 in ")
    assert found.reason.endswith(" by chance")


def test_fewer_than_30_outcomes_and_small_differences_prove_nothing() -> None:
    few = outcomes(14, 14, is_candidate=True) + outcomes(500, 0, is_candidate=False)
    assert after(rollout(), few, few).state is RolloutState.RUNNING
    assert after(rollout(), few, few, few).state is RolloutState.ROLLED_BACK
    bad = outcomes(50, 10, is_candidate=True) + outcomes(500, 0, is_candidate=False)
    tolerant = rollout(guards=RolloutGuards(errors=50.0))
    assert after(tolerant, bad, bad, bad).state is RolloutState.RUNNING


def test_more_guards_need_more_evidence() -> None:
    look = outcomes(20, 4, is_candidate=True) + outcomes(200, 4, is_candidate=False)
    only = rollout(guards=RolloutGuards(errors=1.0, first_token=None, thumbs=None, cost=None))
    assert after(only, look, look).state is RolloutState.ROLLED_BACK, "1 in 115 by chance"
    assert after(rollout(), look, look).state is RolloutState.RUNNING, "four tests, and each may err"


def test_one_tenant_counts_20_times_in_a_look() -> None:
    found = after(rollout(), [outcome(n, failed=True, tenant=NOBODY) for n in range(50)])
    assert found.progress.evidence(Guard.ERRORS).candidate.outcomes == 20
    assert (found.progress.candidate.requests, found.progress.step_requests) == (50, 50)
    late = [outcome(30 - n, failed=n == 0, tenant=NOBODY) for n in range(30)]
    assert after(rollout(), late).progress.evidence(Guard.ERRORS).candidate.bad == 0, "the first by their start"
    rated = [outcome(n, failed=None, rating=-1, tenant=NOBODY, has_ended=False) for n in range(20)]
    both = after(rollout(), [*late, *rated]).progress
    assert (both.evidence(Guard.ERRORS).candidate.outcomes, both.evidence(Guard.THUMBS).candidate.outcomes) == (20, 20)


def test_what_says_nothing_about_errors_is_not_counted_as_one() -> None:
    found = after(rollout(), [outcome(1, failed=None), outcome(2, failed=None, rating=1, has_ended=False)])
    assert found.progress.evidence(Guard.ERRORS).candidate.outcomes == 0
    assert found.progress.candidate.requests == 1, "a rating is no request"


def test_late_first_tokens() -> None:
    times = [outcome(1, first_token_ms=300), outcome(2, first_token_ms=301), outcome(3, waited_ms=301), outcome(4, waited_ms=300)]
    counted = after(rollout(limit_ms=300), times).progress.evidence(Guard.FIRST_TOKEN).candidate
    assert (counted.outcomes, counted.bad) == (3, 2), "a caller that left early says nothing"
    slow = [*(outcome(n, first_token_ms=500) for n in range(40)), *(outcome(n, is_candidate=False, first_token_ms=100) for n in range(100))]
    found = after(rollout(limit_ms=300), slow, slow)
    assert found.state is RolloutState.ROLLED_BACK
    assert "next: 80 of 80 answers began later than 300 ms, local: 0 of 200;" in found.reason


def test_the_first_100_answers_of_the_baseline_fix_an_unknown_limit() -> None:
    def answers(count: int) -> list[RequestOutcome]:
        return [outcome(n, is_candidate=False, first_token_ms=400) for n in range(count)]

    unknown = rollout(limit_ms=None)
    before = after(unknown, [*answers(99), outcome(1, first_token_ms=9_999)])
    assert before.progress.first_token_limit_ms is None
    assert before.progress.evidence(Guard.FIRST_TOKEN).candidate.outcomes == 0
    known = after(before, answers(1))
    assert (known.progress.first_token_limit_ms, known.progress.early_first_tokens) == (600, ())
    assert rollout_evidence.first_token_limit(10) == 200


def test_thumbs_and_cost_are_conditions_too() -> None:
    thumbs = [outcome(n, failed=None, rating=-1) for n in range(40)]
    thumbs += [outcome(n, is_candidate=False, failed=None, rating=1) for n in range(40)]
    assert "thumbs were down" in after(rollout(), thumbs, thumbs).reason

    def costs(candidate: int, baseline: int) -> list[RequestOutcome]:
        both = (True, candidate), (False, baseline)
        return [
            outcome(n, is_candidate=arm, tokens=1_000, upstream_micro=micro and micro + n % 3) for arm, micro in both for n in range(60)
        ]

    assert after(rollout(), costs(2_000, 1_000)).state is RolloutState.RUNNING, "100 outcomes are needed"
    dear = after(rollout(), costs(2_000, 1_000), costs(2_000, 1_000))
    assert dear.state is RolloutState.ROLLED_BACK
    assert dear.reason.startswith("next: 0.002001 upstream for 1,000 tokens, local: 0.001001; evidence 1 in ")
    assert after(rollout(), costs(1_100, 1_000), costs(1_100, 1_000)).state is RolloutState.RUNNING, "less than 1.2 times"
    assert after(rollout(), costs(2_000, 0), costs(2_000, 0)).state is RolloutState.RUNNING, "nothing has no multiple"


def test_users_and_organizations_need_ten_units_in_each_arm() -> None:
    def of_users(users: int, bad_users: int, *, is_candidate: bool) -> list[RequestOutcome]:
        who = (UUID(int=n + 1_000 * is_candidate) for n in range(users))
        return [outcome(n, is_candidate=is_candidate, user=user, failed=n < bad_users) for n, user in enumerate(who) for _ in range(10)]

    for sticky in (Sticky.USER, Sticky.ORGANIZATION):
        few = [of_users(9, 9, is_candidate=True) + of_users(30, 0, is_candidate=False)] * 4
        many = [of_users(12, 12, is_candidate=True) + of_users(30, 0, is_candidate=False)] * 4
        one_bad = [of_users(12, 1, is_candidate=True) + of_users(30, 0, is_candidate=False)] * 4
        if sticky is Sticky.ORGANIZATION:
            few, many, one_bad = (
                [[msgspec.structs.replace(each, tenant=each.user) for each in look] for look in looks] for looks in (few, many, one_bad)
            )
        assert after(rollout(sticky), *few).state is RolloutState.RUNNING
        assert after(rollout(sticky), *many).state is RolloutState.ROLLED_BACK
        assert after(rollout(sticky), *one_bad).state is RolloutState.RUNNING, "one unit of many"
    good_few = [of_users(9, 0, is_candidate=True) + of_users(30, 0, is_candidate=False)] * 3
    assert after(rollout(Sticky.USER, **QUICK), *good_few, seconds=10).share == 10, "no automatic step up"
    good_many = [of_users(10, 0, is_candidate=True) + of_users(30, 0, is_candidate=False)] * 1
    assert after(rollout(Sticky.USER, **QUICK), *good_many, seconds=10).share == 100


def test_a_comparison_takes_no_steps_and_ends_at_its_time() -> None:
    compared = rollout(only_compares=True, until=BEGAN + timedelta(seconds=60), steps=(100.0,), step_seconds=10, step_requests=1)
    running = after(compared, good(9), good(9), seconds=20)
    assert (running.state, running.share) == (RolloutState.RUNNING, 100)
    ended = after(running, good(1), seconds=20)
    assert (ended.state, ended.share) == (RolloutState.ENDED, 0)


def test_charts_get_a_point_a_minute_and_later_fewer() -> None:
    def is_due(after_start: timedelta, since_last: timedelta) -> bool:
        found = rollout()
        now = BEGAN + after_start
        return rollout_rules.is_point_due(replace(found, progress=replace(found.progress, point_at=now - since_last)), now)

    minute, day = timedelta(minutes=1), timedelta(days=1)
    assert rollout_rules.is_point_due(rollout(), BEGAN), "the first"
    assert is_due(10 * minute, minute)
    assert not is_due(10 * minute, minute - timedelta(seconds=1))
    assert not is_due(30 * day, 80 * minute)
    assert is_due(30 * day, 90 * minute)
    ended = rollout(state=RolloutState.PROMOTED)
    assert rollout_rules.is_point_due(replace(ended, progress=replace(ended.progress, point_at=BEGAN)), BEGAN), "the last"


def test_quantiles_are_within_five_percent() -> None:
    found = after(rollout(), [outcome(n, first_token_ms=n) for n in range(1, 1_001)]).progress.candidate
    assert found.quantile_ms(0.5) == pytest.approx(500, rel=0.06)
    assert found.quantile_ms(0.95) == pytest.approx(950, rel=0.06)
    assert ArmTotals().quantile_ms(0.5) is None


@pytest.mark.parametrize(("log_evidence", "text"), [(0.0, "1"), (7.74, "2,300"), (50.0, "over a billion")])
def test_evidence_has_two_digits(log_evidence: float, text: str) -> None:
    assert rollout_rules.format_evidence(log_evidence) == text
