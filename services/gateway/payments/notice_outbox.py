"""Tells auth what owners of accounts should know about their plans, budgets, balances, payments and features; auth mails it.

A gateway that dies before the row's deletion is committed tells auth again, which changes nothing. During an upgrade, a gateway or auth may
be older than a notice and not know its kind: it stays, and doesn't hold up others.
"""

import msgspec

from services.gateway.payments.billing_store import BillingStore
from shared import errors
from shared.api import notices as api
from shared.api.notices import AddNotice, LimitUsed, Notice, PaymentLate
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems, TakenItem
from shared.rpc import RpcClient
from shared.types import TenantId

EVERY_SECONDS = 30
#: How long auth may take while the row is locked.
_AUTH_SECONDS = 5.0


class NoticeOutbox:
    """``work`` is repeated by every gateway; a row is taken by one at a time."""

    def __init__(self, store: BillingStore, rpc: RpcClient, items: BackgroundItems, currency: str, *, sells: bool) -> None:
        """``sells``: MONEY is on; else only budgets mean something."""
        self._store, self._rpc, self._items, self._currency, self._sells = store, rpc, items, currency, sells

    async def work(self) -> None:
        """Raises Unavailable; the next round does the rest."""
        await self._items.drain(ItemKind.NOTICE, self._tell_one)

    async def _tell_one(self, taken: TakenItem) -> bool:
        async with self._store.transaction() as rows:
            found = await rows.take_notice()
            if found is None:
                return False
            owner, subject, body = found
            taken.id = f"{owner}/{subject}"
            await self._tell(owner, subject, body)
        return True

    async def _tell(self, owner: TenantId, subject: str, body: bytes) -> None:
        try:
            notice = msgspec.json.decode(body, type=Notice)
        except msgspec.ValidationError as error:
            raise errors.BadRequest(f"a newer gateway wrote the notice: {error}") from error
        if self._sells or not isinstance(notice, LimitUsed | PaymentLate) or (isinstance(notice, LimitUsed) and notice.of == "budget"):
            wanted = AddNotice(owner, subject, notice, self._currency)
            await self._rpc.call(api.add_notice, wanted, deadline_seconds=_AUTH_SECONDS)
