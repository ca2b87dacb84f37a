"""Which of this gateway's requests wait at a worker for a free slot, so that the wait costs nothing.  Pure.

A worker may hold a few calls beyond its slots (``worker_capacity``). When a call that has a slot ends, the one held longest gets the slot.
A call that gives tokens has a slot, even if another gateway's call made room for it.
"""

from collections import deque
from typing import Protocol

from shared.types import ModelName, NodeId


class Holdable(Protocol):
    """As ``worker_claims.Claim``."""

    @property
    def has_started(self) -> bool: ...

    def starts(self) -> None:
        """The worker has room for it now. Safe to call twice."""


class HeldClaims:
    """One for the gateway."""

    def __init__(self) -> None:
        self._held: dict[tuple[NodeId, ModelName], deque[Holdable]] = {}

    def hold(self, node: NodeId, model: ModelName, claim: Holdable) -> None:
        """The worker has no free slot for it."""
        self._held.setdefault((node, model), deque()).append(claim)

    def ended(self, node: NodeId, model: ModelName, claim: Holdable) -> None:
        """A claim, held or not, gives its place back."""
        held = self._held.get((node, model))
        if held is None:
            return
        had_slot = claim.has_started
        if claim in held:
            held.remove(claim)
        while had_slot and held:
            following = held.popleft()
            had_slot = following.has_started
            following.starts()
        if not held:
            del self._held[node, model]
