from uuid import UUID

import msgspec
import pytest

from services.gateway.limiting import limits, tiers
from services.gateway.limiting.limits import Allowance, Count, Kind, Limit, Refused, Scope, Tightest
from services.gateway.limiting.tiers import Plan
from shared.api.auth import ApiKeyLimits, Principal
from shared.types import KeyId, ModelName, TenantId, Tier, UserId, UserRole

HOUR, MINUTE, TOKENS, AT_ONCE = Kind
FREE = Plan(requests_per_hour=100, requests_per_minute=10, tokens_per_minute=None, concurrency=10, credits=100_000)
MODEL = ModelName("smollm2")
USER_HOUR = Limit(Scope.USER, HOUR, "u", 100)
KEY_HOUR = Limit(Scope.KEY, HOUR, "k", 10)
USER_TOKENS = Limit(Scope.USER, TOKENS, "t", 1000)


def principal(*, key: bool = True, **limited: int) -> Principal:
    return Principal(
        UserId(UUID(int=1)), "ada", UserRole.USER, Tier.FREE, KeyId(UUID(int=2)) if key else None, "k", ApiKeyLimits(**limited)
    )


def test_an_organisation_that_shares_its_founders_limits_counts_where_the_founder_does() -> None:
    founder = principal(key=False)
    team = msgspec.structs.replace(founder, user_id=UserId(UUID(int=7)), team_id=TenantId(UUID(int=8)), founder_id=founder.user_id)
    assert limits.of_caller(team, FREE) == limits.of_caller(founder, FREE)
    assert team.tenant_id == TenantId(UUID(int=8)), "it is charged itself"
    own = msgspec.structs.replace(team, founder_id=None)
    assert not set(limits.of_caller(own, FREE)) & set(limits.of_caller(founder, FREE))


def test_it_has_no_credits_of_its_own() -> None:
    for tier in Tier:
        assert tiers.plan_of(tiers.DEFAULTS, tier, shares_limits=True).monthly_micro == 0
        assert tiers.plan_of(tiers.DEFAULTS, tier, shares_limits=False) == tiers.DEFAULTS[tier]


@pytest.mark.parametrize(
    ("caller", "plan", "expected"),
    [
        pytest.param(
            principal(), FREE, [(Scope.USER, HOUR, 100), (Scope.USER, MINUTE, 10), (Scope.USER, AT_ONCE, 10)], id="a user has its tier's"
        ),
        pytest.param(principal(), tiers.NO_LIMITS, [], id="who has no limits is not counted"),
        pytest.param(
            principal(requests_per_hour=5, tokens_per_minute=900),
            tiers.NO_LIMITS,
            [(Scope.KEY, HOUR, 5), (Scope.KEY, TOKENS, 900)],
            id="a key may have limits of its own",
        ),
        pytest.param(principal(key=False, requests_per_hour=5), tiers.NO_LIMITS, [], id="an access token has no key"),
    ],
)
def test_limits_of_a_caller(caller: Principal, plan: Plan, expected: list[tuple[Scope, Kind, int]]) -> None:
    assert [(limit.scope, limit.kind, limit.most) for limit in limits.of_caller(caller, plan)] == expected


def test_a_model_has_its_limits_whoever_asks() -> None:
    models = {MODEL: Plan(None, 600, None, 32, None)}
    found = limits.of_model(MODEL, models)
    assert [(limit.scope, limit.kind, limit.most) for limit in found] == [(Scope.MODEL, MINUTE, 600), (Scope.MODEL, AT_ONCE, 32)]
    assert limits.of_model(ModelName("other"), models) == ()


def test_all_counters_live_on_one_node_of_a_cluster_and_are_different() -> None:
    everything = Plan(1, 1, 1, 1, 1)
    found = [
        *limits.of_caller(principal(requests_per_hour=1, requests_per_minute=1, tokens_per_minute=1, concurrency=1), everything),
        *limits.of_model(MODEL, {MODEL: everything}),
    ]
    assert len({limit.counter for limit in found}) == len(found) == 12
    assert {limit.counter.split("{")[1].split("}")[0] for limit in found} == {"limits"}


def test_the_tightest_of_a_kind_is_the_one_with_the_fewest_left() -> None:
    found = [USER_HOUR, KEY_HOUR, USER_TOKENS]
    tight = limits.tightest(found, [Count(5, 0, 7), Count(7, 0, 9), Count(400, 0, 36)])
    assert tight == Tightest(Allowance(Scope.USER, HOUR, 100, 5, 7), Allowance(Scope.USER, TOKENS, 1000, 400, 36))
    assert limits.tightest(found[:2], [Count(50, 0, 7), Count(7, 0, 9)]) == Tightest(Allowance(Scope.KEY, HOUR, 10, 7, 9))
    assert limits.tightest([], []) == Tightest()


def test_a_refusal_says_the_longest_wait() -> None:
    refused = limits.refusal([USER_HOUR, KEY_HOUR, USER_TOKENS], [Count(0, 5, 5), Count(0, 900, 60), Count(3, 0, 1)])
    of_key = Allowance(Scope.KEY, HOUR, 10, 0, 60)
    assert (refused.allowance, refused.retry_after_seconds) == (of_key, 900)
    assert isinstance(refused, Refused)
    assert limits.words(of_key, Tier.FREE) == "this key's limit of 10 requests per hour"


def test_a_lowered_limit_leaves_nothing_and_not_less_than_nothing() -> None:
    (allowance,) = limits.allowances([USER_HOUR], [Count(-50, 0, 0)])
    assert (allowance.remaining, allowance.used) == (0, 100)


@pytest.mark.parametrize(
    ("most", "gateways", "expected"),
    [(100, 1, 100), (100, 2, 60), (100, 3, 40), (1, 3, 1), (10, 100, 1)],
)
def test_gateways_that_count_alone_share_a_limit(most: int, gateways: int, expected: int) -> None:
    (share,) = limits.shares([Limit(Scope.USER, HOUR, "u", most)], gateways)
    assert share.most == expected


def test_who_has_no_limit_is_told_a_number_that_nobody_reaches() -> None:
    assert limits.hourly([]).remaining == limits.UNLIMITED
    tight = Allowance(Scope.KEY, HOUR, 10, 3, 0)
    assert limits.hourly([Allowance(Scope.USER, HOUR, 100, 50, 0), tight, Allowance(Scope.USER, TOKENS, 9, 0, 0)]) == tight


def test_the_most_tokens_of_one_request() -> None:
    assert limits.most_tokens([USER_HOUR]) is None
    assert limits.most_tokens([USER_TOKENS, Limit(Scope.KEY, TOKENS, "kt", 300)]) == 300
