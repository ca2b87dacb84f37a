"""Begins plans with their periods, and takes back what waits for a payment, in the transaction of the caller."""

from datetime import datetime
from uuid import uuid5

import msgspec

from services.gateway.facts.config_snapshot import ConfigSource
from services.gateway.facts.plan_offers import PlanOffer, Seller
from services.gateway.payments import invoices
from services.gateway.payments.billing_store import BillingRows, StoredInvoice, Subscription
from services.gateway.payments.provider_orders import MANUAL
from shared import currency, errors
from shared.api.billing import Invoice
from shared.types import Tier


class PlanChanges:
    def __init__(self, source: ConfigSource, seller: Seller) -> None:
        self._source = source
        self.seller = seller

    @property
    def free(self) -> str:
        return self.offer(Tier.FREE.value).versioned

    def offer(self, name: str) -> PlanOffer:
        """Raises NotFound."""
        found = self._source.config.offers.get(name)
        if found is None:
            raise errors.NotFound(f"no plan is called {name}", hint="see `aicli billing plans`")
        return found

    def fee_of(self, plan: str) -> int:
        fee = self._source.config.limits.plan_of(plan).fee_micro
        return 0 if fee is None else currency.minor(fee, self.seller.currency)

    async def begin(self, rows: BillingRows, held: Subscription, plan: str) -> datetime:
        """The period begins now, and the one before ends. Return when."""
        await rows.begin_period(held.owner)
        return await self._start(rows, msgspec.structs.replace(held, next_plan=None, invoice=None), plan)

    async def begin_rest(self, rows: BillingRows, held: Subscription, plan: str, used_tokens: int) -> datetime:
        """Begin a plan for the rest of the period. An order that waits for its payment still does."""
        await rows.begin_rest(held.owner, used_tokens)
        return await self._start(rows, held if held.invoice is not None else msgspec.structs.replace(held, next_plan=None), plan)

    async def _start(self, rows: BillingRows, held: Subscription, plan: str) -> datetime:
        started = await rows.open_period(held.owner, self.included(plan))
        await rows.write(msgspec.structs.replace(held, plan=plan, is_applied=False, is_past_due=False, billed_period=started))
        return started

    def included(self, plan: str) -> int | None:
        # Those of a plan without a fee are granted at the account's next request, which tells whether it may have them.
        return self._source.config.limits.plan_of(plan, has_free_tokens=False).included_tokens

    async def withdraw(self, rows: BillingRows, held: Subscription) -> None:
        """Undo a change that has not happened."""
        if held.invoice is not None and (stored := await rows.lock_invoice(held.invoice)) is not None and invoices.is_open(stored.invoice):
            await self.take_back(rows, stored, "the change was undone")
        await rows.write(msgspec.structs.replace(held, next_plan=None, invoice=None))

    async def take_back(self, rows: BillingRows, stored: StoredInvoice, reason: str) -> Invoice:
        """With it goes the change of plan that waited for it."""
        number = stored.invoice.document.number
        held = await rows.lock(stored.invoice.owner, MANUAL)
        if held.invoice == number:
            await rows.write(msgspec.structs.replace(held, next_plan=None, invoice=None))
        return await rows.take_back(self.seller, stored, uuid5(invoices.ORDERS, f"void {number}"), reason)
