"""Orders waiting requests fairly between tenants, by the Virtual Token Counter algorithm. Pure.

A tenant's counter grows with the service it gets, and the waiting tenant with the lowest counter is next (Sheng et al., "Fairness in
Serving Large Language Models", arXiv 2401.00588). Two rules hold: no slot stays free while a request waits, and the counters of two
tenants that always wait differ by at most the cost of the running requests. Being idle earns no credit: the counter of a tenant that
returns is raised to the lowest of those waiting.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.gateway.facts.worker_requirements import QueuedKind, WorkerRequirements
from shared import errors
from shared.types import TenantId

#: Weights of prompt and answer tokens, as in the paper; roughly their price ratio.
INPUT_WEIGHT = 1
OUTPUT_WEIGHT = 2
#: Counters kept, about 200 bytes each. Dropping the longest idle tenant forgives it at most one request.
MAX_TENANTS = 10_000
#: Tenants with unreported charges; the longest unchanged is dropped.
MAX_UNREPORTED = 1_000

Ticket = TypeVar("Ticket", bound=Hashable)
#: Tenant, kind, and whether it resumes an answer.
WaitingKey = tuple[TenantId, QueuedKind, bool]


@dataclass(frozen=True, slots=True)
class _QueuedTicket:
    tenant: TenantId
    kind: QueuedKind
    cost: float
    number: int
    urgent: bool
    is_local: bool


def cost(prompt_tokens: float, completion_tokens: float) -> float:
    return INPUT_WEIGHT * prompt_tokens + OUTPUT_WEIGHT * completion_tokens


class FairQueue(Generic[Ticket]):
    """Tracks waiting requests, and the service that each tenant got."""

    def __init__(self) -> None:
        self._queued: dict[Ticket, _QueuedTicket] = {}
        #: Number of this gateway's waiting requests, by tenant, kind and urgency.
        self.local: Counter[WaitingKey] = Counter()
        #: In order of arrival; only tenants with waiting requests.
        self._waiting: dict[TenantId, dict[Ticket, None]] = {}
        self._urgent: dict[Ticket, None] = {}
        self._counters: OrderedDict[TenantId, float] = OrderedDict()
        #: This gateway's charges that the others don't know yet.
        self.unreported: dict[TenantId, float] = {}
        #: When each tenant last had a turn, counted in arrivals and turns.
        self._had_turn: dict[TenantId, int] = {}
        #: Counter of the last tenant whose queue became empty.
        self._last_left = 0.0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._queued)

    def waiting_of(self, tenant: TenantId) -> int:
        """Return the tenant's waiting requests without urgent ones."""
        return len(self._waiting.get(tenant, ()))

    def has_waiting(self, tenant: TenantId, kind: QueuedKind) -> bool:
        """Return whether a non-urgent request of this kind waits at this gateway."""
        waiting = (self._queued[ticket] for ticket in self._waiting.get(tenant, ()))
        return any(queued.is_local and queued.kind == kind for queued in waiting)

    def oldest_local(self) -> Ticket | None:
        return next((ticket for ticket, queued in self._queued.items() if queued.is_local), None)

    def counters(self) -> dict[TenantId, float]:
        return {tenant: self.counter_of(tenant) for tenant in self._waiting}

    def counter_of(self, tenant: TenantId) -> float:
        return self._counters.get(tenant, 0.0)

    # --- facts --------------------------------------------------------------------------------------------------------

    def enter(
        self, tenant: TenantId, ticket: Ticket, cost: float, *, kind: QueuedKind, urgent: bool = False, is_local: bool = True
    ) -> None:
        """Add a request, even if a slot is free. ``urgent`` requests resume an answer and come first. Requests that wait at another
        gateway are ordered, too, but not ``is_local``. A tenant's requests of one ``kind`` may run on the same workers."""
        self._arrivals += 1
        self._queued[ticket] = _QueuedTicket(tenant, kind, cost, self._arrivals, urgent, is_local)
        if is_local:
            self.local[tenant, kind, urgent] += 1
        if urgent:
            self._urgent[ticket] = None
            return
        if tenant not in self._waiting:
            self._raise_counter(tenant)
            self._waiting[tenant] = {}
        self._waiting[tenant][ticket] = None

    def move_to_front(self, ticket: Ticket) -> None:
        """Let a request that isn't urgent be its tenant's next one."""
        waiting = self._waiting[self._queued[ticket].tenant]
        others = [other for other in waiting if other != ticket]
        waiting.clear()
        waiting.update(dict.fromkeys((ticket, *others)))

    def leave(self, ticket: Ticket) -> None:
        """Remove a request that was not served. Does nothing if it isn't queued."""
        if (queued := self._queued.pop(ticket, None)) is None:
            return
        if queued.is_local:
            key = queued.tenant, queued.kind, queued.urgent
            self.local[key] -= 1
            if not self.local[key]:
                del self.local[key]
        if queued.urgent:
            del self._urgent[ticket]
            return
        waiting = self._waiting[queued.tenant]
        del waiting[ticket]
        if not waiting:
            del self._waiting[queued.tenant]
            self._last_left = self.counter_of(queued.tenant)

    def dequeue(self, ticket: Ticket, cost: float) -> None:
        """Remove a request that is served now, and charge its tenant the estimated ``cost``; ``correct`` adjusts it later."""
        queued = self._queued[ticket]
        self.charge(queued.tenant, cost)
        self._arrivals += 1
        if not queued.urgent:
            self._had_turn[queued.tenant] = self._arrivals
        self.leave(ticket)

    def pass_by(self, tenant: TenantId, cost: float) -> None:
        """Record a request that is served at once, because none waits: the same as ``enter`` and ``dequeue``."""
        self._arrivals += 2
        counter = self._counters.get(tenant, 0.0)
        if self._last_left > counter:
            self.correct(tenant, self._last_left - counter)
        self.charge(tenant, cost)
        self._had_turn[tenant], self._last_left = self._arrivals, self._counters[tenant]

    def charge(self, tenant: TenantId, cost: float) -> None:
        """Charge a tenant for what it gets here."""
        self.correct(tenant, cost)
        self.unreported[tenant] = self.unreported.pop(tenant, 0.0) + cost
        if len(self.unreported) > MAX_UNREPORTED:
            del self.unreported[next(iter(self.unreported))]

    def correct(self, tenant: TenantId, by: float) -> None:
        self._counters[tenant] = self._counters.pop(tenant, 0.0) + by
        if len(self._counters) > MAX_TENANTS:
            idle = next((candidate for candidate in self._counters if candidate not in self._waiting), None)
            if idle is not None:
                del self._counters[idle]
                self._had_turn.pop(idle, None)

    def _raise_counter(self, tenant: TenantId) -> None:
        level = min((self.counter_of(other) for other in self._waiting), default=self._last_left)
        if level > self.counter_of(tenant):
            self.correct(tenant, level - self.counter_of(tenant))

    # --- questions ----------------------------------------------------------------------------------------------------

    def turns(self, *, only_local: bool = False) -> Iterator[Ticket]:
        """Yield the requests that may be next, in order: urgent ones, then each tenant's oldest of a kind. Call again after ``dequeue``."""
        yield from [ticket for ticket in self._urgent if not only_local or self._queued[ticket].is_local]
        if not self._waiting:
            return
        # The first is nearly always taken, so the others are sorted only if needed.
        first = min(self._waiting, key=self._turn)
        yield from self._first_of(first, only_local)
        for tenant in sorted(self._waiting, key=self._turn)[1:]:
            yield from self._first_of(tenant, only_local)

    def order(self) -> list[Ticket]:
        """Return all waiting requests in the order of service, assuming no arrivals."""
        found = list(self._urgent)
        heap = [(*self._turn(tenant), tenant, iter(waiting)) for tenant, waiting in self._waiting.items()]
        heapq.heapify(heap)
        while heap:
            counter, _, number, tenant, rest = heap[0]
            ticket = next(rest, None)
            if ticket is None:
                heapq.heappop(heap)
                continue
            found.append(ticket)
            turn = (counter + self._queued[ticket].cost, self._arrivals + len(found))
            heapq.heapreplace(heap, (*turn, number, tenant, rest))
        return found

    def position_of_last(self, tenant: TenantId) -> int:
        """Estimate the position, from 1, of the tenant's newest request, assuming equal costs; much cheaper than ``order``."""
        own = self.waiting_of(tenant)
        # Every other tenant gets as many turns before it as this one has.
        return len(self._urgent) + sum([min(len(waiting), own) for waiting in self._waiting.values()])

    def _first_of(self, tenant: TenantId, only_local: bool) -> Iterator[Ticket]:
        seen = set[QueuedKind | None]()
        for ticket in self._waiting[tenant]:
            queued = self._queued[ticket]
            if queued.kind not in seen and (queued.is_local or not only_local):
                seen.add(queued.kind)
                yield ticket

    def _turn(self, tenant: TenantId) -> tuple[float, int, int]:
        """Break ties by the longest time without a turn, then by arrival."""
        return self.counter_of(tenant), self._had_turn.get(tenant, 0), self._queued[next(iter(self._waiting[tenant]))].number


# --- the queue of one model ---------------------------------------------------------------------------------------------

#: Weight of the newest value in a mean: about the last ten count.
_WEIGHT = 0.2
#: Assumed length of an answer until the first has ended.
_FIRST_GUESS_TOKENS = 256.0
#: Computing all positions takes milliseconds for a thousand requests, and faster updates would be no use to a reader.
_POSITIONS_SECONDS = 1.0
#: The same, for a request without a position.
_NEWCOMERS_SECONDS = 0.2
#: Retry time if the speed of the queue is unknown.
UNKNOWN_RETRY_SECONDS = 5.0


@dataclass(slots=True)
class ModelQueue(Generic[Ticket]):
    """The queue of one model: its order, its speed, and the notices for waiting callers. Live requests are before those of batches, which
    have counters of their own, so that a batch costs its tenant no turn of a live request."""

    #: Live requests.
    queue: FairQueue[Ticket] = field(default_factory=FairQueue)
    #: Only this gateway's: workers announce their free slots to all.
    batch: FairQueue[Ticket] = field(default_factory=FairQueue)
    #: From the start on a worker to the end; 0 until a request has ended.
    mean_seconds: float = 0.0
    mean_tokens: float = _FIRST_GUESS_TOKENS
    #: Total slots of the eligible workers; 0 if none is ready.
    slots: int = 1
    #: When free slots were last looked for.
    looked_at: float = float("-inf")
    _positions: dict[Ticket, int] = field(default_factory=dict)
    _positions_at: float = float("-inf")

    def __len__(self) -> int:
        return len(self.queue) + len(self.batch)

    def of(self, requirements: WorkerRequirements) -> FairQueue[Ticket]:
        return self.batch if requirements.batch else self.queue

    def ahead_of(self, requirements: WorkerRequirements) -> int:
        """Return how many requests wait that a new one may not pass at once."""
        return len(self) if requirements.batch else len(self.queue)

    def turns(self) -> Iterator[Ticket]:
        """See ``FairQueue.turns``."""
        yield from self.queue.turns()
        yield from self.batch.turns()

    def order(self) -> list[Ticket]:
        return [*self.queue.order(), *self.batch.order()]

    def position_of_last(self, requirements: WorkerRequirements) -> int:
        """See ``FairQueue.position_of_last``."""
        before = len(self.queue) if requirements.batch else 0
        return before + self.of(requirements).position_of_last(requirements.limited_as)

    def cost(self, requirements: WorkerRequirements) -> float:
        """Estimate the cost. The prompt bound counts bytes, of which a token has about four. What was preempted is paid for already."""
        if requirements.is_preempted:
            return 0.0
        return cost(requirements.prompt_tokens / 4, min(requirements.max_tokens, self.mean_tokens))

    def record_duration(self, seconds: float) -> None:
        self.mean_seconds = seconds if not self.mean_seconds else _moving_average(self.mean_seconds, seconds)

    def record_length(self, tokens: int) -> None:
        self.mean_tokens = _moving_average(self.mean_tokens, tokens)

    def expected_seconds(self, position: int) -> float | None:
        """Return the expected wait at this position; None if unknown, as while no worker is ready."""
        return position * self.mean_seconds / self.slots if self.mean_seconds and self.slots else None

    def retry_seconds(self, position: int) -> float:
        """Return when the request at this position would start; an earlier retry would be refused again."""
        expected = self.expected_seconds(position)
        return UNKNOWN_RETRY_SECONDS if expected is None else max(1.0, expected)

    def waiting_notice(self, ticket: Ticket, now: float) -> str:
        """Return the notice for a waiting caller; empty until a new request has a position."""
        if now - self._positions_at >= (_POSITIONS_SECONDS if ticket in self._positions else _NEWCOMERS_SECONDS):
            self._positions = {queued: position for position, queued in enumerate(self.order(), 1)}
            self._positions_at = now
        position = self._positions.get(ticket)
        if position is None:
            return ""
        expected = self.expected_seconds(position)
        about = "" if expected is None else f", about {max(1, round(expected))} s"
        return f"position {position} of {max(position, len(self))}{about}"


def _moving_average(mean: float, newest: float) -> float:
    return (1 - _WEIGHT) * mean + _WEIGHT * newest


#: As long as OpenAI's flex requests, whose clients wait for 15 minutes.
BATCH_WAIT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class QueueSettings:
    #: Longest wait for a worker.
    queue_seconds: float = 30.0
    #: Over all models. A mesh that completes fewer than 33 requests a second can't serve more within 30 s; with prompts of 16 KiB they
    #: take 16 MiB of memory.
    queue_most: int = 1000
    #: One tenant can't fill the queue: at least ten tenants fit.
    queue_per_tenant: int = 100
    #: Longest wait for the start of a worker, before the wait above.
    start_seconds: float = 300.0
    #: As ``queue_seconds``, for requests of batches.
    batch_seconds: float = BATCH_WAIT_SECONDS

    def check_bounds(
        self,
        model_queue: ModelQueue[Ticket],
        requirements: WorkerRequirements,
        waiting_anywhere: int,
        more: int,
        *,
        start_seconds: float | None = None,
    ) -> None:
        """Check the bounds for a queued request, or for one ``more``. ``start_seconds``: the rest of the start that it waits for. Raises
        Overloaded."""
        own = model_queue.of(requirements).waiting_of(requirements.limited_as) + more
        position = model_queue.position_of_last(requirements) + more
        expected, most = model_queue.expected_seconds(position), self._most_wait(requirements)
        is_too_slow = start_seconds is None and expected is not None and expected > most
        if own <= self.queue_per_tenant and waiting_anywhere + more <= self.queue_most and not is_too_slow:
            return
        retry = model_queue.retry_seconds(position) if start_seconds is None else max(1.0, start_seconds)
        busy = f"all workers of {requirements.model} are busy" if start_seconds is None else f"a worker of {requirements.model} is starting"
        if own > self.queue_per_tenant:
            full = f"{own - 1} of your requests are already queued for {requirements.model}, which is the limit"
            raise errors.Overloaded(full, hint="send fewer requests at the same time", retry_after_seconds=retry)
        if waiting_anywhere + more > self.queue_most:
            full = f"{busy} and {self.queue_most} requests are already queued"
            raise errors.Overloaded(full, hint="retry later, or add a worker", retry_after_seconds=retry)
        assert expected is not None  # it is too slow
        full = f"{busy}: the expected wait is {expected:.0f} s, and the limit is {most:g} s"
        raise errors.Overloaded(full, hint="retry later, or add a worker", retry_after_seconds=max(1.0, expected - most))

    def most_wait(self, requirements: WorkerRequirements) -> float:
        # A preempted answer was accepted, so it may wait as long as its caller does.
        return requirements.most_wait_seconds if requirements.is_preempted else self._most_wait(requirements)

    def _most_wait(self, requirements: WorkerRequirements) -> float:
        return min(self.batch_seconds if requirements.batch else self.queue_seconds, requirements.most_wait_seconds)

    def wait_exceeded(self, model_queue: ModelQueue[Ticket], requirements: WorkerRequirements) -> errors.PeerError:
        """Return the error for a request that waited too long."""
        kind = errors.ResourceUnavailable if requirements.batch else errors.Overloaded
        return kind(
            f"no worker of {requirements.model} became free within {self.most_wait(requirements):g} s",
            hint="retry later, or without flex" if requirements.batch else "retry later, or add a worker",
            retry_after_seconds=model_queue.retry_seconds(model_queue.position_of_last(requirements)),
        )
