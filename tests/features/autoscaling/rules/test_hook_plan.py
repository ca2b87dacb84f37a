"""When a pool's hook is called: once for each decision."""

from uuid import UUID

import pytest
from msgspec.structs import replace

from features.autoscaling.contract import PoolScaling
from features.autoscaling.rules.hook_plan import LOST_SECONDS, ScaleCall, plan_call
from shared.worker_pools import PoolHook, WorkerPool

POOL = WorkerPool(name="l4", models=("m",), max=9, start_seconds=100, hook=PoolHook(command=("/bin/true",)))
OLD, NEW = UUID(int=1), UUID(int=2)
#: Three wanted, none ready, and the hook has succeeded.
DONE = ScaleCall(OLD, "l4", 1000, 0, 3, "load", attempts=1, tried_at=1000, ended_at=1001)
FAILED = replace(DONE, problem="ended with 1", failures=1)
RUNNING = replace(DONE, ended_at=None)


def plan(last: ScaleCall | None, *, wanted: int, ready: int = 0, starting: int = 0, now: float = 1050) -> ScaleCall | None:
    return plan_call(POOL, PoolScaling(pool="l4", ready=ready, starting=starting, wanted=wanted, reason="load"), last, now, lambda: NEW)


def test_first_wish_is_called_for_unless_the_workers_are_there() -> None:
    assert plan(None, wanted=3, ready=2, starting=1) is None
    assert plan(None, wanted=3, ready=2) == ScaleCall(NEW, "l4", 1050, 2, 3, "load", attempts=1, tried_at=1050)


@pytest.mark.parametrize("now", [1002, 1099, 1500, 90_000])
def test_hook_without_effect_is_not_called_again_for_the_same_wish(now: float) -> None:
    assert plan(DONE, wanted=3, now=now) is None


@pytest.mark.parametrize("now", [1001, 1000 + LOST_SECONDS, 90_000])
def test_wish_of_a_leader_that_died_in_the_call_is_not_called_for_again(now: float) -> None:
    assert plan(RUNNING, wanted=3, now=now) is None


def test_one_call_at_a_time() -> None:
    assert plan(RUNNING, wanted=5, now=1000 + LOST_SECONDS - 1) is None
    found = plan(RUNNING, wanted=5, now=1000 + LOST_SECONDS)
    assert found is not None
    assert (found.key, found.wanted) == (NEW, 5)


def test_failed_call_is_repeated_with_its_key_after_a_pause() -> None:
    assert plan(FAILED, wanted=3, now=1005) is None
    assert plan(FAILED, wanted=3, now=1006) == replace(FAILED, attempts=2, tried_at=1006, ended_at=None, problem="")


def test_pauses_grow_and_hold_for_other_wishes() -> None:
    third = replace(FAILED, attempts=3, failures=3)
    assert plan(third, wanted=4, now=1020) is None
    found = plan(third, wanted=4, now=1021)
    assert found is not None
    assert (found.key, found.attempts, found.failures) == (NEW, 1, 3)
    hundredth = replace(FAILED, failures=100)
    assert plan(hundredth, wanted=3, now=1300) is None
    assert plan(hundredth, wanted=3, now=1301) is not None


def test_hook_is_asked_again_to_stop_workers_but_not_to_start_them() -> None:
    for last in (DONE, RUNNING):
        assert plan(last, wanted=3, ready=5, now=1199) is None
        found = plan(last, wanted=3, ready=5, now=1200)
        assert found is not None
        assert (found.key, found.attempts) == (OLD, 2)


def test_wish_that_comes_back_is_a_new_one() -> None:
    fewer = replace(DONE, wanted=2)
    found = plan(fewer, wanted=3, ready=2)
    assert found is not None
    assert found.key == NEW
