"""Prompts that lose their slots: what is saved and restored, and that answers are the same without the cache."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine import prompt_cache
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.kv_slots import KvLayout, SlotPlace, Slots
from services.inference.engine.prompt_cache import HashedTokens, PromptCache, SavedPrompt
from tests.services.inference.engine.commands import handle
from tests.services.inference.engine.test_engine_loop import finish, generate, text
from tests.services.inference.engine.toy_model import ToyModel

LAYOUTS = list(KvLayout)
WORTH = prompt_cache.WORTH_SAVING_TOKENS


def saved(tokens: list[int], size: int = 100, salt: str = "a") -> SavedPrompt:
    return SavedPrompt(salt, HashedTokens(tokens), memoryview(bytes(size)))


def find(cache: PromptCache, tokens: list[int], above: int = 0, salt: str = "a") -> int:
    found = cache.find(HashedTokens(tokens), salt, len(tokens) - 1, above)
    return 0 if found is None else found[1]


# --- the cache ------------------------------------------------------------------------------------------------------------------


def test_the_longest_prefix_of_the_same_salt_is_found() -> None:
    cache, long = PromptCache(1000), list(range(1000))
    cache.put(saved([*long[:300], 7, 7]), 1)
    cache.put(saved([*long[:600], 7, 7]), 1)
    cache.put(saved(long, salt="b"), 1)
    assert find(cache, long) == 600
    assert find(cache, long, above=600 - WORTH) == 600
    assert find(cache, long, above=601 - WORTH) == 0, "not worth a copy"
    assert find(cache, long[:600]) == 599, "one token is left to compute"
    assert find(cache, long, salt="c") == 0
    assert cache.hits == 3


def test_the_least_recently_used_goes_first_and_nothing_is_over_the_limit() -> None:
    cache = PromptCache(250)
    prompts = [[number] * 300 for number in range(3)]
    cache.put(saved(prompts[0]), 1)
    cache.put(saved(prompts[1]), 1)
    assert find(cache, [*prompts[0], 1])
    cache.put(saved(prompts[2]), 1)
    assert [bool(find(cache, [*tokens, 1])) for tokens in prompts] == [True, False, True]
    assert cache.bytes == 200


def test_a_longer_prompt_replaces_its_beginning() -> None:
    cache, long = PromptCache(1000), list(range(600))
    cache.put(saved(long[:300], 50), 1)
    cache.put(saved(long[:400], 50, salt="b"), 1)
    cache.put(saved(long, 70), 1)
    assert cache.bytes == 120
    assert find(cache, [*long, 1]) == 600


@pytest.mark.parametrize(
    ("count", "above", "size", "salt", "wanted"),
    [
        pytest.param(WORTH, 0, 900, "a", True, id="just worth it"),
        pytest.param(WORTH - 1, 0, 900, "a", False, id="too short"),
        pytest.param(WORTH + 99, 100, 900, "a", False, id="other slots hold most of it"),
        pytest.param(WORTH, 0, 1001, "a", False, id="larger than the cache"),
        pytest.param(WORTH, 0, 900, "", False, id="it shares with nobody"),
        pytest.param(700, 0, 900, "a", False, id="it is here already"),
        pytest.param(701 + WORTH, 0, 900, "a", True, id="it has grown"),
    ],
)
def test_what_is_saved(count: int, above: int, size: int, salt: str, wanted: bool) -> None:
    cache = PromptCache(1000)
    cache.put(saved([1] * 700), 1e-6)
    tokens = HashedTokens([1] * count if count >= 700 else [2] * count)
    assert cache.wants(tokens, salt, above, size, 0) is wanted


def test_a_copy_that_would_delay_answers_is_not_made_while_they_run() -> None:
    cache = PromptCache(10**12)
    tokens, size = HashedTokens([1] * 1000), 10**9
    assert not cache.wants(tokens, "a", 0, size, 0)
    assert cache.wants(tokens, "a", 0, size, 1.0), "a step takes as long"
    for number in range(30):
        cache.put(saved([number] * 300, 100_000), 1e-6)  # a faster machine
    assert cache.wants(tokens, "a", 0, size, 0)


# --- in an engine ---------------------------------------------------------------------------------------------------------------


def engine(model: ToyModel, cache_bytes: int) -> EngineLoop:
    return EngineLoop(model, slots=model.slots, cache_bytes=cache_bytes, clock=lambda: 0.0)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache, "WORTH_SAVING_TOKENS", 4)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prompt_comes_back_after_others_took_its_slot(layout: KvLayout) -> None:
    model = ToyModel(layout, slots=2, pool_tokens=64 if layout is KvLayout.POOL else 128)
    running = engine(model, 10_000)
    prompts = ["a story about a cat", "the weather in May", "how tides come about"]
    for number, prompt in enumerate(prompts):
        handle(running, generate(number, prompt, salt="a", max_tokens=4))
        finish(running)
    assert (model.saves > 0, model.restored) == (True, 0)
    model.batches.clear()
    handle(running, generate(9, prompts[0], salt="a", max_tokens=4))
    reports = finish(running)[9]
    assert model.restored == 1
    assert reports[0].cached_tokens == len(prompts[0]) - 1
    assert model.batches[0] == [(9, len(prompts[0]) - 1, 1)]
    assert text(reports) == prompts[0][:4]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_tenant_and_an_engine_without_reuse_get_nothing(layout: KvLayout) -> None:
    for can_cut, salt in ((True, "b"), (False, "a")):
        model = ToyModel(layout, slots=1, can_cut_saved=can_cut)
        running, cached = engine(model, 10_000), -1
        for number, (prompt, who) in enumerate([("a story about a cat", "a"), ("the weather in May", "a"), ("a story about a cat", salt)]):
            handle(running, generate(number, prompt, salt=who, max_tokens=4))
            reports = finish(running)[number]
            cached = reports[0].cached_tokens
        assert (model.restored, cached) == (0, 0)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_cannot_be_restored_is_read_again(layout: KvLayout) -> None:
    model = ToyModel(layout, slots=1)
    running = engine(model, 10_000)
    for number, prompt in enumerate(["a story about a cat", "the weather in May"]):
        handle(running, generate(number, prompt, salt="a", max_tokens=4))
        finish(running)
    handle(running, generate(9, "a story about a cat", salt="a", max_tokens=4))
    model.unsettled = 1
    reports = finish(running)[9]
    assert (text(reports), reports[0].cached_tokens, model.restored) == ("a st", 9, 1), "half of the prefix is left"


@pytest.mark.usefixtures("soon")
def test_a_restored_prompt_takes_the_cells_of_idle_slots_only() -> None:
    model = ToyModel(KvLayout.POOL, slots=3, pool_tokens=70, context_tokens=70)
    running = engine(model, 10_000)
    prompts = ["a story about a black cat", "the weather in late May", "how the tides come about", "a long way to Tipperary"]
    for number, prompt in enumerate(prompts):
        handle(running, generate(number, prompt, salt="a", max_tokens=2))
        finish(running)
    handle(running, generate(5, prompts[0] + "!", salt="a", max_tokens=2))
    assert finish(running)[5][0].cached_tokens == len(prompts[0])
    assert model.restored == 1


def test_a_prompt_that_does_not_fit_beside_busy_slots_is_not_restored(soon: None) -> None:
    cache = PromptCache(10_000)
    held = Slots(2, KvLayout.POOL, capacity=100, cache=cache)
    cache.put(saved(list(range(40))), 1)
    busy = held.place(HashedTokens([7] * 61), "b")
    assert busy is not None
    held.extend(busy.slot, 61)
    wanted = HashedTokens(list(range(20)))
    assert held.place(wanted, "a") == SlotPlace(1, 0)
    held.release(1, keep=0)
    held.release(busy.slot, keep=61)
    place = held.place(wanted, "a")
    assert place is not None
    assert (place.kept, len(place.saved or b""), place.evicted) == (19, 100, (busy.slot,))


WORDS = st.sampled_from(["a story about ", "the weather in ", "cats ", "May ", "tides "])
REQUESTS = st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=3).map("".join), st.sampled_from("ab"), st.integers(0, 3)), max_size=12)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("layout", LAYOUTS)
@given(requests=REQUESTS, cache_bytes=st.sampled_from([0, 40, 10_000]))
def test_answers_do_not_depend_on_the_cache(layout: KvLayout, requests: list[tuple[str, str, int]], cache_bytes: int) -> None:
    # A small pool, so that slots are emptied for others and answers are preempted. The toy model checks what a slot holds.
    model = ToyModel(layout, slots=3, pool_tokens=96 if layout is KvLayout.POOL else 192)
    running = engine(model, cache_bytes)
    found: dict[int, str] = {}
    for number, (prompt, salt, steps) in enumerate(requests):
        handle(running, generate(number, prompt, salt=salt, temperature=1, seed=number, max_tokens=6))
        for _ in range(steps):
            step = running.step()
            for one in step.progress if step is not None else ():
                found[one.id] = found.get(one.id, "") + one.text
    for number, reports in finish(running).items():
        found[number] = found.get(number, "") + text(reports)
    for number, (prompt, _, _) in enumerate(requests):
        alone = engine(ToyModel(layout), 0)
        handle(alone, generate(number, prompt, temperature=1, seed=number, max_tokens=6))
        assert found.get(number, "") == text(finish(alone).get(number, []))
    assert model.begun == {}
