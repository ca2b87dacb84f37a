import pytest

from services.gateway.limiting.tiers import Plan
from services.gateway.settings import GatewaySettings
from shared import config, errors
from shared.types import ModelName, Tier

GIVEN = {
    "NODE_KEY_FILE": "/nowhere/gateway.nk",
    "DATABASE_URL": "postgresql://user:word@host/name",
    "REDIS_URL": "unix:///nowhere/valkey.sock",
    "PROMPT_HASH_SECRET": "s" * 16,
}


def load(**more: str) -> GatewaySettings:
    return config.load(GatewaySettings, GIVEN | more)


def test_the_old_variables_set_an_hour_and_the_tiers_go_before_them() -> None:
    plans = load(DEFAULT_RATE_LIMIT="9", PREMIUM_RATE_LIMIT="90", TIER_PRO="requests_per_hour=unlimited,tokens_per_minute=5000").plans()
    assert plans[Tier.FREE] == Plan(9, 10, None, 10, 100_000)
    assert plans[Tier.PRO] == Plan(None, 100, 5000, 100, 1_000_000)
    assert plans[Tier.ENTERPRISE] == Plan(None, None, None, None, None)


def test_limits_of_a_model() -> None:
    found = load(MODEL_LIMITS="smollm2.requests_per_minute=600,smollm2.concurrency=32")
    assert found.model_plans() == {ModelName("smollm2"): Plan(None, 600, None, 32, None)}
    assert load().model_plans() == {}


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(errors.BadSettings) as refused:
        load(TIER_FREE="requests=7", TIER_PRO="concurrency=none", TIER_ENTERPRISE="credits=-1", MODEL_LIMITS="concurrency=3")
    for name in ("TIER_FREE", "TIER_PRO", "TIER_ENTERPRISE", "MODEL_LIMITS"):
        assert f"{name}: " in refused.value.message


def test_an_alias_is_not_limited_but_what_it_stands_for() -> None:
    with pytest.raises(errors.BadSettings, match="llama3 is another name of smollm2"):
        load(MODEL_LIMITS="llama3.concurrency=3")
