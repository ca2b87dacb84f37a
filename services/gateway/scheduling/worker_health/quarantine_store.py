"""Reads and writes the table worker_strikes. No other module does."""

from services.gateway.scheduling.worker_health.worker_records import QUARANTINE_SECONDS, STRIKES, WITHIN_SECONDS
from shared.stores import database
from shared.types import NodeId


class QuarantineStore:
    """Access to worker_strikes. Every method may raise Unavailable."""

    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    async def strike(self, node: NodeId) -> None:
        """Add a strike; enough of them start a quarantine."""
        await self._database.run("strike_worker", node, STRIKES, WITHIN_SECONDS, QUARANTINE_SECONDS)

    async def list_quarantined(self) -> dict[NodeId, float]:
        """Return the seconds left for each quarantined worker."""
        return {NodeId(row["node"]): row["seconds"] for row in await self._database.rows("list_quarantined")}

    async def find_struck(self, beginning: str) -> list[NodeId]:
        """Return a few workers with strikes or in quarantine whose id starts like this."""
        return [NodeId(row["node"]) for row in await self._database.rows("find_struck", beginning)]

    async def pardon(self, node: NodeId) -> None:
        await self._database.run("pardon_worker", node)
