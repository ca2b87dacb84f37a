from uuid import UUID

import msgspec
import pytest

from services.gateway.facts import tiers
from services.gateway.facts.tiers import TierPlan
from services.gateway.facts.tightest_limit import TightestLimit
from services.gateway.limits import limit_rules
from services.gateway.limits.limit_rules import Count, LimitReached, LimitScope, RequestLimit
from shared.api.auth import ApiKeyLimits, Principal
from shared.api.gateway import NO_LIMIT, LimitState
from shared.limits import LimitKind
from shared.types import KeyId, ModelName, TenantId, Tier, UserId, UserRole
from tests.services.gateway.limits.kinds import HOUR, MINUTE, SLOTS, TOKENS

FREE = TierPlan(requests_per_hour=100, requests_per_minute=10, tokens_per_minute=None, concurrency=10, included_tokens=100_000)
MODEL = ModelName("smollm2")
USER_HOUR = RequestLimit(LimitScope.USER, HOUR, "u", 100)
KEY_HOUR = RequestLimit(LimitScope.KEY, HOUR, "k", 10)
USER_TOKENS = RequestLimit(LimitScope.USER, TOKENS, "t", 1000)


def principal(*, key: bool = True, **limited: int) -> Principal:
    return Principal(
        UserId(UUID(int=1)), "ada", UserRole.USER, Tier.FREE, KeyId(UUID(int=2)) if key else None, "k", ApiKeyLimits(**limited)
    )


def test_an_organisation_that_shares_its_founders_limits_uses_the_founders_counters() -> None:
    founder = principal(key=False)
    team = msgspec.structs.replace(founder, user_id=UserId(UUID(int=7)), team_id=TenantId(UUID(int=8)), founder_id=founder.user_id)
    assert limit_rules.caller_limits(team, FREE) == limit_rules.caller_limits(founder, FREE)
    assert team.tenant_id == TenantId(UUID(int=8)), "the organization is charged"
    own = msgspec.structs.replace(team, founder_id=None)
    assert not set(limit_rules.caller_limits(own, FREE)) & set(limit_rules.caller_limits(founder, FREE))


def test_an_organisation_that_shares_limits_has_no_tokens_of_its_own() -> None:
    for tier in Tier:
        assert tiers.LimitRules().plan_of(tier, shares_limits=True).included_tokens == 0
        assert tiers.LimitRules().plan_of(tier, shares_limits=False) == tiers.DEFAULTS[tier]


@pytest.mark.parametrize(
    ("caller", "plan", "expected"),
    [
        pytest.param(
            principal(),
            FREE,
            [(LimitScope.USER, HOUR, 100), (LimitScope.USER, MINUTE, 10), (LimitScope.USER, SLOTS, 10)],
            id="a user has the limits of the tier",
        ),
        pytest.param(principal(), tiers.NO_LIMITS, [], id="a user without limits is not counted"),
        pytest.param(
            principal(requests_per_hour=5, tokens_per_minute=900),
            tiers.NO_LIMITS,
            [(LimitScope.KEY, HOUR, 5), (LimitScope.KEY, TOKENS, 900)],
            id="a key can have its own limits",
        ),
        pytest.param(principal(key=False, requests_per_hour=5), tiers.NO_LIMITS, [], id="an access token has no key"),
    ],
)
def test_limits_of_a_caller(caller: Principal, plan: TierPlan, expected: list[tuple[LimitScope, LimitKind, int]]) -> None:
    assert [(limit.scope, limit.kind, limit.most) for limit in limit_rules.caller_limits(caller, plan)] == expected


def test_a_models_limits_apply_to_every_caller() -> None:
    models = {MODEL: TierPlan(requests_per_minute=600, concurrency=32)}
    limits = limit_rules.model_limits(MODEL, models)
    assert [(limit.scope, limit.kind, limit.most) for limit in limits] == [(LimitScope.MODEL, MINUTE, 600), (LimitScope.MODEL, SLOTS, 32)]
    assert limit_rules.model_limits(ModelName("other"), models) == ()


def test_all_counters_are_distinct_and_on_one_cluster_node() -> None:
    everything = TierPlan(requests_per_hour=1, requests_per_minute=1, tokens_per_minute=1, concurrency=1, included_tokens=1)
    limits = [
        *limit_rules.caller_limits(principal(requests_per_hour=1, requests_per_minute=1, tokens_per_minute=1, concurrency=1), everything),
        *limit_rules.model_limits(MODEL, {MODEL: everything}),
    ]
    assert len({limit.counter for limit in limits}) == len(limits) == 12
    assert {limit.counter.split("{")[1].split("}")[0] for limit in limits} == {"limits"}


def test_the_tightest_limit_of_a_kind_has_the_least_left() -> None:
    limits = [USER_HOUR, KEY_HOUR, USER_TOKENS]
    tight = limit_rules.tightest(limits, [Count(5, 0, 7), Count(7, 0, 9), Count(400, 0, 36)])
    assert tight == TightestLimit(
        LimitState(LimitScope.USER, HOUR.name, 100, 5, 7), LimitState(LimitScope.USER, TOKENS.name, 1000, 400, 36)
    )
    assert limit_rules.tightest(limits[:2], [Count(50, 0, 7), Count(7, 0, 9)]) == TightestLimit(
        LimitState(LimitScope.KEY, HOUR.name, 10, 7, 9)
    )
    assert limit_rules.tightest([], []) == TightestLimit()


def test_a_refusal_has_the_longest_wait() -> None:
    refused = LimitReached([USER_HOUR, KEY_HOUR, USER_TOKENS], [Count(0, 5, 5), Count(0, 900, 60), Count(3, 0, 1)], Tier.FREE)
    assert (refused.scope, refused.retry_after_seconds) == (LimitScope.KEY, 900)
    assert refused.message == "this key's limit of 10 requests per hour is used up"
    tightest = limit_rules.attached_limits(refused)
    assert tightest is not None
    assert tightest.tokens == LimitState(LimitScope.USER, TOKENS.name, 1000, 3, 1)


def test_a_lowered_limit_leaves_zero_and_not_less() -> None:
    (state,) = limit_rules.states([USER_HOUR], [Count(-50, 0, 0)])
    assert (state.remaining, state.used) == (0, 100)


@pytest.mark.parametrize(
    ("most", "gateways", "expected"),
    [(100, 1, 100), (100, 2, 60), (100, 3, 40), (1, 3, 1), (10, 100, 1)],
)
def test_gateways_that_count_alone_share_a_limit(most: int, gateways: int, expected: int) -> None:
    (share,) = limit_rules.shares([RequestLimit(LimitScope.USER, HOUR, "u", most)], gateways)
    assert share.most == expected


def test_a_refusal_by_a_share_names_the_whole_limit() -> None:
    (share,) = limit_rules.shares([RequestLimit(LimitScope.KEY, SLOTS, "k", 2)], 3)
    error = limit_rules.LimitReached([share], [Count(0, 1, 1)], Tier.FREE)
    assert error.message == "this key's limit of 2 concurrent requests (this gateway's share: 1) is reached"


def test_an_unlimited_caller_gets_a_number_out_of_reach() -> None:
    assert limit_rules.hourly([]).remaining == NO_LIMIT
    tight = LimitState(LimitScope.KEY, HOUR.name, 10, 3, 0)
    assert (
        limit_rules.hourly([LimitState(LimitScope.USER, HOUR.name, 100, 50, 0), tight, LimitState(LimitScope.USER, TOKENS.name, 9, 0, 0)])
        == tight
    )


def test_the_largest_request_that_fits_the_limits() -> None:
    assert limit_rules.most_tokens([USER_HOUR]) is None
    assert limit_rules.most_tokens([USER_TOKENS, RequestLimit(LimitScope.KEY, TOKENS, "kt", 300)]) == 300
