"""What a request requires of its worker. Pure."""

import math

import msgspec

from services.gateway.facts.placements import Placement
from shared.protocol.directory import ResumeOrigin
from shared.types import ModelName, NodeId, TenantId


class QueuedKind(msgspec.Struct, frozen=True, array_like=True):
    """Requests of one kind may run on the same workers."""

    tenant: TenantId
    placement: Placement
    has_images: bool = False
    #: See ``WorkerRequirements``.
    origin: ResumeOrigin | None = None
    batch: bool = False


class WorkerRequirements(msgspec.Struct, frozen=True):
    """What a request requires of its worker."""

    model: ModelName
    #: The tenant whose prompts the worker would see.
    tenant: TenantId
    #: The tenant for queueing: an organization that shares its founder's limits queues as its founder.
    limited_as: TenantId
    #: Likely size of the prompt, and maximum size of the answer.
    prompt_tokens: int
    max_tokens: int
    #: Without a default, so that no caller can leave the policy out.
    placement: Placement
    #: Hashes of the prompt's prefixes, shortest first (``prefix_affinity``).
    prefix_hashes: tuple[bytes, ...] = ()
    #: Of the answer to resume; None for a new one.
    origin: ResumeOrigin | None = None
    #: Workers that failed this request.
    excluded: frozenset[NodeId] = frozenset()
    #: Another model may serve the request: don't wait for workers that may be back.
    has_alternative: bool = False
    #: Longest wait in the queue.
    most_wait_seconds: float = math.inf
    #: False for conversions, which a worker does beside its answers.
    takes_slot: bool = True
    #: Only for workers that can see images.
    has_images: bool = False
    #: It had a slot and gave it up: it waits in its tenant's turn, until its own deadline.
    is_preempted: bool = False
    #: Nobody waits for it: it comes behind live requests, and workers run it in what they leave.
    batch: bool = False

    @property
    def is_again(self) -> bool:
        """Return whether it was queued before."""
        return self.is_preempted or self.origin is not None or bool(self.excluded)

    @property
    def is_urgent(self) -> bool:
        """Return whether it is a live request that resumes an answer, or lost its worker before it began."""
        return self.is_again and not (self.is_preempted or self.batch)

    @property
    def kind(self) -> QueuedKind:
        return QueuedKind(self.tenant, self.placement, self.has_images, self.origin, self.batch)
