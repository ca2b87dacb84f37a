"""Decides which block of a file to get from whom: ``CopyPlan`` for a worker, ``Leases`` for the gateway. Pure: the caller brings the clock.

Sets of blocks are the bits of an int, so that a file of 40,000 blocks costs 5 KB for each set and a microsecond for each operation.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final

Blocks = int

#: Requests that wait at one peer, and at all of them. Another worker can have the rest of a line.
PER_PEER: Final = 2
MAX_ASKED: Final = 3
#: The only peer, whose whole line we may use.
PER_ONLY_PEER: Final = 4
MAX_PEERS: Final = 16
#: A block is asked of a second peer when the first lets it wait so many times longer than usual, ...
LATE: Final = 4.0
#: ... but not before this, and not before the second while nothing is known.
MIN_LATE_SECONDS, LATE_SECONDS = 1.0, 5.0
#: A peer that refused, because it sends enough to others, is asked again after this.
BUSY_SECONDS: Final = 0.25
#: A peer that refused so often in a row is not prompt.
MAX_REFUSALS: Final = 4
#: After so long without anything to ask for, the gateway may lease blocks that a peer should have.
IDLE_SECONDS: Final = 1.0
MAX_ORPHANS: Final = 64
#: Leases out at a time: few, so that the origin soon sends whole blocks, and a late worker holds up little.
MAX_LEASES: Final = 8
LEASE_SECONDS: Final = 30.0
#: The gateway leases a block again if it was delivered so long ago and its worker still does not offer it.
ORPHAN_SECONDS: Final = 5.0
#: A worker that has asked for a lease within this time is waiting for one.
WAITING_SECONDS: Final = 2.0
#: One report of a peer may be a lie itself.
REPORTS: Final = 2


def all_blocks(count: int) -> Blocks:
    return (1 << count) - 1


def numbers_of(blocks: Blocks) -> Iterator[int]:
    """Yield the numbers of the blocks, the lowest first."""
    while blocks:
        lowest = blocks & -blocks
        yield lowest.bit_length() - 1
        blocks ^= lowest


@dataclass(frozen=True, slots=True)
class BlockRequest:
    peer: bytes
    block: int


@dataclass(slots=True)
class _Source:
    have: Blocks = 0
    #: Block -> when it was asked.
    asked: dict[int, float] = field(default_factory=dict)
    #: Requests that wait at its uplink, as it last said.
    queue: int = 0
    busy_until: float = 0.0
    #: Times that it refused since its last block.
    refusals: int = 0
    #: Seconds from a request to the whole block, smoothed.
    delay_seconds: float = 0.0


class CopyPlan:
    """What a worker has, has asked of which peer, and asks next: the rarest block, of the peer with the shortest queue."""

    def __init__(self, count: int, rng: random.Random, have: Blocks = 0) -> None:
        self.missing = all_blocks(count) & ~have
        #: Those that may be asked for.
        self.known: Blocks = -1
        self._count = count
        self._rng = rng
        self._sources: dict[bytes, _Source] = {}
        #: At n the blocks that n peers have.
        self._by_copies: list[Blocks] = [all_blocks(count)]
        #: Those that we read from the origin.
        self._leased: Blocks = 0
        self._idle_since: float | None = None

    @property
    def peers(self) -> frozenset[bytes]:
        return frozenset(self._sources)

    def heard(self, peer: bytes, blocks: Blocks, queue: int) -> None:
        """A peer has these blocks, too."""
        if peer not in self._sources and len(self._sources) >= MAX_PEERS:
            return
        source = self._sources.setdefault(peer, _Source())
        source.queue = queue
        fresh = blocks & all_blocks(self._count) & ~source.have
        source.have |= fresh
        self._by_copies.append(0)
        for copies in range(len(self._by_copies) - 2, -1, -1):
            moved = self._by_copies[copies] & fresh
            self._by_copies[copies] ^= moved
            self._by_copies[copies + 1] |= moved
        if not self._by_copies[-1]:
            self._by_copies.pop()

    def drop(self, peer: bytes) -> None:
        """The peer is gone, or not to be trusted."""
        source = self._sources.pop(peer, _Source())
        for copies in range(1, len(self._by_copies)):
            moved = self._by_copies[copies] & source.have
            self._by_copies[copies] ^= moved
            self._by_copies[copies - 1] |= moved

    def lease(self, block: int) -> list[BlockRequest]:
        """We read the block from the origin. Return the requests to cancel."""
        self._leased |= 1 << block
        return self._withdraw(block)

    def unlease(self, block: int) -> None:
        """The origin did not give it."""
        self._leased &= ~(1 << block)

    def received(self, block: int, peer: bytes | None, now: float) -> list[BlockRequest]:
        """A block is stored, from a peer or from the origin. Return the requests to cancel."""
        self.missing &= ~(1 << block)
        self._leased &= ~(1 << block)
        source = None if peer is None else self._sources.get(peer)
        if source is not None and (asked_at := source.asked.pop(block, None)) is not None:
            took = now - asked_at
            source.refusals, self._idle_since = 0, None
            source.delay_seconds = 0.7 * source.delay_seconds + 0.3 * took if source.delay_seconds else took
        return self._withdraw(block)

    def refused(self, peer: bytes, block: int, now: float) -> None:
        """The peer sends enough to others. They will have it, too."""
        if (source := self._sources.get(peer)) is not None:
            source.asked.pop(block, None)
            source.busy_until = now + BUSY_SECONDS
            source.refusals += 1

    def choose(self, now: float) -> BlockRequest | None:
        """Return the next request, which counts as sent; None if nothing is to be asked for now."""
        asked = sum(1 << block for block in {block for source in self._sources.values() for block in source.asked})
        late = self._late(now)
        running = sum(len(source.asked) for source in self._sources.values()) - late.bit_count()
        per_peer, most = (PER_ONLY_PEER, PER_ONLY_PEER) if len(self._sources) == 1 else (PER_PEER, MAX_ASKED)
        wanted = self.missing & self.known & ~self._leased & ~(asked & ~late)
        # A second peer is asked for what is late, and not the late one for more.
        prompt = {peer: source for peer, source in self._sources.items() if not any(late >> block & 1 for block in source.asked)}
        ready = [
            (len(source.asked), source.queue, self._rng.random(), peer)
            for peer, source in prompt.items()
            if source.have & wanted and source.busy_until <= now and len(source.asked) < per_peer
        ]
        if running >= most:
            self._idle_since = None
            return None
        if not ready:
            self._idle_since = now if self._idle_since is None else self._idle_since
            return None
        peer = min(ready)[-1]
        source = self._sources[peer]
        block = self._rarest(source.have & wanted & ~late or source.have & wanted)
        source.asked[block] = now
        return BlockRequest(peer, block)

    def orphans(self, now: float) -> tuple[int, ...]:
        """Return blocks that no prompt peer offers, after a while without any to ask for: who had them left, lied or is slow."""
        if self._idle_since is None or now - self._idle_since < IDLE_SECONDS:
            return ()
        late, orphans = self._late(now), self.missing & ~self._leased
        for source in self._sources.values():
            if source.refusals < MAX_REFUSALS and not any(late >> block & 1 for block in source.asked):
                orphans &= ~source.have
        start = self._rng.randrange(self._count)
        later, earlier = numbers_of(orphans >> start), numbers_of(orphans & all_blocks(start))
        return tuple(islice(chain((start + block for block in later), earlier), MAX_ORPHANS))

    def lowest(self, most: int) -> tuple[int, ...]:
        """Return the first blocks to read from the origin, if there are no peers."""
        return tuple(islice(numbers_of(self.missing & ~self._leased), most))

    def _withdraw(self, block: int) -> list[BlockRequest]:
        asked = [peer for peer, source in self._sources.items() if source.asked.pop(block, None) is not None]
        return [BlockRequest(peer, block) for peer in asked]

    def _rarest(self, blocks: Blocks) -> int:
        """Return one of those that the fewest peers have."""
        rarest = next(found for level in self._by_copies if (found := level & blocks))
        start = self._rng.randrange(self._count)
        later = rarest >> start
        return start + next(numbers_of(later)) if later else next(numbers_of(rarest))

    def _late(self, now: float) -> Blocks:
        """Return what one peer lets wait much longer than usual."""
        delays = sorted(source.delay_seconds for source in self._sources.values() if source.delay_seconds)
        limit = max(MIN_LATE_SECONDS, LATE * delays[len(delays) // 2]) if delays else LATE_SECONDS
        late = twice = seen = 0
        for source in self._sources.values():
            for block, asked_at in source.asked.items():
                twice |= seen & 1 << block
                seen |= 1 << block
                late |= (now - asked_at > limit) << block
        return late & ~twice


@dataclass(slots=True)
class _Lease:
    worker: str
    since: float
    left: Blocks


class Leases:
    """Who may read which blocks of a file from the origin. Each block once, unless its worker leaves, is late, or is not to be trusted."""

    def __init__(self, count: int) -> None:
        self._free = all_blocks(count)
        self._held: list[_Lease] = []
        self._delivered: dict[str, Blocks] = {}
        #: Block -> when it was delivered, for ORPHAN_SECONDS.
        self._recent: dict[int, float] = {}
        #: The leases that each worker has had: the next one goes to the one with the fewest.
        self._taken: dict[str, int] = {}
        self._asked_at: dict[str, float] = {}
        self._reports: dict[str, set[str]] = {}

    def take(self, worker: str, now: float, orphans: Sequence[int] = (), *, most: int = 1) -> tuple[int, ...]:
        """Return up to ``most`` blocks for the worker: in a row that nobody has had, or of the orphans."""
        self._expire(now)
        blocks = self._next(orphans, most)
        if not blocks or len(self._reports.get(worker, ())) >= REPORTS:
            return ()  # and it holds up nobody
        mine, self._asked_at[worker] = self._taken.setdefault(worker, 0), now
        holders = {lease.worker for lease in self._held}
        waiting = [other for other, asked_at in self._asked_at.items() if now - asked_at < WAITING_SECONDS and other not in holders]
        if len(self._held) >= MAX_LEASES or any(self._taken[other] < mine for other in waiting):
            return ()
        taken = sum(1 << block for block in blocks)
        self._held.append(_Lease(worker, now, taken))
        self._free &= ~taken
        self._delivered = {name: had & ~taken for name, had in self._delivered.items()}
        self._taken[worker] += 1
        return tuple(blocks)

    def had(self, worker: str, blocks: Blocks) -> None:
        """The worker offers these blocks, which it has not read from the origin now."""
        if len(self._reports.get(worker, ())) < REPORTS:
            self._free &= ~blocks
            self._delivered[worker] = self._delivered.get(worker, 0) | blocks

    def done(self, worker: str, block: int, now: float) -> None:
        """The worker has the block and offers it to others. Blocks that it does not hold are ignored."""
        for lease in self._held:
            if lease.worker == worker and lease.left >> block & 1:
                lease.left ^= 1 << block
                lease.since = self._recent[block] = now
                self._delivered[worker] = self._delivered.get(worker, 0) | 1 << block
        self._held = [lease for lease in self._held if lease.left]

    def gone(self, worker: str) -> None:
        """Give the worker's leases to others."""
        self._asked_at.pop(worker, None)
        self._return(worker)

    def report(self, worker: str, reporter: str) -> bool:
        """A worker lied or was silent, says another one. Return whether enough of them say so for the first time: then its blocks are
        leased again, since nobody else may have them."""
        reporters = self._reports.setdefault(worker, set())
        is_new = reporter not in reporters and len(reporters) == REPORTS - 1
        if len(reporters) < REPORTS:
            reporters.add(reporter)
        if is_new:
            self._return(worker)
            self._free |= self._delivered.pop(worker, 0)
        return is_new

    def _next(self, orphans: Sequence[int], most: int) -> Sequence[int]:
        if self._free:
            first = next(numbers_of(self._free))
            free = self._free >> first & all_blocks(most)
            row = (~free & free + 1).bit_length() - 1
            return range(first, first + row)
        delivered = held = 0
        for had in self._delivered.values():
            delivered |= had
        for lease in self._held:
            held |= lease.left
        delivered &= ~held
        return sorted(block for block in orphans if delivered >> block & 1 and block not in self._recent)[:most]

    def _expire(self, now: float) -> None:
        self._recent = {block: when for block, when in self._recent.items() if now - when < ORPHAN_SECONDS}
        for lease in [lease for lease in self._held if now - lease.since > LEASE_SECONDS]:
            self._held.remove(lease)
            self._free |= lease.left

    def _return(self, worker: str) -> None:
        for lease in [lease for lease in self._held if lease.worker == worker]:
            self._held.remove(lease)
            self._free |= lease.left
