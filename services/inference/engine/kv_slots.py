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

#: So many tokens are worth a copy of all cells of a slot, which takes as long as computing a few; and, of a prompt that somebody else
#: is reading just now, a wait of a step or two.
WORTH_SHARING_TOKENS = 16
#: Prefixes are compared in C, so many tokens at a time.
_STRIDE = 256


class KvMode(StrEnum):
    EXACT = "exact"
    FAST = "fast"


#: How many tokens of a prompt are computed at least: the answer is drawn from what the last one gives.
_LEFT = 1


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
        return bool(self._reuse and salt) and min(until, len(tokens) - _LEFT) - held >= WORTH_SHARING_TOKENS

    def place(self, tokens: list[int], salt: str) -> Place | None:
        """A slot for these tokens, which is busy from now on and holds what is kept of them; None when all are busy."""
        idle = [slot for slot in self._slots if not slot.busy]
        if not idle:
            return None
        found = {slot.number: self._common(slot, tokens, salt) for slot in self._slots}
        source = max(self._slots, key=lambda slot: (found[slot.number], -slot.number))
        if self._mode is KvMode.FAST:
            return self._share(idle, source, found, tokens, salt)
        target, source = self._beside(idle, source, found)
        kept = found[source.number]
        self._take(target, tokens[:kept], salt, self._new_cells(kept))
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
        return common_prefix(slot.tokens, tokens[: max(0, len(tokens) - _LEFT)])

    def _share(self, idle: list[_Slot], source: _Slot, found: dict[int, int], tokens: list[int], salt: str) -> Place:
        """In one pool: any slot will do, and the one whose loss costs least is taken."""
        kept = found[source.number]
        if kept and not source.busy and _is_spent(source, found):
            target = source  # nothing of it is worth keeping beside the prompt
        else:
            target = self._least_missed([slot for slot in idle if slot is not source or not kept] or idle)
        cells = source.cells[:kept]
        self._take(target, tokens[:kept], salt, cells)
        return Place(target.number, kept, None if target is source or not kept else source.number)

    def _beside(self, idle: list[_Slot], best: _Slot, found: dict[int, int]) -> tuple[_Slot, _Slot]:
        """With cells of its own for every slot: where the prompt goes, and which slot has its beginning, which may be the same."""
        near = self._least_missed(idle)
        if found[best.number] < found[near.number] + WORTH_SHARING_TOKENS:
            return near, near
        if best.busy:
            return near, best
        if _is_spent(best, found) and not self._is_lonely(best, self._busy()):
            return best, best
        # What is written over had better not be newer than what is copied.
        return (near, best) if _is_spent(near, found) or near.used_at < best.used_at else (best, best)

    def _least_missed(self, idle: list[_Slot]) -> _Slot:
        """One that is not lonely where there is one; of these an empty one, or else the one that was used longest ago."""
        busy = self._busy()
        return min(idle, key=lambda slot: (self._is_lonely(slot, busy), bool(slot.tokens), slot.used_at if slot.tokens else 0, slot.number))

    def _is_lonely(self, slot: _Slot, busy: set[int]) -> bool:
        """No neighbour of a busy one, where there is any: in one step llama.cpp computes only neighbours together."""
        return self._mode is KvMode.EXACT and bool(busy) and not busy & {slot.number - 1, slot.number + 1}

    def _busy(self) -> set[int]:
        return {slot.number for slot in self._slots if slot.busy}

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


def _is_spent(slot: _Slot, found: dict[int, int]) -> bool:
    """Nothing that it holds is worth keeping beside the prompt."""
    return len(slot.tokens) - found[slot.number] < WORTH_SHARING_TOKENS


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
