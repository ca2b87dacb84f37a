"""Chooses answers that give up their slots for a while, so that one tenant can't hold every slot. Pure.

A request that has waited for ``WAIT_SECONDS`` may take the slot of a tenant that holds more than its share, if its own tenant stays within
its share with it.
The share is the same for every tenant that holds slots or waits. The preempted answer waits in its tenant's turn, and resumes after its
last token.
"""

from collections.abc import Collection, Mapping
from typing import Protocol, TypeVar

from shared.protocol.directory import DirectoryEntry
from shared.types import NodeId, TenantId

#: Freed slots serve most requests within this time.
WAIT_SECONDS = 2.0
#: An answer is preempted at most once in this time, and a preempted one waits this long before it may preempt others.
PAUSE_SECONDS = 30.0
#: How often to look for requests that have waited too long.
LOOK_SECONDS = 0.5


class Preemptible(Protocol):
    """A call that runs on a worker."""

    #: When its request arrived, by the dispatch's clock.
    began_at: float

    def may_be_preempted(self, now: float) -> bool:
        """Return whether it would resume without a loss, and wasn't preempted recently."""
        ...

    def preempt(self) -> None:
        """End the call at its worker now, and let its request wait again. Doesn't block."""
        ...


class HeldSlot(Protocol):
    """A slot that a call has, or waits for at its worker."""

    worker: DirectoryEntry
    call: Preemptible | None
    has_delivered: bool

    @property
    def tenant(self) -> TenantId: ...


Held = TypeVar("Held", bound=HeldSlot)


def is_short(held: Mapping[TenantId, int], tenant: TenantId) -> bool:
    """Return whether a waiting tenant holds nothing, or stays within its share with one more slot. ``held``: the slots of each tenant, as
    far as known."""
    return not held.get(tenant) or held[tenant] + 1 <= _share(held, tenant)


def choose(tenant: TenantId, free: Mapping[NodeId, int], claims: Collection[Held], held: Mapping[TenantId, int], now: float) -> list[Held]:
    """Return the claims to preempt, all at one worker, so that a request of ``tenant`` begins there. ``free``: the workers that may run it,
    with their free slots; negative if calls wait there.

    One of them has a slot: the youngest answer that can resume, of the tenant that is furthest over its share. The tenant's calls that wait
    for a slot at that worker must leave it too, because the worker would start them first; they are the latest.
    """
    if not is_short(held, tenant):
        return []
    most = _share(held, tenant)
    usable = [claim for claim in claims if claim.worker.node in free and claim.call is not None and claim.call.may_be_preempted(now)]
    for holder in sorted((holder for holder, count in held.items() if count > most), key=lambda holder: -held[holder]):
        own = [claim for claim in usable if claim.tenant == holder]
        if own:
            # Without a token, it may wait at the worker.
            youngest = max([claim for claim in own if claim.has_delivered] or own, key=_began_at)
            node = youngest.worker.node
            without_tokens = [claim for claim in own if claim.worker.node == node and not claim.has_delivered and claim is not youngest]
            return [*without_tokens[max(0, len(without_tokens) + min(0, free[node])) :], youngest]
    return []


def _began_at(claim: HeldSlot) -> float:
    return 0.0 if claim.call is None else claim.call.began_at


def _share(held: Mapping[TenantId, int], tenant: TenantId) -> float:
    return sum(held.values()) / len({*held, tenant})
