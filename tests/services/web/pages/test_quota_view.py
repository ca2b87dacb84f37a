from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.web.pages import quota_view
from shared.api import auth, gateway, ledger
from shared.api.gateway import LimitState, UserQuota
from shared.types import MicroCredits, Tier, UserId

FEBRUARY = datetime(2027, 2, 1, tzinfo=UTC)


def quota(*limits: LimitState, per_hour: int = 100, used: int = 40) -> UserQuota:
    return UserQuota(UserId(UUID(int=1)), Tier.PRO, per_hour, used, per_hour - used, FEBRUARY, limits)


def test_every_limit_has_a_meter() -> None:
    lines = quota_view.limits(
        quota(
            LimitState("user", "requests_per_hour", 1000, 960, 2480.4),
            LimitState("key", "tokens_per_minute", 20_000, 1_500, 42.0),
            LimitState("model", "concurrency", 4, 1, 0.0),
            LimitState("model", "concurrency", 4, 1, 0.0, "qwen"),
            LimitState("user", "concurrency", 4, 4, 0.0),
        )
    )
    assert [(line.id, line.label, line.left, line.limit, line.percent, line.tone, line.renewal) for line in lines] == [
        ("user:requests_per_hour", "Requests per hour", "960", "1,000", "96", "", "Resets in 42 min"),
        ("key:tokens_per_minute", "Tokens per minute (key)", "1,500", "20,000", "7", "bad", "Resets in 42 s"),
        ("model:concurrency", "Concurrent requests (model)", "1", "4", "25", "", "Frees up when a request ends"),
        ("model:concurrency:qwen", "Concurrent requests (qwen)", "1", "4", "25", "", "Frees up when a request ends"),
        ("user:concurrency", "Concurrent requests", "4", "4", "100", "", "Unused"),
    ]


def test_unknown_kind_of_limit_is_shown_by_its_name() -> None:
    (line,) = quota_view.limits(quota(LimitState("user", "images_per_day", 5, 5, 0.0)))
    assert line.label == "Images per day"


def test_without_limits_there_are_no_meters() -> None:
    assert quota_view.limits(quota(per_hour=gateway.NO_LIMIT)) == ()


@pytest.mark.parametrize(("limit", "remaining"), [(0, 0), (10, -5), (10, 10_000)])
def test_meter_stays_between_zero_and_full(limit: int, remaining: int) -> None:
    (line,) = quota_view.limits(quota(LimitState("user", "requests_per_hour", limit, remaining, 1.0)))
    assert 0 <= int(line.percent) <= 100


def test_credits_and_tokens_of_the_plan_stand_apart() -> None:
    allowance = ledger.Allowance(100_000, 2_500, 500, FEBRUARY)
    line = quota_view.credits(ledger.Account(MicroCredits(1_234_500_000), MicroCredits(0), MicroCredits(0), allowance))
    assert (line.left, line.detail) == ("1,234.50", "")
    assert (line.tokens, line.tokens_detail) == (
        "97,000",
        "2,500 of 100,000 used, 500 held by running requests; renews 1 Feb 2027",
    )


def test_reserved_credits_and_a_budget_are_mentioned() -> None:
    budget = auth.Budget(MicroCredits(20_000_000), auth.Every.MONTH)
    spent = MicroCredits(15_000_000)
    account = ledger.Account(MicroCredits(0), MicroCredits(1_000_000), budget=budget, spent_micro=spent)
    line = quota_view.credits(account)
    assert (line.left, line.detail) == ("4.00", "1.00 reserved for running requests; 15.00 of 20 credits every month spent")
    assert (line.tokens, line.tokens_detail) == ("", "")


def test_unlimited_and_unknown_credits_differ() -> None:
    unbound = ledger.Account(MicroCredits(-5), MicroCredits(0), allowance=ledger.Allowance(None, 7, 0, FEBRUARY))
    line = quota_view.credits(unbound)
    assert (line.left, line.tokens, line.tokens_detail) == ("unlimited", "unlimited", "7 used; renews 1 Feb 2027")
    assert quota_view.credits(None).left == "–"
