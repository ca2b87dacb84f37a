"""Which failures are retried, after which pause, and when retries end."""

import pytest

from shared import errors
from shared.timing import retry_policy
from shared.timing.retry_policy import PASSING, RetryPolicy

POLICY = RetryPolicy(seconds=30, first_pause_seconds=0.2, longest_pause_seconds=2)


def pause(
    error: errors.AimeshError,
    policy: RetryPolicy = POLICY,
    *,
    failures: int = 1,
    seconds: float = 0,
    was_accepted: bool = True,
    drawn: float = 1,
) -> float | None:
    return retry_policy.find_pause(error, policy, failures=failures, seconds=seconds, was_accepted=was_accepted, drawn=drawn)


def error_of(code: str) -> errors.AimeshError:
    return errors.from_problem(errors.Problem(code, "x"))


@pytest.mark.parametrize("code", sorted(PASSING))
def test_temporary_errors_are_retried(code: str) -> None:
    assert pause(error_of(code)) == 0.2


@pytest.mark.parametrize("code", sorted({*errors.BY_CODE, "of_a_newer_peer"} - PASSING))
def test_other_errors_are_final(code: str) -> None:
    assert pause(error_of(code)) is None


def test_having_no_gateway_at_all_is_reported_immediately() -> None:
    assert pause(errors.NotReachable("no gateway is there"), was_accepted=False) is None
    # A gateway that was found but could not answer does exist.
    assert pause(errors.Draining("it goes"), was_accepted=False) == 0.2


@pytest.mark.parametrize(("failures", "longest"), [(1, 0.2), (2, 0.4), (3, 0.8), (4, 1.6), (5, 2), (50, 2)])
def test_pauses_grow_up_to_a_bound_with_jitter(failures: int, longest: float) -> None:
    assert pause(errors.LinkLost("gone"), failures=failures, drawn=1) == longest
    assert pause(errors.LinkLost("gone"), failures=failures, drawn=0) == longest / 2


def test_a_later_retry_time_of_the_gateway_counts() -> None:
    assert pause(errors.Unavailable("away", retry_after_seconds=7)) == 7
    assert pause(errors.Unavailable("away", retry_after_seconds=0.01)) == 0.2


@pytest.mark.parametrize(
    ("seconds", "retry_after", "waits"), [(29.8, None, True), (29.9, None, False), (0, 30, True), (0, 31, False), (31, None, False)]
)
def test_retries_end_at_the_limit(seconds: float, retry_after: float | None, waits: bool) -> None:
    error = errors.LinkLost("gone", retry_after_seconds=retry_after)
    assert (pause(error, seconds=seconds) is not None) == waits


def test_without_retries_one_failure_is_final() -> None:
    assert pause(errors.LinkLost("gone"), retry_policy.NONE, drawn=0) is None
