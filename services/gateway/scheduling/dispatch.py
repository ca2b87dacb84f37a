"""Finds the worker that a request runs on, and knows what this gateway has running on each.

One queue for each model, in which tenants take turns. Whoever finds a worker with room begins at once; all others wait here and
not on a worker, since what has been sent can be neither put behind others nor sent elsewhere. Places are given out where one may
have become free: when a claim ends, when a worker says something new, and once a second.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime

from services.gateway import node_interface
from services.gateway.scheduling import candidates, worker_choice
from services.gateway.scheduling.candidates import Candidate, Knowledge
from services.gateway.scheduling.eligible_workers import EligibleWorkers
from services.gateway.scheduling.fair_queue import ModelQueue
from services.gateway.scheduling.peer_queues import PeerQueues, PeerTicket, QueuedRequest, QueueReport
from services.gateway.scheduling.queue_settings import QueueSettings
from services.gateway.scheduling.routing import WorkerRequirements
from services.gateway.scheduling.worker_capacity import HeldClaims
from services.gateway.scheduling.worker_claims import Claim
from shared import errors
from shared.discovery.directory import DirectoryEntry
from shared.telemetry import Metrics
from shared.types import ModelName, NodeId, Role, TenantId

#: Who is served within this time need not be told that there was a queue.
FIRST_WORD_SECONDS = 0.1
WORDS_SECONDS = 1.0
#: Models with a queue of their own; those that nobody waits for are then forgotten, with their means.
_MAX_LANES = 1000


@dataclass(frozen=True, slots=True)
class WaitingRequests:
    """What a request waits for, for people."""

    why: str


class _Waiter:
    """One request that has entered a queue, and what comes of it: an error where nobody can run it any more."""

    def __init__(self, wish: WorkerRequirements, entered_at: float) -> None:
        self.wish = wish
        self.entered_at = entered_at
        self.outcome: asyncio.Future[Claim | errors.NotReachable] = asyncio.get_running_loop().create_future()


class Dispatch:
    """One for the gateway. Belongs to its event loop."""

    def __init__(
        self,
        directory: node_interface.NodeDirectory,
        rng: random.Random,
        rules: QueueSettings | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str = "",
        knowledge: Knowledge | None = None,
    ) -> None:
        """``metrics`` are its own where none are given. ``name``: of this gateway, as ``QueueReport`` has it."""
        self.clock = clock
        self.knowledge = knowledge or Knowledge()
        self._directory = directory
        self._rng = rng
        self._rules = rules or QueueSettings()
        self._workers = EligibleWorkers(directory, self.knowledge, self._rules.policy, clock)
        self._metrics = metrics or Metrics("gateway")
        self._name = name
        self._lanes: dict[ModelName, ModelQueue[QueuedRequest]] = {}
        self._held = HeldClaims()
        self._peers: dict[ModelName, PeerQueues] = {}
        #: Called when something may have to be reported to the other gateways.
        self.on_news: Callable[[], None] = _unheard
        #: Who offered a model, and how, when that was last looked at, where somebody waits for it.
        self._offering: dict[ModelName, frozenset[tuple[NodeId, bool, bool, bool]]] = {}
        directory.watch(self._changed)
        for entry in directory.entries(Role.WORKER):
            self._changed(entry)

    @property
    def in_flight(self) -> int:
        return self.knowledge.occupancy.total()

    @property
    def waiting(self) -> int:
        """At this gateway."""
        return sum(sum(lane.queue.local.values()) for lane in self._lanes.values())

    @property
    def waiting_anywhere(self) -> int:
        """At all gateways, as far as it is known here."""
        return sum(len(lane.queue) for lane in self._lanes.values())

    def claim_now(self, wish: WorkerRequirements) -> Claim | None:
        """Claim a place, if nobody waits for the model and a worker has room. Raises NotReachable if no worker can run it."""
        lane = self.lane(wish.model)
        if lane.queue:
            return None
        rows = self._workers.rows(wish)
        row = worker_choice.choose_worker(wish, rows, self._rng)
        if row is None:
            return None
        waiter = _Waiter(wish, self.clock())
        lane.queue.enter(wish.limited_as, waiter, lane.cost(wish), kind=wish.tenant)
        return self._claim(waiter, row)

    async def find(self, wish: WorkerRequirements) -> AsyncGenerator[WaitingRequests | Claim]:
        """What it waits for, as often as that changes, and last its claim. Raises NotReachable where no worker can run it, nor soon, and
        Overloaded where too many wait already. Iterate it to its end, or close it with ``aclose``: leaving it gives its place in
        the queue back."""
        waiter = self._enter(wish)
        handed_over = False
        try:
            said, pause = "", FIRST_WORD_SECONDS
            while not waiter.outcome.done():
                left = waiter.entered_at + self._rules.queue_seconds - self.clock()
                if left <= 0:
                    raise self._rules.too_long(self.lane(wish.model), wish)
                await asyncio.wait((waiter.outcome,), timeout=min(pause, left))
                why = self._look_again(waiter)
                if why not in ("", said):
                    yield WaitingRequests(why)
                    said = why
                pause = WORDS_SECONDS
            outcome = waiter.outcome.result()
            if isinstance(outcome, errors.NotReachable):
                raise outcome
            yield outcome
            # Who comes back for more has it; who closes this or is cancelled does not.
            handed_over = True
        finally:
            if not handed_over:
                self._leave(waiter)

    def ensure_place(self, wish: WorkerRequirements) -> None:
        """Raises Overloaded if the queue is too long, so that nothing is reserved for a request that would be refused anyway. It keeps no
        place: ``find`` may still refuse."""
        lane = self.lane(wish.model)
        try:
            self._rules.check_bounds(lane, wish, self.waiting_anywhere, 1)
        except errors.Overloaded:
            # Workers may have come or become free since the last look.
            if not lane.queue.waits(wish.limited_as, wish.tenant):
                rows = self._workers.rows(wish)
                if worker_choice.choose_worker(wish, rows, self._rng) is not None:
                    return
                lane.slots = sum(row.seats.slots for row in rows)
            self._rules.check_bounds(lane, wish, self.waiting_anywhere, 1)

    def lane(self, model: ModelName) -> ModelQueue[QueuedRequest]:
        found = self._lanes.get(model)
        if found is None:
            if len(self._lanes) >= _MAX_LANES:
                self._lanes = {name: lane for name, lane in self._lanes.items() if lane.queue}
                self._peers = {name: peers for name, peers in self._peers.items() if name in self._lanes}
                self._workers.forget_room()
            found = self._lanes[model] = ModelQueue()
            self._peers[model] = PeerQueues(self._name, model, found)
        return found

    def ended(self, claim: Claim, model: ModelName, seconds: float | None) -> None:
        """A claim gives its place back; ``seconds`` says how long it had it, None where that says nothing."""
        node = claim.worker.node
        self.knowledge.occupancy.end(node, model)
        self._held.ended(node, model, claim)
        if seconds is not None:
            self.lane(model).ended(seconds)
        # The worker's other models may have waited for it, too.
        for name in [name for name, lane in self._lanes.items() if lane.queue]:
            self._give_out(name, freed=node)

    def answered(self, model: ModelName, tokens: int) -> None:
        """An answer has become this long."""
        self.lane(model).answered(tokens)

    def charge(self, wish: WorkerRequirements, cost: float) -> None:
        """What its tenant was served differs from what it was charged with."""
        lane = self.lane(wish.model)
        lane.queue.correct(wish.limited_as, cost)
        self._peers[wish.model].charged(wish.limited_as, cost)
        self.on_news()

    # --- the other gateways -------------------------------------------------------------------------------------------

    def reports(self) -> list[QueueReport]:
        """What they are to be told now."""
        return [report for peers in self._peers.values() if (report := peers.report(self.clock())) is not None]

    def heard(self, report: QueueReport) -> None:
        """One of them has said this."""
        lane = self.lane(report.model)
        for worker in self._peers[report.model].heard(report, self.clock()):
            self.knowledge.occupancy.is_offered(worker, report.model)
            # It is for a request that waits here, also where we would have chosen another gateway: else an offer might go round.
            if not self._use_offer(lane, worker):
                self._give_out(report.model, freed=worker)
        # Somebody waits: what was not worth telling before may be now.
        self._measure(report.model)

    def expire_peers(self) -> None:
        """Use the places again that other gateways did not take, and forget the gateways that are silent. Call it every LOOK_SECONDS while
        requests wait anywhere."""
        for model, peers in list(self._peers.items()):
            for worker in peers.expire(self.clock()):
                self.knowledge.occupancy.take_back(worker, model)
            if peers.are_heard and self.lane(model).queue:
                self._give_out(model)

    def forget_peers(self) -> None:
        """They cannot be heard: each gateway decides alone."""
        for model, peers in self._peers.items():
            peers.forget_all()
            self._give_out(model)

    # --- the queue ----------------------------------------------------------------------------------------------------

    def _enter(self, wish: WorkerRequirements) -> _Waiter:
        """Raises NotReachable and Overloaded, at once."""
        lane, waiter = self.lane(wish.model), _Waiter(wish, self.clock())
        urgent = wish.digest is not None or bool(wish.not_on)
        if not urgent and lane.queue.waits(wish.limited_as, wish.tenant):
            # Where one of its own kind waits there is no room for another: a flood is refused before anything is worked out.
            self._rules.check_bounds(lane, wish, self.waiting_anywhere, 1)
        rows = self._workers.rows(wish)
        lane.queue.enter(wish.limited_as, waiter, lane.cost(wish), urgent=urgent, kind=wish.tenant)
        # Requests that wait already found no free place, so that room for this one is for this one alone; but not what was left to another
        # gateway.
        is_first = urgent or len(lane.queue) == sum(lane.queue.local.values())
        if is_first and self._begin(waiter, rows):
            return waiter
        lane.slots = sum(row.seats.slots for row in rows)
        try:
            if not urgent:
                self._rules.check_bounds(lane, wish, self.waiting_anywhere, 0)
        except errors.Overloaded:
            lane.queue.leave(waiter)
            raise
        self._measure(wish.model)
        return waiter

    def _look_again(self, waiter: _Waiter) -> str:
        """What to tell it, if it still waits. A rest that ends frees places, and nobody says so."""
        lane, now = self.lane(waiter.wish.model), self.clock()
        if not waiter.outcome.done() and now - lane.looked_at >= WORDS_SECONDS:
            self._give_out(waiter.wish.model)
        return "" if waiter.outcome.done() else lane.words(waiter, now)

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.outcome.done() and isinstance(claim := waiter.outcome.result(), Claim):
            claim.give_back()
        else:
            self.lane(waiter.wish.model).queue.leave(waiter)
            self._measure(waiter.wish.model)

    def _measure(self, model: ModelName) -> None:
        """It has changed."""
        self._metrics.queue_depth.labels(model=model).set(sum(self.lane(model).queue.local.values()))
        self.on_news()

    # --- places -------------------------------------------------------------------------------------------------------

    def _begin(self, waiter: _Waiter, rows: Sequence[Candidate]) -> bool:
        """Give it the best place among the rows; False if none is free."""
        row = worker_choice.choose_worker(waiter.wish, rows, self._rng)
        if row is not None:
            waiter.outcome.set_result(self._claim(waiter, row))
        return row is not None

    def _claim(self, waiter: _Waiter, row: Candidate) -> Claim:
        wish = waiter.wish
        lane = self.lane(wish.model)
        charged = lane.cost(wish)
        lane.queue.take(waiter, charged)
        self._peers[wish.model].charged(wish.limited_as, charged)
        self.knowledge.readers.read(wish.model, wish.beginnings, row.node, self.clock())
        self._metrics.queue_wait_seconds.labels(model=wish.model).observe(self.clock() - waiter.entered_at)
        claim = Claim(self, row.worker, wish, charged, waits_there=row.seats.free <= 0)
        if row.seats.free <= 0:
            self._held.hold(row.node, wish.model, claim)
        return claim

    def _give_out(self, model: ModelName, freed: NodeId | None = None) -> None:
        """Give free places to those whose turn it is. ``freed``: a worker with one that only this gateway knows of."""
        lane, owners = self.lane(model), self._workers.owners()
        lane.looked_at = self.clock()
        is_shared = self._peers[model].are_heard
        if is_shared and freed is None and not self._workers.room_lasts(model):
            return
        at = freed if is_shared else None
        began = True
        while began and lane.queue and self._has_room(model, lane):
            began = False
            full: set[_Kind] = set()
            for waiter in lane.queue.turns():
                kind = _kind(waiter.wish, owners)
                if kind not in full and (began := self._serve(waiter, at)):
                    break
                full.add(kind)
            if began:
                self._measure(model)
            if at is not None:
                break

    def _serve(self, waiter: QueuedRequest, at: NodeId | None) -> bool:
        """True where it waits no more. ``at``: only this worker will do."""
        return self._leave_place(waiter, at) if isinstance(waiter, PeerTicket) else self._begin_or_refuse(waiter, at)

    def _leave_place(self, ticket: PeerTicket, at: NodeId | None) -> bool:
        """Leave a free place to another gateway; False where there is none. A place that a worker announced is known there, too."""
        try:
            row = worker_choice.choose_worker(ticket.wish, _only(at, self._workers.rows(ticket.wish)), self._rng)
        except errors.NotReachable:
            return False
        if row is None:
            return False
        self.knowledge.occupancy.lend(row.node, ticket.wish.model)
        self._peers[ticket.wish.model].lend(ticket, row.node, self.clock(), is_ours=at is not None)
        return True

    def _begin_or_refuse(self, waiter: QueuedRequest, at: NodeId | None) -> bool:
        """The same of one that waits here."""
        assert isinstance(waiter, _Waiter)
        try:
            return self._begin(waiter, _only(at, self._workers.rows(waiter.wish)))
        except errors.NotReachable as error:
            self.lane(waiter.wish.model).queue.leave(waiter)
            waiter.outcome.set_result(error)
            return True

    def _use_offer(self, lane: ModelQueue[QueuedRequest], worker: NodeId) -> bool:
        """Give a place to the first that waits here and may have it; False where there is none. Requests that no worker may run any more
        are refused, which changes the turns."""
        refused = True
        while refused:
            refused = False
            for waiter in list(lane.queue.turns(only_local=True)):
                assert isinstance(waiter, _Waiter)
                if self._begin_or_refuse(waiter, worker):
                    if isinstance(waiter.outcome.result(), Claim):
                        return True
                    refused = True
        return False

    def _has_room(self, model: ModelName, lane: ModelQueue[QueuedRequest]) -> bool:
        """Whether any worker has, for any request: it is cheap to tell."""
        seats = self._workers.seats(model)
        lane.slots = sum(each.slots for each in seats.values())
        return any(each.has_room for each in seats.values())

    # --- news of the workers ------------------------------------------------------------------------------------------

    def _changed(self, entry: DirectoryEntry) -> None:
        if entry.role is not Role.WORKER:
            return
        self.knowledge.heard(entry, self.clock(), datetime.now(UTC))
        for model in [model for model, lane in self._lanes.items() if lane.queue]:
            offers = candidates.offering(model, self._directory.entries(Role.WORKER), or_soon=True)
            offering = frozenset((worker.node, not worker.why_not, worker.announcement.draining, offer.ready) for worker, offer in offers)
            if offering != self._offering.get(model):
                self._offering[model] = offering
                self._refuse_hopeless(model)
            self._give_out(model)

    def _refuse_hopeless(self, model: ModelName) -> None:
        """Tell those that nobody can run any more, at once: to wait would be in vain."""
        lane, owners = self.lane(model), self._workers.owners()
        verdicts: dict[_Kind, errors.NotReachable | None] = {}
        for waiter in lane.queue.order():
            if not isinstance(waiter, _Waiter):
                continue
            kind = _kind(waiter.wish, owners)
            if kind not in verdicts:
                verdicts[kind] = self._workers.refusal(waiter.wish)
            if (refusal := verdicts[kind]) is not None:
                lane.queue.leave(waiter)
                waiter.outcome.set_result(refusal)


def _only(at: NodeId | None, rows: Sequence[Candidate]) -> Sequence[Candidate]:
    return rows if at is None else [row for row in rows if row.node == at]


def _unheard() -> None:
    """Where there is no other gateway."""


#: Requests of one kind may run on the same workers.
_Kind = tuple[str | None, frozenset[NodeId], TenantId | None]


def _kind(wish: WorkerRequirements, owners: Set[str]) -> _Kind:
    """Who owns a worker is a kind of his own."""
    return wish.digest, wish.not_on, wish.tenant if str(wish.tenant) in owners else None
