"""Whose turn it is when every worker is full: the Virtual Token Counter over tenants.  Pure.

A tenant's counter grows with what it is served, and of those that wait the one with the least is next (Sheng et al., "Fairness
in Serving Large Language Models", arXiv 2401.00588). Two rules hold: a place is never left free while somebody waits for it, and
between two tenants that both always wait the counters differ by no more than the requests that run at once cost. Who was away
does not save turns up: a newcomer's counter is lifted to the least of those waiting.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.gateway.scheduling.routing import WorkerRequirements
from shared.types import TenantId

#: Of a token of the prompt, and of the answer; as in the paper, and about what they cost to buy.
INPUT_WEIGHT = 1
OUTPUT_WEIGHT = 2
#: Counters kept, about 200 bytes each; the tenant longest away is forgotten first, which forgives it at most one request.
MAX_TENANTS = 10_000

Ticket = TypeVar("Ticket", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _TenantQueue:
    tenant: TenantId
    kind: Hashable
    cost: float
    number: int
    urgent: bool
    is_local: bool


def cost(prompt_tokens: float, completion_tokens: float) -> float:
    return INPUT_WEIGHT * prompt_tokens + OUTPUT_WEIGHT * completion_tokens


class FairQueue(Generic[Ticket]):
    """Who waits, and what each tenant was served."""

    def __init__(self) -> None:
        self._places: dict[Ticket, _TenantQueue] = {}
        #: The requests of this gateway, by tenant and urgency.
        self._local: Counter[tuple[TenantId, bool]] = Counter()
        #: Each in the order of coming; a tenant that does not wait is not in it.
        self._waiting: dict[TenantId, dict[Ticket, None]] = {}
        self._urgent: dict[Ticket, None] = {}
        self._counters: OrderedDict[TenantId, float] = OrderedDict()
        #: When each of those had its last turn, counted in arrivals and turns.
        self._had_turn: dict[TenantId, int] = {}
        #: The counter of the tenant that was the last to have nobody waiting any more.
        self._last_left = 0.0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._places

    def waiting_of(self, tenant: TenantId) -> int:
        """The urgent ones are not counted."""
        return len(self._waiting.get(tenant, ()))

    def waits(self, tenant: TenantId, kind: Hashable) -> bool:
        """Whether one of this kind waits that is not urgent."""
        return any(self._places[ticket].kind == kind for ticket in self._waiting.get(tenant, ()))

    @property
    def local(self) -> Mapping[tuple[TenantId, bool], int]:
        """How many requests of this gateway wait, by tenant and by whether they are urgent."""
        return self._local

    def counters(self) -> dict[TenantId, float]:
        """The counters of the tenants that wait."""
        return {tenant: self.counter_of(tenant) for tenant in self._waiting}

    def counter_of(self, tenant: TenantId) -> float:
        return self._counters.get(tenant, 0.0)

    # --- facts --------------------------------------------------------------------------------------------------------

    def enter(
        self, tenant: TenantId, ticket: Ticket, cost: float, *, urgent: bool = False, is_local: bool = True, kind: Hashable = None
    ) -> None:
        """Everybody enters, also where a place is free. ``urgent`` ones are before all others: they go on with something. Requests that
        wait at another gateway take part in the order and are not ``is_local``. A tenant's requests of one ``kind`` may run on the same
        workers."""
        self._arrivals += 1
        self._places[ticket] = _TenantQueue(tenant, kind, cost, self._arrivals, urgent, is_local)
        if is_local:
            self._local[tenant, urgent] += 1
        if urgent:
            self._urgent[ticket] = None
            return
        if tenant not in self._waiting:
            self._lift(tenant)
            self._waiting[tenant] = {}
        self._waiting[tenant][ticket] = None

    def leave(self, ticket: Ticket) -> None:
        """It waits no more and was not served. Nothing happens if it does not wait."""
        if (place := self._places.pop(ticket, None)) is None:
            return
        if place.is_local:
            self._local[place.tenant, place.urgent] -= 1
            if not self._local[place.tenant, place.urgent]:
                del self._local[place.tenant, place.urgent]
        if place.urgent:
            del self._urgent[ticket]
            return
        waiting = self._waiting[place.tenant]
        del waiting[ticket]
        if not waiting:
            del self._waiting[place.tenant]
            self._last_left = self.counter_of(place.tenant)

    def take(self, ticket: Ticket, cost: float) -> None:
        """It is served now: its tenant is charged with what it may cost as far as is known now, until ``correct`` says what it did."""
        place = self._places[ticket]
        self.correct(place.tenant, cost)
        self._arrivals += 1
        if not place.urgent:
            self._had_turn[place.tenant] = self._arrivals
        self.leave(ticket)

    def correct(self, tenant: TenantId, by: float) -> None:
        """What it was served differs from what it was charged with."""
        self._counters[tenant] = self._counters.pop(tenant, 0.0) + by
        if len(self._counters) > MAX_TENANTS:
            idle = next((known for known in self._counters if known not in self._waiting), None)
            if idle is not None:
                del self._counters[idle]
                self._had_turn.pop(idle, None)

    def _lift(self, tenant: TenantId) -> None:
        level = min((self.counter_of(other) for other in self._waiting), default=self._last_left)
        if level > self.counter_of(tenant):
            self.correct(tenant, level - self.counter_of(tenant))

    # --- questions ----------------------------------------------------------------------------------------------------

    def turns(self, *, only_local: bool = False) -> Iterator[Ticket]:
        """Who may be next, in the order of turns: the urgent ones, then for every tenant its oldest request of each kind.
        Whoever takes one asks anew."""
        yield from [ticket for ticket in self._urgent if not only_local or self._places[ticket].is_local]
        if not self._waiting:
            return
        # The first is nearly always the one; to sort the others is for when it is not.
        first = min(self._waiting, key=self._turn)
        yield from self._first_of(first, only_local)
        for tenant in sorted(self._waiting, key=self._turn)[1:]:
            yield from self._first_of(tenant, only_local)

    def order(self) -> list[Ticket]:
        """All that wait, in the order in which they will be served if nobody comes."""
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
            turn = (counter + self._places[ticket].cost, self._arrivals + len(found))
            heapq.heapreplace(heap, (*turn, number, tenant, rest))
        return found

    def position_of_last(self, tenant: TenantId) -> int:
        """About which place, from 1 on, the tenant's newest has, as if all were of one size. For many newcomers at once, where
        ``order`` would cost too much."""
        mine = self.waiting_of(tenant)
        # Of each other tenant as many, and all of its own.
        return len(self._urgent) + sum([min(len(waiting), mine) for waiting in self._waiting.values()])

    def _first_of(self, tenant: TenantId, only_local: bool) -> Iterator[Ticket]:
        """The oldest of each kind."""
        seen = set[Hashable]()
        for ticket in self._waiting[tenant]:
            place = self._places[ticket]
            if place.kind not in seen and (place.is_local or not only_local):
                seen.add(place.kind)
                yield ticket

    def _turn(self, tenant: TenantId) -> tuple[float, int, int]:
        """Of equals the one that has had no turn for the longest, and of those the one that came first."""
        return self.counter_of(tenant), self._had_turn.get(tenant, 0), self._places[next(iter(self._waiting[tenant]))].number


# --- the queue of one model ---------------------------------------------------------------------------------------------

#: How much the newest request moves a mean: about the last ten count.
_WEIGHT = 0.2
#: Until an answer has ended, they are taken to be so long; then the mean says.
_FIRST_GUESS_TOKENS = 256.0
#: Working out everybody's place costs some milliseconds where a thousand wait, and people read no faster.
_PLACES_SECONDS = 1.0
#: For one that has no place yet.
_NEWCOMERS_SECONDS = 0.2
#: What is said where nothing is known of how fast it goes.
UNKNOWN_RETRY_SECONDS = 5.0


@dataclass(slots=True)
class ModelQueue(Generic[Ticket]):
    """The queue of one model: who is next, how fast it moves, and what those who wait are told."""

    queue: FairQueue[Ticket] = field(default_factory=FairQueue)
    #: Of a request, from its start on a worker to its end; 0 until one has ended.
    mean_seconds: float = 0.0
    mean_tokens: float = _FIRST_GUESS_TOKENS
    #: Of the workers that could run something of it.
    slots: int = 1
    #: When it was last seen whether somebody can begin.
    looked_at: float = float("-inf")
    _places: dict[Ticket, int] = field(default_factory=dict)
    _placed_at: float = float("-inf")

    def cost(self, wish: WorkerRequirements) -> float:
        """What it is charged with until it is known: the prompt's bound counts bytes, of which a token has about four."""
        return cost(wish.prompt_tokens / 4, min(wish.max_tokens, self.mean_tokens))

    def ended(self, seconds: float) -> None:
        self.mean_seconds = seconds if not self.mean_seconds else _moved(self.mean_seconds, seconds)

    def answered(self, tokens: int) -> None:
        self.mean_tokens = _moved(self.mean_tokens, tokens)

    def expected_seconds(self, position: int) -> float | None:
        """Until the one at this place begins; None where nothing is known yet."""
        return position * self.mean_seconds / max(1, self.slots) if self.mean_seconds else None

    def retry_seconds(self, position: int) -> float:
        """When the one at this place would have had its turn: to come earlier is to be refused again."""
        expected = self.expected_seconds(position)
        return UNKNOWN_RETRY_SECONDS if expected is None else max(1.0, expected)

    def words(self, ticket: Ticket, now: float) -> str:
        """For people; empty for a newcomer that has no place yet: the next look has one."""
        if now - self._placed_at >= (_PLACES_SECONDS if ticket in self._places else _NEWCOMERS_SECONDS):
            self._places = {each: place for place, each in enumerate(self.queue.order(), 1)}
            self._placed_at = now
        place = self._places.get(ticket)
        if place is None:
            return ""
        expected = self.expected_seconds(place)
        about = "" if expected is None else f", about {max(1, round(expected))} s"
        return f"position {place} of {max(place, len(self.queue))}{about}"


def _moved(mean: float, newest: float) -> float:
    return (1 - _WEIGHT) * mean + _WEIGHT * newest
