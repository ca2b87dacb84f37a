"""Reads and writes the table idempotency_keys. No other module does."""

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from uuid import UUID

from services.gateway.idempotency import idempotency_keys
from services.gateway.idempotency.idempotency_keys import HeldKey, IdempotentRequest, KeyState, KeyUse, NewKeyUse, OrphanedKeyUse
from shared.stores import database
from shared.types import NodeId, RequestId, TenantId

#: Keys deleted per statement.
SWEEP_BATCH = 500
#: How long the end of a request waits for its key; it is retried later.
_END_SECONDS = 2.0
#: The channel of the query ``withdraw_keys``.
_WITHDRAWALS = "gateway_withdrawals"


class IdempotencyStore:
    """Access to idempotency_keys. Every method may raise Unavailable."""

    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    async def claim(
        self, request: IdempotentRequest, fingerprint: bytes, node: NodeId, *, lease_seconds: float, dead: RequestId | None = None
    ) -> KeyUse | None:
        """Claim the key; return None if it is held. ``dead``: a request that is known to have stopped."""
        row = await self._database.row(
            "claim_key", request.owner, request.key, fingerprint, request.request_id, request.seed, node, lease_seconds, dead,
            request.config_revision,
        )  # fmt: skip
        if row is None:
            return None
        seed, revision = row["seed"], row["config_revision"]
        if row["attempt"] == 1:
            return NewKeyUse(seed, revision)
        return OrphanedKeyUse(seed, row["model"], is_resumed=request.after > 0, config_revision=revision)

    async def find(self, owner: TenantId, key: str) -> HeldKey | None:
        async with self._database.bound(owner) as transaction:
            row = await transaction.row("find_key", owner, key)
        if row is None:
            return None
        return HeldKey(row["fingerprint"], RequestId(row["request_id"]), KeyState(row["state"]), row["answer"], NodeId(row["gateway"]))

    async def extend_leases(self, requests: Collection[RequestId], *, seconds: float) -> dict[RequestId, bool]:
        """Extend leases; return the requests that are still ours, and whether their caller canceled them."""
        rows = await self._database.rows("extend_key_leases", list(requests), seconds)
        return {RequestId(row["request_id"]): row["is_withdrawn"] for row in rows}

    async def withdraw(self, owner: TenantId, key: str) -> None:
        """Tell every gateway to cancel what runs under this key, alone or as one of several."""
        async with self._database.bound(owner) as transaction:
            await transaction.run("withdraw_keys", owner, key, idempotency_keys.prefix_of_parts(key))

    async def withdrawals(self) -> AsyncGenerator[RequestId | None]:
        """Yield the requests canceled at any gateway, forever; None if some may have been missed. Close it with ``aclosing``."""
        async with aclosing(self._database.listen(_WITHDRAWALS)) as payloads:
            async for payload in payloads:
                yield None if payload is None else RequestId(UUID(payload))

    async def end(self, request_id: RequestId, state: KeyState, answer: bytes | None) -> None:
        """Store the end of the request, unless another gateway has taken it over. Safe to repeat."""
        await self._database.run("end_key", request_id, state.value, answer, deadline_seconds=_END_SECONDS)

    async def free(self, request_id: RequestId) -> None:
        await self._database.run("free_key", request_id, deadline_seconds=_END_SECONDS)

    async def abandon(self, request_id: RequestId) -> None:
        await self._database.run("abandon_key", request_id, deadline_seconds=_END_SECONDS)

    async def sweep(self) -> int:
        """Delete expired keys; return their number. A full batch means that there may be more."""
        return await self._database.run("sweep_keys", SWEEP_BATCH)
