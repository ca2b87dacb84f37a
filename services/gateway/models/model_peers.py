"""Introduces workers that copy the same file of a model to each other, and leases them the blocks of the mesh's store.

Workers ask about one file the same gateway. What it knows is only in memory: if it is lost, workers ask another one, and say again what
they have.
"""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from shared import errors
from shared.api.model_copies import (
    MAX_INTRODUCED,
    MAX_RUNNING_BLOCKS,
    AdvisePull,
    LeaseBlocks,
    LeasedBlocks,
    ModelPeer,
    PullAdvice,
    PulledFile,
    RunningPull,
)
from shared.identity import copy_grants
from shared.identity.trust import Trust
from shared.models import block_list
from shared.models.block_list import DIGEST_BYTES
from shared.models.copy_plan import Leases, all_blocks
from shared.protocol.directory import Directory, DirectoryEntry
from shared.telemetry import logs
from shared.types import ModelName, NodeId, Role

#: A worker that copies asks every few seconds. One that has the whole file announces its model.
HOLDER_SECONDS = 60.0
#: After so long without a call, the leases of a file are forgotten.
FILE_SECONDS = 600.0
MAX_FILES = 1024
#: A worker that asks for another one counts no more for the file that it asked for longest ago.
MAX_FILES_OF_WORKER = 8
#: A worker that pulls announces it by then.
PULL_SECONDS = 30.0

_log = logs.get(part="model peers")


@dataclass(slots=True)
class _File:
    leases: Leases
    used_at: float
    #: Worker -> when it last asked for a lease, and so offered what it has.
    holders: dict[NodeId, float] = field(default_factory=dict)
    #: Enough others have said that these send something wrong.
    faulty: set[NodeId] = field(default_factory=set)


@dataclass(slots=True)
class _Pull:
    """A model of a public source."""

    puller: NodeId
    since: float
    file: PulledFile | None = None
    holders: set[NodeId] = field(default_factory=set)
    #: Who has it can't give it to others.
    is_kept: bool = False
    #: What the puller says of it before it is whole, and the digests of its blocks.
    running: RunningPull | None = None
    blocks: bytearray = field(default_factory=bytearray)

    def size_of(self, digest: str) -> int | None:
        """Return the size of a file of which its workers have a part, or of its list of blocks."""
        if self.file is not None and digest == self.file.list_digest:
            return block_list.count(self.file.size) * DIGEST_BYTES
        return next((file.size for file in (self.file, self.running) if file is not None and file.digest == digest), None)

    def run(self, worker: NodeId, running: RunningPull, now: float) -> RunningPull | None:
        """Add what the puller says, and return what to go on with; None for another worker, or once it has all."""
        if worker != self.puller or self.file is not None:
            return None
        self.since = now
        begun = msgspec.structs.replace(running, start=0, blocks=b"", puller=self.puller)
        if begun != self.running or running.start == 0:
            self.running, self.blocks = begun, bytearray()
        if running.start * DIGEST_BYTES == len(self.blocks):
            self.blocks += running.blocks[: block_list.count(running.size) * DIGEST_BYTES - len(self.blocks)]
        return msgspec.structs.replace(begun, start=len(self.blocks) // DIGEST_BYTES)

    def tell(self, known: int) -> RunningPull | None:
        """Return the digests that follow on these, if there is anything to copy."""
        if self.running is None:
            return None
        start = min(known, len(self.blocks) // DIGEST_BYTES)
        blocks = self.blocks[start * DIGEST_BYTES :][: MAX_RUNNING_BLOCKS * DIGEST_BYTES]
        return msgspec.structs.replace(self.running, start=start, blocks=bytes(blocks))


#: Returns the network of a worker as this gateway sees it; None if it doesn't.
NetworkOf = Callable[[NodeId], str | None]


class ModelPeers:
    def __init__(
        self,
        trust: Trust,
        nodes: Directory,
        network_of: NetworkOf,
        *,
        on_excluded: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._trust, self._nodes, self._network_of, self._clock, self._now = trust, nodes, network_of, clock, now
        self._on_excluded = on_excluded
        self._rng = rng or random.Random()  # noqa: S311 - spreads load
        #: By digest and size, because a worker may lie about the size.
        self._files: dict[tuple[str, int], _File] = {}
        #: By name and source. The caller bounds them.
        self._pulls: dict[tuple[ModelName, str], _Pull] = {}

    def find(self, reader: NodeId, digest: str, model: ModelName, *, is_version: bool) -> tuple[ModelPeer, ...]:
        """Return some workers that have the file or a part of it, those in the reader's network first, with grants to read it there. The
        caller has checked that the reader may read it."""
        now, network = self._clock(), self._network_of(reader)
        files = [file for (found, _), file in self._files.items() if found == digest]
        known = {node for file in files for node, asked_at in file.holders.items() if now - asked_at < HOLDER_SECONDS}
        faulty = {node for file in files for node in file.faulty}
        peers = [
            node for node in {*known, *self._holders(digest, model, is_version=is_version)} - faulty - {reader} if self._is_alive(node)
        ]
        self._rng.shuffle(peers)
        if network is not None:
            peers.sort(key=lambda node: self._network_of(node) != network)
        return tuple(
            ModelPeer(node, copy_grants.issue(self._trust, reader, node, bytes.fromhex(_hex(digest)), self._now()))
            for node in peers[:MAX_INTRODUCED]
        )

    def lease(self, worker: NodeId, request: LeaseBlocks, *, is_version: bool) -> LeasedBlocks:
        """The caller has checked the size. Raises BadRequest."""
        now, count = self._clock(), block_list.count(request.size)
        if any(block >= count for block in (*request.done, *request.orphans)) or len(request.had or b"") > (count + 7) // 8:
            raise errors.BadRequest(f"the file has {count} blocks")
        file = self._find(worker, request, now)
        if file is None:
            return LeasedBlocks(is_new=True)
        if request.had is not None:
            file.leases.had(worker, int.from_bytes(request.had, "little") & all_blocks(count))
        file.holders[worker] = now
        for node in [node for node in file.holders if not self._is_alive(node)]:
            del file.holders[node]
            file.leases.gone(node)
        for node in self._holders(request.digest, request.model, is_version=is_version):
            if node != worker:
                file.leases.had(node, all_blocks(count))
        for block in request.done:
            file.leases.done(worker, block, now)
        self._report(file, worker, request)
        return LeasedBlocks(file.leases.take(worker, now, request.orphans, most=request.most))

    def advise(self, worker: NodeId, request: AdvisePull) -> PullAdvice:
        """Let one worker pull a model from its public source, and the others wait for it, and copy it."""
        key, now = (request.model, request.source), self._clock()
        pull = self._pulls.get(key)
        holders = set() if pull is None else {node for node in pull.holders - {worker} if self._is_alive(node)}
        if request.pulled is not None:
            others = holders if pull is not None and pull.file == request.pulled else set()
            self._pulls[key] = _Pull(worker, now, request.pulled, {worker, *others})
            if pull is not None and pull.puller == worker:
                # For those that have copied most of it meanwhile.
                self._pulls[key].running, self._pulls[key].blocks = pull.running, pull.blocks
            return PullAdvice()
        if request.running is not None:
            pull = self._pulls.setdefault(key, _Pull(worker, now))
            return PullAdvice(running=pull.run(worker, request.running, now))
        if request.is_kept and not holders:
            self._pulls[key] = _Pull(worker, now, is_kept=True)
            return PullAdvice()
        if pull is not None and holders:
            return PullAdvice(pull.file, running=pull.tell(request.known) if request.known else None)
        if pull is not None and not pull.is_kept and pull.puller != worker and self._is_pulling(pull, request.model, now):
            return PullAdvice(waits=True, running=None if request.known is None else pull.tell(request.known))
        if pull is None or not pull.is_kept:
            self._pulls[key] = _Pull(worker, now)
        return PullAdvice()

    def is_pulled(self, digest: str) -> bool:
        """Return whether a worker has pulled the file, or pulls it, or has such a list of blocks."""
        return any(pull.size_of(digest) is not None for pull in self._pulls.values())

    def _is_pulling(self, pull: _Pull, model: ModelName, now: float) -> bool:
        entry = self._nodes.find(pull.puller)
        if entry is None or not entry.alive or pull.file is not None:
            return False
        return now - pull.since < PULL_SECONDS or any(each.name == model for each in entry.announcement.pulls)

    def knows_size(self, digest: str, size: int) -> bool:
        """Return whether somebody copies a file of this size, or has pulled it, or pulls it."""
        return (digest, size) in self._files or any(pull.size_of(digest) == size for pull in self._pulls.values())

    def _find(self, worker: NodeId, request: LeaseBlocks, now: float) -> _File | None:
        """Return the file; None if the worker must first say what it had. Raises Overloaded."""
        key = (request.digest, request.size)
        for other in [other for other, file in self._files.items() if now - file.used_at >= FILE_SECONDS]:
            del self._files[other]
        if (file := self._files.get(key)) is None or worker not in file.holders:
            if request.had is None:
                return None
            self._make_room(worker)
            if key not in self._files and len(self._files) >= MAX_FILES:
                raise errors.Overloaded("too many models are being copied", hint="the worker tries again by itself")
            file = self._files.setdefault(key, _File(Leases(block_list.count(request.size)), now))
        file.used_at = now
        return file

    def _make_room(self, worker: NodeId) -> None:
        """Forget the worker at the file that it asked for longest ago, if it asks for many, and that file if nobody else does."""
        asked = {key: file.holders[worker] for key, file in self._files.items() if worker in file.holders}
        if len(asked) >= MAX_FILES_OF_WORKER:
            oldest = min(asked, key=asked.__getitem__)
            file = self._files[oldest]
            del file.holders[worker]
            file.leases.gone(worker)
            if not file.holders:
                del self._files[oldest]

    def _report(self, file: _File, worker: NodeId, request: LeaseBlocks) -> None:
        for node in set(request.faulty) - {worker}:
            _log.info("model peer reported", node=node, by=worker, digest=request.digest)
            if file.leases.report(node, worker):
                file.faulty.add(node)
                self._on_excluded()
                _log.warning("model peer excluded", node=node, digest=request.digest)

    def _holders(self, digest: str, model: ModelName, *, is_version: bool) -> Iterable[NodeId]:
        """Return workers that announce a version's file, or the version that it is a part of, or have pulled the file, or do it now. A file
        that no version has is only its pullers': with the same digest, another worker's is perhaps its owner's own."""
        found = {
            entry.node
            for entry in self._workers()
            if is_version and any(offer.digest == _hex(digest) or offer.name == model for offer in entry.announcement.models)
        }
        for pull in self._pulls.values():
            if pull.size_of(digest) is not None:
                found |= {node for node in pull.holders | {pull.puller} if self._is_alive(node)}
        return found

    def _workers(self) -> Iterable[DirectoryEntry]:
        return (entry for entry in self._nodes.entries(Role.WORKER) if entry.alive)

    def _is_alive(self, node: NodeId) -> bool:
        entry = self._nodes.find(node)
        return entry is not None and entry.alive


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
