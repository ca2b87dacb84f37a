"""Assigns requests to workers, and tracks what this gateway runs on each.

Each model has one fair queue. A request starts immediately if a worker has capacity; otherwise it waits here rather than on a worker,
because a call that was sent can neither be overtaken nor moved. Capacity is reassigned when a claim ends, when a worker announces a
change, and once a second.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence, Set
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from services.gateway.facts import placements
from services.gateway.facts.placements import Placement
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.scheduling import preemption, worker_choice, worker_starts
from services.gateway.scheduling.fair_queue import ModelQueue, QueueSettings
from services.gateway.scheduling.peer_queues import PeerQueues, PeerTicket, QueuedRequest, QueueReport, Starved
from services.gateway.scheduling.worker_choice import Candidate, EligibleWorkers
from services.gateway.scheduling.worker_claims import Charged, Claim, ClaimEvent, ClaimsWithoutSlot, Delivered, Failed, Released
from services.gateway.scheduling.worker_records import WorkerStats
from shared import errors
from shared.protocol.directory import Directory, DirectoryEntry, ResumeOrigin
from shared.telemetry import Metrics, logs
from shared.types import ModelName, NodeId, Role, TenantId

#: Shorter waits aren't reported to the caller.
FIRST_NOTICE_SECONDS = 0.1
NOTICE_SECONDS = 1.0
#: Model queues kept; above this, empty ones are dropped with their means.
_MAX_QUEUES = 1000

_log = logs.get(part="dispatch")


class _Waiter:
    """One queued request and its outcome: a claim, or an error if no worker can run it any more."""

    def __init__(self, requirements: WorkerRequirements, entered_at: float) -> None:
        self.requirements = requirements
        self.entered_at = entered_at
        #: When it began to wait for the start of a worker, and when it last did; None if it didn't.
        self.start_wait_began_at: float | None = None
        self.start_wait_seen_at = entered_at
        self.outcome: asyncio.Future[Claim | errors.NotReachable] = asyncio.get_running_loop().create_future()


class Dispatch:
    """Assigns requests to workers. Belongs to one event loop."""

    def __init__(
        self,
        directory: Directory,
        rng: random.Random,
        rules: QueueSettings | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str = "",
        worker_stats: WorkerStats | None = None,
        is_revoked: Callable[[ModelName], bool] = lambda model: False,
    ) -> None:
        """``metrics`` defaults to a private registry. ``name``: of this gateway, as in ``QueueReport``. ``is_revoked``: whether a model may
        not be begun any more."""
        self.clock = clock
        self.worker_stats = worker_stats or WorkerStats()
        self._directory = directory
        self._rng = rng
        self._rules = rules or QueueSettings()
        self._workers = EligibleWorkers(directory, self.worker_stats, clock)
        self._workers.is_revoked = is_revoked
        self._metrics = metrics or Metrics("gateway")
        self._name = name
        self._queues: dict[ModelName, ModelQueue[QueuedRequest]] = {}
        self._without_slot = ClaimsWithoutSlot()
        #: This gateway's calls that use slots, or wait for one at a worker.
        self._claims: dict[ModelName, dict[Claim, None]] = {}
        self._looked_at = float("-inf")
        self._peers: dict[ModelName, PeerQueues] = {}
        #: Called when the other gateways may need a report.
        self.on_change: Callable[[], None] = _ignore
        #: The workers that offered each queued model at the last check, with their states.
        self._offering: dict[ModelName, frozenset[tuple[NodeId, bool, bool, bool]]] = {}
        directory.watch(self._apply_change)
        for entry in directory.entries(Role.WORKER):
            self._apply_change(entry)

    @property
    def in_flight(self) -> int:
        return self.worker_stats.occupancy.total()

    @property
    def waiting(self) -> int:
        """Return the number of requests queued at this gateway."""
        return sum(sum(model_queue.queue.local.values()) + len(model_queue.batch) for model_queue in self._queues.values())

    @property
    def has_waiting(self) -> bool:
        """Return whether a request waits at a gateway, or one of this gateway's at a worker."""
        return bool(self.waiting_anywhere or self._without_slot)

    @property
    def waiting_anywhere(self) -> int:
        """Return the number of live requests queued at all gateways, as far as known."""
        return sum(len(model_queue.queue) for model_queue in self._queues.values())

    def _waiting_with(self, requirements: WorkerRequirements) -> int:
        """Return how many requests share the queue's room with one: those of batches take none of the live ones'."""
        return sum(len(model_queue.batch) for model_queue in self._queues.values()) if requirements.batch else self.waiting_anywhere

    def oldest_wait(self, model: ModelName) -> float:
        """Return how long this gateway's oldest waiting request has waited, in seconds."""
        found = self._queues.get(model)
        oldest = None if found is None else found.queue.oldest_local()
        return self.clock() - oldest.entered_at if isinstance(oldest, _Waiter) else 0.0

    def record_arrival(self, model: ModelName, *, refused: bool = False) -> None:
        """Count a request; call it once, however often the request is retried."""
        self._metrics.model_requests.labels(model, "refused" if refused else "arrived").inc()

    def claim_now(self, requirements: WorkerRequirements) -> Claim | None:
        """Claim a worker if the queue is empty and one has capacity. Raises NotReachable if no worker can run the request."""
        model_queue = self.model_queue(requirements.model)
        if model_queue.ahead_of(requirements) and requirements.takes_slot:
            return None
        candidate = worker_choice.choose_worker(requirements, self._workers.list_eligible(requirements), self._rng)
        if candidate is None or not requirements.takes_slot:
            return None if candidate is None else self._new_claim(requirements, candidate, 0.0)
        charged = model_queue.cost(requirements)
        model_queue.of(requirements).pass_by(requirements.limited_as, charged)
        return self._claim(requirements, candidate, charged)

    async def find(self, requirements: WorkerRequirements) -> AsyncGenerator[str | Claim]:
        """Yield what the request waits for, for people, when that changes, and finally its claim. Raises NotReachable if no worker can run
        it now or soon, NotStarted, or Overloaded if the queue is full. Iterate it to the end, or close it with ``aclose``, which leaves the
        queue."""
        waiter = self._enter(requirements)
        handed_over = False
        try:
            last_notice, pause = "", FIRST_NOTICE_SECONDS
            while not waiter.outcome.done():
                left = self._waits_until(waiter) - self.clock()
                if left <= 0:
                    raise self._wait_exceeded(requirements)
                await asyncio.wait((waiter.outcome,), timeout=min(pause, left))
                why = self._describe_wait(waiter)
                if why not in ("", last_notice):
                    yield why
                    last_notice = why
                pause = NOTICE_SECONDS
            outcome = waiter.outcome.result()
            if isinstance(outcome, errors.NotReachable):
                raise outcome
            yield outcome
            # The claim is kept if the caller resumes, and released on close or cancel.
            handed_over = True
        finally:
            if not handed_over:
                self._leave(waiter)

    def ensure_capacity(self, requirements: WorkerRequirements) -> None:
        """Raise Overloaded if the queue is too long, before anything is reserved for the request. ``find`` may still refuse it."""
        model_queue = self.model_queue(requirements.model)
        try:
            self._check_bounds(model_queue, requirements, 1)
        except errors.Overloaded:
            # Workers may have arrived or become free since the last check.
            if not model_queue.of(requirements).has_waiting(requirements.limited_as, requirements.kind):
                candidates = self._workers.list_eligible(requirements)
                if worker_choice.choose_worker(requirements, candidates, self._rng) is not None:
                    return
                model_queue.slots = sum(candidate.capacity.slots for candidate in candidates)
            try:
                self._check_bounds(model_queue, requirements, 1)
            except errors.Overloaded:
                self.record_arrival(requirements.model, refused=True)
                raise

    def most_wait(self, requirements: WorkerRequirements) -> float:
        """Return how long the request may wait for a worker, in seconds."""
        return self._rules.most_wait(requirements)

    def ensure_allowed(self, node: NodeId, requirements: WorkerRequirements) -> None:
        """Raise NotReachable if the worker may not see the prompt, by what it announces now."""
        worker = self._directory.find(node)
        offers = () if worker is None else worker.announcement.models
        for offer in offers:
            if worker is not None and offer.name == requirements.model:
                barrier = placements.barrier(requirements.tenant, requirements.placement, worker.announcement, offer)
                if barrier is not None:
                    why = placements.describe_barrier(barrier, requirements.placement, offer)
                    raise errors.NotReachable(f"the worker {node[:8]}… {why}", hint="see `aicli policy explain`")

    def batch_room(self, models: Iterable[ModelName]) -> tuple[int, bool] | None:
        """Return how many requests of batches this gateway may run on workers of these models, and whether live requests wait; None if no
        worker is ready."""
        found, now = list[int](), self.clock()
        asked = list(models)
        for model in asked:
            for worker, offer in worker_choice.offering(model, self._directory.reachable(Role.WORKER)):
                found.append(self.worker_stats.occupancy.batch_slots_of(worker, offer, now))
        return (sum(found), any(self._queues[model].queue for model in asked if model in self._queues)) if found else None

    def model_queue(self, model: ModelName) -> ModelQueue[QueuedRequest]:
        found = self._queues.get(model)
        if found is None:
            if len(self._queues) >= _MAX_QUEUES:
                self._queues = {name: model_queue for name, model_queue in self._queues.items() if len(model_queue)}
                self._peers = {name: peers for name, peers in self._peers.items() if name in self._queues}
                self._workers.forget_room()
            found = self._queues[model] = ModelQueue()
            self._peers[model] = PeerQueues(self._name, model, found)
            self._metrics.oldest_wait.labels(model=model).set_function(partial(self.oldest_wait, model))
        return found

    def give_up(self, pool: str, reason: str, seconds: float) -> None:
        """Refuse what waits for a worker of the pool, and new requests for ``seconds``, unless one becomes ready."""
        self.worker_stats.starts.give_up(pool, reason, self.clock() + seconds)
        for model in [model for model, model_queue in self._queues.items() if model_queue]:
            self._refuse_unservable(model)

    def longest_start_seconds(self, models: Iterable[ModelName]) -> float:
        """Return how long a request for one of the models may wait for a start."""
        starts = self.worker_stats.starts
        return self._rules.start_seconds if starts.source.pools and any(model in starts.pools for model in models) else 0.0

    # --- the other gateways -------------------------------------------------------------------------------------------

    def reports(self) -> list[QueueReport]:
        """Return what to tell the other gateways now."""
        now = self.clock()
        return [
            report for model, peers in self._peers.items() if (report := peers.report(now, partial(self._held_here, model))) is not None
        ]

    def apply_report(self, report: QueueReport) -> None:
        self.model_queue(report.model)
        for worker in self._peers[report.model].apply_report(report, self.clock()):
            self.worker_stats.occupancy.record_offer(worker, report.model)
            # Use the offer here, even if another gateway is next in our order; otherwise offers could circulate.
            if not self._use_offer(report.model, worker):
                self._assign_slots(report.model, freed=worker)
        for starved in report.starved:
            ticket = self._peers[report.model].find_ticket(report.gateway, starved.tenant) if starved.worker is None else None
            if ticket is not None or starved.worker is not None:
                self._preempt_for(report.model, starved.tenant, starved.worker, ticket)
        # With waiting requests elsewhere, this gateway's own may now be worth reporting.
        self._measure(report.model)

    def expire_peers(self) -> None:
        """Reclaim slots that other gateways did not use, and forget silent gateways. Call it regularly while requests wait anywhere."""
        for model, peers in list(self._peers.items()):
            for worker in peers.expire(self.clock()):
                self.worker_stats.occupancy.reclaim(worker, model)
            if peers.has_peers and self.model_queue(model).queue:
                self._assign_slots(model)

    def forget_peers(self) -> None:
        """Schedule without the other gateways, because their reports can't be read."""
        for model, peers in self._peers.items():
            peers.forget_all()
            self._assign_slots(model)

    # --- preemption ---------------------------------------------------------------------------------------------------

    def preempt(self) -> None:
        """Free slots for requests that have waited too long. Call it regularly while ``has_waiting``."""
        now = self.clock()
        if now - self._looked_at < preemption.LOOK_SECONDS:
            return
        self._looked_at = now
        for model in list(self._queues):
            starved = [
                Starved(tenant, worker)
                for tenant, worker, waiter in self._starved(model)
                # It may have got a slot when one was freed for another tenant.
                if not (waiter and waiter.outcome.done()) and not self._preempt_for(model, tenant, worker, waiter)
            ]
            if starved:
                self._peers[model].add_starved(starved)
                self.on_change()

    def _starved(self, model: ModelName) -> list[tuple[TenantId, NodeId | None, _Waiter | None]]:
        """Return a request of each tenant that has waited too long, here or for a slot at a worker, and holds less than its share."""
        found: dict[TenantId, tuple[NodeId | None, _Waiter | None]] = {}
        for claim in self._claims.get(model, ()):
            if not claim.requirements.batch and not claim.has_started and self.clock() - claim.asked_at >= preemption.WAIT_SECONDS:
                found.setdefault(claim.tenant, (claim.worker.node, None))
        for waiter in self.model_queue(model).queue.turns(only_local=True):
            assert isinstance(waiter, _Waiter)
            most = preemption.PAUSE_SECONDS if waiter.requirements.is_preempted else preemption.WAIT_SECONDS
            if self.clock() - waiter.entered_at >= most:
                found.setdefault(waiter.requirements.limited_as, (None, waiter))
        held = self._held(model) if found else Counter[TenantId]()
        return [(tenant, *place) for tenant, place in found.items() if preemption.is_short(held, tenant)]

    def _preempt_for(self, model: ModelName, tenant: TenantId, worker: NodeId | None, waiter: QueuedRequest | None) -> bool:
        """Free a slot for a request that waits at ``worker``, or for ``waiter``, which gets it. Return False if none can be freed."""
        free = {node: capacity.free for node, capacity in self._workers.capacity(model).items() if node == worker}
        if waiter is not None:
            with suppress(errors.NotReachable):
                free = {candidate.node: candidate.capacity.free for candidate in self._workers.list_eligible(waiter.requirements)}
        live = [claim for claim in self._claims.get(model, ()) if not claim.requirements.batch]
        claims = preemption.choose(tenant, free, live, self._held(model), self.clock())
        for claim in claims:
            claim.preempt()
            self._end_claim(claim, model)
            self._metrics.preemptions.labels(model).inc()
        if claims and waiter is not None and self._serve(waiter, claims[0].worker.node):
            self._measure(model)
        for claim in claims:
            self._reassign(claim.worker.node)
        return bool(claims)

    def _held(self, model: ModelName) -> Counter[TenantId]:
        """Return how many slots each tenant holds, over all gateways as far as known."""
        return self._peers[model].count_held(self._held_here(model))

    def _held_here(self, model: ModelName) -> Counter[TenantId]:
        return Counter(claim.tenant for claim in self._claims.get(model, ()) if claim.has_started and not claim.requirements.batch)

    # --- the queue ----------------------------------------------------------------------------------------------------

    def _enter(self, requirements: WorkerRequirements) -> _Waiter:
        """Add a request to the queue. Raises NotReachable and Overloaded immediately."""
        model_queue, waiter = self.model_queue(requirements.model), _Waiter(requirements, self.clock())
        queue, urgent, is_new = model_queue.of(requirements), requirements.is_urgent, not requirements.is_again
        if is_new and queue.has_waiting(requirements.limited_as, requirements.kind):
            # If a request of the same kind waits, no worker has room: refuse a flood before the expensive steps.
            self._check_bounds(model_queue, requirements, 1)
        candidates = self._workers.list_eligible(requirements)
        queue.enter(requirements.limited_as, waiter, model_queue.cost(requirements), urgent=urgent, kind=requirements.kind)
        if not (is_new or urgent):
            queue.move_to_front(waiter)
        # Queued requests found no free slot, so room found now suits only this request, unless it was left to another gateway's request.
        is_first = urgent or model_queue.ahead_of(requirements) == sum(queue.local.values())
        if is_first and self._begin(waiter, candidates):
            return waiter
        model_queue.slots = sum(candidate.capacity.slots for candidate in candidates)
        try:
            if is_new:
                self._check_bounds(model_queue, requirements, 0)
        except errors.Overloaded:
            queue.leave(waiter)
            raise
        self._measure(requirements.model)
        return waiter

    def _check_bounds(self, model_queue: ModelQueue[QueuedRequest], requirements: WorkerRequirements, more: int) -> None:
        start_seconds = None if model_queue.slots else self._start_seconds(requirements)
        self._rules.check_bounds(model_queue, requirements, self._waiting_with(requirements), more, start_seconds=start_seconds)

    def _start_seconds(self, requirements: WorkerRequirements) -> float | None:
        """Return the usual rest of the start that the request waits for; None if it waits for no start."""
        is_ready = self.model_queue(requirements.model).slots
        return None if is_ready else self.worker_stats.starts.seconds_left(requirements, self.clock())

    def _waits_until(self, waiter: _Waiter) -> float:
        most = self._rules.most_wait(waiter.requirements)
        if self._start_seconds(waiter.requirements) is not None:
            waiter.start_wait_seen_at = self.clock()
            if waiter.start_wait_began_at is None:
                waiter.start_wait_began_at = waiter.start_wait_seen_at
            return waiter.start_wait_began_at + self._rules.start_seconds
        # The first worker that is ready can't serve all of them at once.
        ends_at = 0.0 if waiter.start_wait_began_at is None else waiter.start_wait_began_at + self._rules.start_seconds
        return max(ends_at, waiter.start_wait_seen_at + most)

    def _wait_exceeded(self, requirements: WorkerRequirements) -> errors.AimeshError:
        if self._start_seconds(requirements) is not None:
            return self.worker_stats.starts.not_ready(requirements, self._rules.start_seconds)
        if self._workers.hears_none(requirements.model):
            return errors.Overloaded(
                f"this gateway has lost its connection to NATS, over which it reaches the workers of {requirements.model}",
                hint="retry later; administrators: run `aicli doctor`",
                retry_after_seconds=1,
            )
        return self._rules.wait_exceeded(self.model_queue(requirements.model), requirements)

    def _describe_wait(self, waiter: _Waiter) -> str:
        """Return the notice for a request that still waits. Also look for slots, because the end of an ejection is not announced."""
        model_queue, now = self.model_queue(waiter.requirements.model), self.clock()
        if not waiter.outcome.done() and now - model_queue.looked_at >= NOTICE_SECONDS:
            self._assign_slots(waiter.requirements.model)
        if waiter.outcome.done():
            return ""
        start_seconds = self._start_seconds(waiter.requirements)
        return model_queue.waiting_notice(waiter, now) if start_seconds is None else worker_starts.describe(start_seconds)

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.outcome.done() and isinstance(claim := waiter.outcome.result(), Claim):
            claim.release()
        else:
            self.model_queue(waiter.requirements.model).of(waiter.requirements).leave(waiter)
            self._measure(waiter.requirements.model)

    def _measure(self, model: ModelName) -> None:
        self._metrics.queue_depth.labels(model=model).set(sum(self.model_queue(model).queue.local.values()))
        self.on_change()

    # --- slots --------------------------------------------------------------------------------------------------------

    def _apply_event(self, claim: Claim, event: ClaimEvent) -> None:
        node, model, outliers = claim.worker.node, claim.requirements.model, self.worker_stats.outliers
        match event:
            case Delivered():
                if outliers.records:
                    outliers.record_delivery(node, model)
            case Failed(error):
                if outliers.record_failure(node, model, error, self.clock()):
                    seconds = outliers.ejection_seconds(node, model, self.clock())
                    _log.warning("worker ejected", worker=node, model=model, seconds=seconds, code=errors.code_of(error))
            case Charged(cost, answer_tokens):
                model_queue = self.model_queue(model)
                model_queue.of(claim.requirements).charge(claim.tenant, cost)
                if answer_tokens is not None:
                    model_queue.record_length(answer_tokens)
                if model_queue.queue:
                    # The others order what waits by it.
                    self.on_change()
            case Released(seconds):
                self._end_claim(claim, model)
                if not claim.requirements.batch and seconds is not None:
                    self.model_queue(model).record_duration(seconds)
                self._reassign(node)

    def _end_claim(self, claim: Claim, model: ModelName) -> None:
        node = claim.worker.node
        del self._claims[model][claim]
        if not self._claims[model]:
            del self._claims[model]
        self.worker_stats.occupancy.end(node, model, self.clock(), is_batch=claim.requirements.batch)
        self._without_slot.release(node, model, claim)

    def _reassign(self, freed: NodeId) -> None:
        # The worker's other models may be waiting for it, too.
        for name in [name for name, model_queue in self._queues.items() if model_queue]:
            self._assign_slots(name, freed=freed)

    def _begin(self, waiter: _Waiter, candidates: Sequence[Candidate]) -> bool:
        candidate = worker_choice.choose_worker(waiter.requirements, candidates, self._rng)
        if candidate is not None:
            requirements, now = waiter.requirements, self.clock()
            model_queue = self.model_queue(requirements.model)
            charged = model_queue.cost(requirements)
            model_queue.of(requirements).dequeue(waiter, charged)
            claim = self._claim(requirements, candidate, charged, waited_seconds=now - waiter.entered_at)
            claim.start_wait_seconds = 0.0 if waiter.start_wait_began_at is None else now - waiter.start_wait_began_at
            waiter.outcome.set_result(claim)
        return candidate is not None

    def _claim(self, requirements: WorkerRequirements, candidate: Candidate, charged: float, *, waited_seconds: float = 0.0) -> Claim:
        if requirements.prefix_hashes:
            self.worker_stats.prefix_affinity.record(requirements.model, requirements.prefix_hashes, candidate.worker.node, self.clock())
        self._metrics.queue_wait_seconds.labels(requirements.model).observe(waited_seconds)
        claim = self._new_claim(requirements, candidate, charged, waited_seconds)
        if requirements.takes_slot:
            self.worker_stats.occupancy.begin(candidate.node, requirements.model, is_batch=requirements.batch)
            self._claims.setdefault(requirements.model, {})[claim] = None
        if claim.waits_there:
            self._without_slot.add(candidate.worker.node, requirements.model, claim)
            self.on_change()
        return claim

    def _new_claim(self, requirements: WorkerRequirements, candidate: Candidate, charged: float, waited_seconds: float = 0.0) -> Claim:
        waits_there = requirements.takes_slot and candidate.capacity.free <= 0
        return Claim(
            candidate.worker,
            candidate.offer,
            requirements,
            charged,
            report=self._apply_event,
            clock=self.clock,
            waits_there=waits_there,
            waited_seconds=waited_seconds,
        )

    def _assign_slots(self, model: ModelName, freed: NodeId | None = None) -> None:
        """Assign free slots in queue order. ``freed``: a worker with a slot that only this gateway knows of."""
        model_queue, owners = self.model_queue(model), self._workers.owners()
        model_queue.looked_at = self.clock()
        is_shared = self._peers[model].has_peers
        if is_shared and freed is None and not self._workers.room_lasts(model):
            self._has_room(model, model_queue)
            return
        only_at = freed if is_shared else None
        began = True
        while began and model_queue and self._has_room(model, model_queue):
            began = False
            full: set[_Kind] = set()
            for waiter in model_queue.turns():
                kind = _kind(waiter.requirements, owners)
                if kind not in full and (began := self._serve(waiter, only_at)):
                    break
                full.add(kind)
            if began:
                self._measure(model)
            if only_at is not None:
                break

    def _serve(self, waiter: QueuedRequest, only_at: NodeId | None) -> bool:
        return self._delegate_slot(waiter, only_at) if isinstance(waiter, PeerTicket) else self._begin_or_refuse(waiter, only_at)

    def _delegate_slot(self, ticket: PeerTicket, only_at: NodeId | None) -> bool:
        """Leave a free slot to another gateway's request; False if there is none. Announced slots are known there, too."""
        try:
            candidate = worker_choice.choose_worker(
                ticket.requirements, _only(only_at, self._workers.list_eligible(ticket.requirements)), self._rng
            )
        except errors.NotReachable:
            return False
        if candidate is None:
            return False
        self.worker_stats.occupancy.delegate(candidate.node, ticket.requirements.model)
        self._peers[ticket.requirements.model].delegate_slot(ticket, candidate.node, self.clock(), is_ours=only_at is not None)
        return True

    def _begin_or_refuse(self, waiter: QueuedRequest, only_at: NodeId | None) -> bool:
        assert isinstance(waiter, _Waiter)
        try:
            return self._begin(waiter, _only(only_at, self._workers.list_eligible(waiter.requirements)))
        except errors.NotReachable as error:
            self.model_queue(waiter.requirements.model).of(waiter.requirements).leave(waiter)
            waiter.outcome.set_result(error)
            return True

    def _use_offer(self, model: ModelName, worker: NodeId) -> bool:
        """Assign an offered slot to the first local request that may use it; False if there is none. Requests for which it was freed are
        before the others. Requests that no worker can run any more are refused, which changes the order."""
        model_queue, refused = self.model_queue(model), True
        while refused:
            refused = False
            starved = (waiter for *_, waiter in self._starved(model) if waiter is not None)
            for waiter in [*starved, *model_queue.queue.turns(only_local=True)]:
                assert isinstance(waiter, _Waiter)
                if self._begin_or_refuse(waiter, worker):
                    if isinstance(waiter.outcome.result(), Claim):
                        return True
                    refused = True
        return False

    def _has_room(self, model: ModelName, model_queue: ModelQueue[QueuedRequest]) -> bool:
        capacity = self._workers.capacity(model)
        model_queue.slots = sum(worker.slots for worker in capacity.values())
        return any(worker.has_room for worker in capacity.values())

    # --- worker changes -----------------------------------------------------------------------------------------------

    def _apply_change(self, entry: DirectoryEntry) -> None:
        if entry.role is not Role.WORKER:
            return
        self.worker_stats.apply_change(entry, self.clock(), datetime.now(UTC))
        for model in [model for model, model_queue in self._queues.items() if model_queue]:
            offers = worker_choice.offering(model, self._directory.entries(Role.WORKER), or_soon=True)
            offering = frozenset((worker.node, not worker.why_not, worker.announcement.draining, offer.ready) for worker, offer in offers)
            if offering != self._offering.get(model):
                self._offering[model] = offering
                self._refuse_unservable(model)
            self._assign_slots(model)

    def _refuse_unservable(self, model: ModelName) -> None:
        """Refuse requests that no worker can run any more, instead of letting them wait in vain."""
        model_queue, owners = self.model_queue(model), self._workers.owners()
        verdicts: dict[_Kind, errors.NotReachable | None] = {}
        for waiter in model_queue.order():
            if not isinstance(waiter, _Waiter):
                continue
            kind = _kind(waiter.requirements, owners)
            if kind not in verdicts:
                verdicts[kind] = self._workers.refusal(waiter.requirements)
            if (refusal := verdicts[kind]) is not None:
                model_queue.of(waiter.requirements).leave(waiter)
                waiter.outcome.set_result(refusal)


def _only(only_at: NodeId | None, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    return candidates if only_at is None else [candidate for candidate in candidates if candidate.node == only_at]


def _ignore() -> None: ...


#: Requests of one kind may run on the same workers.
_Kind = tuple[ResumeOrigin | None, frozenset[NodeId], Placement, TenantId | None, bool]


def _kind(requirements: WorkerRequirements, owners: Set[str]) -> _Kind:
    """Group requests by eligible workers; a tenant that owns a worker is its own kind."""
    owner = requirements.tenant if str(requirements.tenant) in owners else None
    return requirements.origin, requirements.excluded, requirements.placement, owner, requirements.batch
