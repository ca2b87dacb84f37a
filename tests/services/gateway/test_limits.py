from uuid import UUID

import pytest

from services.gateway import limits
from services.gateway.limits import Allowance, Count, HourlyLimit, Refused, Scope
from shared.api.auth import Principal
from shared.types import KeyId, Tier, UserId, UserRole

BY_TIER = {Tier.FREE: 100, Tier.PRO: 1000}
USER = HourlyLimit(Scope.USER, "u", 100)
KEY = HourlyLimit(Scope.KEY, "k", 10)


def principal(tier: Tier = Tier.FREE, per_hour: int | None = None, key: bool = True) -> Principal:
    return Principal(UserId(UUID(int=1)), "ada", UserRole.USER, tier, KeyId(UUID(int=2)) if key else None, "k", per_hour)


@pytest.mark.parametrize(
    ("caller", "expected"),
    [
        pytest.param(principal(), [(Scope.USER, 100)], id="a free user has the default limit"),
        pytest.param(principal(Tier.PRO), [(Scope.USER, 1000)], id="a premium user has more"),
        pytest.param(principal(per_hour=5), [(Scope.USER, 100), (Scope.KEY, 5)], id="a key may have a limit of its own"),
        pytest.param(principal(key=False, per_hour=5), [(Scope.USER, 100)], id="an access token has no key"),
    ],
)
def test_limits_of_a_caller(caller: Principal, expected: list[tuple[Scope, int]]) -> None:
    assert [(limit.scope, limit.requests) for limit in limits.hourly(caller, BY_TIER)] == expected


def test_both_counters_live_on_one_node_of_a_cluster() -> None:
    tags = {limit.bucket.split("{")[1].split("}")[0] for limit in limits.hourly(principal(per_hour=5), BY_TIER)}
    assert len(tags) == 1


def test_the_tightest_is_the_one_with_the_fewest_left() -> None:
    assert limits.tightest([USER, KEY], [Count(95, 0, 7), Count(3, 0, 9)]) == Allowance(Scope.USER, 100, 95, 7)
    assert limits.tightest([USER, KEY], [Count(50, 0, 7), Count(3, 0, 9)]) == Allowance(Scope.KEY, 10, 3, 9)


def test_a_refusal_says_the_longer_wait() -> None:
    refused = limits.refusal([USER, KEY], [Count(100, 5, 5), Count(10, 900, 60)])
    assert refused == Refused(Allowance(Scope.KEY, 10, 10, 60), 900)


def test_a_lowered_limit_leaves_nothing_and_not_less_than_nothing() -> None:
    assert Allowance(Scope.USER, 100, 150, 0).remaining == 0
