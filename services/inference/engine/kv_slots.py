"""Tracks which tokens each slot of the KV cache holds, and finds a slot with the prefix of a new prompt.  Pure.

A slot is one of llama.cpp's sequence ids. The tokens of a finished answer stay in its slot as a cache until the slot is needed; a
later prompt of the same tenant with the same prefix reuses them. There are two layouts:

- ``STREAMS``: every slot has its own cells. A prefix in another slot is copied with the whole slot, because llama.cpp can't copy parts
  between streams.
- ``POOL``: all slots share one pool of cells. A prefix in another slot is shared by reference; the pool may run out.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from services.inference.engine.prompt_cache import HashedTokens, PromptCache, SavedPrompt
from services.inference.images.prompt_images import ImageSpan, position_of

#: A shared prefix of this length is worth copying a slot, which takes as long as computing a few tokens, or waiting a step or two
#: for a prompt that is being read.
WORTH_SHARING_TOKENS = 16


class KvLayout(StrEnum):
    STREAMS = "streams"
    POOL = "pool"


#: The last token of a prompt is always computed: the answer is drawn from its logits.
_LEFT = 1


@dataclass(frozen=True, slots=True)
class SlotPlace:
    """The slot of a prompt, and the source of its cached prefix."""

    slot: int
    kept: int
    #: The slot with the prefix; None if it is the same slot, or nothing is cached.
    source: int | None = None
    #: What to restore into the slot first; it may have more tokens than ``kept``.
    saved: memoryview | None = None
    #: Slots to clear before that.
    evicted: tuple[int, ...] = ()
    #: The images of the prompt.
    spans: tuple[ImageSpan, ...] = ()

    def position(self, count: int) -> int:
        """Return llama.cpp's position behind the prompt's first ``count`` tokens."""
        return position_of(count, self.spans)


#: Called with a slot that loses these tokens, before it does, and with the number of them that other slots hold.
OnLoss = Callable[[int, str, HashedTokens, int], object]


@dataclass(slots=True, eq=False)
class _Cells:
    """Adjacent cells that the same slots hold. Only their number matters: llama.cpp knows where they are."""

    count: int
    holders: set[int]


@dataclass(slots=True)
class _Slot:
    number: int
    #: Only prompts with the same salt share tokens; empty shares with none.
    salt: str = ""
    #: The slot holds the first ``count`` of these tokens. The sequence owns the list.
    tokens: HashedTokens = field(default_factory=lambda: HashedTokens([]))
    count: int = 0
    #: In order of the tokens. Slots with a shared prefix have the same cells there.
    cells: list[_Cells] = field(default_factory=list)
    busy: bool = False
    used_at: int = 0
    #: Its tokens are of a sequence of a batch.
    is_of_batch: bool = False


class Slots:
    """After each decision, the caller must update llama.cpp's memory at once."""

    def __init__(self, count: int, layout: KvLayout, *, capacity: int, can_cut: bool = True, cache: PromptCache | None = None) -> None:
        """``cache``: what slots have lost; ``on_loss`` fills it."""
        self.on_loss: OnLoss = lambda slot, salt, tokens, held: None
        self._cache = cache or PromptCache(0)
        self._layout = layout
        self._slots = [_Slot(number) for number in range(count)]
        #: Whether the model's memory can be cut back to any prefix. A recurrent state can't.
        self.can_cut = can_cut
        self._capacity = capacity
        self._ticks = itertools.count(1)
        self._used = 0
        #: The last result of ``_find``, until a slot changes: ``gains`` and ``place`` ask for the same tokens.
        self._found: tuple[HashedTokens, str, dict[int, int]] | None = None

    @property
    def free_cells(self) -> int:
        return self._capacity - self._used

    def room(self, wanted: int) -> int:
        """Return the number of cells that no busy slot holds; exact only if it is less than ``wanted``."""
        if self.free_cells >= wanted:
            return self.free_cells
        return self._capacity - sum(cells.count for cells in {cells for slot in self._slots if slot.busy for cells in slot.cells})

    @property
    def idle(self) -> int:
        """Return how many have no sequence."""
        return sum(not slot.busy for slot in self._slots)

    @property
    def has_one(self) -> bool:
        return len(self._slots) == 1

    def gains(self, wanted: HashedTokens, salt: str, until: int) -> bool:
        """Return whether it is worth waiting until another sequence has read the first ``until`` of these tokens."""
        enough = min(until, len(wanted.tokens) - _LEFT) - WORTH_SHARING_TOKENS
        if enough < 0 or not salt:
            return False
        return max(self._find(wanted, salt).values()) <= enough

    def place(self, wanted: HashedTokens, salt: str, *, is_batch: bool = False) -> SlotPlace | None:
        """Reserve a slot for these tokens, with the longest cached prefix; None if all are busy. Batches take what batches have left, if
        they can, so that others find what they have read."""
        idle = [slot for slot in self._slots if not slot.busy]
        if not idle:
            return None
        if is_batch:
            idle = [slot for slot in idle if slot.is_of_batch] or idle
        place = self._place(idle, wanted, salt)
        self._slots[place.slot].is_of_batch = is_batch
        return place

    def _place(self, idle: list[_Slot], wanted: HashedTokens, salt: str) -> SlotPlace:
        found = self._find(wanted, salt)
        source = max(self._slots, key=lambda slot: (found[slot.number], -slot.number))
        if (saved := self._find_saved(wanted, salt, found[source.number])) is not None:
            return self._restore(idle, *saved, wanted, salt)
        if self._layout is KvLayout.POOL:
            return self._share(idle, source, found, wanted, salt)
        target, source = self._beside(idle, source, found)
        kept = found[source.number]
        self._report_loss(target, kept if source is target else 0)
        self._take(target, salt, [])
        target.tokens, target.count = wanted, kept
        self._add_cells(target, kept)
        return SlotPlace(target.number, kept, None if source is target else source.number, spans=wanted.spans)

    def extend(self, slot: int, count: int) -> None:
        """The next ``count`` tokens of the slot have been computed."""
        holder = self._slots[slot]
        self._found = None
        holder.count += count
        holder.tokens.hash_blocks()
        self._add_cells(holder, count)

    def release(self, slot: int, *, keep: int) -> None:
        """The slot's sequence has ended; its first ``keep`` tokens stay cached."""
        holder = self._slots[slot]
        self._report_loss(holder, keep)
        self.shorten(slot, keep)
        holder.busy = False
        holder.used_at = next(self._ticks)

    def shorten(self, slot: int, keep: int) -> None:
        """Forget all but the slot's first ``keep`` tokens."""
        holder = self._slots[slot]
        kept = set(self._first_cells(holder, keep))
        self._let_go(holder, [cells for cells in holder.cells if cells not in kept])
        self._found = None
        holder.count = min(keep, holder.count)

    def evict(self) -> int | None:
        """Empty the least recently used idle slot that holds tokens, and return it; None if there is none."""
        candidates = [slot for slot in self._slots if not slot.busy and slot.count]
        if not candidates:
            return None
        oldest = min(candidates, key=lambda slot: slot.used_at)
        self._report_loss(oldest, 0)
        self._drop(oldest)
        return oldest.number

    def _find(self, wanted: HashedTokens, salt: str) -> dict[int, int]:
        if self._found is not None and self._found[0] is wanted and self._found[1] == salt:
            return self._found[2]
        most = max(0, len(wanted.tokens) - _LEFT) if salt else 0
        found = dict.fromkeys(range(len(self._slots)), 0)
        longest = 0
        for slot in self._slots if most else ():
            if slot.salt == salt:
                # Many slots have the same prefix, so the longest one so far is a good guess.
                found[slot.number] = slot.tokens.common(wanted, min(most, slot.count), guess=longest)
                longest = max(longest, found[slot.number])
        self._found = wanted, salt, found
        return found

    def _find_saved(self, wanted: HashedTokens, salt: str, above: int) -> tuple[SavedPrompt, int] | None:
        most = len(wanted.tokens) - _LEFT
        saved = self._cache.find(wanted, salt, most, above) if salt else None
        if saved is None or self._layout is KvLayout.STREAMS:
            return saved
        # All of it needs cells at first. Only idle slots can be emptied for it.
        count = len(saved[0].tokens.tokens)
        return saved if self.room(count) >= count else None

    def _restore(self, idle: list[_Slot], saved: SavedPrompt, kept: int, wanted: HashedTokens, salt: str) -> SlotPlace:
        target = self._least_missed(idle)
        self._report_loss(target, 0)
        self._take(target, salt, [])
        target.count, evicted = 0, []
        while self._layout is KvLayout.POOL and self.free_cells < len(saved.tokens.tokens) and (slot := self.evict()) is not None:
            evicted.append(slot)
        target.tokens, target.count = wanted, kept
        self._add_cells(target, kept)
        return SlotPlace(target.number, kept, saved=saved.state, evicted=tuple(evicted), spans=wanted.spans)

    def _report_loss(self, slot: _Slot, keep: int) -> None:
        """The slot will lose all but its first ``keep`` tokens."""
        if not self._cache.capacity or not slot.salt or slot.count <= keep:
            return
        tokens = slot.tokens.first(slot.count)
        others = [other for other in self._slots if other is not slot and other.salt == slot.salt]
        held = max([keep, *(other.tokens.common(tokens, min(slot.count, other.count)) for other in others)])
        self.on_loss(slot.number, slot.salt, tokens, held)

    def _share(self, idle: list[_Slot], source: _Slot, found: dict[int, int], wanted: HashedTokens, salt: str) -> SlotPlace:
        """Choose a slot in the POOL layout: the one whose loss costs least."""
        kept = found[source.number]
        if kept and not source.busy and _is_spent(source, found):
            target = source
        else:
            target = self._least_missed([slot for slot in idle if slot is not source or not kept] or idle)
        self._report_loss(target, kept if source is target else 0)
        self._take(target, salt, self._first_cells(source, kept))
        target.tokens, target.count = wanted, kept
        return SlotPlace(target.number, kept, None if target is source or not kept else source.number, spans=wanted.spans)

    def _beside(self, idle: list[_Slot], best: _Slot, found: dict[int, int]) -> tuple[_Slot, _Slot]:
        """Choose a slot and the source of its prefix, which may be the same, in the STREAMS layout."""
        near = self._least_missed(idle)
        if found[best.number] < found[near.number] + WORTH_SHARING_TOKENS:
            return near, near
        if best.busy:
            return near, best
        if _is_spent(best, found) and not self._is_lonely(best, self._busy()):
            return best, best
        # Don't overwrite a slot that is newer than the copied one.
        return (near, best) if _is_spent(near, found) or near.used_at < best.used_at else (best, best)

    def _least_missed(self, idle: list[_Slot]) -> _Slot:
        """Prefer slots next to a busy one, then empty ones, then the least recently used."""
        busy = self._busy()
        return min(idle, key=lambda slot: (self._is_lonely(slot, busy), bool(slot.count), slot.used_at if slot.count else 0, slot.number))

    def _is_lonely(self, slot: _Slot, busy: set[int]) -> bool:
        """Whether no neighbor is busy: in a step, llama.cpp only computes adjacent streams together."""
        return self._layout is KvLayout.STREAMS and bool(busy) and not busy & {slot.number - 1, slot.number + 1}

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
        # Keep the list: the slot's sequence may restart.
        slot.count, slot.cells = 0, []

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
        """Return the slot's first ``count`` cells, split off from the others."""
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
        """Join adjacent cells with the same holders; a slot that is shared often would have thousands."""
        for first, second in itertools.pairwise(tuple(slot.cells)[::-1]):
            if first.holders == second.holders:
                # The list is reversed, so ``second`` is before ``first`` in every holder.
                second.count += first.count
                for number in first.holders:
                    self._slots[number].cells.remove(first)


def _is_spent(slot: _Slot, found: dict[int, int]) -> bool:
    """Whether the slot holds little beyond the prompt's prefix."""
    return slot.count - found[slot.number] < WORTH_SHARING_TOKENS
