"""A change says what restricts less afterwards, and nothing if it restricts more."""

from typing import Any

import msgspec
import pytest

from services.gateway.configuration import lost_restrictions
from services.gateway.facts.config_snapshot import DocumentKey
from services.gateway.facts.unreadable import Unreadable
from shared.config_documents import BODIES, ConfigKind, Document

GUARD = {"prompt": {"email": "mask"}, "patterns": [{"name": "a", "pattern": "x", "max_length": 3}], "countries": ["DE"]}
MODERATION = {"route": "moderation", "prompt": "report"}


def document(kind: ConfigKind, body: dict[str, Any] | None) -> Document | None:
    return None if body is None else msgspec.convert(body, BODIES[kind])


def find(kind: ConfigKind, name: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[str]:
    key: DocumentKey = kind, name
    return list(lost_restrictions.find({key: document(kind, before)}, {key: document(kind, after)}))


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        pytest.param({"machines": "own"}, {"machines": "trusted"}, "machines", id="more machines"),
        pytest.param({"machines": "trusted"}, {}, "machines", id="all machines"),
        pytest.param({"external": ["a"]}, {"external": ["a", "b"]}, "external", id="another provider"),
        pytest.param({}, {"external": ["*"]}, "external", id="no list allows none"),
        pytest.param({"models": ["a"]}, {}, "models", id="all models"),
        pytest.param({"targets": ["a*"]}, {"targets": ["b*"]}, "targets", id="other targets"),
        pytest.param({"direct_models": False}, {}, "direct_models", id="direct models"),
        pytest.param({"show_targets": False}, {"show_targets": True}, "show_targets", id="targets are shown"),
        pytest.param({"store_items": False}, {}, "store_items", id="items are stored"),
        pytest.param({"stored_prompts": "never"}, {}, "stored_prompts", id="as the level above says"),
        pytest.param({}, {"stored_prompts": "24h"}, "stored_prompts", id="prompts are stored"),
        pytest.param({"flex": "never"}, {"flex": "allowed"}, "flex", id="flex"),
        pytest.param({"flex": "never"}, {"flex": "only"}, "flex", id="the other of both"),
        pytest.param(
            {"max_price": {"input": 1, "output": "2"}}, {"max_price": {"input": "1.5"}}, "max_price.input, max_price.output", id="prices"
        ),
        pytest.param({"guard": GUARD}, {}, "guard.prompt.email, guard.countries, guard.patterns", id="no guardrails"),
        pytest.param({"guard": GUARD}, {"guard": GUARD | {"prompt": {"email": "report"}}}, "guard.prompt.email", id="a milder action"),
        pytest.param({"guard": GUARD}, {"guard": GUARD | {"allow": ["me@x"]}}, "guard.allow", id="an allowed text"),
        pytest.param({"guard": {"internal_ips": True}}, {"guard": {}}, "guard.internal_ips", id="internal addresses"),
        pytest.param({"guard": {"moderation": MODERATION}}, {"guard": {}}, "guard.moderation", id="no moderation"),
        pytest.param(
            {"guard": {"moderation": MODERATION}},
            {"guard": {"moderation": MODERATION | {"threshold": 0.5}}},
            "guard.moderation",
            id="may be",
        ),
    ],
)
def test_a_policy_that_restricts_less(before: dict[str, Any], after: dict[str, Any], lost: str) -> None:
    assert find(ConfigKind.POLICY, "mesh", before, after) == [f"policy mesh restricts less: {lost}"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({"machines": "trusted"}, {"machines": "own"}, id="fewer machines"),
        pytest.param({"external": ["a", "b"]}, {"external": ["a"]}, id="fewer providers"),
        pytest.param({"external": ["a"]}, {}, id="no list allows none"),
        pytest.param({}, {"models": ["a"], "direct_models": False, "flex": "never", "stored_prompts": "never"}, id="more rules"),
        pytest.param({"flex": "allowed"}, {}, id="allowed"),
        pytest.param({"guard": {"moderation": MODERATION}}, {"guard": {"moderation": MODERATION | {"prompt": "refuse"}}}, id="stricter"),
        pytest.param({"guard": GUARD}, {"guard": GUARD | {"prompt": {"email": "refuse", "card": "mask"}}}, id="a stricter action"),
    ],
)
def test_a_policy_that_restricts_more(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert find(ConfigKind.POLICY, "default", before, after) == []


def test_a_key_without_a_list_may_use_what_its_organization_may() -> None:
    assert find(ConfigKind.POLICY, "key:1", {"external": ["a"]}, {}) == ["policy key:1 restricts less: external"]
    assert find(ConfigKind.POLICY, "key:1", {}, {"external": ["a"]}) == []


@pytest.mark.parametrize(
    ("kind", "before", "after", "line"),
    [
        (ConfigKind.PLAN, {"concurrency": 2, "fee": 3}, {"fee": 3}, "plan x restricts less: concurrency"),
        (ConfigKind.MODEL_LIMIT, {"tokens_per_day": 2}, None, "model_limit x is removed, and no longer restricts anything"),
        (ConfigKind.TRUST, {"mode": "enforce"}, {"mode": "warn", "keys": ["a"]}, "trust x restricts less: mode, keys"),
        (ConfigKind.SERVER, {"url": "http://a", "models": ["m"]}, {"url": "http://a"}, "server x restricts less: models"),
        (ConfigKind.ROUTE, {"targets": [{"name": "a", "model": "m"}]}, None, "route x is removed, and no longer restricts anything"),
        (ConfigKind.UPSTREAM_PRICE, {"input": 1, "output": 1}, None, None),
    ],
)
def test_other_documents(kind: ConfigKind, before: dict[str, Any], after: dict[str, Any] | None, line: str | None) -> None:
    assert find(kind, "x", before, after) == ([] if line is None else [line])


def test_what_nobody_can_read_may_restrict() -> None:
    key = ConfigKind.POLICY, "mesh"
    (line,) = lost_restrictions.find({key: Unreadable("policy", "mesh", 7)}, {key: document(ConfigKind.POLICY, {"machines": "own"})})
    assert line == "policy mesh: its version 7, which this gateway can't read, no longer applies"
