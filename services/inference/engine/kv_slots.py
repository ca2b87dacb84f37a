"""Which slot holds which tokens in the model's memory, and where a new prompt finds its beginning already computed.  Pure.

A slot is one of llama.cpp's sequence ids. What a finished answer leaves in its slot stays there as a cache until somebody needs
the slot; a later prompt of the same tenant that begins with the same tokens goes on from there. Two layouts:

- ``EXACT``: every slot has cells of its own. A prefix that lies in another slot is copied, the whole slot at once, because
  llama.cpp copies between streams in no other way.
- ``FAST``: all slots share one pool of cells. A prefix that lies in another slot is shared by reference; the pool may run out.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from services.inference.engine.hashed_tokens import HashedTokens

#: So many tokens are worth a copy of all cells of a slot, which takes as long as computing a few; and, of a prompt that somebody else
#: is reading just now, a wait of a step or two.
WORTH_SHARING_TOKENS = 16


class KvMode(StrEnum):
    EXACT = "exact"
    FAST = "fast"


#: How many tokens of a prompt are computed at least: the answer is drawn from what the last one gives.
_LEFT = 1


@dataclass(frozen=True, slots=True)
class SlotPlace:
    """Where a prompt goes, and how it gets what is computed of it already."""

    slot: int
    #: So many of its first tokens need not be computed.
    kept: int
    #: The slot that holds them; None where it is the same one, or there are none.
    source: int | None = None


@dataclass(slots=True, eq=False)
class _Cells:
    """Neighbouring cells that the same slots hold. They are counted and not numbered: llama.cpp knows where they are."""

    count: int
    #: Numbers of slots.
    holders: set[int]


@dataclass(slots=True)
class _Slot:
    number: int
    #: Whose tokens these are; empty shares with nobody.
    salt: str = ""
    #: What it holds are the first ``count`` of these. The list is the sequence's, so nothing is copied.
    tokens: HashedTokens = field(default_factory=lambda: HashedTokens([]))
    count: int = 0
    #: Of the tokens, in their order. Slots that share a prefix have the same cells there.
    cells: list[_Cells] = field(default_factory=list)
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
        #: Cells that any slot holds.
        self._used = 0
        #: What the slots hold of some tokens, until that changes: who asks for a place asked before whether a wait is worth it.
        self._found: tuple[HashedTokens, str, dict[int, int]] | None = None

    @property
    def free_cells(self) -> int:
        return self._capacity - self._used

    def room(self, wanted: int) -> int:
        """The cells that no busy slot holds, exactly where they are fewer than wanted."""
        if self.free_cells >= wanted:
            return self.free_cells
        return self._capacity - sum(cells.count for cells in {cells for slot in self._slots if slot.busy for cells in slot.cells})

    @property
    def has_idle(self) -> bool:
        return any(not slot.busy for slot in self._slots)

    def gains(self, wanted: HashedTokens, salt: str, until: int) -> bool:
        """Whether it would be worth a wait until somebody has read the first ``until`` of these tokens."""
        enough = min(until, len(wanted.tokens) - _LEFT) - WORTH_SHARING_TOKENS
        if enough < 0 or not self._reuse or not salt:
            return False
        return max(self._find(wanted, salt).values()) <= enough

    def place(self, wanted: HashedTokens, salt: str) -> SlotPlace | None:
        """A slot for these tokens, which is busy from now on and holds what is kept of them; None when all are busy."""
        idle = [slot for slot in self._slots if not slot.busy]
        if not idle:
            return None
        found = self._find(wanted, salt)
        source = max(self._slots, key=lambda slot: (found[slot.number], -slot.number))
        if self._mode is KvMode.FAST:
            return self._share(idle, source, found, wanted, salt)
        target, source = self._beside(idle, source, found)
        kept = found[source.number]
        self._take(target, salt, [])
        target.tokens, target.count = wanted, kept
        self._add_cells(target, kept)
        return SlotPlace(target.number, kept, None if source is target else source.number)

    def extend(self, slot: int, count: int) -> None:
        """The next ``count`` of the tokens that were placed there have been computed."""
        holder = self._slots[slot]
        self._found = None
        holder.count += count
        holder.tokens.hash_blocks()
        self._add_cells(holder, count)

    def release(self, slot: int, *, keep: int) -> None:
        """Its sequence is over; of what it holds, so many tokens may serve a later prompt."""
        holder = self._slots[slot]
        kept = set(self._first_cells(holder, keep))
        self._let_go(holder, [cells for cells in holder.cells if cells not in kept])
        self._found = None
        holder.count = min(keep, holder.count)
        holder.busy = False
        holder.used_at = next(self._ticks)

    def empty(self, slot: int) -> None:
        """Whatever it held is not there any more."""
        self._drop(self._slots[slot])

    def evict(self) -> int | None:
        """The idle slot that was used longest ago and holds something, emptied; None if there is none."""
        candidates = [slot for slot in self._slots if not slot.busy and slot.count]
        if not candidates:
            return None
        oldest = min(candidates, key=lambda slot: slot.used_at)
        self._drop(oldest)
        return oldest.number

    # --- inside -------------------------------------------------------------------------------------------------------------

    def _find(self, wanted: HashedTokens, salt: str) -> dict[int, int]:
        """How many of these tokens each slot holds, by its number."""
        if self._found is not None and self._found[0] is wanted and self._found[1] == salt:
            return self._found[2]
        most = max(0, len(wanted.tokens) - _LEFT) if self._reuse and salt else 0
        found = dict.fromkeys(range(len(self._slots)), 0)
        longest = 0
        for slot in self._slots if most else ():
            if slot.salt == salt:
                # Many hold the same page of a tenant's and go on in their own way.
                found[slot.number] = slot.tokens.common(wanted, min(most, slot.count), guess=longest)
                longest = max(longest, found[slot.number])
        self._found = wanted, salt, found
        return found

    def _share(self, idle: list[_Slot], source: _Slot, found: dict[int, int], wanted: HashedTokens, salt: str) -> SlotPlace:
        """In one pool: any slot will do, and the one whose loss costs least is taken."""
        kept = found[source.number]
        if kept and not source.busy and _is_spent(source, found):
            target = source  # nothing of it is worth keeping beside the prompt
        else:
            target = self._least_missed([slot for slot in idle if slot is not source or not kept] or idle)
        self._take(target, salt, self._first_cells(source, kept))
        target.tokens, target.count = wanted, kept
        return SlotPlace(target.number, kept, None if target is source or not kept else source.number)

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
        return min(idle, key=lambda slot: (self._is_lonely(slot, busy), bool(slot.count), slot.used_at if slot.count else 0, slot.number))

    def _is_lonely(self, slot: _Slot, busy: set[int]) -> bool:
        """No neighbour of a busy one, where there is any: in one step llama.cpp computes only neighbours together."""
        return self._mode is KvMode.EXACT and bool(busy) and not busy & {slot.number - 1, slot.number + 1}

    def _busy(self) -> set[int]:
        return {slot.number for slot in self._slots if slot.busy}

    def _take(self, target: _Slot, salt: str, cells: list[_Cells]) -> None:
        for shared in cells:
            shared.holders.add(target.number)
        self._let_go(target, [mine for mine in target.cells if mine not in set(cells)])
        self._found = None
        target.salt, target.cells, target.busy = salt, cells, True
        target.used_at = next(self._ticks)

    def _drop(self, slot: _Slot) -> None:
        self._let_go(slot, slot.cells)
        self._found = None
        # The list stays: the sequence that is there may begin anew.
        slot.count, slot.cells = 0, []

    # --- cells ----------------------------------------------------------------------------------------------------------------

    def _add_cells(self, slot: _Slot, count: int) -> None:
        self._used += count
        if slot.cells and slot.cells[-1].holders == {slot.number}:
            slot.cells[-1].count += count
        elif count:
            slot.cells.append(_Cells(count, {slot.number}))

    def _let_go(self, slot: _Slot, dropped: Iterable[_Cells]) -> None:
        gone = set(dropped)
        slot.cells = [cells for cells in slot.cells if cells not in gone]
        for cells in gone:
            cells.holders.remove(slot.number)
            if not cells.holders:
                self._used -= cells.count

    def _first_cells(self, slot: _Slot, count: int) -> list[_Cells]:
        """The slot's first ``count`` cells, cut from the others where they are together."""
        self._join(slot)
        found: list[_Cells] = []
        for cells in tuple(slot.cells):
            if count == 0:
                break
            if cells.count > count:
                self._cut(cells, count)
            count -= cells.count
            found.append(cells)
        return found

    def _cut(self, cells: _Cells, count: int) -> None:
        rest = _Cells(cells.count - count, set(cells.holders))
        cells.count = count
        for number in cells.holders:
            held = self._slots[number].cells
            held.insert(held.index(cells) + 1, rest)

    def _join(self, slot: _Slot) -> None:
        """Neighbours with the same holders become one again; a slot that is shared often would have thousands."""
        for first, second in itertools.pairwise(tuple(slot.cells)[::-1]):
            if first.holders == second.holders:
                # From the end, so ``second`` lies before ``first``, in each of their holders.
                second.count += first.count
                for number in first.holders:
                    self._slots[number].cells.remove(first)


def _is_spent(slot: _Slot, found: dict[int, int]) -> bool:
    """Nothing that it holds is worth keeping beside the prompt."""
    return slot.count - found[slot.number] < WORTH_SHARING_TOKENS
