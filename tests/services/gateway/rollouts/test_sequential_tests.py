"""The sequential tests: how often they err, and how soon they detect a bad candidate."""

import math
import random

import pytest

from services.gateway.rollouts import sequential_tests
from services.gateway.rollouts.sequential_tests import ArmCount, MeanSum
from shared.api.configuration import RolloutGuards, RolloutState
from shared.config_documents import Sticky
from tests import tiers
from tests.services.gateway.rollouts.simulation import Arms, after, looks, rollout, simulate

#: How units differ with each kind of stickiness.
KINDS = {
    Sticky.REQUEST: Arms(10, 30, correlation=0.001, unit_requests=1),
    Sticky.CONVERSATION: Arms(10, 30, unit_requests=5),
    Sticky.USER: Arms(10, 30, units=60),
    Sticky.ORGANIZATION: Arms(10, 30, units=12),
}


@pytest.mark.parametrize("sticky", tiers.by_day(KINDS, Sticky.USER, group="long"))
def test_of_rollouts_without_a_difference_at_most_2_percent_are_rolled_back(sticky: Sticky) -> None:
    rng, rounds = random.Random(7), tiers.volume(1_000)
    ended = [simulate(rng, rollout(sticky, steps=(20.0,)), KINDS[sticky], 12) for _ in range(rounds)]
    assert sum(found.state is RolloutState.ROLLED_BACK for found in ended) <= 0.02 * rounds


@pytest.mark.parametrize(("candidate", "median", "p95"), [(0.2, 60, 120), pytest.param(0.06, 300, 700, marks=pytest.mark.nightly("long"))])
def test_a_bad_candidate_is_seen_soon(candidate: float, median: int, p95: int) -> None:
    """The baseline fails 1 % of its requests; the limits are in outcomes of the candidate."""
    rng = random.Random(8)
    arms = Arms(candidate_bad=candidate, baseline_bad=0.01, correlation=0.001, unit_requests=1)
    ended = [simulate(rng, rollout(steps=(20.0,)), arms, 400) for _ in range(60)]
    assert all(found.state is RolloutState.ROLLED_BACK for found in ended)
    needed = sorted(found.progress.candidate.requests for found in ended)
    assert needed[30] <= median
    assert needed[57] <= p95


def test_both_arms_may_drift_together() -> None:
    rng, rounds = random.Random(9), tiers.volume(100)
    rolled_back = 0
    for _ in range(rounds):
        before = simulate(rng, rollout(steps=(20.0,)), Arms(candidate_bad=0.01, baseline_bad=0.01, unit_requests=1), 30)
        rolled_back += (
            simulate(rng, before, Arms(candidate_bad=0.3, baseline_bad=0.3, unit_requests=1), 30).state is RolloutState.ROLLED_BACK
        )
    assert rolled_back <= 0.03 * rounds


def test_at_100_percent_the_candidate_is_compared_with_what_the_baseline_did() -> None:
    rng = random.Random(10)
    at_50 = simulate(rng, rollout(steps=(50.0, 100.0), step_seconds=9_999), Arms(20, 20, unit_requests=1), 40)
    alone = Arms(20, 0, unit_requests=1, correlation=0.001)
    assert simulate(rng, at_50, alone, 100).state is RolloutState.RUNNING
    bad = Arms(20, 0, candidate_bad=0.2, unit_requests=1, correlation=0.001)
    assert simulate(rng, at_50, bad, 30).state is RolloutState.ROLLED_BACK


def test_one_look_at_the_formula() -> None:
    # θ_candidate = 5.18/20.54, θ_baseline = 1.18/100.54, and their mean weighted by 10 and 40 outcomes.
    worse, better = 5.18 / 20.54, 1.18 / 100.54
    same = (10 * worse + 40 * better) / 50
    expected = 2 * math.log(worse / same) + 8 * math.log((1 - worse) / (1 - same))
    expected += 1 * math.log(better / same) + 39 * math.log((1 - better) / (1 - same))
    before, look = (ArmCount(20, 5), ArmCount(100, 1)), (ArmCount(10, 2), ArmCount(40, 1))
    assert sequential_tests.log_of_look(before, look, 0.01) == pytest.approx(expected)
    assert sequential_tests.log_of_look((before[1], before[0]), look, 0.01) == 0, "earlier looks say that it is better"
    few = (ArmCount(20, 5), ArmCount(99, 1))
    assert sequential_tests.log_of_look(few, (ArmCount(10, 2), ArmCount()), 0.01) == 0, "nothing to compare with"
    assert sequential_tests.log_of_look(before, (ArmCount(10, 2), ArmCount()), 0.01) > 0


def test_an_interval_ends_where_its_evidence_begins() -> None:
    for variance in (1e-6, 1e-3):
        width = sequential_tests.mixture_half_width(variance, 0.05, 0.05)
        assert sequential_tests.mixture_log_evidence(width, variance, 0.05) == pytest.approx(math.log(1 / 0.05))
    assert sequential_tests.mixture_half_width(math.inf, 0.05, 0.05) == math.inf
    assert sequential_tests.mixture_log_evidence(0.5, math.inf, 0.05) == 0
    assert sequential_tests.mixture_half_width(1e-3, 0.0, 0.05) == math.inf, "a baseline that costs nothing has no scale"


def test_units_that_differ_widen_the_variance() -> None:
    alike = [ArmCount(10, 1)] * 20
    differing = [ArmCount(10, 10), *[ArmCount(10, 0)] * 9] * 2
    assert sequential_tests.share_variance(differing) > 5 * sequential_tests.share_variance(alike)
    assert sequential_tests.share_variance(alike) == sequential_tests.independent_variance(ArmCount(200, 20)), "never less than chance"
    assert sequential_tests.share_variance([ArmCount(10, 1)]) == math.inf


def test_means_and_their_variance() -> None:
    found = MeanSum().plus([1.0, 2.0]).plus([3.0])
    assert (found.count, found.mean) == (3, 2.0)
    assert found.variance == pytest.approx(1 / 3)
    assert MeanSum().plus([1.0]).variance == math.inf


def test_guards_that_are_off_judge_nothing() -> None:
    rng = random.Random(11)
    guards = RolloutGuards(errors=None, first_token=None, thumbs=None, cost=None)
    found = after(rollout(steps=(20.0,), guards=guards), *looks(rng, Arms(candidate_bad=0.9), 40))
    assert found.state is RolloutState.RUNNING
