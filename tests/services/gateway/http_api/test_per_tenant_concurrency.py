"""Crowds at the door."""

from contextlib import ExitStack

import pytest

from services.gateway.http_api import http_app
from services.gateway.http_api.http_app import PerTenantConcurrency
from services.gateway.limits.limit_rules import LimitKind, LimitScope, RequestLimit
from shared import errors

MINE = RequestLimit(LimitScope.USER, LimitKind.CONCURRENCY, "user:me", 4)
OF_KEY = RequestLimit(LimitScope.KEY, LimitKind.CONCURRENCY, "key:mine", 1)
HOURLY = RequestLimit(LimitScope.USER, LimitKind.REQUESTS_PER_HOUR, "user:me", 0)


def test_excess_requests_are_refused_until_some_have_ended() -> None:
    door = PerTenantConcurrency()
    with ExitStack() as inside:
        for _ in range(MINE.most + http_app.SLACK - 1):
            inside.enter_context(door.count_request([MINE]))
        said = "20 of your requests are already in progress; your limit is 4 concurrent requests"
        with door.count_request([MINE]), pytest.raises(errors.Limited, match=said):
            door.count_request([MINE]).__enter__()
        with door.count_request([MINE]):
            pass
    assert not len(door)


def test_the_tightest_limit_applies_and_a_refusal_is_not_counted() -> None:
    door = PerTenantConcurrency()
    with ExitStack() as inside:
        for _ in range(OF_KEY.most + http_app.SLACK):
            inside.enter_context(door.count_request([MINE, OF_KEY]))
        for _ in range(100):
            with pytest.raises(errors.Limited, match="17 of your requests are already in progress; your limit is 1 concurrent requests"):
                door.count_request([MINE, OF_KEY]).__enter__()
        # Another key of the same user.
        with door.count_request([MINE]):
            pass


def test_a_caller_without_a_concurrency_limit_is_never_refused() -> None:
    door = PerTenantConcurrency()
    with ExitStack() as inside:
        for _ in range(1000):
            inside.enter_context(door.count_request([HOURLY]))
    assert not len(door)
