import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from services.gateway import settings
from services.gateway.facts import tiers
from services.gateway.facts.tiers import TierPlan
from services.gateway.settings import GatewaySettings
from shared import config, errors
from shared.types import ModelName, Tier

FREE, PRO = tiers.DEFAULTS[Tier.FREE], tiers.DEFAULTS[Tier.PRO]
GIVEN = {
    "NODE_KEY_FILE": "/nowhere/gateway.nk",
    "DATABASE_URL": "postgresql://user:word@host/name",
    "REDIS_URL": "unix:///nowhere/valkey.sock",
    "PROMPT_HASH_SECRET": "s" * 16,
}


def load(**more: str) -> GatewaySettings:
    return config.load(GatewaySettings, GIVEN | more)


def test_the_old_variables_set_hourly_limits_and_tiers_override_them() -> None:
    plans = load(DEFAULT_RATE_LIMIT="9", PREMIUM_RATE_LIMIT="90", TIER_PRO="requests_per_hour=unlimited,tokens_per_minute=5000").plans()
    assert plans[Tier.FREE] == replace(FREE, requests_per_hour=9, requests_per_minute=None)
    assert plans[Tier.PRO] == replace(PRO, requests_per_hour=None, requests_per_minute=None, tokens_per_minute=5000)
    assert plans[Tier.ENTERPRISE] == TierPlan(overage_micro=None, fee_micro=None)


def test_an_old_variable_disables_the_minute_limit_unless_its_tier_sets_one() -> None:
    assert load().plans()[Tier.FREE] == FREE
    assert load(TIER_FREE="concurrency=3").plans()[Tier.FREE] == replace(FREE, concurrency=3)
    hourly = replace(FREE, requests_per_hour=5000, requests_per_minute=None)
    assert load(DEFAULT_RATE_LIMIT="5000").plans()[Tier.FREE] == hourly
    assert load(DEFAULT_RATE_LIMIT="5000", TIER_FREE="concurrency=3").plans()[Tier.FREE] == replace(hourly, concurrency=3)
    assert load(DEFAULT_RATE_LIMIT="5000", TIER_FREE="requests_per_minute=7").plans()[Tier.FREE] == replace(hourly, requests_per_minute=7)
    # An empty variable counts as unset, because Compose passes it that way.
    assert load(PREMIUM_RATE_LIMIT="").plans()[Tier.PRO] == PRO
    assert load(PREMIUM_RATE_LIMIT="1000").plans()[Tier.PRO] == replace(PRO, requests_per_minute=None)


def test_each_limit_names_its_setting() -> None:
    loaded = load(DEFAULT_RATE_LIMIT="9", TIER_FREE="tokens_per_minute=50", MODEL_LIMITS="smollm2.concurrency=3")
    free, model = loaded.plans()[Tier.FREE], loaded.model_plans()[ModelName("smollm2")]
    names = ("requests_per_hour", "tokens_per_minute", "concurrency")
    assert [free.source_of(name) for name in names] == ["DEFAULT_RATE_LIMIT", "TIER_FREE", "default"]
    assert model.source_of("concurrency") == "MODEL_LIMITS"


def test_limits_of_a_model() -> None:
    loaded = load(MODEL_LIMITS="smollm2.requests_per_minute=600,smollm2.concurrency=32")
    assert loaded.model_plans() == {ModelName("smollm2"): TierPlan(requests_per_minute=600, concurrency=32)}
    assert load().model_plans() == {}


def test_a_payment_provider_needs_its_secrets_and_tls_for_live_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, hook, empty = tmp_path / "key", tmp_path / "hook", tmp_path / "empty"
    key.write_text("sk_live_abc\n", encoding="ascii")
    hook.write_text("whsec_abc\n", encoding="ascii")
    empty.touch()
    files = {"STRIPE_SECRET_KEY_FILE": str(key), "STRIPE_WEBHOOK_SECRET_FILE": str(hook)}
    selling = {"MONEY": "on", "PAYMENTS": "stripe"}
    found = load(**selling, **files, PUBLIC_URL="https://ai.example.org").provider()
    assert found is not None
    assert (found.secret, found.webhook_secret, found.return_url) == ("sk_live_abc", "whsec_abc", "https://ai.example.org/billing")
    assert "abc" not in repr(found)
    assert not found.has_tax
    taxed = load(**selling, **files, PUBLIC_URL="https://ai.example.org", STRIPE_TAX="on").provider()
    assert taxed is not None
    assert taxed.has_tax
    assert load(PAYMENTS="stripe").provider() is None, "with MONEY=off"
    for given, mistake in (
        ({}, "PAYMENTS=stripe needs STRIPE_SECRET_KEY_FILE; PAYMENTS=stripe needs STRIPE_WEBHOOK_SECRET_FILE"),
        (files | {"STRIPE_WEBHOOK_SECRET_FILE": str(empty)}, "PAYMENTS=stripe needs STRIPE_WEBHOOK_SECRET_FILE"),
        (files | {"STRIPE_SECRET_KEY_FILE": "/nowhere/key"}, "STRIPE_SECRET_KEY_FILE: /nowhere/key can't be read: FileNotFoundError"),
        (files | {"PUBLIC_URL": "http://ai.example.org"}, "STRIPE_SECRET_KEY_FILE: a live key needs a PUBLIC_URL with https://"),
        (files, "STRIPE_SECRET_KEY_FILE: a live key needs a PUBLIC_URL with https://"),
    ):
        with pytest.raises(errors.BadSettings) as refused:
            load(**selling, **given)
        assert mistake in str(refused.value)
        assert "abc" not in str(refused.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(errors.BadSettings, match=r"PAYMENTS=paddle needs a library: install requirements/payments\.lock"):
        load(MONEY="on", PAYMENTS="paddle", PADDLE_API_KEY_FILE=str(key), PADDLE_WEBHOOK_SECRET_FILE=str(hook))


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(errors.BadSettings) as refused:
        load(TIER_FREE="requests=7", TIER_PRO="concurrency=none", TIER_ENTERPRISE="included_tokens=-1", MODEL_LIMITS="concurrency=3")
    for name in ("TIER_FREE", "TIER_PRO", "TIER_ENTERPRISE", "MODEL_LIMITS"):
        assert f"{name}: " in refused.value.message


def test_origins_are_checked() -> None:
    assert load(CORS_ORIGINS="https://example.org,http://localhost:3000").cors_origins == ("https://example.org", "http://localhost:3000")
    with pytest.raises(errors.BadSettings, match=r"CORS_ORIGINS: 'https://example.org/' is not an origin"):
        load(CORS_ORIGINS="https://example.org/,*")


def test_limits_of_an_alias_are_refused() -> None:
    with pytest.raises(errors.BadSettings, match="llama3 is an alias of smollm2"):
        load(MODEL_LIMITS="llama3.concurrency=3")


@pytest.mark.parametrize("good", ["*", "https://example.org", "http://localhost:3000", "http://[::1]:3000", "https://a-b.example.org"])
def test_origins(good: str) -> None:
    assert settings.is_origin(good)


@pytest.mark.parametrize(
    "bad", ["", "null", "example.org", "https://example.org/", "https://*.example.org", "https://EXAMPLE.org", "ftp://a"]
)
def test_other_texts_are_no_origins(bad: str) -> None:
    assert not settings.is_origin(bad)
