"""Live sequences beside those of batches, on machines whose steps take a computed time."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.engine import sequence
from services.inference.engine.kv_slots import KvLayout, Slots
from services.inference.engine.prompt_cache import HashedTokens
from services.inference.engine.sampling import Parameters
from services.inference.engine.scheduler import (
    BATCH_STEP_SECONDS,
    KEPT_SECONDS,
    MIN_TOKENS,
    PROBE_EVERY,
    BatchShare,
    PrefillBudget,
    Scheduler,
)
from services.inference.engine.sequence import DrawnToken, ImagePrompt, Sequence
from tests import tiers

#: Seconds of a step, by its answers and the prompt tokens that it reads.
StepTime = Callable[[int, int], float]


def on_processor(answers: int, read: int) -> float:
    return 0.002 + 0.006 * answers + 0.002 * read


def on_gpu(answers: int, read: int) -> float:
    return 0.010 + 0.00005 * answers + 0.00002 * read


def make(identity: int, prompt: int, *, length: int = 10_000, batch: bool = False, salt: str = "") -> Sequence:
    parameters = Parameters(temperature=0, top_p=1, top_k=0, seed=0)
    tokens = HashedTokens([identity] * prompt)
    made = sequence.start(identity, 0, ImagePrompt(tokens), parameters, context_tokens=100_000, salt=salt, is_batch=batch)
    made.limit = length
    return made


@dataclass
class Machine:
    step_time: StepTime = on_processor
    count: int = 4
    layout: KvLayout = KvLayout.STREAMS
    capacity: int = 1_000_000
    #: What each sequence read and answered.
    read: Counter[int] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    #: Sequences that hold a slot.
    held: dict[int, Sequence] = field(default_factory=dict)
    #: The texts of all answers, as the model's tokens.
    answers: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slots = Slots(self.count, self.layout, capacity=self.capacity)
        self.scheduler = Scheduler(self.slots, PrefillBudget(512))

    def submit(self, *sequences: Sequence) -> None:
        for one in sequences:
            self.scheduler.submit(one)

    def step(self, times: int = 1) -> list[Sequence]:
        """Return the sequences of the last step."""
        computed: list[Sequence] = []
        for _ in range(times):
            while True:
                for place in self.scheduler.admit():
                    self.held[place.slot] = self.scheduler._running[place.slot]  # a place doesn't name its sequence
                if (plan := self.scheduler.plan()) is not None:
                    break
                self.scheduler.preempt()
            self.scheduler.make_room(plan)
            running = self.scheduler._running.values()
            if any(not one.is_batch for one in running):
                assert not [feed for feed in plan.feeds if feed.sequence.is_batch and feed.sequence.reading], "a prompt beside live work"
            self.seconds.append(self.step_time(plan.answering, plan.read))
            self.scheduler.complete_step(plan, self.seconds[-1])
            computed = [feed.sequence for feed in plan.feeds]
            for feed in plan.feeds:
                one = feed.sequence
                if not feed.sample:
                    self.read[one.id] += len(feed.tokens)
                    continue
                self.answered[one.id] += 1
                drawn = DrawnToken(one.id * 1000 + len(one.tokens) - one.prompt_tokens)
                if one.append(drawn, b"x").finish is not None:
                    self.answers[one.id] = one.tokens[one.prompt_tokens :]
                    self.scheduler.finish(feed.slot)
        return computed

    def running(self) -> set[int]:
        return {one.id for one in self.scheduler._running.values()}


def test_processor_gives_batches_a_token_only_to_measure_them() -> None:
    machine = Machine(on_processor)
    machine.submit(*(make(number, 20, batch=True) for number in (1, 2, 3)))
    machine.step(50)
    machine.submit(make(9, 20))
    machine.step(20)
    before, machine.seconds = machine.answered.copy(), []
    machine.step(4 * PROBE_EVERY)
    beside = machine.answered - before
    assert machine.running() == {1, 2, 3, 9}, "a parked sequence keeps its slot"
    assert beside[9] == 4 * PROBE_EVERY, "the live answer gets a token in each step"
    assert beside[1] + beside[2] + beside[3] <= 4
    alone = on_processor(1, 0)
    assert sum(seconds > 1.1 * alone for seconds in machine.seconds) <= 4


def test_gpu_gives_all_batches_tokens_beside_live_answers() -> None:
    machine = Machine(on_gpu, count=16)
    machine.submit(*(make(number, 20, batch=True) for number in range(1, 13)))
    machine.step(50)
    machine.submit(make(99, 20))
    machine.step(20)
    before, machine.seconds = machine.answered.copy(), []
    machine.step(1000)
    beside = machine.answered - before
    assert min(beside[number] for number in range(1, 13)) > 750, "a number that is new takes some steps to be tried"
    assert max(machine.seconds) <= 1.1 * on_gpu(1, 0)


def test_share_grows_by_measuring_and_falls_when_steps_get_slower() -> None:
    share, seconds = BatchShare(), 0.010
    shares = []
    for step in range(12 * PROBE_EVERY):
        count = share.beside(2, 8)
        shares.append(count)
        if step == 10 * PROBE_EVERY:
            seconds = 0.020
        share.record_step(seconds if count else 0.010, 2 + count, beside_live=True)
    assert max(shares[: 5 * PROBE_EVERY]) < 8 == max(shares[: 10 * PROBE_EVERY])
    assert sum(shares[-PROBE_EVERY + 10 :]) <= 8


def test_prompts_of_batches_wait_for_live_sequences_and_take_short_steps() -> None:
    machine = Machine(on_processor)
    machine.submit(make(1, 300, length=50))
    machine.step(3)
    machine.submit(make(2, 300, batch=True))
    while 1 in machine.running():
        machine.step()
        assert machine.read[2] == 0
    machine.step(2)
    machine.seconds = []
    while machine.answered[2] == 0:
        machine.step()
    assert max(machine.seconds) <= BATCH_STEP_SECONDS + on_processor(0, MIN_TOKENS)
    assert len(machine.seconds) < 30, "pieces are not shorter than necessary"


@pytest.mark.parametrize("layout", list(KvLayout))
def test_live_sequence_takes_the_slot_of_the_youngest_batch_sequence_which_loses_nothing(layout: KvLayout) -> None:
    machine = Machine(layout=layout)
    machine.submit(*(make(number, 20, length=60, batch=True) for number in (1, 2, 3, 4)))
    machine.step(30)
    machine.submit(make(9, 20, length=30))
    assert machine.step()[0].id == 9, "the live prompt is read in the next step"
    assert machine.running() == {1, 2, 3, 9}
    machine.step(1000)
    assert machine.scheduler.idle
    for number in (1, 2, 3, 4):
        assert machine.answers[number] == [number * 1000 + at for at in range(60)]


def test_live_sequence_takes_the_memory_of_batch_sequences() -> None:
    machine = Machine(layout=KvLayout.POOL, capacity=300)
    machine.submit(make(1, 90, batch=True), make(2, 90, batch=True))
    machine.step(30)
    machine.submit(make(9, 180, length=5))
    assert machine.step()[0].id == 9
    assert machine.running() == {1, 9}


def test_batch_sequences_begin_only_while_no_live_one_waits() -> None:
    machine = Machine(count=1)
    machine.submit(make(5, 20, length=3, batch=True), *(make(number, 20, length=3) for number in (1, 2)))
    machine.step(40)
    assert list(machine.answers) == [1, 2, 5]


def test_live_sequence_does_not_wait_for_the_same_prompt_of_a_batch() -> None:
    machine = Machine()
    machine.submit(make(1, 20, length=100))
    machine.step(3)
    machine.submit(make(7, 400, batch=True, salt="tenant"))
    machine.step(2)
    again = make(7, 400, length=3, salt="tenant")
    machine.submit(again)
    machine.step(2)
    assert again.fed > 0


def test_batch_alone_is_computed_like_live_sequences() -> None:
    """Full slots, no step that serves less than it can, and the same number of steps."""
    steps = {}
    for batch in (True, False):
        machine = Machine(on_gpu, count=8)
        machine.submit(*(make(number, 200, length=100, batch=batch) for number in range(1, 33)))
        while not machine.scheduler.idle:
            machine.step()
        steps[batch] = sum(machine.seconds)
    assert steps[True] <= steps[False] / 0.95


@settings(max_examples=tiers.volume(60), deadline=None)
@given(
    layout=st.sampled_from(list(KvLayout)),
    count=st.integers(1, 5),
    coming=st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 60), st.integers(1, 12), st.booleans(), st.booleans()), min_size=1, max_size=12
    ),
)
def test_every_sequence_ends_with_its_own_tokens(layout: KvLayout, count: int, coming: list[tuple[int, int, int, bool, bool]]) -> None:
    machine = Machine(on_processor, count, layout, 160 if layout is KvLayout.POOL else 100 * count)
    lengths = {number: one[2] for number, one in enumerate(coming)}
    for now in range(4000):
        for number, (arrives, prompt, length, batch, salted) in enumerate(coming):
            if now == arrives:
                machine.submit(make(number, prompt, length=length, batch=batch, salt="tenant" if salted else ""))
        if now > 30 and machine.scheduler.idle:
            break
        machine.step()
        waiting = [one for one in machine.scheduler._waiting if not one.is_batch]
        if waiting and layout is KvLayout.STREAMS and not any(machine.scheduler._is_behind(one) for one in waiting):
            assert not any(one.is_batch for one in machine.scheduler._running.values()), "a live sequence waits for one of a batch"
    assert machine.answers == {number: [number * 1000 + at for at in range(length)] for number, length in lengths.items()}


def test_prompts_of_batches_take_no_tiny_pieces_on_a_slow_machine() -> None:
    """Pieces of three tokens once took longer than the answers: each step has a fixed cost."""
    machine = Machine(lambda answers, read: 0.075 + 0.03 * answers + 0.01 * read)
    machine.submit(make(1, 160, batch=True))
    machine.step(15)
    assert machine.answered[1] > 0


def test_batches_leave_a_slot_for_a_while_with_what_a_live_sequence_has_read() -> None:
    machine = Machine(on_processor)
    machine.submit(*(make(number, 20, batch=True, length=30) for number in range(1, 100)))
    machine.step(10)
    assert len(machine.running()) == 4
    for turn in range(3):
        live = make(500, 40, salt="live", length=5)
        machine.submit(live)
        while live.id not in machine.answers:
            machine.step()
        del machine.answers[live.id]
        assert live.cached == (0 if turn == 0 else 39)
        # Many sequences of batches end and begin.
        before = len(machine.answers)
        while len(machine.answers) < before + 6:
            machine.step()
            assert len(machine.running()) <= 3
    while len(machine.running()) <= 3:
        machine.step()
    assert sum(machine.seconds[-1000:]) >= KEPT_SECONDS
    assert len(machine.running()) == 4


def test_a_single_slot_is_for_batches_too() -> None:
    machine = Machine(on_processor, count=1)
    machine.submit(make(500, 40, salt="live", length=5))
    machine.step(10)
    machine.submit(make(1, 20, batch=True))
    machine.step()
    assert machine.running() == {1}
