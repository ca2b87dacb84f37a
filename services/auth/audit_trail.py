"""The audit log, as those use it that write to it."""

from typing import Protocol

from shared.api.audit import AuditedAct
from shared.stores.transactions import Transaction


class AuditTrail(Protocol):
    async def add(self, transaction: Transaction, act: AuditedAct) -> None:
        """Add the act to its own transaction: both happen or neither."""
        ...

    def note(self, act: AuditedAct) -> None:
        """Record a refusal soon; equal ones are combined. Never blocks and never fails."""
        ...
