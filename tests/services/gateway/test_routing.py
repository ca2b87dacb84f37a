import random
from dataclasses import replace

import msgspec
import pytest

from services.gateway import routing
from services.gateway.routing import Names
from shared import errors
from shared.directory import Entry, Load, ModelOffer
from shared.types import ModelName, Role
from tests.services.gateway.fakes import FakeDirectory, node_id

NAMES = Names({"llama3": "smollm2"}, None)


def workers(*models: str, **more: object) -> list[Entry]:
    directory = FakeDirectory()
    for number, model in enumerate(models):
        directory.worker(number, model, **more)  # type: ignore[arg-type]
    return directory.entries(Role.WORKER)


@pytest.mark.parametrize(
    ("wanted", "served", "names", "expected"),
    [
        pytest.param("smollm2", ["smollm2"], NAMES, "smollm2", id="by its name"),
        pytest.param("llama3", ["smollm2"], NAMES, "smollm2", id="by an alias"),
        pytest.param("llama3", ["llama3", "smollm2"], NAMES, "llama3", id="a served model comes before an alias of its name"),
        pytest.param(None, ["zeta", "alpha"], NAMES, "alpha", id="none named: the first served"),
        pytest.param(None, ["echo", "smollm2"], NAMES, "smollm2", id="none named: not the synthetic one"),
        pytest.param(None, ["echo"], NAMES, "echo", id="unless there is no other"),
        pytest.param(None, ["zeta", "alpha"], Names({}, "zeta"), "zeta", id="none named: the default"),
        pytest.param(None, ["smollm2"], Names(NAMES.aliases, "llama3"), "smollm2", id="the default may be an alias"),
    ],
)
def test_resolve(wanted: str | None, served: list[str], names: Names, expected: str) -> None:
    assert routing.resolve(ModelName(wanted) if wanted else None, workers(*served), names) == expected


def test_an_unknown_model_lists_what_is_served_and_names_the_setting() -> None:
    with pytest.raises(errors.UnknownModel, match=r"'gpt-9'.*served now: alpha, zeta") as refused:
        routing.resolve(ModelName("gpt-9"), workers("zeta", "alpha"), NAMES)
    assert "MODEL_ALIASES" in refused.value.hint


def test_who_has_just_started_calls_no_model_unknown() -> None:
    with pytest.raises(errors.NotReachable, match=r"'gpt-9' has been found yet") as refused:
        routing.resolve(ModelName("gpt-9"), workers("alpha"), NAMES, just_started=True)
    assert refused.value.retry_after_seconds
    assert routing.resolve(ModelName("alpha"), workers("alpha"), NAMES, just_started=True) == "alpha"


def test_an_alias_of_a_model_that_nobody_serves_is_unknown_too() -> None:
    with pytest.raises(errors.UnknownModel, match=r"'smollm2'.*'llama3' is an alias of"):
        routing.resolve(ModelName("llama3"), workers("alpha"), NAMES)


def test_a_default_that_nobody_serves_is_not_replaced_by_another() -> None:
    with pytest.raises(errors.UnknownModel):
        routing.resolve(None, workers("alpha"), Names({}, "zeta"))


def test_without_workers_it_says_how_to_start_one() -> None:
    with pytest.raises(errors.NotReachable) as refused:
        routing.resolve(None, [], NAMES)
    assert "aicli worker" in refused.value.hint


def test_a_model_whose_worker_is_gone_is_missing_and_not_unknown() -> None:
    directory = FakeDirectory()
    directory.worker(1, "alpha")
    directory.worker(2, "smollm2")
    directory.gone(node_id(2), "silent for 6 s")
    with pytest.raises(errors.NotReachable, match=r"smollm2 now: .* silent for 6 s"):
        routing.resolve(ModelName("smollm2"), directory.entries(Role.WORKER), NAMES)


def test_a_model_whose_engine_restarts_is_missing_and_not_unknown_while_the_worker_runs_others() -> None:
    [worker] = workers("smollm2")
    offers = (*worker.announcement.models, ModelOffer(ModelName("mistral"), 2048, "", False))
    half = replace(worker, announcement=msgspec.structs.replace(worker.announcement, models=offers))
    assert routing.served([half], NAMES) == ("smollm2",)
    assert routing.candidates(ModelName("mistral"), [half], set()) == []
    assert routing.resolve(None, [half], NAMES) == "smollm2"
    with pytest.raises(errors.NotReachable, match="no worker can run mistral now"):
        routing.resolve(ModelName("mistral"), [half], NAMES)


def test_the_default_model_is_listed_first() -> None:
    assert routing.served(workers("b", "c", "a"), Names({}, "c")) == ("c", "a", "b")
    (first, second) = routing.catalogue(workers("b", "smollm2", "smollm2"), Names({"llama3": "smollm2"}, "llama3"))
    assert (first.name, first.workers, first.aliases) == ("smollm2", 2, ("llama3",))
    assert second.name == "b"


def test_a_model_that_only_embeds_is_listed_as_one_and_is_nobodys_default() -> None:
    usable = [*workers("bge", only_embeds=True), *workers("smollm2", "echo")]
    assert [(model.name, model.only_embeds) for model in routing.catalogue(usable, NAMES)] == [
        ("smollm2", False), ("echo", False), ("bge", True),
    ]  # fmt: skip
    assert routing.resolve(None, usable, NAMES) == "smollm2"
    assert routing.resolve(ModelName("bge"), usable, NAMES) == "bge"


def test_a_prompt_for_a_model_that_only_embeds_is_refused_unless_one_worker_lets_it_answer() -> None:
    only = [*workers("bge", only_embeds=True), *workers("smollm2")]
    with pytest.raises(errors.BadRequest, match="bge gives embeddings and no answers"):
        routing.ensure_answers(ModelName("bge"), only)
    routing.ensure_answers(ModelName("smollm2"), only)
    routing.ensure_answers(ModelName("bge"), [*only, *workers("bge")])


def test_candidates_leave_out_the_failed_and_those_without_the_model() -> None:
    found = routing.candidates(ModelName("a"), workers("a", "b", "a"), {node_id(0)})
    assert [worker.node for worker in found] == [node_id(2)]


def test_of_two_workers_the_less_loaded_one_is_chosen() -> None:
    directory = FakeDirectory()
    directory.worker(1, "a", load=Load(slots=4, running=3))
    directory.worker(2, "a", load=Load(slots=4, running=1))
    for seed in range(20):
        chosen = routing.choose(directory.usable(Role.WORKER), routing.InFlight(), random.Random(seed))
        assert chosen is not None
        assert chosen.node == node_id(2)


def test_a_burst_spreads_before_the_next_announcement() -> None:
    entries, in_flight, rng = workers("a", "a", "a", "a"), routing.InFlight(), random.Random(3)
    counts = {entry.node: 0 for entry in entries}
    for _ in range(40):
        worker = routing.choose(entries, in_flight, rng)
        assert worker is not None
        in_flight.begin(worker)
        counts[worker.node] += 1
    assert max(counts.values()) - min(counts.values()) <= 4


def test_a_call_that_the_worker_has_announced_is_not_counted_twice() -> None:
    directory, in_flight = FakeDirectory(), routing.InFlight()
    directory.worker(1, "a")
    (before,) = directory.usable(Role.WORKER)
    calls = [in_flight.begin(before), in_flight.begin(before)]
    assert in_flight.unannounced(before) == 2
    directory.worker(1, "a", load=Load(slots=4, running=2))
    (after,) = directory.usable(Role.WORKER)
    assert in_flight.unannounced(after) == 0
    for call in calls:
        in_flight.end(call)
    assert in_flight.total() == 0
    assert in_flight.unannounced(before) == 0


def test_a_worker_that_announces_no_load_is_counted_by_what_it_got() -> None:
    directory, in_flight = FakeDirectory(), routing.InFlight()
    directory.worker(1, "a")
    in_flight.begin(directory.usable(Role.WORKER)[0])
    directory.worker(1, "a")
    assert in_flight.unannounced(directory.usable(Role.WORKER)[0]) == 1
