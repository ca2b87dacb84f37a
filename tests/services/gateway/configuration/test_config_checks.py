"""Mistakes across documents, and warnings about what a change may have overlooked."""

from typing import Any

import msgspec
import pytest

from services.gateway.configuration import config_checks
from services.gateway.facts.config_snapshot import StoredDocument
from services.gateway.guard import guard_checks
from shared.config_documents import (
    ConfigKind,
    DefaultModelDocument,
    Document,
    GuardDocument,
    ModelLimitDocument,
    ModerationFormat,
    ModerationRule,
    PlanDocument,
    PolicyDocument,
    RouteDocument,
    TargetConditions,
    TargetDocument,
    TargetTask,
    UpstreamPriceDocument,
)
from shared.types import ModelName


def route(model: str) -> RouteDocument:
    return RouteDocument(targets=(TargetDocument(name="main", model=model),))


def together(**routes: str) -> list[str]:
    return list(config_checks.check_together({(ConfigKind.ROUTE, name): route(model) for name, model in routes.items()}))


def test_a_target_is_never_a_route() -> None:
    assert together(a="m", b="m") == []
    assert together(a="a") == [], "a route may have the name of its model"
    assert together(a="b", b="m") == ["routes.a.targets[0].model: b is a route; name a served model"]


def mistakes(*targets: TargetDocument) -> list[tuple[str, str]]:
    found = config_checks.check_body(RouteDocument(targets=targets), guard_checks.check)
    return [(".".join(str(part) for part in path), text) for path, text in found]


def test_shares_of_targets() -> None:
    """The shares of a route add up to 100 percent, in hundredths; a target with neither share nor order would never be used."""

    def targets(*shares: float | None, order: int | None = None) -> list[tuple[str, str]]:
        return mistakes(*(TargetDocument(f"t{number}", "m", share=share, order=order) for number, share in enumerate(shares)))

    assert targets(None) == targets(100) == targets(90, 10) == targets(33.33, 33.33, 33.34) == targets(0.07, 99.93) == targets(100, 0) == []
    assert targets(100, None, order=1) == targets(None, None, order=1) == [], "a fallback needs no share"
    assert targets(90) == [("targets", "the shares add up to 90, not 100")]
    assert targets(33.33, 33.33, 33.33) == [("targets", "the shares add up to 99.99, not 100")]
    assert targets(99.999, 0.001) == [
        ("targets.0.share", "must have at most two decimals"),
        ("targets.1.share", "must have at most two decimals"),
    ]
    assert targets(100, None) == [("targets.1", "is never used; give it a share or an order")]
    assert mistakes(TargetDocument("t", "m", share=50), TargetDocument("t", "n", share=50)) == [
        ("targets.1.name", "must be unique within its route")
    ]


def test_a_lifetime_needs_a_cache() -> None:
    def check(**fields: Any) -> list[Any]:
        return list(config_checks.check_body(RouteDocument(targets=(TargetDocument("t", "m"),), **fields), guard_checks.check))

    assert check(cache="same_request") == check(cache="same_request", cache_seconds=60) == check() == []
    assert check(cache_seconds=60) == [(("cache_seconds",), "has no effect without cache: same_request")]


@pytest.mark.parametrize("fields", [{"cache": "on"}, {"cache_seconds": 0}, {"cache_seconds": 86_401}, {"cache_seconds": 1.5}])
def test_the_cache_of_a_route_is_bounded(fields: dict[str, Any]) -> None:
    body = {"targets": [{"name": "t", "model": "m"}], "cache": "same_request"}
    assert not msgspec.convert(body, RouteDocument).is_alias
    with pytest.raises(msgspec.ValidationError, match=next(iter(fields))):
        msgspec.convert(body | fields, RouteDocument)


def test_conditions_that_nothing_meets() -> None:
    def between(low: int | None, high: int | None) -> list[tuple[str, str]]:
        return mistakes(TargetDocument("t", "m", when=TargetConditions(min_prompt_tokens=low, max_prompt_tokens=high)))

    assert between(5, 5) == between(5, None) == between(None, 0) == []
    assert between(6, 5) == [("targets.0.when.min_prompt_tokens", "must not exceed max_prompt_tokens")]


def test_ceilings_and_comparisons_need_a_price() -> None:
    targets = (TargetDocument(name="own", model="m", share=100), TargetDocument(name="api", model="gpt", order=1, daily_ceiling="5"))
    documents: dict[tuple[ConfigKind, str], Document] = {
        (ConfigKind.ROUTE, "a"): RouteDocument(targets=targets, compare_cost_with="api"),
        (ConfigKind.ROUTE, "b"): RouteDocument(targets=targets[:1], compare_cost_with="gpt"),
    }
    assert list(config_checks.check_together(documents)) == [
        "routes.a.targets[1].daily_ceiling: upstream_prices has no gpt",
        "routes.a.compare_cost_with: upstream_prices has no gpt",
        "routes.b.compare_cost_with: upstream_prices has no gpt",
    ]
    documents[ConfigKind.UPSTREAM_PRICE, "gpt"] = UpstreamPriceDocument(input="0.15", output="0.6")
    assert list(config_checks.check_together(documents)) == []


def test_cached_tokens_are_not_dearer() -> None:
    dearer = UpstreamPriceDocument(input=1, output=2, cached_input="1.000001")
    assert list(config_checks.check_body(dearer, guard_checks.check)) == [(("cached_input",), "must not exceed input")]
    assert list(config_checks.check_body(UpstreamPriceDocument(input=1, output=2, cached_input=1), guard_checks.check)) == []


def test_the_number_of_routes_is_bounded() -> None:
    assert together(**{f"r{number}": "m" for number in range(500)}) == []
    assert together(**{f"r{number}": "m" for number in range(501)}) == ["routes: there would be 501; the limit is 500"]


def test_warnings_about_models_that_nobody_serves() -> None:
    changes: dict[tuple[ConfigKind, str], Document | None] = {
        (ConfigKind.ROUTE, "a"): route("m"), (ConfigKind.ROUTE, "b"): route("away"), (ConfigKind.ROUTE, "c"): None,
        (ConfigKind.DEFAULT_MODEL, "default"): DefaultModelDocument(model="gone"),
    }  # fmt: skip
    assert list(config_checks.warnings(changes, ["a", "b"], [ModelName("m")])) == [
        "route b: no worker serves away now", "default model: no worker serves gone now, and no route has this name"
    ]  # fmt: skip
    for known in ("m", "a"):
        changes = {(ConfigKind.DEFAULT_MODEL, "default"): DefaultModelDocument(model=known)}
        assert list(config_checks.warnings(changes, ["a", "b"], [ModelName("m")])) == []


def test_a_route_has_one_task() -> None:
    moderates = {"model": "m", "task": TargetTask.MODERATION}
    targets = (TargetDocument("a", "m", share=100), TargetDocument(**moderates, name="b", order=1))
    assert mistakes(*targets) == [("targets.1.task", "must be the same for all targets of a route")]
    assert mistakes(TargetDocument("a", "m", format=ModerationFormat.LLAMA_GUARD)) == [("targets.0.format", "needs `task: moderation`")]
    assert mistakes(TargetDocument(**moderates, name="a", format=ModerationFormat.LLAMA_GUARD)) == []


def test_a_policy_names_a_route_that_moderates() -> None:
    target = TargetDocument(name="a", model="m", task=TargetTask.MODERATION)
    documents: dict[tuple[ConfigKind, str], Document] = {
        (ConfigKind.ROUTE, "chat"): route("m"),
        (ConfigKind.ROUTE, "guard"): RouteDocument(targets=(target,)),
        (ConfigKind.POLICY, "mesh"): PolicyDocument(guard=GuardDocument(moderation=ModerationRule(route="chat"))),
        (ConfigKind.POLICY, "default"): PolicyDocument(guard=GuardDocument(moderation=ModerationRule(route="gone"))),
    }
    assert list(config_checks.check_together(documents)) == [
        "policies.mesh.guard.moderation.route: chat is not a route whose targets have `task: moderation`",
        "policies.default.guard.moderation.route: gone is not a route whose targets have `task: moderation`",
    ]
    documents[ConfigKind.POLICY, "mesh"] = PolicyDocument(guard=GuardDocument(moderation=ModerationRule(route="guard")))
    del documents[ConfigKind.POLICY, "default"]
    assert list(config_checks.check_together(documents)) == []


def rates(*changes: tuple[ConfigKind, str, Document], before: tuple[tuple[ConfigKind, str, Document], ...] = ()) -> list[str]:
    current = {(kind, name): StoredDocument(1, 1, "", body) for kind, name, body in before}
    return list(config_checks.check_change(current, {(kind, name): body for kind, name, body in changes}, None))


def test_a_limit_per_minute_above_the_one_per_hour_is_refused() -> None:
    plan, limit = ConfigKind.PLAN, ConfigKind.MODEL_LIMIT
    often = msgspec.convert({"requests_per_minute": 300}, PlanDocument)
    assert rates((plan, "basic", often)) == [
        "plans.basic.requests_per_minute: 300 is more than its 100 requests per hour; set requests_per_hour, too"
    ]
    paid = msgspec.structs.replace(often, fee="99.00")
    assert rates((plan, "team", paid)) == [], "it has the 1,000 requests an hour of pro"
    assert rates((plan, "team", msgspec.convert({"fee": "99.00", "requests_per_minute": 1001}, PlanDocument))) == [
        "plans.team.requests_per_minute: 1001 is more than its 1000 requests per hour; set requests_per_hour, too"
    ]
    assert rates((plan, "basic", msgspec.convert({"requests_per_minute": 300, "requests_per_hour": "unlimited"}, PlanDocument))) == []
    assert rates((limit, "m", msgspec.convert({"requests_per_minute": 6, "requests_per_hour": 5}, ModelLimitDocument))) == [
        "model_limits.m.requests_per_minute: 6 is more than its 5 requests per hour; set requests_per_hour, too"
    ]
    assert rates((limit, "m", msgspec.convert({"requests_per_minute": 6}, ModelLimitDocument))) == []
    assert rates((ConfigKind.ROUTE, "r", route("m")), before=((plan, "basic", often),)) == [], "an older document is in nobody's way"
