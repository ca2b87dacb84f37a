from dataclasses import replace
from typing import Any

import msgspec
import pytest

from services.gateway.facts import model_routes
from services.gateway.facts.model_names import ModelNames
from services.gateway.scheduling import routing
from shared import errors
from shared.config_documents import RouteDocument, TargetDocument
from shared.protocol import agent_requirements
from shared.protocol.directory import STARTING, DirectoryEntry, ModelOffer
from shared.types import ModelName, Role
from tests.services.gateway.fakes import FakeDirectory, announcement, node_id

NAMES = ModelNames({"llama3": "smollm2"}, None)


def workers(*models: str, **more: object) -> list[DirectoryEntry]:
    directory = FakeDirectory()
    for number, model in enumerate(models):
        directory.worker(number, model, **more)  # type: ignore[arg-type]
    return directory.entries(Role.WORKER)


@pytest.mark.parametrize(
    ("wanted", "served", "names", "expected"),
    [
        pytest.param("smollm2", ["smollm2"], NAMES, "smollm2", id="by name"),
        pytest.param("llama3", ["smollm2"], NAMES, "smollm2", id="by alias"),
        pytest.param("llama3", ["llama3", "smollm2"], NAMES, "llama3", id="a served model precedes an alias of the same name"),
        pytest.param(None, ["zeta", "alpha"], NAMES, "alpha", id="no model: the first served"),
        pytest.param(None, ["echo", "smollm2"], NAMES, "smollm2", id="no model: not the synthetic one"),
        pytest.param(None, ["echo"], NAMES, "echo", id="no model: only the synthetic one is served"),
        pytest.param(None, ["zeta", "alpha"], ModelNames({}, "zeta"), "zeta", id="no model: the default"),
        pytest.param(None, ["smollm2"], ModelNames(NAMES.aliases, "llama3"), "smollm2", id="the default may be an alias"),
        pytest.param("smollm2:latest", ["smollm2"], NAMES, "smollm2", id="latest is the model without a tag"),
        pytest.param("smollm2", ["smollm2:latest"], NAMES, "smollm2:latest", id="without a tag is the latest"),
        pytest.param("smollm2:latest", ["smollm2", "smollm2:latest"], NAMES, "smollm2:latest", id="the exact name comes first"),
        pytest.param("smollm2:sql", ["smollm2", "smollm2:sql"], NAMES, "smollm2:sql", id="an adapter"),
        pytest.param("smollm2", ["smollm2:sql", "smollm2"], NAMES, "smollm2", id="the model of an adapter"),
        pytest.param("llama3:latest", ["smollm2"], NAMES, "smollm2", id="an alias with the tag latest"),
        pytest.param("llama3", ["smollm2:latest"], NAMES, "smollm2:latest", id="an alias of a model with the tag latest"),
        pytest.param("llama3:8b", ["smollm2"], ModelNames({"llama3:8b": "smollm2"}, None), "smollm2", id="an alias can have a tag"),
    ],
)
def test_resolve(wanted: str | None, served: list[str], names: ModelNames, expected: str) -> None:
    assert routing.resolve(ModelName(wanted) if wanted else None, workers(*served), names) == expected


def test_an_unknown_model_lists_the_served_ones_and_says_what_to_do() -> None:
    with pytest.raises(errors.UnknownModel, match=r"'gpt-9'.*served models: alpha, zeta") as refused:
        routing.resolve(ModelName("gpt-9"), workers("zeta", "alpha"), NAMES)
    assert "aicli admin config apply" in refused.value.hint


PUSHED = ModelNames(
    {"bot": "bot@1", "bot@stable": "bot@1", "bot@sha256:aa": "bot@1", "bot@sha256:bb": "bot@2", "idle@sha256:cc": "idle@1"}, None
)


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("bot", "aicli models deploy bot"),
        ("bot@stable", "aicli models deploy bot@stable"),
        ("bot@2", "aicli models deploy bot@2"),
        ("bot@sha256:bb", "aicli models deploy bot@2"),
        ("idle", "aicli models promote idle"),
        ("bot@canary", "aicli models promote bot"),
        ("other", "choose one of these"),
    ],
)
@pytest.mark.parametrize("others", [[], ["smollm2"]])
def test_the_refusal_of_a_pushed_model_says_how_it_gets_on_machines(wanted: str, hint: str, others: list[str]) -> None:
    with pytest.raises((errors.UnknownModel, errors.NotReachable)) as refused:
        routing.resolve(ModelName(wanted), workers(*others), PUSHED)
    assert hint in refused.value.hint or (not others and wanted == "other")


@pytest.mark.parametrize("others", [[], ["smollm2"]])
def test_a_refusal_says_why_workers_cannot_load_the_model(others: list[str]) -> None:
    """Requests for an unsigned version said only that no model was ready."""
    problem = "nobody has signed it; the mesh's rule for bot* wants a signature by one of its 1 keys"
    found = [*workers(*others), *workers(*others, "bot@1")[len(others) :]]
    unready = msgspec.structs.replace(found[-1].announcement.models[0], ready=False, problem=problem)
    found[-1] = replace(found[-1], announcement=msgspec.structs.replace(found[-1].announcement, models=(unready,)))
    with pytest.raises(errors.NotReachable, match=r"no worker can run bot@1 now: .*… nobody has signed it"):
        routing.resolve(ModelName("bot"), found, PUSHED)


def test_another_version_is_a_different_model() -> None:
    with pytest.raises(errors.UnknownModel, match="'smollm2:135m'"):
        routing.resolve(ModelName("smollm2:135m"), workers("smollm2"), NAMES)


def test_a_gateway_that_just_started_calls_no_model_unknown() -> None:
    with pytest.raises(errors.NotReachable, match=r"'gpt-9' has been found yet") as refused:
        routing.resolve(ModelName("gpt-9"), workers("alpha"), NAMES, just_started=True)
    assert refused.value.retry_after_seconds
    assert routing.resolve(ModelName("alpha"), workers("alpha"), NAMES, just_started=True) == "alpha"


def test_while_a_worker_starts_no_model_is_unknown() -> None:
    def resolve(why_not: str) -> ModelName:
        (fresh,) = workers("", not_ready=why_not)
        empty = replace(fresh, announcement=msgspec.structs.replace(fresh.announcement, models=()))
        return routing.resolve(ModelName("gpt-9"), [*workers("alpha"), empty], NAMES)

    with pytest.raises(errors.NotReachable, match=r"'gpt-9' has been found yet"):
        resolve(STARTING)
    with pytest.raises(errors.UnknownModel, match="gpt-9"):
        resolve("it has no model to serve")


def test_an_alias_of_an_unserved_model_is_unknown() -> None:
    with pytest.raises(errors.UnknownModel, match=r"'smollm2'.*'llama3' is an alias of"):
        routing.resolve(ModelName("llama3"), workers("alpha"), NAMES)


def test_an_unserved_default_model_is_not_replaced() -> None:
    with pytest.raises(errors.UnknownModel):
        routing.resolve(None, workers("alpha"), ModelNames({}, "zeta"))


def test_without_workers_the_error_says_how_to_start_one() -> None:
    with pytest.raises(errors.NotReachable) as refused:
        routing.resolve(None, [], NAMES)
    assert "aicli worker" in refused.value.hint


def test_a_model_whose_worker_is_gone_is_unavailable_and_not_unknown() -> None:
    directory = FakeDirectory()
    directory.worker(1, "alpha")
    directory.worker(2, "smollm2")
    directory.mark_gone(node_id(2), "silent for 6 s")
    with pytest.raises(errors.NotReachable, match=r"smollm2 now: .* silent for 6 s"):
        routing.resolve(ModelName("smollm2"), directory.entries(Role.WORKER), NAMES)


def test_a_reason_of_several_workers_is_said_once() -> None:
    directory = FakeDirectory()
    for number in range(1, 7):
        directory.worker(number, "smollm2")
        directory.mark_gone(node_id(number), "stopped" if number > 1 else "silent for 6 s")
    with pytest.raises(errors.NotReachable) as refused:
        routing.resolve(ModelName("smollm2"), directory.entries(Role.WORKER), NAMES)
    ids = [f"{node_id(number)[:8]}…" for number in range(1, 7)]
    assert refused.value.message == f"no worker can run smollm2 now: {ids[0]} silent for 6 s; {', '.join(ids[1:4])} and 2 more stopped"


def test_a_model_whose_engine_restarts_is_unavailable_and_not_unknown() -> None:
    [worker] = workers("smollm2")
    offers = (*worker.announcement.models, ModelOffer(ModelName("mistral"), 2048, "", False))
    half = replace(worker, announcement=msgspec.structs.replace(worker.announcement, models=offers))
    assert routing.served([half], NAMES) == ("smollm2",)
    assert routing.resolve(None, [half], NAMES) == "smollm2"
    with pytest.raises(errors.NotReachable, match="no worker can run mistral now"):
        routing.resolve(ModelName("mistral"), [half], NAMES)


def test_the_default_model_is_listed_first() -> None:
    assert routing.served(workers("b", "c", "a"), ModelNames({}, "c")) == ("c", "a", "b")
    (first, second) = routing.catalogue(workers("b", "smollm2", "smollm2"), ModelNames({"llama3": "smollm2"}, "llama3"))
    assert (first.name, first.workers, first.aliases) == ("smollm2", 2, ("llama3",))
    assert second.name == "b"


def test_a_model_of_a_provider_is_not_the_default_beside_one_of_our_own() -> None:
    directory = FakeDirectory()
    directory.worker(1, "a-cloud", provider="acme")
    directory.worker(2, "b-own")
    directory.worker(3, "echo")
    directory.worker(4, "b-own", provider="other")
    entries, no_names = directory.entries(), ModelNames({}, None)
    assert routing.served(entries, no_names) == ("b-own", "echo", "a-cloud")
    assert routing.resolve(None, entries, no_names) == "b-own"
    assert [model.providers for model in routing.catalogue(entries, no_names)] == [("other",), (), ("acme",)]


def test_an_added_upstream_does_not_change_the_default_model() -> None:
    directory = FakeDirectory()
    directory.worker(1, "smollm2")
    directory.worker(2, "echo")
    before = directory.entries()
    offer = ModelOffer(ModelName("a-larger-one"), 2048, is_upstream=True)
    directory.apply_announcement(msgspec.structs.replace(announcement(3), models=(offer,)), "nats")
    no_names = ModelNames({}, None)
    assert routing.resolve(None, before, no_names) == routing.resolve(None, directory.entries(), no_names) == "smollm2"
    assert routing.served(directory.entries(), no_names) == ("smollm2", "a-larger-one", "echo")


def test_a_model_is_listed_with_the_regions_of_its_servers() -> None:
    directory = FakeDirectory()
    for number, region in enumerate(("us", "", "eu", "us")):
        offer = ModelOffer(ModelName("m"), 2048, region=region)
        directory.apply_announcement(msgspec.structs.replace(announcement(number), models=(offer,)), "nats")
    assert [model.regions for model in routing.catalogue(directory.entries(), ModelNames({}, None))] == [("eu", "us")]


def test_servers_name_of_an_alias_is_listed_unless_models_are_hidden() -> None:
    directory = FakeDirectory()
    offer = ModelOffer(ModelName("small-cloud"), 2048, is_upstream=True, upstream_model="gpt-4.1-mini")
    directory.apply_announcement(msgspec.structs.replace(announcement(1), models=(offer,)), "nats")
    for only_routes, expected in ((False, ("gpt-4.1-mini",)), (True, ())):
        names = ModelNames({"assistant": "small-cloud"}, None, only_routes=only_routes)
        assert [model.upstream_models for model in routing.catalogue(directory.entries(), names)] == [expected]


def test_model_suits_agents_if_each_of_its_workers_does() -> None:
    def offer(name: str, context_tokens: int, **more: Any) -> ModelOffer:
        return ModelOffer(ModelName(name), context_tokens, **{"digest": name, **more})

    directory = FakeDirectory()
    enough, short = agent_requirements.CONTEXT_TOKENS, agent_requirements.CONTEXT_TOKENS - 1
    first = (offer("both", enough), offer("one", enough), offer("vectors", enough, only_embeds=True))
    second = (offer("both", enough), offer("one", short, can_suit_agents=True), offer("upstream", 0, is_upstream=True))
    for number, offers in enumerate((first, second)):
        directory.apply_announcement(msgspec.structs.replace(announcement(number), models=offers), "nats")
    right_calls = {"both": 47, "one": 46, "upstream": 45, "vectors": 50}
    found = routing.catalogue(directory.entries(), ModelNames({}, None), startable=(ModelName("off"),), right_calls=right_calls)
    assert {str(model.name): (model.right_calls, model.suits_agents, model.agents_hint) for model in found} == {
        "both": (47, True, "tools 47 of 50"),
        "one": (46, False, "tools 46 of 50, context 65,535 of 65,536 until it is loaded for agents"),
        "upstream": (45, False, "tools 45 of 50, context unknown"),
        "vectors": (None, False, ""),
        "off": (None, False, ""),
    }


def test_a_check_counts_for_the_checked_builds_alone_and_the_worst_of_them() -> None:
    def right_calls(*builds: str, model: str = "m", **more: Any) -> int | None:
        directory = FakeDirectory()
        for number, digest in enumerate(builds):
            offers = (ModelOffer(ModelName(model), 2048, digest=digest, **more),)
            directory.apply_announcement(msgspec.structs.replace(announcement(number), models=offers), "nats")
        checked = {"a": 47, "b": 40, f"{node_id(0)}/m": 30, "acme/big": 20}
        (listed,) = routing.catalogue(directory.entries(), ModelNames({}, None), right_calls=checked)
        return listed.right_calls

    assert (right_calls("a"), right_calls("a", "a"), right_calls("a", "b")) == (47, 47, 40)
    assert (right_calls("c"), right_calls("a", "c")) == (None, None), "a newer file, also at one of its workers"
    assert right_calls("a", model="other name") == 47
    assert (right_calls(""), right_calls("", ""), right_calls("", model="other")) == (30, None, None), "without a digest, the worker counts"
    assert right_calls("", "", provider="acme", upstream_model="big") == 20, "a provider's model is the same by any worker"


def test_an_embedding_model_is_listed_as_such_and_never_the_default() -> None:
    usable = [*workers("bge", only_embeds=True), *workers("smollm2", "echo")]
    assert [(model.name, model.only_embeds) for model in routing.catalogue(usable, NAMES)] == [
        ("smollm2", False), ("echo", False), ("bge", True),
    ]  # fmt: skip
    assert routing.resolve(None, usable, NAMES) == "smollm2"
    assert routing.resolve(ModelName("bge"), usable, NAMES) == "bge"


def test_a_prompt_for_an_embedding_model_is_refused_unless_one_worker_can_answer() -> None:
    only = [*workers("bge", only_embeds=True), *workers("smollm2")]
    with pytest.raises(errors.BadRequest, match="bge is an embedding model"):
        routing.ensure_capable(ModelName("bge"), only, wants_answer=True)
    routing.ensure_capable(ModelName("smollm2"), only, wants_answer=True)
    routing.ensure_capable(ModelName("bge"), [*only, *workers("bge")], wants_answer=True)
    routing.ensure_capable(ModelName("bge"), only, wants_answer=False)


def test_a_moderation_model_is_never_listed_and_the_default_last() -> None:
    usable = [*workers("a-guard", only_moderates=True), *workers("bge", only_embeds=True)]
    assert [model.name for model in routing.catalogue(usable, NAMES)] == ["bge"]
    assert routing.served([*usable, *workers("x")], ModelNames({}, None)) == ("x", "a-guard", "bge")
    for wants_answer in (True, False):
        with pytest.raises(errors.BadRequest, match="a-guard is a moderation model"):
            routing.ensure_capable(ModelName("a-guard"), usable, wants_answer=wants_answer)
    routing.ensure_capable(ModelName("a-guard"), [*usable, *workers("a-guard")], wants_answer=True)


def test_if_only_routes_may_be_named_models_are_hidden() -> None:
    names = ModelNames({"assistant": "smollm2", "gone": "away"}, None, only_routes=True)
    served = workers("smollm2", "secret")
    assert routing.resolve(ModelName("assistant"), served, names) == "smollm2"
    assert routing.resolve(ModelName("assistant:latest"), served, names) == "smollm2"
    assert routing.resolve(None, served, names) == "smollm2"
    for hidden in ("smollm2", "secret"):
        with pytest.raises(errors.UnknownModel, match=r"served models: assistant$"):
            routing.resolve(ModelName(hidden), served, names)
    with pytest.raises(errors.UnknownModel, match=r"served models: assistant$"):
        routing.resolve(ModelName("gone"), served, names)
    with pytest.raises(errors.NotReachable, match="no worker serves a model now"):
        routing.resolve(None, workers("secret"), names)
    assert [(model.name, model.aliases, model.workers) for model in routing.catalogue(served, names)] == [("assistant", (), 1)]


def test_models_whose_workers_can_be_started_are_listed_without_workers() -> None:
    document = RouteDocument(targets=(TargetDocument(name="own", model=ModelName("big"), order=1),))
    names = ModelNames({"large": "big"}, None, routes={"assistant": model_routes.compile_route("assistant", 1, document)})
    found = routing.catalogue(workers("smollm2"), names, startable=(ModelName("smollm2"), ModelName("big")))
    assert [(model.name, model.workers, model.aliases, model.context_tokens, model.only_embeds) for model in found] == [
        ("assistant", 0, (), 0, False),
        ("smollm2", 1, (), 2048, False),
        ("big", 0, ("large",), 0, False),
    ]
