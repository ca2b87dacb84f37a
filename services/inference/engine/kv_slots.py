"""Which slot holds which tokens in the model's memory, and where a new prompt finds its beginning already computed.  Pure.

A slot is one of llama.cpp's sequence ids. What a finished answer leaves in its slot stays there as a cache until somebody needs
the slot; a later prompt of the same tenant that begins with the same tokens goes on from there. Two layouts:

- ``EXACT``: every slot has cells of its own. A prefix that lies in another slot is copied, the whole slot at once, because
  llama.cpp copies between streams in no other way.
- ``FAST``: all slots share one pool of cells. A prefix that lies in another slot is shared by reference; the pool may run out.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

#: Copying a slot moves all of its cells; below this many tokens computing them anew is about as fast.
WORTH_COPYING_TOKENS = 64
#: So many tokens of a prompt that somebody else is reading just now are worth a wait, which is of a step or a few.
WORTH_SHARING_TOKENS = 16
#: A slot whose own prefix is so much shorter than the best one is still taken if it lies nearer to the busy ones: in one step
#: llama.cpp computes only neighbours together.
NEGLIGIBLE_TOKENS = 32
#: Prefixes are compared in C, so many tokens at a time.
_STRIDE = 256


class KvMode(StrEnum):
    EXACT = "exact"
    FAST = "fast"


#: How many tokens of a prompt are computed at least. The answer is drawn from what the last one gives; and in the exact layout it must
#: not be computed alone, which llama.cpp does in another way than several at once.
_LEFT = {KvMode.EXACT: 2, KvMode.FAST: 1}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prompt goes, and how it gets what is computed of it already."""

    slot: int
    #: So many of its first tokens need not be computed.
    kept: int
    #: The slot that holds them; None where it is the same one, or there are none.
    source: int | None = None


@dataclass(slots=True)
class _Slot:
    number: int
    #: Whose tokens these are; empty shares with nobody.
    salt: str = ""
    tokens: list[int] = field(default_factory=list)
    #: How many of the first ones came as a prompt. In the exact layout the others serve nobody: what was computed one by one differs
    #: in its last bits from what is read in bulk.
    prompt: int = 0
    #: Of each token: which cell it lies in. Slots that share a prefix have the same cells there.
    cells: list[int] = field(default_factory=list)
    busy: bool = False
    #: Larger is later.
    used_at: int = 0


class Slots:
    """Owned by the loop. What it decides, the caller has to do to llama.cpp's memory at once."""

    def __init__(self, count: int, mode: KvMode, *, capacity: int, reuse: bool = True) -> None:
        self._mode = mode
        self._slots = [_Slot(number) for number in range(count)]
        #: Models with a recurrent state cannot go back to the middle of what they have read.
        self._reuse = reuse
        #: Cells of all slots together.
        self._capacity = capacity
        self._ticks = itertools.count(1)
        self._cells = itertools.count()
        #: Of every cell in use: how many slots have it.
        self._holders: Counter[int] = Counter()

    @property
    def free_cells(self) -> int:
        return self._capacity - len(self._holders)

    def room(self, wanted: int) -> int:
        """The cells that no busy slot holds, exactly where they are fewer than wanted: counting them takes long."""
        if self.free_cells >= wanted:
            return self.free_cells
        return self._capacity - len({cell for slot in self._slots if slot.busy for cell in slot.cells})

    @property
    def has_idle(self) -> bool:
        return any(not slot.busy for slot in self._slots)

    def gains(self, tokens: list[int], salt: str, until: int) -> bool:
        """Whether it would be worth a wait until somebody has read the first ``until`` of these tokens."""
        held = max(self._common(slot, tokens, salt) for slot in self._slots)
        worth = WORTH_SHARING_TOKENS if self._mode is KvMode.FAST else WORTH_COPYING_TOKENS
        return bool(self._reuse and salt) and min(until, len(tokens) - _LEFT[self._mode]) - held >= worth

    def place(self, tokens: list[int], salt: str) -> Place | None:
        """A slot for these tokens, which is busy from now on and holds what is kept of them; None when all are busy."""
        idle = [slot for slot in self._slots if not slot.busy]
        if not idle:
            return None
        found = {slot.number: self._common(slot, tokens, salt) for slot in self._slots}
        source = max(self._slots, key=lambda slot: (found[slot.number], -slot.number))
        if self._mode is KvMode.FAST:
            return self._share(idle, source, found[source.number], tokens, salt)
        target, source = self._beside(idle, source, found)
        kept = found[source.number]
        self._take(target, tokens[:kept], salt, self._new_cells(kept))
        target.prompt = len(tokens)
        return Place(target.number, kept, None if source is target else source.number)

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        """These tokens have been computed behind the slot's others."""
        holder = self._slots[slot]
        cells = self._new_cells(len(tokens))
        holder.tokens.extend(tokens)
        holder.cells.extend(cells)
        self._holders.update(cells)

    def release(self, slot: int, *, keep: int) -> None:
        """Its sequence is over; of what it holds, so many tokens may serve a later prompt."""
        holder = self._slots[slot]
        self._let_go(holder.cells[keep:])
        del holder.tokens[keep:], holder.cells[keep:]
        holder.busy = False
        holder.used_at = next(self._ticks)

    def empty(self, slot: int) -> None:
        """Whatever it held is not there any more."""
        self._drop(self._slots[slot])

    def evict(self) -> int | None:
        """The idle slot that was used longest ago and holds something, emptied; None if there is none."""
        candidates = [slot for slot in self._slots if not slot.busy and slot.tokens]
        if not candidates:
            return None
        oldest = min(candidates, key=lambda slot: slot.used_at)
        self._drop(oldest)
        return oldest.number

    # --- inside -------------------------------------------------------------------------------------------------------------

    def _common(self, slot: _Slot, tokens: list[int], salt: str) -> int:
        if not self._reuse or not salt or slot.salt != salt:
            return 0
        most = max(0, len(tokens) - _LEFT[self._mode])
        return common_prefix(slot.tokens, tokens[: most if self._mode is KvMode.FAST else min(most, slot.prompt)])

    def _share(self, idle: list[_Slot], source: _Slot, kept: int, tokens: list[int], salt: str) -> Place:
        """In one pool: any slot will do, and the one whose loss costs least is taken."""
        if kept and not source.busy and len(source.tokens) - kept < NEGLIGIBLE_TOKENS:
            target = source  # nothing of it is worth keeping beside the prompt
        else:
            target = self._least_missed([slot for slot in idle if slot is not source or not kept] or idle)
        cells = source.cells[:kept]
        self._take(target, tokens[:kept], salt, cells)
        return Place(target.number, kept, None if target is source or not kept else source.number)

    def _beside(self, idle: list[_Slot], best: _Slot, found: dict[int, int]) -> tuple[_Slot, _Slot]:
        """With cells of its own for every slot: where the prompt goes, and which slot has its beginning, which may be the same."""
        most = max(found[slot.number] for slot in idle)
        if found[best.number] >= most + WORTH_COPYING_TOKENS:
            return self._least_missed(idle), best
        owner = self._least_missed([slot for slot in idle if found[slot.number] >= most - NEGLIGIBLE_TOKENS])
        others = [slot for slot in idle if slot is not owner]
        if others and min(found[owner.number], min(owner.prompt, len(owner.tokens)) - found[owner.number]) >= WORTH_COPYING_TOKENS:
            # Another chat that begins with the same page; it may go on.
            other = self._least_missed(others)
            if not other.tokens or other.used_at < owner.used_at:
                return other, owner
        return owner, owner

    def _least_missed(self, idle: list[_Slot]) -> _Slot:
        """A neighbour of a busy one where there is one; of these an empty one, or else the one that was used longest ago."""
        busy = {slot.number for slot in self._slots if slot.busy}

        def missed(slot: _Slot) -> tuple[bool, bool, int, int]:
            lonely = self._mode is KvMode.EXACT and bool(busy) and not busy & {slot.number - 1, slot.number + 1}
            return (lonely, bool(slot.tokens), slot.used_at if slot.tokens else 0, slot.number)

        return min(idle, key=missed)

    def _take(self, target: _Slot, tokens: Sequence[int], salt: str, cells: list[int]) -> None:
        self._holders.update(cells)  # before those of the target are let go, which may be the same
        self._drop(target)
        target.salt, target.tokens, target.cells, target.busy = salt, list(tokens), cells, True
        target.used_at = next(self._ticks)

    def _drop(self, slot: _Slot) -> None:
        self._let_go(slot.cells)
        slot.tokens, slot.cells = [], []

    def _let_go(self, cells: Sequence[int]) -> None:
        for cell in cells:
            if self._holders[cell] == 1:
                del self._holders[cell]
            else:
                self._holders[cell] -= 1

    def _new_cells(self, count: int) -> list[int]:
        return list(itertools.islice(self._cells, count))


def common_prefix(one: list[int], other: list[int]) -> int:
    """How many of their first tokens are the same. Both are lists: a list equals no tuple."""
    most, at = min(len(one), len(other)), 0
    while at < most and one[at : at + _STRIDE] == other[at : at + _STRIDE]:
        at += _STRIDE
    if at >= most:
        return most
    return at + next((offset for offset, pair in enumerate(_pairs(one, other, at)) if pair[0] != pair[1]), most - at)


def _pairs(one: list[int], other: list[int], start: int) -> Iterator[tuple[int, int]]:
    return zip(one[start : start + _STRIDE], other[start : start + _STRIDE], strict=False)
