"""What the gateways of a mesh tell each other of their queues, so that all of them see one order of turns.  Pure; the caller brings
the clock.

Each gateway keeps the requests that wait at the others as ``PeerTicket`` in its own queues. When one of its places becomes free
and the next in the order waits elsewhere, it offers the place to that gateway. Counts are sent as they are now and not as changes,
so that a report that is lost is repaired by the next.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from services.gateway.scheduling.fair_queue import ModelQueue
from services.gateway.scheduling.routing import WorkerRequirements
from shared import errors
from shared.types import ModelName, NodeId, TenantId

#: A gateway where requests wait says all of it so often.
WHOLE_SECONDS = 1.0
#: What a gateway said counts for so long.
SILENT_SECONDS = 3.0
#: A place that was left to another gateway, and that it did not take, is used here after so long.
LEND_SECONDS = 0.5
#: Tenants whose tokens are not reported yet; without a queue nobody needs to know them, and the longest unchanged is dropped.
MOST_UNREPORTED = 1_000
#: Requests of one tenant at one gateway that are believed: many times what the bounds let in.
_MOST_WAITING = 10_000
#: A peer's request takes as long as the mean here.
_UNKNOWN_TOKENS = 1_000_000


class PeerWaiting(msgspec.Struct, array_like=True, frozen=True):
    #: As ``WorkerRequirements.limited_as``, as everywhere here.
    tenant: TenantId
    ordinary: int = 0
    #: They continue an answer that has begun.
    urgent: int = 0


class Charge(msgspec.Struct, array_like=True, frozen=True):
    """A tenant and a cost in the queue's measure, ``fair_queue.cost``."""

    tenant: TenantId
    cost: float


class PeerOffer(msgspec.Struct, array_like=True, frozen=True):
    """A free place on a worker."""

    to: str
    worker: NodeId


class QueueReport(msgspec.Struct, array_like=True, frozen=True):
    """What one gateway says of its queue for one model."""

    #: Of two gateways the one that started earlier has the lesser name.
    gateway: str
    model: ModelName
    #: The tenants whose number has changed, or where ``whole`` all that wait.
    waiting: tuple[PeerWaiting, ...] = ()
    whole: bool = False
    #: Served since the last report.
    charges: tuple[Charge, ...] = ()
    #: Where ``whole``: what each waiting tenant was served by all gateways, as this one knows it.
    counters: tuple[Charge, ...] = ()
    offers: tuple[PeerOffer, ...] = ()


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[QueueReport]).decode


def decode(entry: bytes) -> list[QueueReport]:
    """Raises ProtocolViolation."""
    try:
        return _decode(entry)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.ProtocolViolation(f"not a report of a queue: {error}") from error


class QueuedRequest(Protocol):
    """Here or at another gateway."""

    @property
    def wish(self) -> WorkerRequirements: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class PeerTicket:
    """A request that waits at another gateway."""

    gateway: str
    wish: WorkerRequirements
    urgent: bool


@dataclass(slots=True)
class _Lent:
    until: float
    lent_at: float
    gateway: str
    tenant: TenantId
    worker: NodeId
    cost: float


@dataclass(slots=True)
class _Outbox:
    """What is to be told of one model."""

    told: dict[tuple[TenantId, bool], int] = field(default_factory=dict)
    whole_at: float = float("-inf")
    charges: dict[TenantId, float] = field(default_factory=dict)
    offers: list[PeerOffer] = field(default_factory=list)


class PeerQueues:
    """For one model: keeps the peers' requests in the queue of ``lane``."""

    def __init__(self, me: str, model: ModelName, lane: ModelQueue[QueuedRequest]) -> None:
        self._me = me
        self._model = model
        self._lane = lane
        self._outbox = _Outbox()
        self._heard_at: dict[str, float] = {}
        #: The oldest first.
        self._tickets: dict[str, dict[tuple[TenantId, bool], deque[PeerTicket]]] = {}
        self._lent: deque[_Lent] = deque()

    @property
    def are_heard(self) -> bool:
        """Whether another gateway has said something lately."""
        return bool(self._heard_at)

    # --- what this gateway does -----------------------------------------------------------------------------------------

    def charged(self, tenant: TenantId, cost: float) -> None:
        """The tenant was charged here."""
        charges = self._outbox.charges
        charges[tenant] = charges.pop(tenant, 0.0) + cost
        if len(charges) > MOST_UNREPORTED:
            del charges[next(iter(charges))]

    def lend(self, ticket: PeerTicket, worker: NodeId, now: float, *, is_ours: bool) -> None:
        """A free place is left to the gateway of ``ticket``. Where the place ``is_ours``, only we know that it is free."""
        tenant, queue = ticket.wish.limited_as, self._lane.queue
        self._tickets[ticket.gateway][tenant, ticket.urgent].remove(ticket)
        queue.leave(ticket)
        # Until the other gateway reports what it charged: several places at once are not all for the one tenant.
        cost = self._lane.cost(ticket.wish)
        queue.correct(tenant, cost)
        self._lent.append(_Lent(now + LEND_SECONDS, now, ticket.gateway, tenant, worker, cost))
        if is_ours:
            self._outbox.offers.append(PeerOffer(ticket.gateway, worker))

    def report(self, now: float) -> QueueReport | None:
        """What is to be told now; None where nobody needs to know anything."""
        queue, out = self._lane.queue, self._outbox
        if not queue and not out.told and not out.offers:
            return None
        whole = bool(queue.local) and now - out.whole_at >= WHOLE_SECONDS
        changed = queue.local if whole else {key for key in {*out.told, *queue.local} if out.told.get(key, 0) != queue.local.get(key, 0)}
        if not (whole or changed or out.charges or out.offers):
            return None
        tenants = {tenant for tenant, _ in changed}
        report = QueueReport(
            self._me,
            self._model,
            tuple(PeerWaiting(tenant, queue.local.get((tenant, False), 0), queue.local.get((tenant, True), 0)) for tenant in tenants),
            whole,
            tuple(Charge(tenant, cost) for tenant, cost in out.charges.items()),
            tuple(Charge(tenant, cost) for tenant, cost in queue.counters().items()) if whole else (),
            tuple(out.offers),
        )
        self._outbox = _Outbox(dict(queue.local), now if whole else out.whole_at)
        return report

    # --- what the others do ---------------------------------------------------------------------------------------------

    def heard(self, report: QueueReport, now: float) -> tuple[NodeId, ...]:
        """Another gateway has said this. Returns the workers on which it leaves us a place."""
        self._heard_at[report.gateway] = now
        for charge in report.charges:
            self._lane.queue.correct(charge.tenant, charge.cost - self._settle(report.gateway, charge.tenant))
        known = self._tickets.setdefault(report.gateway, {})
        if report.whole:
            for tenant, urgent in known.keys() - {(each.tenant, urgent) for each in report.waiting for urgent in (False, True)}:
                self._set(report.gateway, tenant, urgent, 0)
        for each in report.waiting:
            self._set(report.gateway, each.tenant, False, each.ordinary)
            self._set(report.gateway, each.tenant, True, each.urgent)
        if report.gateway < self._me:
            self._align(report)
        return tuple(offer.worker for offer in report.offers if offer.to == self._me)

    def expire(self, now: float) -> list[NodeId]:
        """Forget the gateways that are silent. Returns the workers on which a place was left to another gateway and may be used here."""
        found = []
        while self._lent and self._lent[0].until <= now:
            lent = self._lent.popleft()
            self._lane.queue.correct(lent.tenant, -lent.cost)
            found.append(lent.worker)
            if self._heard_at.get(lent.gateway, 0.0) < lent.lent_at:
                self._forget(lent.gateway)
        for gateway, heard_at in list(self._heard_at.items()):
            if now - heard_at > SILENT_SECONDS:
                self._forget(gateway)
                del self._heard_at[gateway]
        return found

    def forget_all(self) -> None:
        """Nothing is heard any more: each gateway decides alone, and says everything when it can."""
        for gateway in list(self._tickets):
            self._forget(gateway)
        self._heard_at.clear()
        self._outbox = _Outbox()

    def _forget(self, gateway: str) -> None:
        for tenant, urgent in list(self._tickets.get(gateway, ())):
            self._set(gateway, tenant, urgent, 0)
        self._tickets.pop(gateway, None)

    def _set(self, gateway: str, tenant: TenantId, urgent: bool, count: int) -> None:
        """So many of its requests wait there."""
        known = self._tickets[gateway]
        tickets = known.setdefault((tenant, urgent), deque())
        while len(tickets) > max(0, count):
            self._lane.queue.leave(tickets.popleft())
        wish = WorkerRequirements(self._model, tenant, tenant, 0, _UNKNOWN_TOKENS)
        while len(tickets) < min(count, _MOST_WAITING):
            ticket = PeerTicket(gateway, wish, urgent)
            tickets.append(ticket)
            self._lane.queue.enter(tenant, ticket, self._lane.cost(wish), urgent=urgent, is_local=False)
        if not tickets:
            del known[tenant, urgent]

    def _settle(self, gateway: str, tenant: TenantId) -> float:
        """What the tenant was charged with for places that were left to that gateway."""
        settled = 0.0
        for lent in self._lent:
            if (lent.gateway, lent.tenant) == (gateway, tenant):
                settled, lent.cost = settled + lent.cost, 0.0
        return settled

    def _align(self, report: QueueReport) -> None:
        """The oldest gateway's counters are everybody's: a gateway that has just started learns them so, and no difference stays."""
        queue = self._lane.queue
        own = queue.counters()
        for said in report.counters:
            if said.tenant in own:
                unknown_there = self._outbox.charges.get(said.tenant, 0.0)
                unknown_there += sum(lent.cost for lent in self._lent if lent.tenant == said.tenant)
                queue.correct(said.tenant, said.cost + unknown_there - own[said.tenant])
