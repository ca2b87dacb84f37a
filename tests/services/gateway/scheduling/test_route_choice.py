"""Which targets serve a request, and in which order."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from services.gateway.facts import model_routes
from services.gateway.facts.model_routes import OpenRollout, Route
from services.gateway.facts.placements import ANYWHERE
from services.gateway.scheduling import route_choice
from services.gateway.scheduling.route_choice import DropReason, ModelFacts, RequestFacts
from shared.api.configuration import RolloutPlan
from shared.config_documents import RouteDocument, TargetConditions, TargetDocument
from shared.protocol.directory import ModelOffer
from shared.types import ModelName, Tier
from tests.services.gateway.fakes import OWNER, FakeDirectory, announcement

SERVED = {ModelName(name): ModelFacts(context_tokens=1000, only_embeds=False) for name in "abcde"}
SERVED[ModelName("vectors")] = ModelFacts(0, only_embeds=True)


def target(name: str, share: float | None = None, order: int | None = None, **more: Any) -> TargetDocument:
    return TargetDocument(
        name=name, model=more.pop("model", name), share=share, order=order, when=TargetConditions(**more) if more else None
    )


def route(*targets: TargetDocument) -> Route:
    return model_routes.compile_route("assistant", 3, RouteDocument(targets=targets))


MONDAY_NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def facts(unit: bytes = b"u", prompt_tokens: int = 10, **more: Any) -> RequestFacts:
    usual = {"wants_answer": True, "tier": Tier.FREE, "key_name": None, "organization": OWNER.tenant_id, "now": MONDAY_NOON}
    return RequestFacts(**usual | more, unit=unit, prompt_tokens=prompt_tokens)


def choose(
    found: Route,
    request: RequestFacts | None = None,
    find_refusal: Callable[[ModelName], DropReason | None] = lambda _model: None,
    served: Mapping[ModelName, ModelFacts] = SERVED,
) -> tuple[list[str], dict[str, DropReason]]:
    decision = route_choice.choose(found, request or facts(), served.get, find_refusal)
    return [one.name for one in decision.candidates], {one.target.name: one.reason for one in decision.dropped}


def drawn_by(found: Route, units: int = 20_000) -> list[str]:
    return [draw.target.name for unit in range(units) if (draw := found.draw(b"conversation %d" % unit)) is not None]


def test_shares_of_20_000_conversations_are_within_a_point_and_a_raise_moves_nobody_back() -> None:
    before: list[str] = ["a"] * 20_000
    for percent in (10, 50, 100):
        drawn = drawn_by(route(target("a", 100 - percent), target("b", percent)))
        assert drawn == drawn_by(route(target("a", 100 - percent), target("b", percent))), "each conversation keeps its target"
        assert abs(Counter(drawn)["b"] / 200 - percent) < 1
        assert all(now == "b" for then, now in zip(before, drawn, strict=True) if then == "b")
        before = drawn


def test_shares_with_decimals() -> None:
    drawn = Counter(drawn_by(route(target("a", 99.75), target("b", 0.25)), 40_000))
    assert 60 < drawn["b"] < 140
    assert drawn.total() == 40_000
    assert set(drawn_by(route(target("a", 0, 1), target("b", 100)))) == {"b"}


def test_two_routes_draw_independently() -> None:
    one = route(target("a", 50), target("b", 50))
    other = dataclasses.replace(one, name="other")
    same = sum(first == second for first, second in zip(drawn_by(one), drawn_by(other), strict=True))
    assert 9_500 < same < 10_500


def test_the_drawn_target_is_tried_first_and_fallbacks_by_their_order() -> None:
    found = route(target("a", 100), target("b", order=2), target("c", order=1), target("d", order=3), target("e", 0))
    assert choose(found) == (["a", "c", "b"], {}), "at most three, and none without an order"
    assert choose(route(target("a", order=2), target("b", order=1))) == (["b", "a"], {}), "without shares, all by their order"
    assert choose(route(target("a", tools=False))) == (["a"], {}), "a target alone has the whole share"


def test_a_target_whose_server_asked_for_a_pause_is_left_out_if_there_is_another() -> None:
    found = route(target("a", 100), target("b", order=1), target("c", order=2), target("d", order=3))

    def resting(*models: str) -> tuple[list[str], dict[str, DropReason]]:
        return choose(found, served={**SERVED, **{model: dataclasses.replace(SERVED[model], rests=True) for model in models}})

    rests = DropReason.RESTS
    assert resting("a") == (["b", "c", "d"], {"a": rests}), "the next one takes its place"
    assert resting("a", "c") == (["b", "d"], {"a": rests, "c": rests})
    assert resting("a", "b", "c", "d") == (["a", "b", "c"], {}), "its refusal says how long to wait"


# --- rollouts -------------------------------------------------------------------------------------------------------------


def rolling(step: float, *targets: TargetDocument, candidate: str = "next") -> Route:
    rollout = OpenRollout(UUID(int=1), RolloutPlan(candidate, "a", steps=(step,)), 0)
    return model_routes.compile_route("assistant", 3, RouteDocument(targets=targets), rollout)


def test_a_rollout_moves_its_share_of_the_baseline_and_a_raise_moves_nobody_back() -> None:
    targets = target("a", 60), target("b", 40), target("next", 0, model="c")
    before = drawn_by(route(*targets))
    moved: list[int] = []
    for percent in (10, 50, 100):
        now = drawn_by(rolling(percent, *targets))
        assert [unit for unit in moved if now[unit] != "next"] == []
        assert {before[unit] for unit, name in enumerate(now) if name != before[unit]} == {"a"}, "others stay where they are"
        moved = [unit for unit, name in enumerate(now) if name == "next"]
        assert abs(len(moved) / before.count("a") * 100 - percent) < 1


def test_after_a_promotion_everybody_is_where_the_rollout_has_left_them() -> None:
    last = drawn_by(rolling(100, target("a", 90), target("next", 10, model="c")))
    assert drawn_by(route(target("a", 0, 1), target("next", 100, model="c"))) == last


def test_the_baseline_is_the_first_fallback_of_what_was_moved() -> None:
    found = rolling(100, target("a", 100), target("next", 0, model="c"), target("b", order=1))
    assert choose(found)[0] == ["next", "a", "b"]
    decision = route_choice.choose(found, facts(), SERVED.get, lambda _model: None)
    assert decision.is_compared
    assert decision.drawn is not None
    assert decision.drawn.name == "next"


def test_a_rollout_takes_no_target_away_and_such_requests_are_not_compared() -> None:
    for percent in (0.01, 100):
        found = rolling(percent, target("a", 100), target("next", 0, model="gone"))
        decision = route_choice.choose(found, facts(), SERVED.get, lambda _model: None)
        assert [one.name for one in decision.candidates] == ["a"]
        assert decision.drawn == found.targets[0]
        assert not decision.is_compared, "the candidate could not have served it"


def test_requests_of_other_targets_are_not_compared() -> None:
    found = rolling(50, target("a", 0.01), target("b", 99.99), target("next", 0, model="c"))
    decision = route_choice.choose(found, facts(), SERVED.get, lambda _model: None)
    assert decision.drawn is not None
    assert (decision.drawn.name, decision.is_compared) == ("b", False)


def test_a_dropped_target_moves_its_own_requests_only() -> None:
    found = route(target("gone", 50), target("b", 50), target("c", order=1))
    for unit in range(200):
        request = facts(b"%d" % unit)
        drawn = found.draw(request.unit)
        assert drawn is not None
        candidates, dropped = choose(found, request)
        assert dropped == {"gone": DropReason.NOT_SERVED}
        assert candidates == (["b", "c"] if drawn.target.name == "b" else ["c"])


@pytest.mark.parametrize(
    ("condition", "request_facts", "holds"),
    [
        ({"min_prompt_tokens": 10}, {}, True),
        ({"min_prompt_tokens": 11}, {}, False),
        ({"max_prompt_tokens": 10}, {}, True),
        ({"max_prompt_tokens": 9}, {}, False),
        ({"tools": True}, {"has_tools": True}, True),
        ({"tools": True}, {}, False),
        ({"tools": False}, {"has_tools": True}, False),
        ({"response_format": True}, {"has_format": True}, True),
        ({"response_format": False}, {"has_format": True}, False),
        ({"tiers": (Tier.PRO, Tier.FREE)}, {}, True),
        ({"tiers": (Tier.PRO,)}, {}, False),
        ({"keys_named": ("ci",)}, {"key_name": "ci"}, True),
        ({"keys_named": ("ci",)}, {}, False),
        ({"organizations": (str(OWNER.tenant_id),)}, {}, True),
        ({"organizations": (str(UUID(int=77)),)}, {}, False),
        ({"hours": "Mon 12:00-13:00 UTC"}, {}, True),
        ({"hours": "Tue-Sun 12:00-13:00 UTC"}, {}, False),
    ],
)
def test_conditions(condition: dict[str, Any], request_facts: dict[str, Any], *, holds: bool) -> None:
    found = route(target("a", 100, **condition), target("b", order=1))
    candidates, dropped = choose(found, facts(**request_facts))
    assert (candidates, dropped) == ((["a", "b"], {}) if holds else (["b"], {"a": DropReason.CONDITION}))


def test_what_a_model_cannot_do() -> None:
    found = route(target("a", 100), target("v", order=1, model="vectors"))
    assert choose(found) == (["a"], {"v": DropReason.LACKS_CAPABILITY})
    assert choose(found, facts(wants_answer=False)) == (["a", "v"], {})
    assert choose(found, facts(prompt_tokens=2000)) == (["a"], {"v": DropReason.LACKS_CAPABILITY}), "an estimate may be twice too high"
    assert choose(found, facts(prompt_tokens=2002))[1]["a"] is DropReason.CONTEXT_TOO_SMALL
    assert choose(found, find_refusal=lambda model: None if model == "vectors" else DropReason.POLICY_MODEL)[1] == {
        "a": DropReason.POLICY_MODEL,
        "v": DropReason.LACKS_CAPABILITY,
    }


def test_models_are_described_over_all_their_workers() -> None:
    directory = FakeDirectory()
    directory.worker(1, "a", context_tokens=100, abilities=("images",))
    directory.worker(2, "a", "b", context_tokens=300)
    directory.worker(3, "b", context_tokens=0)
    directory.worker(4, "c", only_embeds=True)
    resting = ModelOffer(ModelName("b"), 100, rests=True), ModelOffer(ModelName("r"), 100, rests=True)
    offers = (ModelOffer(ModelName("d"), 100, ready=False), ModelOffer(ModelName("c"), 50), *resting)
    directory.apply_announcement(msgspec.structs.replace(announcement(5), models=offers), "nats")
    directory.apply_announcement(msgspec.structs.replace(announcement(6), models=resting), "nats")
    assert route_choice.served_models(directory.entries(), OWNER.tenant_id, ANYWHERE) == {
        "a": ModelFacts(300, sees_images=True), "b": ModelFacts(0, sees_images=False), "c": ModelFacts(2048, sees_images=False),
        "r": ModelFacts(100, rests=True, sees_images=False),
    }  # fmt: skip
