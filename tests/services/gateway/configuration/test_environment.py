"""Settings seed the documents, and are ignored for documents that were edited."""

import msgspec

from services.gateway.configuration import environment
from services.gateway.facts import config_snapshot
from services.gateway.facts.config_snapshot import StoredDocument
from services.gateway.facts.placements import Placement
from services.gateway.settings import GatewaySettings
from shared import config
from shared.config_documents import ConfigKind, Document, Machines, PlanDocument, PolicyDocument, RouteDocument, TargetDocument
from shared.types import Tier
from tests.services.gateway.test_settings import GIVEN

FREE, LLAMA = (ConfigKind.PLAN, "free"), (ConfigKind.ROUTE, "llama3")


def load(**more: str) -> GatewaySettings:
    return config.load(GatewaySettings, GIVEN | more)


def stored(
    documents: dict[tuple[ConfigKind, str], Document], origin: str = environment.ENVIRONMENT
) -> dict[tuple[ConfigKind, str], StoredDocument]:
    return {key: StoredDocument(1, 1, origin, body) for key, body in documents.items()}


def test_the_snapshot_of_the_settings_is_what_the_settings_said() -> None:
    settings = load(
        TIER_FREE="requests_per_hour=7,included_tokens=unlimited", TIER_ENTERPRISE="concurrency=3", PREMIUM_RATE_LIMIT="70",
        DEFAULT_MODEL="a", MODEL_LIMITS="m.v1.concurrency=3,m.v1.tokens_per_minute=unlimited",
        MODEL_ALIASES="a=m,B=n", ROUTING_POLICY="trusted",
    )  # fmt: skip
    snapshot = config_snapshot.build(1, stored(environment.read_documents(settings)))
    assert snapshot.limits.plans == settings.plans()
    assert snapshot.limits.models == settings.model_plans()
    assert (dict(snapshot.names.aliases), snapshot.names.default) == ({"a": "m", "B": "n"}, "a")
    assert snapshot.policies.find(None).machines.value is Machines.TRUSTED
    assert snapshot.limits.plans[Tier.FREE].source_of("included_tokens") == "plan free"


def test_without_settings_there_are_the_defaults() -> None:
    snapshot = config_snapshot.build(1, stored(environment.read_documents(load())))
    assert snapshot.limits.plans == config_snapshot.ConfigSnapshot().limits.plans == load().plans()
    assert dict(snapshot.names.aliases) == {"llama3": "smollm2"}
    assert (snapshot.limits.models, snapshot.names.default) == ({}, None)
    assert snapshot.policies.find(None).placement == Placement(Machines.GROUP, ())


def test_gateways_of_version_0_3_can_read_the_plans_until_somebody_limits_files() -> None:
    before, after = (environment.read_documents(load(**given))[FREE] for given in ({}, {"TIER_FREE": "file_bytes=unlimited"}))
    assert "file_bytes" not in msgspec.to_builtins(before)
    assert msgspec.to_builtins(after)["file_bytes"] == "unlimited"
    assert config_snapshot.build(1, stored({FREE: before})).limits.plans[Tier.FREE].file_bytes == 2**30
    assert config_snapshot.build(1, stored({FREE: after})).limits.plans[Tier.FREE].file_bytes is None


def test_a_payment_provider_bills_usage_beyond_the_plan_pro() -> None:
    provided = {"MONEY": "off", "PAYMENTS": "stripe"}
    plans = config_snapshot.build(1, stored(environment.read_documents(load(**provided)))).limits.plans
    assert (plans[Tier.PRO].overage_micro, plans[Tier.FREE].overage_micro) == (100_000_000, 0)


def test_a_changed_setting_changes_its_document_until_somebody_edits_it() -> None:
    before = environment.read_documents(load(MODEL_ALIASES="old=m,same=m"))
    wanted = environment.read_documents(load(MODEL_ALIASES="same=m,new=m", TIER_FREE="included_tokens=3"))
    new, old = (ConfigKind.ROUTE, "new"), (ConfigKind.ROUTE, "old")
    assert environment.find_changes(wanted, stored(before)) == {FREE: wanted[FREE], new: wanted[new], old: None}
    assert environment.find_changes(wanted, stored(wanted)) == {}
    edited = stored(before) | stored({FREE: PlanDocument(included_tokens=9), old: before[old]}, "applied")
    assert environment.find_changes(wanted, edited) == {new: wanted[new]}
    assert environment.find_changes(wanted, edited, force=True) == {FREE: wanted[FREE], new: wanted[new]}


def test_a_removed_document_stays_removed() -> None:
    wanted = environment.read_documents(load())
    removed = stored(wanted) | {LLAMA: StoredDocument(2, 2, "applied", None)}
    assert environment.find_changes(wanted, removed) == {}
    removed[LLAMA] = StoredDocument(2, 2, environment.ENVIRONMENT, None)
    assert environment.find_changes(wanted, removed) == {LLAMA: wanted[LLAMA]}


def test_settings_without_effect_are_named() -> None:
    settings = load(TIER_FREE="included_tokens=3", MODEL_ALIASES="llama3=m")
    edited = stored(environment.read_documents(settings))
    assert list(environment.ignored_settings(settings, edited)) == []
    policy = (ConfigKind.POLICY, "mesh")
    edited |= stored(
        {
            FREE: PlanDocument(),
            LLAMA: RouteDocument(targets=(TargetDocument(name="x", model="y"),)),
            policy: PolicyDocument(machines="trusted"),
        },
        "applied",
    )
    assert list(environment.ignored_settings(settings, edited)) == [
        "MODEL_ALIASES is ignored for route llama3, which was edited (version 1)",
        "TIER_FREE is ignored for plan free, which was edited (version 1)",
    ], "the policy's setting has its default"


def test_every_setting_that_seeds_has_a_default() -> None:
    assert environment.read_documents(
        msgspec.structs.replace(load(TIER_PRO="included_tokens=1"), **environment._DEFAULTS)
    ) == environment.read_documents(load())
