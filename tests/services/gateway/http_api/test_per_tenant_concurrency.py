"""The limit of concurrent requests per tenant, which is checked before all others."""

import pytest

from services.gateway.http_api import http_app
from services.gateway.http_api.http_app import PerTenantConcurrency
from services.gateway.limits.limit_rules import LimitScope, RequestLimit
from shared import errors
from tests.services.gateway.limits.kinds import HOUR, SLOTS

MINE = RequestLimit(LimitScope.USER, SLOTS, "user:me", 4)
OF_KEY = RequestLimit(LimitScope.KEY, SLOTS, "key:mine", 1)
HOURLY = RequestLimit(LimitScope.USER, HOUR, "user:me", 0)


def test_excess_requests_are_refused_until_some_have_ended() -> None:
    concurrency = PerTenantConcurrency()
    counted = [concurrency.begin([MINE]) for _ in range(MINE.most + http_app.SLACK)]
    with pytest.raises(errors.Limited, match="20 of your requests are already in progress; your limit is 4 concurrent requests"):
        concurrency.begin([MINE])
    concurrency.end(counted.pop())
    counted.append(concurrency.begin([MINE]))
    for each in counted:
        concurrency.end(each)
    assert not concurrency._here


def test_the_tightest_limit_applies_and_a_refusal_is_not_counted() -> None:
    concurrency = PerTenantConcurrency()
    for _ in range(OF_KEY.most + http_app.SLACK):
        concurrency.begin([MINE, OF_KEY])
    for _ in range(100):
        with pytest.raises(errors.Limited, match="17 of your requests are already in progress; your limit is 1 concurrent requests"):
            concurrency.begin([MINE, OF_KEY])
    # Another key of the same user isn't affected.
    concurrency.begin([MINE])


def test_a_caller_without_a_concurrency_limit_is_never_refused() -> None:
    concurrency = PerTenantConcurrency()
    for _ in range(1000):
        assert not concurrency.begin([HOURLY])
    assert not concurrency._here
