"""Sells plans and prepaid credits: what an order leads to, and what the end of a period does.

A subscription keeps the terms of its plan's version. A plan that costs more than the present one begins when its invoice is paid, and a
cheaper one at the end of the period. Every step is one transaction, and safe to repeat; auth learns of a plan after the commit, and again
until it has. Nothing is locked while auth is asked.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from uuid import UUID, uuid5

import msgspec

from services.gateway.facts.config_snapshot import ConfigSource
from services.gateway.facts.plan_offers import Seller
from services.gateway.payments import invoices, payment_provider
from services.gateway.payments.billing_store import BillingRows, BillingStore, Subscription
from services.gateway.payments.invoice_payments import InvoicePayments
from services.gateway.payments.payment_provider import OwedUsage
from services.gateway.payments.plan_changes import PlanChanges
from services.gateway.payments.provider_orders import MANUAL, ProviderOrders
from shared import currency, errors, plan_names
from shared.api import billing as api
from shared.api.billing import Invoice, InvoiceDocument, InvoiceLine, InvoicePurpose, InvoiceState, Order, Party
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems, TakenItem
from shared.rpc import RpcClient
from shared.telemetry import logs
from shared.types import TenantId, Tier

#: How long auth may take.
AUTH_SECONDS = 5.0
#: The provider may be down, and each call takes its deadline: the rest of a round must not wait for all events.
_MAX_FAILURES = 3

_log = logs.get(part="billing")


class Billing:
    """``work`` is repeated by every gateway; the rows are taken by one at a time."""

    def __init__(
        self,
        store: BillingStore,
        source: ConfigSource,
        rpc: RpcClient,
        seller: Seller,
        provider: ProviderOrders | None = None,
        *,
        items: BackgroundItems,
        on_paid: Callable[[InvoiceDocument], None] = lambda _paid: None,
    ) -> None:
        """Without a ``provider``, invoices of ours are paid by other means."""
        self._store = store
        self._rpc = rpc
        self._items = items
        self._seller = seller
        self.provider = provider
        self._plans = PlanChanges(source, seller)
        self._invoices = InvoicePayments(store, self._plans, on_paid)

    async def describe(self, owner: TenantId) -> api.AccountName:
        """Raises NotFound."""
        return await self._rpc.call(api.describe_account, api.DescribeAccount(owner), deadline_seconds=AUTH_SECONDS)

    async def _find_customer(self, owner: TenantId) -> Party:
        return _party(await self.describe(owner))

    # --- orders -------------------------------------------------------------------------------------------------------

    async def order_plan(self, owner: TenantId, name: str) -> Order:
        """Change the plan of somebody who pays; the present plan undoes a change. Raises NotFound, NotAllowed for a plan that is not for
        sale, AlreadyExists while another change waits for its payment, and what ``count_order`` raises."""
        described = await self.describe(owner)
        present, customer = described.plan, _party(described)
        held = await self._store.find_subscription(owner)
        if self.provider is not None and held is not None and held.subscription is not None:
            return Order(done=False, url=await self.provider.open_portal(owner))
        if name == plan_names.name_of(present):
            return await self._undo(owner)
        offer = self._plans.offer(name)
        if not offer.for_sale:
            raise errors.NotAllowed(f"the plan {name} is not for sale", hint="see `aicli billing plans`, or ask an administrator")
        if self.provider is not None and self._plans.fee_of(offer.versioned):
            return await self.provider.order_plan(owner, offer, "".join(customer.lines))
        async with self._store.transaction() as rows:
            held = await rows.lock(owner, MANUAL)
            waiting = held.next_plan is not None and held.invoice is not None
            if waiting and held.next_plan != offer.versioned:
                raise errors.AlreadyExists(
                    f"a change to {plan_names.name_of(held.next_plan or '')} waits for the invoice {held.invoice}",
                    hint=f"pay it, or undo the change first: aicli billing plan set {plan_names.name_of(present)}",
                )
            if waiting:
                return Order(done=False, invoice=held.invoice)
            fee = self._plans.fee_of(offer.versioned)
            if fee <= self._plans.fee_of(present):
                if held.next_plan != offer.versioned:
                    await rows.count_change(owner)
                await rows.write(msgspec.structs.replace(held, next_plan=offer.versioned, plan=held.plan or present))
                return Order(done=True)
            await rows.count_order(owner)
            line = InvoiceLine(f"Plan {name}, a month", fee)
            order_id = uuid5(invoices.ORDERS, f"{owner}|{offer.versioned}|{await rows.now()}")
            made = await rows.add_invoice(self._seller, owner, customer, (line,), InvoicePurpose.PLAN, order_id=order_id)
            await rows.write(msgspec.structs.replace(held, next_plan=offer.versioned, invoice=made.document.number))
        _log.info("plan ordered", owner=owner, plan=offer.versioned, invoice=made.document.number)
        return Order(done=False, invoice=made.document.number)

    async def _undo(self, owner: TenantId) -> Order:
        """Also of an account whose plan nobody can order."""
        async with self._store.transaction() as rows:
            held = await rows.lock(owner, MANUAL)
            if held.next_plan is not None:
                await rows.count_change(owner)
            await self._plans.withdraw(rows, held)
        return Order(done=True)

    async def give_plan(self, owner: TenantId, name: str) -> Order:
        """Begin a plan now, for nothing: an administrator wants it. Raises NotFound, and AlreadyExists for a subscription at a provider."""
        offer = self._plans.offer(name)
        async with self._store.transaction() as rows:
            held = await rows.lock(owner, MANUAL)
            if held.subscription is not None:
                raise errors.AlreadyExists(f"this account pays through {held.provider}", hint="cancel its subscription there first")
            await self._plans.withdraw(rows, held)
            await self._plans.begin(rows, held, offer.versioned)
        await self.apply()
        return Order(done=True)

    async def order_top_up(self, owner: TenantId, wanted: api.OrderTopUp) -> Order:
        """Raises BadRequest for an amount that nobody sells, and what ``count_order`` raises."""
        amount_minor, order_id = self._read_amount(wanted), uuid5(invoices.ORDERS, f"{owner}|{wanted.order_id}")
        customer = await self._find_customer(owner)
        if self.provider is not None:
            return await self.provider.order_credits(owner, order_id, amount_minor, "".join(customer.lines))
        line, credit = InvoiceLine("Prepaid credits", amount_minor), currency.micro(amount_minor, self._seller.currency)
        async with self._store.transaction() as rows:
            await rows.lock(owner, MANUAL)
            if not await rows.is_ordered(order_id):
                await rows.count_order(owner)
            made = await rows.add_invoice(
                self._seller, owner, customer, (line,), InvoicePurpose.TOP_UP, order_id=order_id, credit_micro=credit
            )
        if made.document.net_minor != amount_minor:
            raise errors.IdempotencyConflict("this order id was used with another amount", hint="use a new id for a new order")
        return Order(done=made.state is InvoiceState.PAID, invoice=made.document.number)

    def _read_amount(self, wanted: api.OrderTopUp) -> int:
        sold = self._seller.currency
        if wanted.currency not in {None, sold}:
            raise errors.BadRequest(f"the currency must be {sold}", field="currency")
        unit = 10 ** currency.decimals(sold)
        least, most = api.MIN_TOP_UP * unit, api.MAX_TOP_UP * unit
        try:
            amount = currency.read(wanted.amount, sold)
        except ValueError as error:
            raise errors.BadRequest(f"the amount {error}", field="amount") from error
        if not least <= amount <= most:
            raise errors.BadRequest(f"the amount must be {currency.written(least, sold)} to {currency.written(most, sold)}", field="amount")
        return amount

    # --- payments -----------------------------------------------------------------------------------------------------

    async def pay(self, number: str, reference: str) -> Invoice:
        """Raises what ``InvoicePayments.pay`` raises."""
        paid = await self._invoices.pay(number, reference)
        await self.apply()
        return paid

    async def void(self, number: str, reason: str, *, refund: bool = False) -> Invoice:
        """Raises what ``InvoicePayments.void`` raises."""
        found = await self._invoices.void(number, reason, refund=refund)
        await self.apply()
        return found

    async def void_lost(self, number: str, reason: str) -> Invoice:
        """Raises what ``InvoicePayments.void_lost`` raises."""
        return await self._invoices.void_lost(number, reason)

    # --- what time does -----------------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Raises Unavailable; the next round does the rest."""
        await self.handle_events()
        refused: list[UUID] = []
        await self._items.drain(ItemKind.RENEWAL, self._renew_one)
        await self._items.drain(ItemKind.OVERAGE, partial(self._bill_owed, refused))
        await self._items.drain(ItemKind.REMINDER, self._invoices.remind_one)
        await self.apply()

    async def handle_events(self) -> None:
        """Do what the payment provider told. What fails is done later by ``work``."""
        failures = 0
        while self.provider is not None and failures < _MAX_FAILURES and (is_done := await self.provider.handle_one()) is not None:
            failures += not is_done
            await self.apply()

    async def measure_events(self) -> float:
        """Return the age of the oldest event that waits, in seconds."""
        return await self._store.measure_events()

    async def measure_owed(self) -> float:
        """Return the age of the oldest usage that is not billed yet, in seconds."""
        return await self._store.measure_owed()

    async def apply(self) -> None:
        """Tell auth of new plans. What fails is told again by ``work``."""
        await self._items.drain(ItemKind.PLAN_CHANGE, self._apply_one)

    async def _apply_one(self, taken: TakenItem) -> bool:
        held = await self._store.take_unapplied()
        if held is None:
            return False
        taken.id, plan, is_gone = str(held.owner), held.plan or Tier.FREE.value, False
        try:
            try:
                await self._rpc.call(api.apply_plan, api.ApplyPlan(held.owner, plan), deadline_seconds=AUTH_SECONDS)
            except errors.NotFound:
                is_gone = True
            except errors.PeerError as error:
                _log.warning("auth does not know of a plan yet", owner=held.owner, plan=plan, reason=error.message)
                taken.id = None
                return False
            async with self._store.transaction() as rows:
                present = await rows.lock(held.owner, MANUAL)
                if present.version != held.version:
                    # Auth has an older plan now: it must be told again, also if others have told it of the newer one meanwhile.
                    await rows.write(msgspec.structs.replace(present, is_applied=False))
                    return True
                await (self._end(rows, held) if is_gone else rows.write(msgspec.structs.replace(held, is_applied=True)))
        finally:
            await self._store.release_subscription(held)
        if is_gone:
            await self._cancel(held)
        return True

    async def _end(self, rows: BillingRows, held: Subscription) -> None:
        """The account is gone. Follow with ``_cancel``."""
        await rows.write(msgspec.structs.replace(held, plan=None, next_plan=None, invoice=None, is_applied=True))

    async def _cancel(self, held: Subscription) -> None:
        """A subscription that is not canceled now is followed again in a day, and comes here again."""
        try:
            if self.provider is not None:
                await self.provider.cancel(held)
        except errors.AimeshError as error:
            _log.warning("the subscription of an erased account is not canceled yet", owner=held.owner, reason=error.message)

    async def _renew_one(self, taken: TakenItem) -> bool:
        """Begin and bill the next period of one subscription; False if none is due."""
        held, customer = await self._store.take_due(), None
        if held is None or held.plan is None:
            return False
        taken.id = str(held.owner)
        try:
            with suppress(errors.NotFound):
                customer = await self._find_customer(held.owner)
            async with self._store.transaction() as rows:
                if (await rows.lock(held.owner, MANUAL)).version != held.version:
                    return True
                await (self._end(rows, held) if customer is None else self._renew(rows, held, held.plan, customer))
        finally:
            await self._store.release_subscription(held)
        if customer is None:
            await self._cancel(held)
        return True

    async def _renew(self, rows: BillingRows, held: Subscription, plan: str, customer: Party) -> None:
        if held.next_plan is not None and held.invoice is None:
            plan = held.next_plan
        started = await rows.open_period(held.owner, self._plans.included(plan))
        changed = msgspec.structs.replace(held, billed_period=started, plan=plan)
        if plan != held.plan:
            changed = msgspec.structs.replace(changed, next_plan=None, is_applied=False)
        fee = self._plans.fee_of(plan)
        if fee and held.subscription is None:
            line = InvoiceLine(f"Plan {plan_names.name_of(plan)}, a month from {started:%Y-%m-%d}", fee)
            order_id = uuid5(invoices.ORDERS, f"{held.owner}|{started.isoformat()}")
            await rows.add_invoice(
                self._seller, held.owner, customer, (line,), InvoicePurpose.PLAN, order_id=order_id, period_start=started
            )
        await rows.write(changed)

    async def _bill_owed(self, refused: list[UUID], taken: TakenItem) -> bool:
        """Bill what one account owes. ``refused``: what the provider does not bill now, for the next round."""
        owed = await self._store.take_owed(refused)
        if owed is None:
            return False
        taken.id = str(owed.id)
        try:
            await self._bill(owed)
        except errors.PeerError as error:
            _log.warning("usage not billed yet", owner=owed.owner, reason=error.message)
            refused.append(owed.id)
            taken.id = None
        finally:
            await self._store.release_owed(owed)
        return True

    async def _bill(self, owed: OwedUsage) -> None:
        amount, customer = currency.minor(owed.micro, self._seller.currency), None
        held = await self._store.find_subscription(owed.owner)
        if amount and not (self.provider is not None and held is not None and await self.provider.bill(owed, held, amount)):
            with suppress(errors.NotFound):
                customer = await self._find_customer(owed.owner)
        async with self._store.transaction() as rows:
            if await rows.end_owed(owed.id) and customer is not None:
                await self._add_charges(rows, owed, customer, amount)

    async def _add_charges(self, rows: BillingRows, owed: OwedUsage, customer: Party, amount: int) -> None:
        """A restored database may have the invoice of a period that it doesn't know to be over: what is more is a charge of its own."""
        order_id = owed.id
        while amount > 0:
            line = InvoiceLine(owed.text, amount)
            made = await rows.add_invoice(self._seller, owed.owner, customer, (line,), InvoicePurpose.OVERAGE, order_id=order_id)
            amount -= made.document.net_minor
            order_id = payment_provider.rest_of(order_id)


def _party(described: api.AccountName) -> Party:
    return Party(described.name, (described.email,) if described.email else ())
