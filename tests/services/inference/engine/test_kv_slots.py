from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.inference.engine.kv_slots import WORTH_SHARING_TOKENS, KvLayout, SlotPlace, Slots
from services.inference.engine.prompt_cache import HashedTokens
from tests import tiers

STREAMS, POOL = KvLayout.STREAMS, KvLayout.POOL
#: The tenant, unless a test sets another.
SALT = "a"


def slots(layout: KvLayout, count: int = 4, capacity: int = 10_000) -> Slots:
    return Slots(count, layout, capacity=capacity)


def run(held: Slots, tokens: list[int], salt: str = SALT) -> SlotPlace:
    """Give a prompt a slot, and read it."""
    place = held.place(HashedTokens(tokens), salt)
    assert place is not None
    held.extend(place.slot, len(tokens) - place.kept)
    return place


def leave(held: Slots, tokens: list[int], salt: str = SALT) -> None:
    """Run and answer a prompt; its tokens stay."""
    held.release(run(held, tokens, salt).slot, keep=len(tokens))


def leave_in_each(held: Slots, *prompts: list[int]) -> None:
    """Leave a prompt in each slot, the oldest in the first. None of them shares with another."""
    places = [run(held, tokens, salt="") for tokens in prompts]
    assert [place.slot for place in places] == list(range(len(prompts)))
    for place, tokens in zip(places, prompts, strict=True):
        held.release(place.slot, keep=len(tokens))


def upto(count: int) -> list[int]:
    return list(range(count))


def other(count: int) -> list[int]:
    return [-one - 1 for one in range(count)]


# --- placement ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "idle", "busy", "prompt", "expected"),
    [
        pytest.param(STREAMS, [], [], upto(9), SlotPlace(0, 0), id="streams: nothing is held yet"),
        pytest.param(STREAMS, [upto(100)], [], upto(150), SlotPlace(0, 100), id="streams: a slot's own prefix"),
        pytest.param(STREAMS, [upto(100)], [], upto(100), SlotPlace(0, 99), id="streams: one token is left to compute"),
        pytest.param(STREAMS, [upto(100)], [], upto(90), SlotPlace(0, 89), id="streams: the beginning of what is held"),
        pytest.param(STREAMS, [], [upto(100)], upto(150), SlotPlace(1, 100, 0), id="streams: a busy slot's prefix is copied"),
        pytest.param(STREAMS, [], [upto(16)], upto(90), SlotPlace(1, 16, 0), id="streams: just worth copying"),
        pytest.param(STREAMS, [], [upto(15)], upto(90), SlotPlace(1, 0), id="streams: not worth copying"),
        pytest.param(
            STREAMS,
            [upto(50) + other(9)],
            [upto(66)],
            upto(150),
            SlotPlace(2, 66, 1),
            id="streams: copied from the slot with the longer prefix",
        ),
        pytest.param(STREAMS, [upto(15)], [], upto(90), SlotPlace(1, 0), id="streams: an empty slot rather than one for a few tokens"),
        pytest.param(STREAMS, [upto(16)], [], upto(90), SlotPlace(0, 16), id="streams: enough tokens to take it"),
        pytest.param(STREAMS, [], [upto(1)], upto(1), SlotPlace(1, 0), id="streams: a prompt of one token"),
        pytest.param(STREAMS, [upto(200)], [], upto(16) + other(9), SlotPlace(1, 16, 0), id="streams: copied, so the rest is not lost"),
        pytest.param(STREAMS, [upto(79)], [], upto(64) + other(9), SlotPlace(0, 64), id="streams: the rest is not worth a copy"),
        pytest.param(STREAMS, [upto(200)], [], upto(15) + other(9), SlotPlace(1, 0), id="streams: the beginning is not worth a copy"),
        pytest.param(POOL, [], [], upto(9), SlotPlace(0, 0), id="pool: nothing is held yet"),
        pytest.param(POOL, [upto(100)], [], upto(150), SlotPlace(0, 100), id="pool: a slot's own prefix, where nothing else is lost"),
        pytest.param(POOL, [upto(100)], [], upto(100), SlotPlace(0, 99), id="pool: one token is left to compute"),
        pytest.param(POOL, [upto(100)], [], upto(85), SlotPlace(1, 84, 0), id="pool: shared, so that the rest is not lost"),
        pytest.param(POOL, [upto(100)], [], upto(86), SlotPlace(0, 85), id="pool: the rest is not worth keeping"),
        pytest.param(POOL, [], [upto(100)], upto(150), SlotPlace(1, 100, 0), id="pool: a busy slot's prefix is shared"),
        pytest.param(POOL, [], [upto(1)], upto(9), SlotPlace(1, 1, 0), id="pool: one token is worth sharing"),
        pytest.param(POOL, [], [upto(1)], upto(1), SlotPlace(1, 0), id="pool: a prompt of one token"),
    ],
)
def test_slot_for_a_prompt(layout: KvLayout, idle: list[list[int]], busy: list[list[int]], prompt: list[int], expected: SlotPlace) -> None:
    held = slots(layout)
    places = [run(held, tokens) for tokens in (*idle, *busy)]
    for place, tokens in zip(places, idle, strict=False):
        held.release(place.slot, keep=len(tokens))
    assert held.place(HashedTokens(prompt), SALT) == expected


@pytest.mark.parametrize("layout", [STREAMS, POOL])
def test_no_slot_if_all_are_busy(layout: KvLayout) -> None:
    held = slots(layout, count=2)
    run(held, upto(5))
    run(held, other(5))
    assert held.place(HashedTokens(upto(9)), SALT) is None


@pytest.mark.parametrize("layout", [STREAMS, POOL])
def test_only_idle_slot_is_used_whatever_it_holds(layout: KvLayout) -> None:
    held = slots(layout, count=2)
    run(held, other(5))
    leave(held, upto(100))
    assert held.place(HashedTokens(upto(50) + other(9)), SALT) == SlotPlace(1, 50)


def test_empty_slots_are_used_first_then_the_least_recently_used() -> None:
    for layout in (STREAMS, POOL):
        held = slots(layout, count=3)
        leave_in_each(held, upto(40), other(40))
        taken = [held.place(HashedTokens([seed] * 9), SALT) for seed in (1, 2, 3)]
        assert [place.slot for place in taken if place] == ([2, 1, 0] if layout is STREAMS else [2, 0, 1])


@pytest.mark.parametrize(
    ("kept_near", "expected"),
    [
        pytest.param(85, SlotPlace(2, 85), id="a little less, and nearer"),
        pytest.param(84, SlotPlace(2, 100, 0), id="too much less, so it is copied"),
    ],
)
def test_exact_layout_prefers_a_neighbor_of_a_busy_slot(kept_near: int, expected: SlotPlace) -> None:
    """llama.cpp computes only neighboring slots together."""
    held = slots(STREAMS)
    prompts = [upto(100), other(50), upto(kept_near), [7] * 9]
    places = [run(held, tokens) for tokens in prompts]
    assert [place.slot for place in places] == [0, 1, 2, 3]
    for slot in (0, 1, 2):
        held.release(slot, keep=len(prompts[slot]))
    assert held.place(HashedTokens(upto(150)), SALT) == expected


def test_exact_layout_reuses_the_older_of_two_equal_chats() -> None:
    old, new = [5] * 300, upto(300)
    for first, second, expected in ((old, new, SlotPlace(0, 100, 1)), (new, old, SlotPlace(0, 100))):
        held = slots(STREAMS, count=2)
        leave_in_each(held, [8], [9])
        for place, tokens in [(run(held, tokens), tokens) for tokens in (first, second)]:
            held.release(place.slot, keep=len(tokens))
        assert held.place(HashedTokens(upto(100) + other(9)), SALT) == expected


def test_pool_ignores_neighbors() -> None:
    held = slots(POOL)
    leave_in_each(held, upto(40), other(40), [3] * 40)
    run(held, [4] * 9)
    assert held.place(HashedTokens([5] * 9), SALT) == SlotPlace(0, 0)


# --- tenants --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [STREAMS, POOL])
@pytest.mark.parametrize("busy", [True, False])
@pytest.mark.parametrize(
    ("salt", "asking"),
    [pytest.param("a", "b", id="another tenant"), pytest.param("", "", id="nobody's"), pytest.param("a", "", id="a tenant's, for nobody")],
)
def test_prefix_of_another_tenant_is_never_found(salt: str, asking: str, busy: bool, layout: KvLayout) -> None:
    """Not even its existence shows: the result is the same as for any other content of that length."""

    def find_place(tokens: list[int]) -> SlotPlace | None:
        held = slots(layout)
        place = run(held, tokens, salt)
        if not busy:
            held.release(place.slot, keep=len(tokens))
        return held.place(HashedTokens(upto(300)), asking)

    assert find_place(upto(200)) == find_place(other(200)) == SlotPlace(1, 0)


@pytest.mark.parametrize("layout", [STREAMS, POOL])
def test_slot_with_a_new_tenant_keeps_nothing_of_the_old_one(layout: KvLayout) -> None:
    held = slots(layout, count=1)
    leave(held, upto(100), "a")
    leave(held, upto(50), "b")
    assert held.place(HashedTokens(upto(100)), "a") == SlotPlace(0, 0)


@pytest.mark.parametrize("layout", [STREAMS, POOL])
def test_prefix_of_a_running_answer_is_reused(layout: KvLayout) -> None:
    held = slots(layout)
    answered = HashedTokens(upto(100))
    assert held.place(answered, SALT) == SlotPlace(0, 0)
    held.extend(0, 100)
    for token in range(100, 130):
        answered.tokens.append(token)
        held.extend(0, 1)
    assert held.place(HashedTokens(upto(200)), SALT) == SlotPlace(1, 130, 0)


def test_shared_cells_count_once_and_stay_while_used() -> None:
    held = slots(POOL, capacity=300)
    first, second = run(held, upto(100)).slot, run(held, upto(150)).slot
    assert held.free_cells == 150
    held.release(first, keep=0)
    assert held.free_cells == 150
    held.release(second, keep=120)
    assert held.free_cells == 180
    assert held.evict() == second
    assert held.free_cells == 300


def test_copy_has_its_own_cells() -> None:
    held = slots(STREAMS, capacity=400)
    run(held, upto(100))
    run(held, upto(150))
    assert held.free_cells == 150


def test_room_counts_idle_slots_only_if_needed() -> None:
    held = slots(POOL, capacity=300)
    leave(held, upto(100))
    run(held, other(50))
    assert held.room(150) == held.free_cells == 150
    assert held.room(151) == 250


def test_idle_slots_are_evicted_by_last_use_and_busy_ones_never() -> None:
    held = slots(POOL, count=4)
    leave_in_each(held, upto(40), other(40), [3] * 40)
    run(held, [4] * 40)
    assert [held.evict() for _ in range(4)] == [0, 1, 2, None]
    assert held.free_cells == 10_000 - 40


def test_use_renews_the_age() -> None:
    held = slots(POOL, count=2)
    leave(held, upto(40))
    leave(held, other(40))
    leave(held, upto(60))
    assert [held.evict() for _ in range(3)] == [1, 0, None]


def test_evicted_prefix_is_not_found() -> None:
    held = slots(POOL)
    slot = run(held, upto(100)).slot
    held.shorten(slot, 0)
    assert held.free_cells == 10_000
    assert held.place(HashedTokens(upto(150)), SALT) == SlotPlace(1, 0)


# --- everything, in any order ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Cell:
    """A cell of the naive memory. A shared cell is in several lists."""

    token: int
    salt: str


@dataclass
class Held:
    cells: list[Cell] = field(default_factory=list)
    busy: bool = False
    used_at: int = 0


COUNT = 4
CONTEXT = 400
prompts = st.builds(lambda head, tail: [0] * head + [1] * tail, st.integers(0, 180), st.integers(1, 180))


class Machine(RuleBasedStateMachine):
    """Drives the slots like the loop, and compares them with a simple memory that knows the owner of each cell."""

    layout: KvLayout
    #: In the pool, less than all slots could fill.
    capacity: int

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(COUNT, self.layout, capacity=self.capacity)
        self.memory = [Held() for _ in range(COUNT)]
        self.prompts: dict[int, list[int]] = {}
        self.salts: dict[int, str] = {}
        self.hashed: dict[int, HashedTokens] = {}
        self.ticks = 0

    @rule(prompt=prompts, salt=st.sampled_from(["", "a", "b"]))
    def place(self, prompt: list[int], salt: str) -> None:
        longest = max(self.shared(held, prompt, salt) for held in self.memory)
        hashed = HashedTokens(list(prompt))
        place = self.slots.place(hashed, salt)
        if place is None:
            assert all(held.busy for held in self.memory)
            return
        target = self.memory[place.slot]
        assert not target.busy
        assert place.source != place.slot
        cells = (target if place.source is None else self.memory[place.source]).cells[: place.kept]
        if self.layout is STREAMS:
            cells = [Cell(cell.token, cell.salt) for cell in cells]
        assert [cell.token for cell in cells] == prompt[: place.kept], "other tokens than those of the prompt"
        assert all(cell.salt == salt != "" for cell in cells), "another tenant's tokens"
        if self.layout is POOL:
            assert place.kept == longest
        else:
            assert longest - WORTH_SHARING_TOKENS - WORTH_SHARING_TOKENS < place.kept <= longest
        target.cells, target.busy = cells, True
        self.touch(target)
        self.prompts[place.slot], self.salts[place.slot], self.hashed[place.slot] = prompt, salt, hashed

    @precondition(lambda self: any(held.busy for held in self.memory))
    @rule(which=st.integers(0, COUNT - 1), count=st.integers(1, 200))
    def extend(self, which: int, count: int) -> None:
        slot = self.busy(which)
        held, prompt = self.memory[slot], self.prompts[slot]
        # In bulk up to the end of the prompt, then one by one.
        bulk = len(held.cells) < len(prompt)
        tokens = prompt[len(held.cells) :][:count] if bulk else [1]
        if len(held.cells) + len(tokens) > CONTEXT or not self.make_room(len(tokens)):
            return
        if not bulk:
            self.hashed[slot].tokens.append(1)
        self.slots.extend(slot, len(tokens))
        held.cells += [Cell(token, self.salts[slot]) for token in tokens]

    @precondition(lambda self: any(held.busy for held in self.memory))
    @rule(which=st.integers(0, COUNT - 1), keep=st.integers(0, CONTEXT))
    def release(self, which: int, keep: int) -> None:
        slot = self.busy(which)
        self.slots.release(slot, keep=keep)
        self.memory[slot].busy = False
        del self.memory[slot].cells[keep:]
        self.touch(self.memory[slot])

    @precondition(lambda self: any(held.busy for held in self.memory))
    @rule(which=st.integers(0, COUNT - 1))
    def empty(self, which: int) -> None:
        slot = self.busy(which)
        self.slots.shorten(slot, 0)
        self.memory[slot].cells = []

    @rule()
    def evict(self) -> None:
        candidates = [slot for slot, held in enumerate(self.memory) if held.cells and not held.busy]
        expected = min(candidates, key=lambda slot: self.memory[slot].used_at, default=None)
        assert self.slots.evict() == expected
        if expected is not None:
            self.memory[expected].cells = []

    @invariant()
    def cells_are_counted_exactly(self) -> None:
        free = self.capacity - len({id(cell) for held in self.memory for cell in held.cells})
        assert self.slots.free_cells == free >= 0
        assert self.slots.room(free) == free
        busy = {id(cell) for held in self.memory if held.busy for cell in held.cells}
        assert self.slots.room(self.capacity + 1) == self.capacity - len(busy)

    def make_room(self, wanted: int) -> bool:
        if self.slots.room(wanted) < wanted:
            return False
        while self.slots.free_cells < wanted:
            self.evict()
        return True

    def shared(self, held: Held, prompt: list[int], salt: str) -> int:
        """Return the length of the longest prefix that this slot can share."""
        count = 0
        for cell, token in zip(held.cells, prompt[: len(prompt) - 1], strict=False):
            if cell.token != token or cell.salt != salt or not salt:
                break
            count += 1
        return count

    def busy(self, which: int) -> int:
        busy = [slot for slot, held in enumerate(self.memory) if held.busy]
        return busy[which % len(busy)]

    def touch(self, held: Held) -> None:
        self.ticks += 1
        held.used_at = self.ticks


class ExactMachine(Machine):
    layout = STREAMS
    capacity = COUNT * CONTEXT


class FastMachine(Machine):
    layout = POOL
    capacity = 2 * CONTEXT


def stateful(machine: type[Machine]) -> Callable[[], None]:
    case: type = machine.TestCase
    case.settings = settings(max_examples=tiers.volume(80), stateful_step_count=40, deadline=None)  # type: ignore[attr-defined]  # Hypothesis's own API
    return case


TestExact = stateful(ExactMachine)
TestFast = stateful(FastMachine)
