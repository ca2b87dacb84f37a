"""Machines that copy a file from an origin and from each other, over a virtual clock: slices of 128 KiB, one uplink and one downlink for
each machine, news every 100 ms. It does what ``model_copy`` and the sidecars do."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from shared.models.copy_plan import BUSY_SECONDS, MAX_ORPHANS, CopyPlan, Leases

SLICE = 1 / 8
NEWS_SECONDS, TICK_SECONDS, SILENCE_SECONDS, LEASE_POLL_SECONDS = 0.1, 1.0, 5.0, 0.5
#: How long it takes until everybody notices that a machine is gone.
LOST_SECONDS = 3.0
#: Blocks that leave a machine at the same time.
MAX_SENDING = 2
MAX_REQUESTS, MAX_REQUESTS_ALONE = 2, 4


class Fault(Enum):
    NONE = "none"
    LIES = "lies"
    SILENT = "silent"
    GONE = "gone"


@dataclass(eq=False)
class Job:
    reader: "Machine"
    block: int
    sent: float = 0.0


@dataclass(eq=False)
class Machine:
    name: bytes
    #: MiB, that is blocks, per second.
    up: float
    down: float
    plan: CopyPlan
    fault: Fault = Fault.NONE
    jobs: list[Job] = field(default_factory=list)
    is_sending: bool = False
    down_free_at: float = 0.0
    have: set[int] = field(default_factory=set)
    #: Blocks to tell the peers about.
    fresh: set[int] = field(default_factory=set)
    peers: list["Machine"] = field(default_factory=list)
    dropped: set[bytes] = field(default_factory=set)
    #: Blocks that it reads from the origin now.
    leased: set[int] = field(default_factory=set)
    heard_at: dict[bytes, float] = field(default_factory=dict)
    done_at: float | None = None


class World:
    """One file of ``blocks`` MiB, an origin, and workers."""

    def __init__(
        self,
        workers: int,
        blocks: int = 64,
        rate: float = 2.0,
        *,
        seed: int = 1,
        delay_seconds: float = 0.001,
        origin_rate: float | None = None,
        links: int | None = None,
        tree: bool = True,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.blocks = blocks
        self.delay_seconds = delay_seconds
        self.leases = Leases(blocks)
        self.origin = Machine(b"", origin_rate or rate, rate, CopyPlan(blocks, self.rng), have=set(range(blocks)))
        self.workers = [Machine(b"%d" % number, rate, rate, CopyPlan(blocks, random.Random(seed + number))) for number in range(workers)]
        #: How often each block was leased, how often the origin sent one, and what came twice.
        self.leased: Counter[int] = Counter()
        self.from_origin = 0
        self.repeated = 0
        #: With the first honest worker that has everything.
        self.origin_leaves = False
        #: What must never happen.
        self.mistakes: list[str] = []
        self.max_requests = MAX_REQUESTS if tree else 1000
        self._unanswered: dict[tuple[bytes, bytes, int], float] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        for each in self.workers:
            others = [other for other in self.workers if other is not each]
            for other in self.rng.sample(others, min(len(others), links or len(others))):
                if other not in each.peers:
                    each.peers.append(other)
                    other.peers.append(each)

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), call, arguments))

    @property
    def honest(self) -> list[Machine]:
        return [each for each in self.workers if each.fault is Fault.NONE]

    def run(self, until: float = 3000.0) -> float:
        """Return when the slowest honest worker is done; infinite if it is not by then."""
        self.at(0, self._tick)
        for worker in self.workers:
            self.at(0, self._poll, worker)
        while any(each.done_at is None for each in self.honest):
            self.now, _, call, arguments = heapq.heappop(self._events)
            if self.now > until:
                return float("inf")
            call(*arguments)
        return max((each.done_at for each in self.honest if each.done_at is not None), default=0.0)

    def kill(self, worker: Machine) -> None:
        worker.fault = Fault.GONE
        worker.jobs.clear()
        self.at(self.now + LOST_SECONDS, self._notice, worker)

    def _end_origin(self) -> None:
        self.origin.fault = Fault.GONE
        for worker in self.workers:
            for block in worker.leased:
                worker.plan.unlease(block)
            worker.leased.clear()

    def _notice(self, gone: Machine) -> None:
        self.leases.gone(gone.name.decode())
        for each in self.workers:
            each.plan.drop(gone.name)
            self._step(each)

    def _tick(self) -> None:
        for each in self.workers:
            for name in list(each.plan.peers):
                asked = [when for (peer, reader, _), when in self._unanswered.items() if (peer, reader) == (name, each.name)]
                if asked and self.now - max(each.heard_at.get(name, 0.0), min(asked)) > SILENCE_SECONDS:
                    self._drop(each, self._find(name))
            self._step(each)
        self.at(self.now + TICK_SECONDS, self._tick)

    def _poll(self, worker: Machine) -> None:
        """Two tasks of a worker read from the origin; each asks for a lease until it gets one."""
        self.at(self.now + LEASE_POLL_SECONDS, self._poll, worker)
        if Fault.GONE in {worker.fault, self.origin.fault}:
            return
        while len(worker.leased) < 2 and worker.plan.missing:
            orphans = worker.plan.orphans(self.now)
            assert len(orphans) <= MAX_ORPHANS
            taken = self.leases.take(worker.name.decode(), self.now, orphans)
            if not taken:
                return
            for block in taken:
                self.leased[block] += 1
                if worker.plan.missing >> block & 1:
                    worker.leased.add(block)
                    for request in worker.plan.lease(block):
                        self._cancel(self._find(request.peer), worker, block)
                    self.at(self.now + self.delay_seconds, self._asked, self.origin, worker, block)
                else:
                    self.leases.done(worker.name.decode(), block, self.now)

    def _step(self, worker: Machine) -> None:
        if worker.fault is Fault.GONE or worker.done_at is not None:
            return
        while (request := worker.plan.choose(self.now)) is not None:
            peer = self._find(request.peer)
            if peer.name in worker.dropped:
                self.mistakes.append(f"{worker.name!r} asks {peer.name!r} again, which it dropped")
            key = (peer.name, worker.name, request.block)
            if key in self._unanswered:
                self.mistakes.append(f"{key} was asked twice")
            self._unanswered[key] = self.now
            if sum(reader == worker.name for _, reader, _ in self._unanswered) > 8:
                self.mistakes.append(f"{worker.name!r} has too many requests")
            self.at(self.now + self.delay_seconds, self._asked, peer, worker, request.block)

    def _asked(self, sender: Machine, reader: Machine, block: int) -> None:
        if sender.fault in {Fault.GONE, Fault.SILENT}:
            return
        most = MAX_REQUESTS_ALONE if len(sender.peers) == 1 else self.max_requests
        if sender is not self.origin and len(sender.jobs) >= most:
            self.at(self.now + self.delay_seconds, self._refused, reader, sender, block)
        else:
            sender.jobs.append(Job(reader, block))
            self._send(sender)

    def _refused(self, reader: Machine, sender: Machine, block: int) -> None:
        self._unanswered.pop((sender.name, reader.name, block), None)
        reader.plan.refused(sender.name, block, self.now)
        self.at(self.now + BUSY_SECONDS + 0.01, self._step, reader)
        self._step(reader)

    def _send(self, sender: Machine) -> None:
        """Send a slice of one of the first jobs for different readers. A reader that takes no more does not count."""
        if sender.is_sending or sender.fault is Fault.GONE:
            return
        first = {job.reader.name: job for job in reversed(sender.jobs)}
        free = [job for job in first.values() if job.reader.down_free_at <= self.now + 0.5]
        free.sort(key=lambda job: (-job.sent, sender.jobs.index(job)))
        if not free:
            if sender.jobs:
                self.at(self.now + 0.1, self._send, sender)
            return
        job = min(free[:MAX_SENDING], key=lambda job: job.sent)
        sender.is_sending = True
        self.at(self.now + SLICE / sender.up, self._sent, sender, job)

    def _sent(self, sender: Machine, job: Job) -> None:
        sender.is_sending = False
        reader = job.reader
        reader.down_free_at = max(reader.down_free_at, self.now + self.delay_seconds) + SLICE / reader.down
        reader.heard_at[sender.name] = self.now
        job.sent += SLICE
        if job.sent >= 1 and job in sender.jobs:
            sender.jobs.remove(job)
            self.at(reader.down_free_at, self._arrived, sender, reader, job.block)
        self._send(sender)

    def _arrived(self, sender: Machine, reader: Machine, block: int) -> None:
        self._unanswered.pop((sender.name, reader.name, block), None)
        if reader.fault is Fault.GONE:
            return
        name = reader.name.decode()
        if sender is self.origin:
            self.from_origin += 1
            reader.leased.discard(block)
            self.leases.done(name, block, self.now)
        if sender.fault is Fault.LIES:
            self._drop(reader, sender)
        elif block in reader.have:
            self.repeated += 1
        else:
            for request in reader.plan.received(block, None if sender is self.origin else sender.name, self.now):
                self._cancel(self._find(request.peer), reader, block)
            reader.have.add(block)
            if not reader.fresh:
                self.at(self.now + NEWS_SECONDS, self._tell, reader)
            reader.fresh.add(block)
            if len(reader.have) == self.blocks:
                reader.done_at = self.now
                if self.origin_leaves and reader.fault is Fault.NONE:
                    self._end_origin()
        self._step(reader)

    def _drop(self, worker: Machine, peer: Machine) -> None:
        worker.plan.drop(peer.name)
        worker.dropped.add(peer.name)
        self._unanswered = {each: when for each, when in self._unanswered.items() if each[:2] != (peer.name, worker.name)}
        self.leases.report(peer.name.decode(), worker.name.decode())

    def _cancel(self, sender: Machine, reader: Machine, block: int) -> None:
        self._unanswered.pop((sender.name, reader.name, block), None)
        sender.jobs = [job for job in sender.jobs if (job.reader, job.block) != (reader, block)]

    def _tell(self, worker: Machine) -> None:
        fresh, worker.fresh = worker.fresh, set()
        for peer in worker.peers:
            self.at(self.now + self.delay_seconds, self._told, peer, worker, fresh, len(worker.jobs))

    def _told(self, worker: Machine, teller: Machine, blocks: set[int], queue: int) -> None:
        if teller.name not in worker.dropped and teller.fault is not Fault.GONE:
            worker.plan.heard(teller.name, sum(1 << block for block in blocks), queue)
            self._step(worker)

    def _find(self, name: bytes) -> Machine:
        return self.workers[int(name)]
