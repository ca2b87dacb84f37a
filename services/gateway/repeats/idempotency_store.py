"""The table idempotency_keys. Only this module reads and writes it."""

from collections.abc import Collection

from services.gateway.repeats.idempotency_keys import Asked, Held, New, Orphaned, State
from shared import database
from shared.types import NodeId, RequestId, TenantId

#: Keys that are forgotten in one statement.
SWEEP_BATCH = 500
#: The end of a request waits for its key no longer than this; it is tried again later.
_END_SECONDS = 2.0


class IdempotencyStore:
    """Every method may raise Unavailable."""

    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    async def claim(
        self, asked: Asked, fingerprint: bytes, node: NodeId, *, lease_seconds: float, dead: RequestId | None = None
    ) -> New | Orphaned | None:
        """None where the request has run, or runs, or is another one. ``dead``: a request that is known to run no more."""
        row = await self._database.row(
            "claim_key", asked.owner, asked.key, fingerprint, asked.request_id, asked.seed, node, lease_seconds, dead
        )
        if row is None:
            return None
        return New(row["seed"]) if row["attempt"] == 1 else Orphaned(row["seed"])

    async def find(self, owner: TenantId, key: str) -> Held | None:
        async with self._database.bound(owner) as transaction:
            row = await transaction.row("find_key", owner, key)
        if row is None:
            return None
        return Held(row["fingerprint"], RequestId(row["request_id"]), State(row["state"]), row["answer"], NodeId(row["gateway"]))

    async def prolong(self, requests: Collection[RequestId], *, seconds: float) -> set[RequestId]:
        """Those that are still ours."""
        return {RequestId(row["request_id"]) for row in await self._database.rows("prolong_keys", list(requests), seconds)}

    async def end(self, request_id: RequestId, state: State, answer: bytes | None) -> None:
        """Changes nothing where another has taken it over, and when it is said again."""
        await self._database.run("end_key", request_id, state.value, answer, deadline_seconds=_END_SECONDS)

    async def free(self, request_id: RequestId) -> None:
        await self._database.run("free_key", request_id, deadline_seconds=_END_SECONDS)

    async def abandon(self, request_id: RequestId) -> None:
        await self._database.run("abandon_key", request_id, deadline_seconds=_END_SECONDS)

    async def sweep(self) -> int:
        """How many were forgotten; as many as there may be in one batch where there may be more."""
        return await self._database.run("sweep_keys", SWEEP_BATCH)
