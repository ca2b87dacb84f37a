"""Finds why an account's next request would be refused, or its plan may end, by the checks that refuse requests."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from services.gateway.billing import refusals
from services.gateway.billing.ledger import Ledger
from services.gateway.limits.limit_rules import LimitReached
from services.gateway.payments.billing_store import BillingStore
from shared import plan_names
from shared.api.auth import Principal
from shared.api.gateway import AccountNotice, NoticeKind
from shared.api.ledger import Account
from shared.types import ModelName


@dataclass(frozen=True, slots=True)
class AccountNotices:
    ledger: Ledger
    subscriptions: BillingStore
    #: The models that callers may ask for.
    served: Callable[[], Collection[ModelName]]

    async def find(self, principal: Principal, account: Account, reached: LimitReached | None) -> tuple[AccountNotice, ...]:
        """``reached``: the limit that refuses the next request. What can't be paid is told if no served model can be asked for."""
        found = list[AccountNotice]()
        if reached is not None:
            found.append(AccountNotice(NoticeKind.LIMIT, reached.message, reached.hint))
        asked = (self.ledger.smallest_request(principal, model) for model in self.served() or (ModelName(""),))
        unpaid = [refusals.find(account, request, self.ledger.billing_page) for request in asked]
        if refusal := next(iter(unpaid), None) if all(unpaid) else None:
            found.append(AccountNotice(refusal.kind, refusal.what, refusal.hint))
        held = await self.subscriptions.find_subscription(principal.tenant_id) if self.ledger.has_plans else None
        if held is not None and held.is_past_due:
            what = f"a payment for your plan {plan_names.name_of(held.plan or '')} is late"
            page = self.ledger.billing_page or "`aicli billing invoices`"
            found.append(AccountNotice(NoticeKind.PAYMENT, what, f"pay it, or your plan ends: {page}"))
        return tuple(found)
