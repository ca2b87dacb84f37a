"""Which sequence does what in the next step.  Pure.

In every step each sequence that is answering gets one token, and those that read their prompts share a number of tokens that the
answers can bear (`pace`). All of it is one batch. Short prompts overtake long ones, but each prompt only by a share of its length
(`sequence.OVERTAKEN`), so that a steady flow of short ones cannot hold it up.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.inference.engine.kv_slots import SlotPlace, Slots
from services.inference.engine.prefill_budget import LEAST_TOKENS, PrefillBudget
from services.inference.engine.sequence import Sequence

#: Sequences that get a slot in one step. Finding what slots hold of a prompt costs up to half a millisecond, and to copy that much more.
ADMITTED_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens of one sequence that a batch puts into the model's memory."""

    slot: int
    sequence: Sequence
    #: Position of the first of the tokens.
    start: int
    tokens: tuple[int, ...]
    #: Whether the sequence's next token is to be sampled after these.
    sample: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The next step: what is computed in one batch. Empty when nothing runs."""

    feeds: tuple[Feed, ...]
    #: How many sequences get a token, and how many tokens are read.
    answering: int
    read: int


@dataclass(frozen=True, slots=True)
class _Ahead:
    """Somebody who reads now what another one begins with."""

    reader: Sequence
    #: So many of the first tokens are the same.
    until: int


@dataclass(slots=True)
class _PromptReader:
    """A sequence that reads, while one step is planned."""

    slot: int
    sequence: Sequence
    unread: int = field(init=False)
    #: So many more tokens of others may be read before its own.
    spare: int = field(init=False)

    def __post_init__(self) -> None:
        self.unread = self.sequence.bulk - self.sequence.fed
        self.spare = self.sequence.spare


class Scheduler:
    """Owns who runs where and who waits; `kv_slots` says what the slots hold."""

    def __init__(self, slots: Slots, pace: PrefillBudget) -> None:
        self._slots = slots
        self._pace = pace
        self._waiting: deque[Sequence] = deque()
        #: In order of admission.
        self._running: dict[int, Sequence] = {}
        #: Who of the waiting ones waits for what another one reads.
        self._ahead: dict[Sequence, _Ahead] = {}

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, sequence: Sequence) -> None:
        sequence.hashed.hash_blocks()
        self._waiting.append(sequence)

    def admit(self) -> Iterator[SlotPlace]:
        """Put waiting sequences into free slots. The caller has the model's memory follow, each time before it asks for the next: what
        one slot was found not to hold, the next one must not count on."""
        admitted = 0
        for sequence in tuple(self._waiting):
            if not self._slots.has_idle or admitted == ADMITTED_AT_ONCE:
                return
            if self._is_behind(sequence):
                continue
            if not self._may_begin(sequence):
                return
            place = self._slots.place(sequence.hashed, sequence.salt)
            if place is None:
                return
            admitted += 1
            self._waiting.remove(sequence)
            sequence.begin(place.kept)
            self._running[place.slot] = sequence
            yield place

    def plan(self) -> StepPlan | None:
        """The next step, which the caller computes and reports with ``fed``; None if nobody can go on before somebody is preempted."""
        answers = [_feed(slot, sequence, sequence.fed + 1) for slot, sequence in self._running.items() if not sequence.reading]
        budget = self._pace.budget(len(answers), len(self._running) - len(answers))
        room = self._slots.room(len(answers) + budget) - len(answers)
        reads = list(self._reads(min(budget, room)))
        if room < 0 or (self._running and not answers and not reads):
            return None
        # In the exact layout llama.cpp computes together what lies in neighbouring slots and comes in their order.
        feeds = sorted((*answers, *reads), key=lambda feed: feed.slot)
        return StepPlan(tuple(feeds), len(answers), sum(len(feed.tokens) for feed in reads))

    def fed(self, plan: StepPlan, seconds: float) -> None:
        """The step has been computed."""
        self._charge(plan)
        for feed in plan.feeds:
            feed.sequence.fed += len(feed.tokens)
            self._slots.extend(feed.slot, len(feed.tokens))
        self._pace.took(seconds, answering=plan.answering, read=plan.read)

    def finish(self, slot: int) -> None:
        """The sequence in ``slot`` has ended."""
        self._slots.release(slot, keep=self._running.pop(slot).fed)

    def restart(self, slot: int) -> None:
        """What was thought to be in the slot is not."""
        self._slots.empty(slot)
        sequence = self._running[slot]
        sequence.begin(0)
        sequence.cached = 0

    def cancel(self, identity: int) -> list[Sequence]:
        """Forget a request's sequences, wherever they are. Unknown ids are already over."""
        waiting = [sequence for sequence in self._waiting if sequence.id == identity]
        running = [(slot, sequence) for slot, sequence in self._running.items() if sequence.id == identity]
        for sequence in waiting:
            self._waiting.remove(sequence)
            self._ahead.pop(sequence, None)
        for slot, _ in running:
            self.finish(slot)
        return waiting + [sequence for _, sequence in running]

    def make_room(self, plan: StepPlan) -> list[int]:
        """Have the cells free that the plan needs, at the cost of what idle slots hold; says which are to be cleared."""
        cleared = []
        while self._slots.free_cells < plan.answering + plan.read and (slot := self._slots.evict()) is not None:
            cleared.append(slot)
        return cleared

    def preempt(self) -> int:
        """Take the youngest sequence's slot away, which is to be cleared. The sequence waits first in line again."""
        slot, sequence = self._running.popitem()
        self._slots.release(slot, keep=0)
        sequence.hashed.hash_blocks()
        self._waiting.appendleft(sequence)
        return slot

    def _charge(self, plan: StepPlan) -> None:
        """Note by how much each reader has been overtaken."""
        read = {feed.slot: len(feed.tokens) for feed in plan.feeds if feed.sequence.reading}
        after = sum(read.values())
        for slot, sequence in self._running.items():
            if sequence.reading:
                after -= read.get(slot, 0)
                sequence.overtaken += after

    def _is_behind(self, sequence: Sequence) -> bool:
        """Whether it is better to wait for what somebody else is reading: many chats of a tenant begin with the same page, and come
        at the same time."""
        ahead = self._ahead.pop(sequence, None)
        if ahead is None or not self._is_reading(ahead):
            ahead = self._find_ahead(sequence)
        if ahead is None:
            return False
        self._ahead[sequence] = ahead
        return True

    def _is_reading(self, ahead: _Ahead) -> bool:
        return ahead.reader.fed < ahead.until and any(ahead.reader is running for running in self._running.values())

    def _find_ahead(self, sequence: Sequence) -> _Ahead | None:
        readers = [other for other in self._running.values() if other.reading and other.salt == sequence.salt]
        shared = [_Ahead(other, other.hashed.common(sequence.hashed, other.bulk)) for other in readers]
        best = max(shared, key=lambda ahead: ahead.until, default=None)
        return best if best is not None and self._slots.gains(sequence.hashed, sequence.salt, best.until) else None

    def _may_begin(self, sequence: Sequence) -> bool:
        """Nobody begins who would be preempted at once."""
        if not self._running:
            return True
        unread = sum(other.bulk - other.fed for other in self._running.values() if other.reading)
        wanted = unread + len(sequence.tokens) + len(self._running) + 1
        return self._slots.room(wanted) >= wanted

    def _reads(self, budget: int) -> Iterator[Feed]:
        """The shortest first, as far as those that came before them can still be overtaken."""
        readers = [_PromptReader(slot, sequence) for slot, sequence in self._running.items() if sequence.reading]
        # The last tokens may be fewer: with all the memory to itself, a sequence must get to its end.
        while (at := _next_reader(readers, budget)) is not None and budget >= min(LEAST_TOKENS, readers[at].unread):
            reader = readers.pop(at)
            count = min(reader.unread, budget)
            for earlier in readers[:at]:
                earlier.spare -= count
            budget -= count
            yield _feed(reader.slot, reader.sequence, reader.sequence.fed + count)


def _next_reader(readers: list[_PromptReader], budget: int) -> int | None:
    """The place of the shortest one that none of those before it has to go ahead of; None where there is nothing to read or no budget."""
    best, spare = None, math.inf
    for at, reader in enumerate(readers if budget > 0 else ()):
        if min(reader.unread, budget) <= spare and (best is None or reader.unread < readers[best].unread):
            best = at
        spare = min(spare, reader.spare)
    return best


def _feed(slot: int, sequence: Sequence, end: int) -> Feed:
    return Feed(slot, sequence, sequence.fed, tuple(sequence.tokens[sequence.fed : end]), sample=end == len(sequence.tokens))
