"""Pauses between attempts."""

import pytest

from shared.timing.backoff import Backoff


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(first_seconds=0.5, longest_seconds=3)
    assert [backoff.pause(failures) for failures in range(1, 7)] == [0.5, 1, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("jitter", "drawn", "pause"),
    [
        pytest.param(0, 0, 4, id="none"),
        pytest.param(0.5, 0, 2, id="the lowest of equal jitter"),
        pytest.param(0.5, 0.5, 3, id="the middle of equal jitter"),
        pytest.param(0.5, 1, 4, id="the highest of equal jitter"),
        pytest.param(1, 0, 0, id="the lowest of full jitter"),
        pytest.param(1, 0.25, 1, id="a quarter of full jitter"),
        pytest.param(1, 1, 4, id="the highest of full jitter"),
    ],
)
def test_jitter_takes_its_share_of_the_pause(jitter: float, drawn: float, pause: float) -> None:
    assert Backoff(1, 10, jitter).pause(3, lambda: drawn) == pause


def test_jitter_is_random_unless_the_caller_draws() -> None:
    backoff = Backoff(1, 10, jitter=0.5)
    pauses = {backoff.pause(1) for _ in range(100)}
    assert len(pauses) > 90
    assert all(0.5 <= pause <= 1 for pause in pauses)


def test_any_number_of_failures_is_fine() -> None:
    assert Backoff(0.1, 30).pause(10**6) == 30
