from dataclasses import replace

import pytest

from services.gateway.facts import config_snapshot, tiers
from services.gateway.facts.config_snapshot import StoredDocument
from services.gateway.facts.tiers import TierPlan
from shared.config_documents import ConfigKind, PlanDocument
from shared.types import MicroCredits, ModelName, Tier

FREE = tiers.DEFAULTS[Tier.FREE]


def test_the_defaults_match_the_documentation() -> None:
    assert (
        TierPlan(
            requests_per_hour=100, requests_per_minute=10, concurrency=10, included_tokens=100_000, file_bytes=2**30,
            queued_lines=50_000, for_sale=True,
        )
        == FREE
    )  # fmt: skip
    assert tiers.DEFAULTS[Tier.PRO] == TierPlan(
        requests_per_hour=1_000, requests_per_minute=100, concurrency=100, included_tokens=1_000_000,
        file_bytes=10 * 2**30, fee_micro=MicroCredits(29_000_000), for_sale=True,
    )  # fmt: skip
    assert tiers.DEFAULTS[Tier.ENTERPRISE] == TierPlan(overage_micro=None, fee_micro=None)


def test_a_plan_that_is_not_built_in_takes_missing_numbers_from_free() -> None:
    plans = {"gold": PlanDocument(requests_per_hour=7), "free": PlanDocument(concurrency=3), "basic": PlanDocument()}
    documents = {(ConfigKind.PLAN, name): StoredDocument(1, 1, "applied", body) for name, body in plans.items()}
    documents[ConfigKind.PLAN, "pro"] = StoredDocument(2, 1, "applied", None)
    found = config_snapshot.build(1, documents).limits.plans
    free = replace(FREE, concurrency=3)
    assert found == {
        **tiers.DEFAULTS,
        "free": free,
        "gold": replace(free, requests_per_hour=7, for_sale=False),
        "basic": replace(free, for_sale=False),
    }
    assert (found["gold"].source_of("requests_per_hour"), found["gold"].source_of("concurrency")) == ("plan gold", "plan free")


def test_accounts_of_a_removed_plan_have_the_limits_of_free() -> None:
    assert tiers.LimitRules().plan_of("gold") == FREE
    assert tiers.LimitRules().plan_of("gold", shares_limits=True).included_tokens == 0


def test_only_a_plan_without_a_fee_asks_for_a_verified_address() -> None:
    plans = {**tiers.DEFAULTS, "unlimited": replace(FREE, included_tokens=None), "without": replace(FREE, included_tokens=0)}
    found = {name: tiers.LimitRules(plans).plan_of(name, has_free_tokens=False) for name in plans}
    withheld = {name: replace(plans[name], included_tokens=0, withholds_tokens=True) for name in ("free", "unlimited")}
    assert found == {**plans, **withheld}
    assert {name: tiers.LimitRules(plans).plan_of(name) for name in plans} == plans


def test_metrics_count_plans_that_are_not_built_in_together() -> None:
    assert [tiers.label_of(name) for name in (*Tier, "gold", "basic")] == ["free", "pro", "enterprise", "other", "other"]


def test_a_setting_overrides_its_default_and_the_rest_stays() -> None:
    changed = tiers.changed(FREE, {"requests_per_minute": "unlimited", "tokens_per_minute": "9000", "included_tokens": "0"})
    assert changed == replace(FREE, requests_per_minute=None, tokens_per_minute=9000, included_tokens=0)


def test_limits_of_models_whose_names_have_dots() -> None:
    plans = tiers.of_models({"qwen2.5.concurrency": "3", "qwen2.5.requests_per_minute": "8", "smollm2.tokens_per_minute": "7"})
    assert plans == {
        ModelName("qwen2.5"): TierPlan(requests_per_minute=8, concurrency=3),
        ModelName("smollm2"): TierPlan(tokens_per_minute=7),
    }


@pytest.mark.parametrize(
    ("numbers", "messages"),
    [
        ({"requests": "7", "concurrency": "0"}, ("'requests' is not one of", "concurrency=0")),
        ({"included_tokens": "-1"}, ("included_tokens=-1",)),
        ({"requests_per_hour": "1.5"}, ("requests_per_hour=1.5",)),
        ({"tokens_per_minute": "1" * 13}, ("unlimited",)),
    ],
)
def test_all_mistakes_in_a_tier_are_reported(numbers: dict[str, str], messages: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is checked below
        tiers.changed(FREE, numbers)
    assert all(part in str(refused.value) for part in messages)


@pytest.mark.parametrize("place", ["concurrency", "smollm2.included_tokens", "smollm2.", ".concurrency"])
def test_an_invalid_limit_of_a_model_is_reported(place: str) -> None:
    with pytest.raises(ValueError, match=r"is not one of|write model\."):
        tiers.of_models({place: "5", "other.concurrency": "5"})
