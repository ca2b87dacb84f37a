"""Administrators' RPC for items of the gateways' background work that failed."""

from dataclasses import dataclass

from shared.api import deferral as api
from shared.background.deferred_rows import DeferredRows
from shared.rpc import RpcCall, serves
from shared.rpc.audit_reporting import AuditReporting


@dataclass(frozen=True, slots=True)
class DeferredRpc:
    rows: DeferredRows
    audit_reporting: AuditReporting

    @serves(api.list_of_gateway)
    async def list(self, request: api.ListDeferredItems, call: RpcCall) -> api.DeferredItems:
        return api.DeferredItems(await self.rows.list(request.kind, api.MAX_LISTED))

    @serves(api.retry_at_gateway)
    async def retry(self, request: api.RetryDeferredItems, call: RpcCall) -> api.RetriedItems:
        found = await self.rows.retry(request.kind, request.id)
        if found:
            self.audit_reporting.report_action("deferred.retry", call.principal, target=api.name_of(request), items=str(found))
        return api.RetriedItems(found)
