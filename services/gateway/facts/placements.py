"""Who may see a tenant's prompts. Pure.

``barrier`` is the only place that compares a worker with a policy.
"""

from enum import Enum

import msgspec

from shared.config_documents import ANY_PROVIDER, Machines
from shared.protocol.directory import Announcement, ModelOffer
from shared.types import TenantId

#: Worker labels. Only an administrator can set TRUSTED, in the ticket; SHARED=no keeps a worker private to its owner.
TRUSTED = "trusted"
SHARED = "shared"
_YES = frozenset({"yes", "true", "1"})
_NO = frozenset({"no", "false", "0"})


class Placement(msgspec.Struct, frozen=True, array_like=True):
    """Who may see a tenant's prompts."""

    machines: Machines = Machines.GROUP
    #: Sorted.
    external: tuple[str, ...] = ()


#: As without policies.
ANYWHERE = Placement(external=(ANY_PROVIDER,))


class Barrier(Enum):
    """Why a worker may not see a prompt."""

    #: Its owner keeps it for their own requests.
    PRIVATE = "private"
    MACHINES = "machines"
    PROVIDER = "provider"


def barrier(tenant: TenantId, placement: Placement, worker: Announcement, offer: ModelOffer) -> Barrier | None:
    """Return why the worker may not see the tenant's prompts for this model; None if it may."""
    is_own = bool(worker.owner) and worker.owner == str(tenant)
    if not is_own and worker.labels and worker.labels.get(SHARED, "").lower() in _NO:
        return Barrier.PRIVATE
    if offer.provider and offer.provider not in placement.external and ANY_PROVIDER not in placement.external:
        return Barrier.PROVIDER
    if is_own or placement.machines is Machines.GROUP:
        return None
    if placement.machines is Machines.OWN:
        return Barrier.MACHINES
    is_trusted = placement.machines is Machines.TRUSTED and worker.labels.get(TRUSTED, "").lower() in _YES
    return None if not worker.owner or is_trusted else Barrier.MACHINES


def describe_barrier(found: Barrier, placement: Placement, offer: ModelOffer) -> str:
    """Return the reason for people, about the worker."""
    match found:
        case Barrier.PRIVATE:
            return "serves only its owner (label shared=no)"
        case Barrier.MACHINES:
            return f"is not one of the machines that the policy allows ({placement.machines})"
        case Barrier.PROVIDER:
            return f"sends prompts to {offer.provider}, which the policy forbids"
