"""Plans the next step: which sequences run, and which tokens they compute.  Pure.

In every step, each answering sequence gets one token, and the sequences that read their prompts share a budget that doesn't slow the
answers too much (`PrefillBudget`). Short prompts overtake long ones, but each prompt only by a share of its length (`sequence.OVERTAKEN`),
so that a steady flow of short ones can't starve it.

Live sequences, whose callers wait, go before those of batches. Beside them, a step only has as many tokens of batch answers as hardly slow
it (`BatchShare`), and no prompt of a batch. A live sequence without a slot, or without memory, takes those of the youngest batch sequence.

llama.cpp applies the same adapters to a whole batch, so a step has sequences of one adapter, or of none (`AdapterTurns`).
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from services.inference.engine.kv_slots import SlotPlace, Slots
from services.inference.engine.sequence import Sequence
from services.inference.images.prompt_images import ImageSpan

#: Sequences admitted per step, or one for so many tokens that it may read: finding a cached prefix takes up to half a millisecond, copying
#: it much more.
ADMITTED_AT_ONCE, ADMITTED_PER_TOKENS = 4, 64

#: A step that reads a prompt may take this many times as long as other steps, at the 99th percentile.
SLOWDOWN = 4.0
#: The same for each prompt per answer, if that is more.
SLOWDOWN_PER_PROMPT = 2.0
MIN_TOKENS = 3
#: Reading gets at least this share of the answers' time, also if the answers alone reach the limit: a very long prompt slows them so much.
MIN_SHARE = 0.7
FIRST_TOKENS = 16
#: After this many reading steps, one step reads nothing and measures the answers alone.
QUIET_EVERY = 50
#: Weight of the newest step in the mean time of a token.
_WEIGHT = 0.2
#: The planned share of the limit, and how much it falls after a step over the limit, which one in a hundred may be. Below the least,
#: reading less doesn't help: the machine is slow for other reasons.
_FIRST_AIM, _MIN_AIM, _FALL = 0.9, 0.8, 0.05
#: How many times of quiet steps are known, and how far above their median the limit may begin.
_QUIET_STEPS, _MAX_VARIATION = 200, 1.5
#: As many of them may be from between two steps that read. More would raise the limit, because a long prompt slows the answers beside it.
_MEASURED_AMID_READING = 10
#: The number of recent steps without prompts that give the time of answers. Several, because an arriving prompt slows single ones.
_LAST_STEPS = 5


class PrefillBudget:
    """Limits how many prompt tokens a step may read. Gets the time of every step, and returns the budget of the next.

    It models the time of a step as the time for the answers, which depends on their number, plus the time for the tokens that are read.
    It learns both from the steps, because processors and GPUs differ by a factor of a thousand. For that, some steps read nothing. The
    limit is a multiple of the 98th percentile of quiet steps. It plans a share of that, which it lowers after a step over the limit and
    raises after the others. If many more prompts wait than answers run, the limit is higher in proportion. Steps of a GPU are so short that
    a multiple of them would read little at a time: ``unnoticed_seconds`` are always allowed.
    """

    def __init__(self, most: int, unnoticed_seconds: float = 0.0) -> None:
        self.most = most
        self._unnoticed = unnoticed_seconds
        #: Number of answers, rounded up to a power of two -> seconds of the last steps that read nothing.
        self._alone: dict[int, deque[float]] = {}
        #: The same, of more steps, but hardly any of them between two that read.
        self._quiet: dict[int, deque[float]] = {}
        #: The same -> steps that read, since the last step that didn't.
        self._steps_since: dict[int, int] = {}
        self._token_seconds = 0.0
        self._aim = _FIRST_AIM
        self._slowdown = SLOWDOWN

    def budget(self, answering: int, reading: int = 1) -> int:
        """Return the tokens that the next step may read; 0 for a step that measures the answers alone."""
        if answering == 0:
            return self.most
        self._slowdown = max(SLOWDOWN, SLOWDOWN_PER_PROMPT * reading / answering)
        bucket = _bucket(answering)
        since = self._steps_since.get(bucket, 0)
        if not self._alone and since < QUIET_EVERY:
            return min(FIRST_TOKENS, self.most)
        if bucket not in self._alone or since >= QUIET_EVERY:
            return 0
        if self._token_seconds == 0:
            return min(FIRST_TOKENS, self.most)
        alone = _median(self._alone[bucket])
        rest = max(self._aim * self._limit(bucket) - alone, MIN_SHARE * alone)
        # Rounded up: each piece also has a fixed cost, so the tokens of short pieces seem more expensive than they are.
        return max(MIN_TOKENS, min(self.most, int(rest / self._token_seconds) + 1))

    def tokens_within(self, seconds: float) -> int:
        """Return how many prompt tokens a step reads in this time if it does nothing else; a few on a slow machine, where fewer would take
        hardly less, because each step has a fixed cost."""
        wanted = int(seconds / self._token_seconds) if self._token_seconds else 0
        return min(self.most, max(FIRST_TOKENS, wanted))

    def record_step(self, seconds: float, *, answering: int, read: int, is_usual: bool = True) -> None:
        """Record the time of a step. If something else slowed it, so that it isn't usual, it only counts until a better time is known."""
        bucket = _bucket(answering)
        since = self._steps_since.get(bucket, 0)
        self._steps_since[bucket] = since + 1 if read else 0
        if not is_usual and (self._token_seconds if read else bucket in self._alone):
            return
        if read == 0:
            self._alone.setdefault(bucket, deque(maxlen=_LAST_STEPS)).append(seconds)
            quiet = self._quiet.setdefault(bucket, deque(maxlen=_QUIET_STEPS))
            if since < QUIET_EVERY or len(quiet) < _MEASURED_AMID_READING:
                quiet.append(seconds)
            return
        alone = _median(self._alone[bucket]) if bucket in self._alone else 0.0
        if alone < seconds:
            token_seconds = (seconds - alone) / read
            # The first steps of a GPU take a hundred times as long as later ones.
            is_outlier = self._unnoticed > 0 and token_seconds < self._token_seconds / 2
            weight = 1.0 if is_outlier or not self._token_seconds else _WEIGHT
            self._token_seconds += weight * (token_seconds - self._token_seconds)
        if alone:
            change = -_FALL if seconds > self._limit(bucket) else _FALL / 100
            self._aim = min(1.0, max(_MIN_AIM, self._aim + change))

    def _limit(self, bucket: int) -> float:
        ordered = sorted(self._quiet[bucket])
        quiet = min(_MAX_VARIATION * _median(ordered), ordered[int(0.98 * len(ordered))])
        return max(self._slowdown * quiet, self._unnoticed)


def _bucket(answering: int) -> int:
    return 1 << (answering - 1).bit_length() if answering else 0


def _median(seconds: Iterable[float]) -> float:
    """Return the lower one of two."""
    ordered = sorted(seconds)
    return ordered[(len(ordered) - 1) // 2]


#: With tokens of batch answers, a step may take this many times as long as with those of the live ones alone.
_BESIDE_LIVE = 1.1
#: A step that reads prompts of batches may take so long: a live request that arrives meanwhile waits for its end.
BATCH_STEP_SECONDS = 0.05
#: Batches leave a slot to live sequences until their steps have taken so long since the last live one.
KEPT_SECONDS = 10.0
#: Of so many steps with live answers, one measures a batch answer more, and one the live answers alone.
PROBE_EVERY = 200


class BatchShare:
    """Decides how many batch answers get a token beside live ones. Learns how long a step takes by its number of answers: on a GPU, many
    take hardly longer than one; on a processor, each takes its time."""

    def __init__(self) -> None:
        #: Number of answers -> seconds of the last steps with them, and the median of these.
        self._last: dict[int, deque[float]] = {}
        self._seconds: dict[int, float] = {}
        self._steps = 0

    def beside(self, live: int, batch: int) -> int:
        """Return how many of the ``batch`` answers get a token beside the ``live`` ones, of which there is at least one."""
        turn = self._steps % PROBE_EVERY
        if not batch or live not in self._seconds or turn == PROBE_EVERY // 2:
            return 0
        limit = _BESIDE_LIVE * self._seconds[live]
        most = max([count for count, seconds in self._seconds.items() if live <= count <= live + batch and seconds <= limit])
        return min(batch, most - live + (turn == 0))

    def record_step(self, seconds: float, answering: int, *, beside_live: bool) -> None:
        """Record the time of a usual step that read no prompt."""
        last = self._last.setdefault(answering, deque(maxlen=_LAST_STEPS))
        last.append(seconds)
        self._seconds[answering] = _median(last)
        self._steps += beside_live


#: An adapter with work gets at least every so many-th step, if no more adapters have work.
TURN_STEPS = 4
#: How much more the others must have waited: a change of adapters takes several milliseconds, because llama.cpp plans its memory again.
_STAY = 3


class AdapterTurns:
    """Chooses the adapter of the next step: the one whose sequences have waited most in all, but no adapter waits too long."""

    def __init__(self) -> None:
        #: The steps since each one's last; only of those with work.
        self._waited: dict[int, int] = {}

    def choose(self, work: Mapping[int, int]) -> int:
        """``work`` has the number of sequences of each adapter that has any."""
        waited = {adapter: self._waited.get(adapter, 0) for adapter in work}
        oldest = sorted(work, key=lambda adapter: -waited[adapter])
        most = max(TURN_STEPS, len(work)) - 1
        if any(waited[adapter] + before >= most for before, adapter in enumerate(oldest)):
            return oldest[0]
        return max(oldest, key=lambda adapter: work[adapter] * (waited[adapter] + 1) * (_STAY if self._waited.get(adapter) == 0 else 1))

    def record_step(self, chosen: int, work: Mapping[int, int]) -> None:
        self._waited = {adapter: 0 if adapter == chosen else self._waited.get(adapter, 0) + 1 for adapter in work}


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens of one sequence in a batch."""

    slot: int
    sequence: Sequence
    start: int
    tokens: tuple[int, ...]
    #: Whether to sample the sequence's next token after these.
    sample: bool
    #: The tokens stand for rows of this image.
    image: ImageSpan | None = None
    #: Guesses after ``tokens``, to compute with them. The token after each one is sampled, too, if it is right.
    draft: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The batch of the next step. Empty if nothing runs."""

    feeds: tuple[Feed, ...]
    answering: int
    read: int
    adapter: int = 0

    @property
    def drafted(self) -> int:
        return sum(len(feed.draft) for feed in self.feeds)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A running sequence that reads the prefix of a waiting one."""

    reader: Sequence
    until: int


@dataclass(slots=True)
class _PromptReader:
    """A sequence that reads its prompt, while one step is planned."""

    slot: int
    sequence: Sequence
    unread: int
    #: How many more tokens of later prompts may be read first.
    spare: int


class Scheduler:
    """Owns the running and waiting sequences; `kv_slots` tracks the slots' tokens."""

    def __init__(self, slots: Slots, pace: PrefillBudget) -> None:
        self._slots = slots
        self._pace = pace
        self._share = BatchShare()
        self._turns = AdapterTurns()
        #: How long the last step took.
        self.step_seconds = 0.0
        self._preempted = 0
        #: How long all steps since the last live one took.
        self._batch_seconds = math.inf
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}
        #: Waiting sequences whose prefix another one is reading.
        self._ahead: dict[Sequence, _Ahead] = {}

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    @property
    def makes_way(self) -> bool:
        """Whether it has sequences, and all of them are of batches."""
        return not self.idle and all(one.is_batch for one in (*self._running.values(), *self._waiting))

    def submit(self, sequence: Sequence) -> None:
        sequence.hashed.hash_blocks()
        self._waiting.append(sequence)

    def admit(self) -> Iterator[SlotPlace]:
        """Put waiting sequences into free slots. After each one, the caller must update the KV cache before it asks for the next,
        because a failed update changes what the slots hold. Batch sequences begin only while no live one waits."""
        admitted, most = 0, max(ADMITTED_AT_ONCE, self._pace.most // ADMITTED_PER_TOKENS)
        for sequence in [one for one in self._waiting if not one.is_batch] or tuple(self._waiting):
            if admitted == most or not (self._has_slot_for(sequence) or self._may_replace(sequence)):
                return
            if self._is_behind(sequence):
                continue
            while not (self._slots.idle and self._may_begin(sequence)):
                if not self._may_replace(sequence):
                    return
                self._pause_youngest(forget=False)
            place = self._slots.place(sequence.hashed, sequence.salt, is_batch=sequence.is_batch)
            if place is None:
                return
            admitted += 1
            self._waiting.remove(sequence)
            sequence.begin(place.kept, pauses=not self._slots.can_cut)
            self._running[place.slot] = sequence
            yield place

    def _has_slot_for(self, sequence: Sequence) -> bool:
        """Batches leave one slot to live sequences for a while after one, with what it has read: the next one often begins like it."""
        is_kept = sequence.is_batch and self._batch_seconds < KEPT_SECONDS and not self._slots.has_one
        return self._slots.idle > is_kept

    def plan(self) -> StepPlan | None:
        """Plan the next step, which the caller computes and reports with ``complete_step``; None if a sequence must be preempted first."""
        served = self._served()
        work = _count_adapters(served)
        while work:
            adapter = self._turns.choose(work)
            if (plan := self._plan_for(adapter, served)) is not None:
                return plan
            del work[adapter]
        return None if self._running else StepPlan((), 0, 0)

    def _served(self) -> dict[int, Sequence]:
        """Return the live sequences, or else those of batches."""
        return {slot: sequence for slot, sequence in self._running.items() if not sequence.is_batch} or self._running

    def _plan_for(self, adapter: int, served: Mapping[int, Sequence]) -> StepPlan | None:
        """Plan a step of one adapter's sequences; None if the memory doesn't suffice."""
        mine = {slot: sequence for slot, sequence in served.items() if sequence.adapter == adapter}
        answers = [_feed(slot, sequence, sequence.fed + 1) for slot, sequence in mine.items() if not sequence.reading]
        is_live = not any(sequence.is_batch for sequence in mine.values())
        if is_live:
            # A step without answers delays those of the other adapters.
            delayed = Counter(sequence.adapter for sequence in served.values() if not sequence.reading)
            budget = self._pace.budget(len(answers) or max(delayed.values(), default=0), len(mine) - len(answers))
        else:
            # Nobody waits for the answers of a batch: full slots compute most.
            answers = [] if len(answers) < len(mine) else answers
            budget = self._pace.tokens_within(BATCH_STEP_SECONDS)
        if not answers:
            # There is nothing to measure.
            budget = max(budget, MIN_TOKENS)
        room = self._slots.room(len(answers) + budget) - len(answers)
        reads = list(self._reads(mine, min(budget, room), room))
        if room < 0 or (not answers and not reads):
            return None
        if len(answers) == len(served) == 1:
            # Beside others, drafts gain nothing reliable, and slow those down.
            answers = [replace(answers[0], draft=answers[0].sequence.draft(self._pace.most))]
        if is_live and answers and not reads and not answers[0].draft:
            answers += self._answers_beside(len(answers), adapter, room)
        # In the STREAMS layout, llama.cpp computes adjacent slots together if they come in order.
        feeds = sorted((*answers, *reads), key=lambda feed: feed.slot)
        return StepPlan(tuple(feeds), len(answers), sum(len(feed.tokens) for feed in reads), adapter)

    def _answers_beside(self, live: int, adapter: int, room: int) -> list[Feed]:
        """Return the tokens of the oldest batch answers that hardly slow the live ones."""
        waiting = [(slot, one) for slot, one in self._running.items() if one.is_batch and one.adapter == adapter and not one.reading]
        count = min(self._share.beside(live, len(waiting)), room)
        return [_feed(slot, sequence, sequence.fed + 1) for slot, sequence in waiting[:count]]

    def complete_step(self, plan: StepPlan, seconds: float, *, accepted: int = 0, is_usual: bool = True) -> None:
        """The step has been computed, with ``accepted`` right guesses, and its tokens were appended; for ``is_usual`` see
        ``PrefillBudget``."""
        self._charge(plan)
        self._turns.record_step(plan.adapter, _count_adapters(self._served()))
        for feed in plan.feeds:
            count = len(feed.tokens) + (accepted if feed.draft else 0)
            feed.sequence.fed += count
            self._slots.extend(feed.slot, count)
        self.step_seconds = seconds
        is_live = any(not feed.sequence.is_batch for feed in plan.feeds)
        self._batch_seconds = 0.0 if is_live else self._batch_seconds + seconds
        if not plan.drafted:
            self._pace.record_step(seconds, answering=plan.answering, read=plan.read, is_usual=is_usual)
            if is_usual and not plan.read:
                self._share.record_step(seconds, plan.answering, beside_live=is_live)
        if is_usual and len(plan.feeds) == plan.answering == 1 and (drafts := plan.feeds[0].sequence.lookup) is not None:
            drafts.record_step(seconds, plan.drafted, accepted)

    def finish(self, slot: int) -> None:
        """The sequence in ``slot`` has ended."""
        self._slots.release(slot, keep=self._running.pop(slot).fed)

    def restart(self, slot: int, kept: int) -> None:
        """Restart the sequence in ``slot``, because only ``kept`` tokens of its prefix are left."""
        self._slots.shorten(slot, kept)
        sequence = self._running[slot]
        sequence.cached = 0
        sequence.begin(kept, pauses=not self._slots.can_cut)

    def cancel(self, identity: int, answer: int | None = None) -> list[Sequence]:
        """Forget the sequences of a request, or of one of its answers, and return them. Unknown ones have already ended."""

        def is_meant(sequence: Sequence) -> bool:
            return sequence.id == identity and answer in (None, sequence.answer)

        waiting = [sequence for sequence in self._waiting if is_meant(sequence)]
        running = [(slot, sequence) for slot, sequence in self._running.items() if is_meant(sequence)]
        for sequence in waiting:
            self._waiting.remove(sequence)
            self._ahead.pop(sequence, None)
        for slot, _ in running:
            self.finish(slot)
        return waiting + [sequence for _, sequence in running]

    def make_room(self, plan: StepPlan) -> list[int]:
        """Evict idle slots until the plan's cells are free; return the slots to clear."""
        cleared = []
        while self._slots.free_cells < plan.answering + plan.drafted + plan.read and (slot := self._slots.evict()) is not None:
            cleared.append(slot)
        return cleared

    def preempt(self) -> int:
        """Move the youngest sequence back to the front of the queue, one of a batch if there is one; return its slot, to clear."""
        return self._pause_youngest(forget=True)

    def take_preempted(self) -> int:
        """Return how many batch sequences have lost their slots since the last call."""
        count, self._preempted = self._preempted, 0
        return count

    def _pause_youngest(self, *, forget: bool) -> int:
        """``forget``: also its tokens, which otherwise stay as a cache."""
        slot = self._youngest_of_batches()
        if slot is None:
            slot = next(reversed(self._running))
        sequence = self._running.pop(slot)
        self._preempted += sequence.is_batch
        self._slots.release(slot, keep=0 if forget else sequence.fed)
        sequence.hashed.hash_blocks()
        self._waiting.appendleft(sequence)
        return slot

    def _youngest_of_batches(self) -> int | None:
        return next((slot for slot in reversed(self._running) if self._running[slot].is_batch), None)

    def _may_replace(self, sequence: Sequence) -> bool:
        return not sequence.is_batch and self._youngest_of_batches() is not None

    def _charge(self, plan: StepPlan) -> None:
        """Record how many tokens of later prompts were read before each reader's."""
        read = {feed.slot: len(feed.tokens) for feed in plan.feeds if feed.sequence.reading}
        after = sum(read.values())
        for slot, sequence in self._served().items():
            if sequence.reading and sequence.adapter == plan.adapter:
                after -= read.get(slot, 0)
                sequence.overtaken += after

    def _is_behind(self, sequence: Sequence) -> bool:
        """Return whether to wait for another sequence that reads the same prefix, as in simultaneous chats with the same document."""
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
        # A live sequence doesn't wait for one of a batch, which reads only without live ones.
        readers = [other for other in self._running.values() if other.reading and other.salt == sequence.salt]
        readers = [other for other in readers if sequence.is_batch or not other.is_batch]
        shared = [_Ahead(other, other.hashed.common(sequence.hashed, other.bulk)) for other in readers]
        if not self._slots.can_cut:
            shared = [_Ahead(ahead.reader, ahead.reader.pause) for ahead in shared if ahead.until >= ahead.reader.pause]
        best = max(shared, key=lambda ahead: ahead.until, default=None)
        return best if best is not None and self._slots.gains(sequence.hashed, sequence.salt, best.until) else None

    def _may_begin(self, sequence: Sequence) -> bool:
        """Do not admit a sequence that would be preempted immediately."""
        if not self._running:
            return True
        unread = sum(other.bulk - other.fed for other in self._running.values() if other.reading)
        wanted = unread + len(sequence.tokens) + len(self._running) + 1
        return self._slots.room(wanted) >= wanted

    def _reads(self, running: Mapping[int, Sequence], budget: int, room: int) -> Iterator[Feed]:
        """Share the budget: the shortest prompts first, as far as earlier ones may be overtaken. An image that must be read at once may
        exceed the budget, but not ``room``."""
        readers = [_PromptReader(slot, one, one.bulk - one.fed, one.spare) for slot, one in running.items() if one.reading]
        # A prompt's last tokens may be fewer than the minimum.
        while (at := _next_reader(readers, budget)) is not None and budget >= min(MIN_TOKENS, readers[at].unread):
            reader = readers.pop(at)
            feed = _feed(reader.slot, reader.sequence, reader.sequence.fed + min(reader.unread, budget))
            count = len(feed.tokens)
            if count > room:
                continue
            for earlier in readers[:at]:
                earlier.spare -= count
            budget, room = budget - count, room - count
            yield feed


def _count_adapters(sequences: Mapping[int, Sequence]) -> Counter[int]:
    return Counter(sequence.adapter for sequence in sequences.values())


def _next_reader(readers: list[_PromptReader], budget: int) -> int | None:
    """Return the index of the shortest reader that may overtake all earlier ones; None without readers or budget."""
    best, spare = None, math.inf
    for at, reader in enumerate(readers if budget > 0 else ()):
        if min(reader.unread, budget) <= spare and (best is None or reader.unread < readers[best].unread):
            best = at
        spare = min(spare, reader.spare)
    return best


def _feed(slot: int, sequence: Sequence, end: int) -> Feed:
    image, end = sequence.hashed.piece(sequence.fed, min(end, sequence.pause) if sequence.fed < sequence.pause else end)
    return Feed(slot, sequence, sequence.fed, tuple(sequence.tokens[sequence.fed : end]), sample=end == len(sequence.tokens), image=image)
