"""Tells the gateway who pays, and follows the plans that it has sold."""

from datetime import UTC, datetime

import msgspec

from services.auth import audit_records
from services.auth.accounts.notice_store import NoticeStore, PlanChanged
from services.auth.dependencies import AuthHandlers, Dependencies
from shared import errors
from shared.api import billing as api
from shared.api import notices
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves


class PlanRpc(AuthHandlers):
    """Only the gateway may call these methods."""

    def __init__(self, parts: Dependencies, notices: NoticeStore) -> None:
        super().__init__(parts)
        self._notices = notices

    @serves(api.describe_account)
    async def describe_account(self, request: api.DescribeAccount, call: RpcCall) -> api.AccountName:
        async with self._store.transaction() as transaction:
            row = await transaction.row("describe_account", request.owner)
        if row is None:
            raise errors.NotFound("no user or organization has this id")
        has_free_tokens = self._store.has_free_tokens(row)
        return api.AccountName(row["name"], row["email"] or "", row["plan"], row["shares_limits"], has_free_tokens)

    @serves(api.apply_plan)
    async def apply_plan(self, request: api.ApplyPlan, call: RpcCall) -> Nothing:
        async with self._store.transaction() as transaction:
            row = await transaction.row("apply_plan", request.owner, request.plan)
            if row is None:
                raise errors.NotFound("no user or organization has this id")
            if row["before"] != request.plan:
                what = "user.tier" if row["is_user"] else "organisation.tier"
                act = audit_records.of_mesh(what, None, target=request.owner, before=row["before"], after=request.plan)
                await self._trail.add(transaction, msgspec.structs.replace(act, tenant_id=request.owner))
                changed = PlanChanged(row["before"], request.plan)
                await self._notices.add_about_account(transaction, request.owner, f"{request.owner}/{datetime.now(UTC)}", changed)
        return Nothing()

    @serves(notices.add_notice)
    async def add_notice(self, request: notices.AddNotice, call: RpcCall) -> Nothing:
        async with self._store.transaction() as transaction:
            await self._notices.add_about_account(transaction, request.owner, request.subject, request.notice, request.currency)
        return Nothing()
