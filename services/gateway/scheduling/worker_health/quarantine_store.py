"""The table worker_strikes. Only this module reads and writes it."""

from services.gateway.scheduling.worker_health.worker_records import QUARANTINE_SECONDS, STRIKES, WITHIN_SECONDS
from shared.stores import database
from shared.types import NodeId


class QuarantineStore:
    """Every method may raise Unavailable."""

    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    async def strike(self, node: NodeId) -> None:
        """One more; enough of them put it into quarantine."""
        await self._database.run("strike_worker", node, STRIKES, WITHIN_SECONDS, QUARANTINE_SECONDS)

    async def list_quarantined(self) -> dict[NodeId, float]:
        """For how many seconds more each gets no requests."""
        return {NodeId(row["node"]): row["seconds"] for row in await self._database.rows("list_quarantined")}

    async def find_struck(self, beginning: str) -> list[NodeId]:
        """Workers with strikes, or in quarantine, whose id begins so; at most a few."""
        return [NodeId(row["node"]) for row in await self._database.rows("find_struck", beginning)]

    async def pardon(self, node: NodeId) -> None:
        await self._database.run("pardon_worker", node)
