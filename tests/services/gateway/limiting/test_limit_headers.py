"""What an answer says of the limits."""

import pytest

from services.gateway.doors import http_errors
from services.gateway.limiting.limits import Allowance, Kind, Refused, Scope, Tightest
from services.gateway.limiting.quotas import LimitReached
from shared import errors
from shared.types import Tier

REQUESTS = Allowance(Scope.USER, Kind.REQUESTS_PER_MINUTE, 10, 0, 59.2)
TOKENS = Allowance(Scope.KEY, Kind.TOKENS_PER_MINUTE, 90_000, 85_904, 2.731)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0004, "1ms"), (0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (59.9999, "1m0s"), (360, "6m0s"), (3723.25, "1h2m3.25s")],
)
def test_a_duration_as_openai_writes_it(seconds: float, text: str) -> None:
    assert http_errors.duration(seconds) == text


def test_both_limits_are_told_and_none_where_there_is_none() -> None:
    assert dict(http_errors.allowance_headers(Tightest(REQUESTS, TOKENS))) == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"59.2s",
        b"x-ratelimit-limit-tokens": b"90000",
        b"x-ratelimit-remaining-tokens": b"85904",
        b"x-ratelimit-reset-tokens": b"2.731s",
    }
    assert http_errors.allowance_headers(Tightest()) == []


def test_a_refusal_says_when_to_come_back_to_the_millisecond() -> None:
    found = dict(http_errors.headers(LimitReached(Refused(REQUESTS, 5.2001, Tightest(REQUESTS, TOKENS)), Tier.FREE)))
    assert (found[b"retry-after"], found[b"retry-after-ms"]) == (b"6", b"5201")
    assert found[b"x-ratelimit-remaining-requests"] == b"0"
    assert found[b"x-ratelimit-remaining-tokens"] == b"85904"


def test_rate_money_and_overload_are_never_mixed() -> None:
    refused = LimitReached(Refused(REQUESTS, 5.2, Tightest(REQUESTS)), Tier.FREE)
    statuses = [
        http_errors.status(error) for error in (refused, errors.BudgetExhausted("x"), errors.Overloaded("x"), errors.TokensTooLarge("x"))
    ]
    assert statuses == [429, 402, 503, 400]
