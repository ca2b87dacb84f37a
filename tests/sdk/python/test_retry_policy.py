import pytest
from aimesh import errors, retry_policy
from aimesh.errors import AimeshError, ConnectionFailed, InProgress, RateLimited, Unavailable
from aimesh.retry_policy import FailedAttempt, RetryRules

RULES = RetryRules(max_retries=3, first_pause_seconds=1.0, longest_pause_seconds=3.0)


def pause(error: AimeshError, *, failures: int = 1, left: float = 100.0, repeatable: bool = True, drawn: float = 1.0) -> float | None:
    return retry_policy.find_pause(error, FailedAttempt(failures=failures, left_seconds=left, repeatable=repeatable), RULES, drawn)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(ConnectionFailed("x"), 1.0, id="a connection that failed"),
        pytest.param(RateLimited("x", status=429, retry_after=2), 2.0, id="a limit that says when"),
        pytest.param(RateLimited("x", status=429), None, id="a limit that does not"),
        pytest.param(Unavailable("x", status=503), 1.0, id="503"),
        pytest.param(Unavailable("x", status=503, retry_after=0.1), 1.0, id="never sooner than by itself"),
        pytest.param(Unavailable("x", status=502), 1.0, id="502"),
        pytest.param(errors.DeadlineExceeded("x", status=504), 1.0, id="504"),
        pytest.param(errors.DeadlineExceeded("x"), None, id="our own time is over"),
        pytest.param(Unavailable("x", status=503, code="protocol_violation"), None, id="a 503 that stays one"),
        pytest.param(errors.ServerFailed("x", status=500), None, id="a bug"),
        pytest.param(InProgress("x", status=409, retry_after=2), 2.0, id="it still runs"),
        pytest.param(errors.IdempotencyConflict("x", status=409), None, id="a key of another request"),
        pytest.param(errors.BadRequest("x", status=400), None, id="a bad request"),
        pytest.param(errors.NotAuthenticated("x", status=401), None, id="a bad key"),
        pytest.param(errors.BudgetExhausted("x", status=402, retry_after=1), None, id="no money"),
        pytest.param(errors.ProtocolError("x"), None, id="no answer of aimesh"),
        pytest.param(Unavailable("x", code="link_lost"), 1.0, id="a stream whose way broke"),
        pytest.param(Unavailable("x", code="draining"), 1.0, id="a stream whose gateway stops"),
        pytest.param(Unavailable("x", code="worker_lost"), None, id="a stream that could not go on"),
        pytest.param(Unavailable("x", code="model_crashed"), None, id="a stream whose model crashed"),
    ],
)
def test_retryable_failures(error: AimeshError, expected: float | None) -> None:
    assert pause(error) == expected


def test_call_that_may_have_been_executed_is_not_repeated() -> None:
    assert pause(ConnectionFailed("x"), repeatable=False) is None
    assert pause(Unavailable("x", status=503), repeatable=False) is None
    assert pause(ConnectionFailed("x", may_have_arrived=False), repeatable=False) == 1.0
    assert pause(RateLimited("x", status=429, retry_after=1), repeatable=False) == 1.0


def test_pauses_grow_to_a_maximum_and_end() -> None:
    assert [pause(ConnectionFailed("x"), failures=failures) for failures in (1, 2, 3, 4)] == [1.0, 2.0, 3.0, None]
    assert retry_policy.find_pause(
        ConnectionFailed("x"), FailedAttempt(failures=5000, left_seconds=100, repeatable=True), RetryRules(max_retries=9999), 0.0
    ) == 4.0  # fmt: skip


def test_jitter_is_up_to_half_of_a_pause() -> None:
    assert [pause(ConnectionFailed("x"), drawn=drawn) for drawn in (0.0, 0.5, 1.0)] == [0.5, 0.75, 1.0]


def test_no_retry_exceeds_the_timeout() -> None:
    assert pause(ConnectionFailed("x"), left=1.0) is None
    assert pause(ConnectionFailed("x"), left=1.1) == 1.0
    assert pause(RateLimited("x", status=429, retry_after=3000), left=300) is None
