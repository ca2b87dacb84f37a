"""Where acts go: into the chain, with the act itself in one transaction, or soon, for refusals."""

from typing import TYPE_CHECKING, Protocol

from shared.api.audit import AuditedAct

if TYPE_CHECKING:
    from shared.stores.database import Transaction


class AuditTrail(Protocol):
    """The audit log as those who act see it."""

    async def add(self, transaction: "Transaction", act: AuditedAct) -> None:
        """Part of the act's own transaction: both happen, or neither."""
        ...

    def note(self, act: AuditedAct) -> None:
        """Written soon, equal ones together; never waits and never fails. For what was refused."""
        ...
