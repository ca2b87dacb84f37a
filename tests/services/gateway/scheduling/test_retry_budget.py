from hypothesis import given
from hypothesis import strategies as st

from services.gateway.scheduling.retry_budget import PER_SECOND, SHARE, WINDOW_SECONDS, RetryBudget

FLOOR = int(PER_SECOND * WINDOW_SECONDS)


def spent(budget: RetryBudget, now: float, tries: int = 10_000) -> int:
    return sum(budget.spend(now) for _ in range(tries))


def test_without_requests_ten_retries_per_second_are_allowed() -> None:
    assert spent(RetryBudget(), 100.0) == FLOOR


def test_a_fifth_of_the_windows_requests_may_be_retried_on_top() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.begin(100.0)
        budget.end()
    assert spent(budget, 105.0) == FLOOR + 200


def test_requests_older_than_the_window_do_not_count() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.begin(100.0)
        budget.end()
    spent(budget, 100.0)
    assert spent(budget, 105.0) == 0
    assert spent(budget, 111.0) == FLOOR


def test_running_requests_count_however_long_they_take() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.begin(100.0)
    assert spent(budget, 200.0) == FLOOR + 200


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300))
def test_no_window_has_more_retries_than_the_budget(steps: list[tuple[float, bool]]) -> None:
    """Even if half of the requests keep failing, the workers get at most a fifth more requests."""
    budget, now = RetryBudget(), 0.0
    requests: list[float] = []
    retries: list[float] = []
    for pause, is_request in steps:
        now += pause
        if is_request:
            budget.begin(now)
            budget.end()
            requests.append(now)
        granted = sum(budget.spend(now) for _ in range(40))
        retries.extend([now] * granted)
        recent = sum(at > now - WINDOW_SECONDS + 0.5 for at in retries)
        # Time is counted in slices, so the window's edges are not exact.
        assert not granted or recent <= SHARE * sum(at > now - WINDOW_SECONDS - 0.5 for at in requests) + FLOOR
