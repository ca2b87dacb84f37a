import pytest

from features.jobs.rules import retry_rules
from features.jobs.rules.retry_rules import Next
from shared import errors


@pytest.mark.parametrize(
    ("error", "then"),
    [
        (errors.BadRequest("x"), Next.END),
        (errors.ContextExceeded("x"), Next.END),
        (errors.ContentFiltered("x"), Next.END),
        (errors.Poison("x"), Next.END),
        (errors.FileDamaged("x"), Next.END),
        (errors.TooLarge("x"), Next.END),
        (errors.NotReachable("x"), Next.AGAIN),
        (errors.Overloaded("x"), Next.AGAIN),
        (errors.Draining("x"), Next.AGAIN),
        (errors.LinkLost("x"), Next.AGAIN),
        (errors.Unavailable("x"), Next.AGAIN),
        (errors.UnknownModel("x"), Next.AGAIN),
        (errors.NodeRevoked("x"), Next.AGAIN),
        (errors.Preempted("x"), Next.SET_ASIDE),
        (errors.ResourceUnavailable("x"), Next.SET_ASIDE),
        (errors.Limited("x"), Next.SET_ASIDE),
        (errors.BudgetExhausted("x"), Next.HOLD),
        (errors.NotAuthenticated("x"), Next.CANCEL),
        (errors.NotAllowed("x"), Next.CANCEL),
        (errors.PolicyForbidden("x"), Next.CANCEL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
def test_what_follows_an_error(error: errors.AimeshError, then: Next) -> None:
    assert retry_rules.judge(error, error.status, 1).next is then


def test_pauses_double_up_to_five_minutes_with_jitter() -> None:
    pauses = [retry_rules.judge(errors.NotReachable("x"), 503, attempt, lambda: 1.0).seconds for attempt in (1, 2, 3, 20)]
    assert pauses == [1, 2, 4, 300]
    assert retry_rules.judge(errors.NotReachable("x"), 503, 20, lambda: 0.0).seconds == 150


def test_our_own_faults_and_deadlines_end_a_line_at_the_third_time() -> None:
    late = errors.DeadlineExceeded("x")
    assert [retry_rules.judge(None, 500, attempt).next for attempt in (1, 2, 3)] == [Next.AGAIN, Next.AGAIN, Next.END]
    assert [retry_rules.judge(late, 504, attempt).next for attempt in (1, 2, 3)] == [Next.AGAIN, Next.AGAIN, Next.END]
    assert retry_rules.judge(None, 200, 9).next is Next.END
