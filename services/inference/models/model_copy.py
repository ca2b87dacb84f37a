"""Copies a file of a model from other workers and its origin: ``ModelCopy`` gets one, ``ModelShare`` lets other workers read.

The sidecar moves the blocks of peers and checks each; ``CopyPlan`` chooses them. Blocks of the origin come through this process.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

from pyhyperswarm import SidecarLost, SwarmError
from pyhyperswarm.block_copies import BLOCK_BYTES, BlockCopies, CopyFile, Ending, WholeFile

from shared import errors
from shared.api.model_copies import MAX_LEASED_BLOCKS
from shared.identity import copy_grants, node_keys
from shared.identity.trust import Trust
from shared.models.copy_plan import BUSY_SECONDS, MAX_PEERS, BlockRequest, Blocks, CopyPlan, all_blocks
from shared.node.lifecycle import background
from shared.telemetry import logs
from shared.timing.backoff import Backoff

#: For so long a peer that lied is not asked for this file, ...
DROP_SECONDS: Final = 3600.0
#: ... and one that was silent: after the longest pause it is reported, too.
SILENCE_BACKOFF: Final = Backoff(first_seconds=5.0, longest_seconds=300.0)
#: More peers are looked for this often, and first sooner; those that were not reached in the meantime are given up.
FIND_SECONDS: Final = 10.0
FIND_BACKOFF: Final = Backoff(first_seconds=0.25, longest_seconds=FIND_SECONDS)
TICK_SECONDS: Final = BUSY_SECONDS
#: Pauses before the next attempt: without a lease, after a failure of the origin, and when the sidecar has died or come.
LEASE_SECONDS, ORIGIN_SECONDS, RESTART_SECONDS = 0.5, 5.0, 0.5
#: In a row without a block from anywhere.
MAX_FAILURES: Final = 16
#: What is read from the origin at the same time, ...
ORIGIN_READERS: Final = 2
#: ... and for about how long before the next lease.
RANGE_SECONDS: Final = 0.5
#: What may be asked for at once, whatever the rate.
BURST_BLOCKS: Final = 2

_log = logs.get()


@dataclass(frozen=True, slots=True)
class CopyPeer:
    """Another worker that has some of the file, and the gateway's grant to read it there."""

    key: bytes
    grant: bytes


@dataclass(frozen=True, slots=True)
class CopyProgress:
    bytes: int
    from_origin: int
    from_peers: int
    peers: int


class Origin(Protocol):
    """Where the file comes from, and the gateway that says who reads which block there."""

    async def lease(self, done: Sequence[int], orphans: Sequence[int], most: int, have: int) -> Sequence[int]:
        """Report the leased blocks that are stored, and return the next ones; none if others read them. ``have``: all blocks that are
        stored. Raises AimeshError."""
        ...

    async def read(self, block: int, size: int) -> bytes:
        """Return the bytes of a block. Raises AimeshError."""
        ...


class DownloadRate:
    """What all copies of a worker together may ask for. Pure: the caller brings the clock."""

    def __init__(self, bytes_per_second: float | None) -> None:
        #: None for no limit. Can be changed at any time.
        self.bytes_per_second = bytes_per_second
        self._paid_until = 0.0

    def wait_seconds(self, now: float) -> float:
        """Return after how long the next block may be asked for."""
        return max(0.0, self._paid_until - now) if self.bytes_per_second else 0.0

    def spend(self, now: float) -> None:
        """Count a block."""
        self._paid_until = max(self._paid_until, now - (BURST_BLOCKS - 1) * self._block_seconds) + self._block_seconds

    def give_back(self) -> None:
        """A block was refused."""
        self._paid_until -= self._block_seconds

    @property
    def _block_seconds(self) -> float:
        return BLOCK_BYTES / self.bytes_per_second if self.bytes_per_second else 0.0


@dataclass(kw_only=True)
class ModelCopy:
    """One copy of one file. ``run`` may be canceled, and run again: it continues with the blocks that are on the disk."""

    copies: BlockCopies
    file: CopyFile
    origin: Origin
    #: Returns other workers that have some of the file. Raises AimeshError.
    find_peers: Callable[[], Awaitable[Sequence[CopyPeer]]]
    rate: DownloadRate
    #: Called with a peer that lied, or was silent again and again, and which.
    report: Callable[[bytes, str], None]
    #: Whether other workers may read from us. If not, we read from the origin without leases.
    offers: bool = True
    #: Blocks whose digests are in the list, which may grow. At first all.
    known: Blocks = -1
    on_progress: Callable[[CopyProgress], None] = lambda progress: None
    #: Peer -> until when it is not asked for this file. Shared by all attempts at it.
    dropped: dict[bytes, float] = field(default_factory=dict)
    #: Peer -> how often it was silent since its last block.
    _silences: dict[bytes, int] = field(default_factory=dict)
    rng: random.Random = field(default_factory=random.Random)
    clock: Callable[[], float] = time.monotonic

    async def run(self) -> None:
        """Return when all blocks are on the disk; the caller compares the SHA-256 of the whole. Raises OSError, SwarmError, AimeshError if
        neither the origin nor a peer gives a block for long, and ValueError if the list of blocks is not that of the file."""
        self._from_origin = self._from_peers = 0
        while True:
            try:
                await self._copy()
                return
            except SidecarLost:
                await asyncio.sleep(RESTART_SECONDS)

    async def _copy(self) -> None:
        have = await asyncio.to_thread(self.file.prepare)
        self._plan = CopyPlan(self.file.count, self.rng, have)
        if not self._plan.missing:
            return
        self._failures = 0
        #: Peer -> since when we watch it.
        self._watched: dict[bytes, float] = {}
        #: Blocks that were leased to us and are stored, to report with the next lease.
        self._done: list[int] = []
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._timer = loop.call_later(TICK_SECONDS, self._step)
        try:
            await self.copies.open(self.file, have, self)
            async with background() as tasks:
                tasks.create_task(self._find())
                for _ in range(ORIGIN_READERS):
                    tasks.create_task(self._read_origin())
                self._step()
                await self._ended
        except BaseException:
            with suppress(SwarmError, OSError):
                await self.copies.close(self.file, is_whole=False)
            raise
        finally:
            self._timer.cancel()
        await self.copies.close(self.file, is_whole=True)

    async def _find(self) -> None:
        for round_ in itertools.count(1):
            peers: Sequence[CopyPeer] = ()
            try:
                peers = await self.find_peers()
            except errors.AimeshError as error:
                _log.info("no other workers with the model are known", why=error.message)
            now = self.clock()
            for key in [key for key, since in self._watched.items() if now - since >= FIND_SECONDS and key not in self._plan.peers]:
                self._leave(key)
            for peer in peers:
                if peer.key not in self._watched and self.dropped.get(peer.key, now) <= now and len(self._watched) < MAX_PEERS:
                    self._watched[peer.key] = now
                    self.copies.watch(self.file.digest, peer.key, peer.grant)
            await asyncio.sleep(FIND_BACKOFF.pause(round_))

    async def _read_origin(self) -> None:
        most = 1
        while True:
            done, self._done = self._done, []
            try:
                blocks = await self._lease(done, most)
                done, began = [], self.clock()
                await self._fetch(blocks)
                most = max(1, min(MAX_LEASED_BLOCKS, int(len(blocks) * RANGE_SECONDS / max(0.001, self.clock() - began))))
            except errors.AimeshError as error:
                self._done += done
                self._failures += 1
                if self._failures == MAX_FAILURES:
                    self._stop(error)
                _log.info("the origin of a model does not give it", why=error.message)
                await asyncio.sleep(ORIGIN_SECONDS)
            except OSError as error:
                self._stop(error)
            else:
                await asyncio.sleep(0 if blocks else LEASE_SECONDS)

    async def _lease(self, done: Sequence[int], most: int) -> Sequence[int]:
        if not self.copies.has_peers(self.file.digest):
            return self._plan.lowest(most)
        orphans = self._plan.orphans(self.clock())
        if not self.offers:
            return orphans[:most]
        return await self.origin.lease(done, orphans, most, all_blocks(self.file.count) & ~self._plan.missing)

    async def _fetch(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._cancel(self._plan.lease(block))
        try:
            for block in blocks:
                if self._plan.missing >> block & 1:
                    now = self.clock()
                    pause = self.rate.wait_seconds(now)
                    self.rate.spend(now)
                    await asyncio.sleep(pause)
                    body = await self.origin.read(block, self.file.length(block))
                    if not await asyncio.to_thread(self.file.write, block, body):
                        raise errors.Unavailable(f"block {block} of the origin is not that of the model", hint="push the model again")
                    await self.copies.add(self.file.digest, block)
                    self._from_origin += len(body)
                    self._received(block, None)
                self._done.append(block)
        finally:
            for block in blocks:
                self._plan.unlease(block)

    def peer_has(self, key: bytes, blocks: int, queue: int) -> None:
        if key in self._watched:
            self._plan.heard(key, blocks, queue)
            self._step()

    def peer_refused(self, key: bytes, block: int) -> None:
        self._plan.refused(key, block, self.clock())
        self.rate.give_back()
        self._step()

    def peer_ended(self, key: bytes, ending: Ending, why: str) -> None:
        self._plan.drop(key)
        is_first = key in self._watched  # the sidecar names a silent peer for each request
        if ending is not Ending.GONE:
            self._leave(key)
        if ending is Ending.FAULTY or (ending is Ending.SILENT and is_first):
            pause = DROP_SECONDS if ending is Ending.FAULTY else self._count_silence(key)
            self.dropped[key] = self.clock() + pause
            if pause >= SILENCE_BACKOFF.longest_seconds:
                self.report(key, why)
        self._step()

    def _count_silence(self, key: bytes) -> float:
        """Return after how many seconds the peer is asked again."""
        self._silences[key] = times = self._silences.get(key, 0) + 1
        return SILENCE_BACKOFF.pause(times)

    def block_stored(self, key: bytes, block: int) -> None:
        self._silences.pop(key, None)
        self._from_peers += self.file.length(block)
        self._received(block, key)

    def copy_stopped(self, why: str) -> None:
        self._stop(OSError(why) if why else SidecarLost("the sidecar has died or come"))

    def _received(self, block: int, key: bytes | None) -> None:
        self._failures = 0
        self._cancel(self._plan.received(block, key, self.clock()))
        left = self._plan.missing.bit_count() * BLOCK_BYTES
        self.on_progress(CopyProgress(max(0, self.file.size - left), self._from_origin, self._from_peers, len(self._plan.peers)))
        self._step()

    def _step(self) -> None:
        """Ask for what the plan and the rate allow, and again a little later."""
        if self._ended.done():
            return
        if not self._plan.missing:
            self._ended.set_result(None)
            return
        now, self._plan.known = self.clock(), self.known
        while not (pause := self.rate.wait_seconds(now)) and (request := self._plan.choose(now)) is not None:
            self.rate.spend(now)
            self.copies.ask(self.file.digest, request.peer, request.block)
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(min(pause or TICK_SECONDS, TICK_SECONDS), self._step)

    def _cancel(self, requests: Sequence[BlockRequest]) -> None:
        for request in requests:
            self.copies.cancel(self.file.digest, request.peer, request.block)

    def _leave(self, key: bytes) -> None:
        self._watched.pop(key, None)
        self._plan.drop(key)
        self.copies.drop(self.file.digest, key)

    def _stop(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)


class ModelShare:
    """Lets other workers read files of models from us, if a gateway grants it."""

    def __init__(
        self,
        copies: BlockCopies,
        trust: Trust,
        find_whole: Callable[[bytes], WholeFile | None],
        *,
        shares: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``find_whole`` returns a file by its SHA-256. It must not wait. Without ``shares`` (MODEL_SHARE) nobody may read."""
        self._copies, self._trust, self._find_whole, self._shares, self._clock = copies, trust, find_whole, shares, clock
        copies.on_grant = self._answer

    def _answer(self, key: bytes, digest: bytes, grant: bytes) -> None:
        now = self._clock()
        try:
            found = copy_grants.check(grant, self._trust, node_keys.node_of(key), digest, now)
        except errors.NotAllowed:
            self._copies.deny(key, digest)
            return
        whole = self._find_whole(digest) if self._shares else None
        if not self._shares or (whole is None and not self._copies.has_peers(digest)):
            self._copies.deny(key, digest)
            return
        self._copies.allow(key, digest, whole)
        # Who still reads then asks for another grant.
        asyncio.get_running_loop().call_later(max(0.0, found.not_after - now), self._copies.deny, key, digest)
