"""Shares queue state between gateways, so that all of them use one fair order. Pure.

Each gateway keeps the others' waiting requests as ``PeerTicket`` in its own queues. When a slot becomes free and the next request
waits elsewhere, the gateway offers the slot to that one. Reports carry absolute counts, so the next report repairs a lost one.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from services.gateway.facts.worker_requirements import QueuedKind, WorkerRequirements
from services.gateway.scheduling.fair_queue import ModelQueue, WaitingKey
from shared import errors
from shared.types import ModelName, NodeId, TenantId

#: How often a gateway with waiting requests sends a full report.
WHOLE_SECONDS = 1.0
#: How long a report stays valid.
SILENT_SECONDS = 3.0
#: How long a slot is reserved for another gateway.
DELEGATION_SECONDS = 0.5
#: Limit for a peer's claim of one tenant's waiting requests: many times what the queue bounds allow.
_MAX_WAITING = 10_000
#: Makes the cost of a peer's request the mean of this gateway.
_UNKNOWN_TOKENS = 1_000_000


class PeerWaiting(msgspec.Struct, array_like=True, frozen=True):
    #: Here and below: see ``WorkerRequirements.limited_as``.
    tenant: TenantId
    ordinary: int
    #: Requests that resume a started answer.
    urgent: int
    kind: QueuedKind


class Charge(msgspec.Struct, array_like=True, frozen=True):
    """A tenant's charge, measured by ``fair_queue.cost``."""

    tenant: TenantId
    cost: float


class PeerOffer(msgspec.Struct, array_like=True, frozen=True):
    """A free slot on a worker, offered to the gateway ``to``."""

    to: str
    worker: NodeId


class Held(msgspec.Struct, array_like=True, frozen=True):
    """How many slots a tenant's calls from this gateway use."""

    tenant: TenantId
    slots: int


class Starved(msgspec.Struct, array_like=True, frozen=True):
    """A tenant's request that has waited too long, and for which this gateway can't free a slot."""

    tenant: TenantId
    #: Where it waits for a slot; None if it waits at the gateway.
    worker: NodeId | None = None


class QueueReport(msgspec.Struct, array_like=True, frozen=True):
    """One gateway's report about its queue for one model."""

    #: Begins with the start time, so that the name of an older gateway is less.
    gateway: str
    model: ModelName
    #: The tenants whose count changed; if ``whole``, all waiting ones.
    waiting: tuple[PeerWaiting, ...] = ()
    whole: bool = False
    #: Charges since the last report.
    charges: tuple[Charge, ...] = ()
    #: If ``whole``: each waiting tenant's counter over all gateways, as known here.
    counters: tuple[Charge, ...] = ()
    offers: tuple[PeerOffer, ...] = ()
    #: If ``counts_slots``: all tenants with slots.
    held: tuple[Held, ...] = ()
    counts_slots: bool = False
    starved: tuple[Starved, ...] = ()


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[QueueReport]).decode


def decode(entry: bytes) -> list[QueueReport]:
    """Raises ProtocolViolation."""
    try:
        return _decode(entry)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.ProtocolViolation(f"invalid queue report: {error}") from error


class QueuedRequest(Protocol):
    """A request that waits here or at another gateway."""

    @property
    def requirements(self) -> WorkerRequirements: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class PeerTicket:
    """A request that waits at another gateway."""

    gateway: str
    requirements: WorkerRequirements
    #: As reported.
    kind: QueuedKind
    urgent: bool


@dataclass(slots=True)
class _DelegatedSlot:
    until: float
    delegated_at: float
    gateway: str
    tenant: TenantId
    worker: NodeId
    cost: float


@dataclass(slots=True)
class _UnsentReport:
    """Unsent changes for one model."""

    #: Waiting requests, as of the last report.
    reported: dict[WaitingKey, int] = field(default_factory=dict)
    whole_at: float = float("-inf")
    held_at: float = float("-inf")
    offers: list[PeerOffer] = field(default_factory=list)
    starved: tuple[Starved, ...] = ()


class PeerQueues:
    """Keeps the peers' requests in the queue of one model's ``model_queue``."""

    def __init__(self, own_name: str, model: ModelName, model_queue: ModelQueue[QueuedRequest]) -> None:
        self._own_name = own_name
        self._model = model
        self._model_queue = model_queue
        self._unsent = _UnsentReport()
        self._last_report_at: dict[str, float] = {}
        #: Oldest first.
        self._tickets: dict[str, dict[WaitingKey, deque[PeerTicket]]] = {}
        self._delegated: deque[_DelegatedSlot] = deque()
        #: Slots of each tenant, by gateway.
        self._held: dict[str, dict[TenantId, int]] = {}

    @property
    def has_peers(self) -> bool:
        """Return whether another gateway has reported recently."""
        return bool(self._last_report_at)

    # --- what this gateway does -----------------------------------------------------------------------------------------

    def delegate_slot(self, ticket: PeerTicket, worker: NodeId, now: float, *, is_ours: bool) -> None:
        """Leave a free slot to the gateway of ``ticket``. ``is_ours``: only this gateway knows that it is free."""
        tenant, queue = ticket.requirements.limited_as, self._model_queue.queue
        self._tickets[ticket.gateway][tenant, ticket.kind, ticket.urgent].remove(ticket)
        queue.leave(ticket)
        # Charge it until the other gateway's report does, so that one tenant doesn't get several slots at once.
        cost = self._model_queue.cost(ticket.requirements)
        queue.correct(tenant, cost)
        self._delegated.append(_DelegatedSlot(now + DELEGATION_SECONDS, now, ticket.gateway, tenant, worker, cost))
        if is_ours:
            self._unsent.offers.append(PeerOffer(ticket.gateway, worker))

    def add_starved(self, starved: Sequence[Starved]) -> None:
        """Tell the other gateways with the next report."""
        self._unsent.starved = tuple(starved)

    def report(self, now: float, count_held: Callable[[], Mapping[TenantId, int]]) -> QueueReport | None:
        """Return what to send now; None if there is nothing to tell. ``count_held`` returns the slots of each tenant's calls from here."""
        queue, unsent = self._model_queue.queue, self._unsent
        if not queue and not unsent.reported and not unsent.offers and not unsent.starved:
            return None
        counts_slots = bool(unsent.starved) or (bool(queue) and now - unsent.held_at >= WHOLE_SECONDS)
        whole = bool(queue.local) and now - unsent.whole_at >= WHOLE_SECONDS
        reported = unsent.reported
        changed = queue.local if whole else {key for key in {*reported, *queue.local} if reported.get(key, 0) != queue.local.get(key, 0)}
        if not (whole or changed or queue.unreported or unsent.offers or counts_slots):
            return None
        kinds = {(tenant, kind) for tenant, kind, _ in changed}
        report = QueueReport(
            self._own_name,
            self._model,
            tuple(
                PeerWaiting(tenant, queue.local.get((tenant, kind, False), 0), queue.local.get((tenant, kind, True), 0), kind)
                for tenant, kind in kinds
            ),
            whole,
            tuple(Charge(tenant, cost) for tenant, cost in queue.unreported.items()),
            tuple(Charge(tenant, cost) for tenant, cost in queue.counters().items()) if whole else (),
            tuple(unsent.offers),
            tuple(Held(tenant, slots) for tenant, slots in count_held().items()) if counts_slots else (),
            counts_slots,
            unsent.starved,
        )
        self._unsent = _UnsentReport(
            dict(queue.local), whole_at=now if whole else unsent.whole_at, held_at=now if counts_slots else unsent.held_at
        )
        queue.unreported.clear()
        return report

    # --- what the others do ---------------------------------------------------------------------------------------------

    def apply_report(self, report: QueueReport, now: float) -> tuple[NodeId, ...]:
        """Apply another gateway's report; return the workers on which it offers us a slot."""
        self._last_report_at[report.gateway] = now
        for charge in report.charges:
            self._model_queue.queue.correct(charge.tenant, charge.cost - self._settle_charges(report.gateway, charge.tenant))
        if report.counts_slots:
            self._held[report.gateway] = {held.tenant: held.slots for held in report.held if held.slots > 0}
        tickets = self._tickets.setdefault(report.gateway, {})
        if report.whole:
            for key in tickets.keys() - {(waiting.tenant, waiting.kind, urgent) for waiting in report.waiting for urgent in (False, True)}:
                self._set_waiting(report.gateway, key, 0)
        for waiting in report.waiting:
            self._set_waiting(report.gateway, (waiting.tenant, waiting.kind, False), waiting.ordinary)
            self._set_waiting(report.gateway, (waiting.tenant, waiting.kind, True), waiting.urgent)
        if report.gateway < self._own_name:
            self._align(report)
        return tuple(offer.worker for offer in report.offers if offer.to == self._own_name)

    def count_held(self, own: Mapping[TenantId, int]) -> Counter[TenantId]:
        """Return the slots of each tenant over all gateways, with this gateway's ``own``."""
        total = Counter(own)
        for held in self._held.values():
            total.update(held)
        return total

    def find_ticket(self, gateway: str, tenant: TenantId) -> PeerTicket | None:
        """Return that gateway's oldest request of this tenant that isn't urgent."""
        found = self._tickets.get(gateway, {})
        return next((tickets[0] for (owner, _, urgent), tickets in found.items() if owner == tenant and not urgent), None)

    def expire(self, now: float) -> list[NodeId]:
        """Forget silent gateways; return the workers whose delegated slots may be used here again."""
        found = []
        while self._delegated and self._delegated[0].until <= now:
            slot = self._delegated.popleft()
            self._model_queue.queue.correct(slot.tenant, -slot.cost)
            found.append(slot.worker)
            if self._last_report_at.get(slot.gateway, 0.0) < slot.delegated_at:
                self._forget(slot.gateway)
        for gateway, reported_at in list(self._last_report_at.items()):
            if now - reported_at > SILENT_SECONDS:
                self._forget(gateway)
                del self._last_report_at[gateway]
        return found

    def forget_all(self) -> None:
        """Forget all peers; the next report will be a full one."""
        for gateway in list(self._tickets):
            self._forget(gateway)
        self._last_report_at.clear()
        self._unsent = _UnsentReport()
        self._model_queue.queue.unreported.clear()

    def _forget(self, gateway: str) -> None:
        self._held.pop(gateway, None)
        for key in list(self._tickets.get(gateway, ())):
            self._set_waiting(gateway, key, 0)
        self._tickets.pop(gateway, None)

    def _set_waiting(self, gateway: str, key: WaitingKey, count: int) -> None:
        tenant, kind, urgent = key
        tickets_by_key = self._tickets[gateway]
        tickets = tickets_by_key.setdefault(key, deque())
        while len(tickets) > max(0, count):
            self._model_queue.queue.leave(tickets.popleft())
        requirements = WorkerRequirements(
            self._model, kind.tenant, tenant, 0, _UNKNOWN_TOKENS, placement=kind.placement, origin=kind.origin
        )
        while len(tickets) < min(count, _MAX_WAITING):
            ticket = PeerTicket(gateway, requirements, kind, urgent)
            tickets.append(ticket)
            cost = self._model_queue.cost(requirements)
            self._model_queue.queue.enter(tenant, ticket, cost, urgent=urgent, is_local=False, kind=kind)
        if not tickets:
            del tickets_by_key[key]

    def _settle_charges(self, gateway: str, tenant: TenantId) -> float:
        """Clear and return the tenant's charges for slots delegated to that gateway."""
        settled = 0.0
        for slot in self._delegated:
            if (slot.gateway, slot.tenant) == (gateway, tenant):
                settled, slot.cost = settled + slot.cost, 0.0
        return settled

    def _align(self, report: QueueReport) -> None:
        """Adopt the oldest gateway's counters: new gateways learn them this way, and differences don't persist."""
        queue = self._model_queue.queue
        own_counters = queue.counters()
        for counter in report.counters:
            if counter.tenant in own_counters:
                unknown_there = queue.unreported.get(counter.tenant, 0.0)
                unknown_there += sum(slot.cost for slot in self._delegated if slot.tenant == counter.tenant)
                queue.correct(counter.tenant, counter.cost + unknown_there - own_counters[counter.tenant])
