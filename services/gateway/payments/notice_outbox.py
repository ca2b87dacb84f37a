"""Tells auth what owners of accounts should know about their plans, budgets, balances, payments and webhooks; auth mails it.

A gateway that dies before the row's deletion is committed tells auth again, which changes nothing.
"""

from services.gateway.payments.billing_store import BillingStore
from shared.api import notices as api
from shared.api.notices import AddNotice, LimitUsed, WebhookDisabled
from shared.rpc import RpcClient

EVERY_SECONDS = 30
#: How long auth may take while the row is locked.
_AUTH_SECONDS = 5.0


class NoticeOutbox:
    """``work`` is repeated by every gateway; a row is taken by one at a time."""

    def __init__(self, store: BillingStore, rpc: RpcClient, currency: str, *, sells: bool) -> None:
        """``sells``: MONEY is on; else only budgets mean something."""
        self._store, self._rpc, self._currency, self._sells = store, rpc, currency, sells

    async def work(self) -> None:
        """Raises Unavailable; the next round does the rest."""
        while await self._tell_one():
            pass

    async def _tell_one(self) -> bool:
        async with self._store.transaction() as rows:
            found = await rows.take_notice()
            if found is None:
                return False
            owner, subject, notice = found
            if self._sells or isinstance(notice, WebhookDisabled) or (isinstance(notice, LimitUsed) and notice.of == "budget"):
                wanted = AddNotice(owner, subject, notice, self._currency)
                await self._rpc.call(api.add_notice, wanted, deadline_seconds=_AUTH_SECONDS)
        return True
