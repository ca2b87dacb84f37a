"""RPC method for administrators to set the budget of a user or an organization. The gateway enforces it."""

import msgspec

from services.auth import audit_records, name_rules
from services.auth.dependencies import AuthHandlers
from services.auth.store import budget_of
from shared import errors
from shared.api import auth
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import TenantId

_log = logs.get(part="auth")


class BudgetRpc(AuthHandlers):
    @serves(auth.set_budget)
    async def set_budget(self, request: auth.SetBudget, call: RpcCall) -> auth.OwnerBudget:
        owner = TenantId(name_rules.find_uuid(request.owner) or (await self._store.get_user_called(request.owner)).id)
        after = _written(request.budget)
        async with self._store.transaction() as transaction:
            of_user = await transaction.row("set_user_budget", owner, after)
            found = of_user or await transaction.row("set_organisation_budget", owner, after)
            if found is None:
                raise errors.NotFound(f"no user or organization has the id {owner}", hint="check the id")
            changes = {"before": _written(budget_of(found)) or "", "after": after or ""}
            act = audit_records.done(
                "user.budget" if of_user else "organisation.budget", call.principal, tenant=owner, target=owner, **changes
            )
            await self._trail.add(transaction, act)
        _log.info("budget set", owner=owner, budget=after, by=call.principal.user_id)
        return auth.OwnerBudget(owner, found["name"], request.budget)


def _written(budget: auth.Budget | None) -> str | None:
    return None if budget is None else msgspec.json.encode(budget).decode()
