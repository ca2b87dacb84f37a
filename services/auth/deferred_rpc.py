"""Administrators' RPC for items of auth's background work that failed, and the number of those that need an administrator."""

from services.auth import audit_records
from services.auth.dependencies import Dependencies
from shared.api import deferral as api
from shared.background.deferred_rows import DeferredRows
from shared.background.items import BackgroundItems
from shared.node import lifecycle
from shared.rpc import RpcCall, serves

_MEASURE_SECONDS = 15.0


class DeferredRpc:
    """``run`` is the task that measures."""

    def __init__(self, parts: Dependencies, rows: DeferredRows, items: BackgroundItems) -> None:
        self._store, self._trail = parts.store, parts.trail
        self._rows, self._items = rows, items

    async def run(self) -> None:
        """Run until canceled."""
        await lifecycle.every(_MEASURE_SECONDS, self._items.measure, task="deferred items")

    @serves(api.list_of_auth)
    async def list(self, request: api.ListDeferredItems, call: RpcCall) -> api.DeferredItems:
        return api.DeferredItems(await self._rows.list(request.kind, api.MAX_LISTED))

    @serves(api.retry_at_auth)
    async def retry(self, request: api.RetryDeferredItems, call: RpcCall) -> api.RetriedItems:
        found = await self._rows.retry(request.kind, request.id)
        if found:
            act = audit_records.done("deferred.retry", call.principal, target=api.name_of(request), items=str(found))
            async with self._store.transaction() as transaction:
                await self._trail.add(transaction, act)
        return api.RetriedItems(found)
