"""Sells plans and prepaid credits: what an order leads to, and what a paid or late invoice and the end of a period do.

A subscription keeps the terms of its plan's version. A plan that costs more than the present one begins when its invoice is paid, and a
cheaper one at the end of the period. Every step is one transaction, and safe to repeat; auth learns of a plan after the commit, and again
until it has. Nothing is locked while auth is asked.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from uuid import UUID, uuid5

import msgspec

from services.gateway.facts import tiers
from services.gateway.facts.config_snapshot import ConfigSource
from services.gateway.facts.plan_offers import PlanOffer, Seller
from services.gateway.payments import invoices, payment_provider
from services.gateway.payments.billing_store import BillingRows, BillingStore, StoredInvoice, Subscription
from services.gateway.payments.payment_provider import OwedUsage
from services.gateway.payments.provider_orders import MANUAL, ProviderOrders
from shared import currency, errors, plan_names
from shared.api import billing as api
from shared.api.billing import Invoice, InvoiceDocument, InvoiceLine, InvoicePurpose, InvoiceState, Order, Party
from shared.api.notices import PaymentLate
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems, TakenItem
from shared.rpc import RpcClient
from shared.telemetry import logs
from shared.types import MicroCredits, RequestId, TenantId, Tier

#: How long auth may take.
AUTH_SECONDS = 5.0
#: The provider may be down, and each call takes its deadline: the rest of a round must not wait for all events.
_MAX_FAILURES = 3
#: For ids of orders that the gateway makes up: the same cause has the same order.
_ORDERS = UUID("7f1d3a52-6b0e-4f3c-9a60-0d5c1e5a8b11")

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
        self._source = source
        self._rpc = rpc
        self._items = items
        self._seller = seller
        self.provider = provider
        self._on_paid = on_paid

    async def describe(self, owner: TenantId) -> api.AccountName:
        """Raises NotFound."""
        return await self._rpc.call(api.describe_account, api.DescribeAccount(owner), deadline_seconds=AUTH_SECONDS)

    async def _find_customer(self, owner: TenantId) -> Party:
        return _party(await self.describe(owner))

    # --- orders -------------------------------------------------------------------------------------------------------

    def offer(self, name: str) -> PlanOffer:
        """Raises NotFound."""
        found = self._source.config.offers.get(name)
        if found is None:
            raise errors.NotFound(f"no plan is called {name}", hint="see `aicli billing plans`")
        return found

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
        offer = self.offer(name)
        if not offer.for_sale:
            raise errors.NotAllowed(f"the plan {name} is not for sale", hint="see `aicli billing plans`, or ask an administrator")
        if self.provider is not None and self._fee_of(offer.versioned):
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
            fee = self._fee_of(offer.versioned)
            if fee <= self._fee_of(present):
                if held.next_plan != offer.versioned:
                    await rows.count_change(owner)
                await rows.write(msgspec.structs.replace(held, next_plan=offer.versioned, plan=held.plan or present))
                return Order(done=True)
            await rows.count_order(owner)
            line = InvoiceLine(f"Plan {name}, a month", fee)
            order_id = uuid5(_ORDERS, f"{owner}|{offer.versioned}|{await rows.now()}")
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
            await self._withdraw(rows, held)
        return Order(done=True)

    def _fee_of(self, plan: str) -> int:
        fee = tiers.plan_of(self._source.config.limits.plans, plan).fee_micro
        return 0 if fee is None else currency.minor(fee, self._seller.currency)

    async def _withdraw(self, rows: BillingRows, held: Subscription) -> None:
        """Undo a change that has not happened."""
        if held.invoice is not None and (stored := await rows.lock_invoice(held.invoice)) is not None and _is_open(stored.invoice):
            await self._take_back(rows, stored, "the change was undone")
        await rows.write(msgspec.structs.replace(held, next_plan=None, invoice=None))

    async def give_plan(self, owner: TenantId, name: str) -> Order:
        """Begin a plan now, for nothing: an administrator wants it. Raises NotFound, and AlreadyExists for a subscription at a provider."""
        offer = self.offer(name)
        async with self._store.transaction() as rows:
            held = await rows.lock(owner, MANUAL)
            if held.subscription is not None:
                raise errors.AlreadyExists(f"this account pays through {held.provider}", hint="cancel its subscription there first")
            await self._withdraw(rows, held)
            await self._begin(rows, held, offer.versioned)
        await self.apply()
        return Order(done=True)

    async def _begin(self, rows: BillingRows, held: Subscription, plan: str) -> datetime:
        """The period begins now, and the one before ends. Return when."""
        await rows.begin_period(held.owner)
        return await self._start(rows, msgspec.structs.replace(held, next_plan=None, invoice=None), plan)

    async def _begin_rest(self, rows: BillingRows, held: Subscription, plan: str, used_tokens: int) -> datetime:
        """Begin a plan for the rest of the period. An order that waits for its payment still does."""
        await rows.begin_rest(held.owner, used_tokens)
        return await self._start(rows, held if held.invoice is not None else msgspec.structs.replace(held, next_plan=None), plan)

    async def _start(self, rows: BillingRows, held: Subscription, plan: str) -> datetime:
        started = await rows.open_period(held.owner, self._included(plan))
        await rows.write(msgspec.structs.replace(held, plan=plan, is_applied=False, is_past_due=False, billed_period=started))
        return started

    def _included(self, plan: str) -> int | None:
        # Those of a plan without a fee are granted at the account's next request, which tells whether it may have them.
        return tiers.plan_of(self._source.config.limits.plans, plan, has_free_tokens=False).included_tokens

    async def order_top_up(self, owner: TenantId, wanted: api.OrderTopUp) -> Order:
        """Raises BadRequest for an amount that nobody sells, and what ``count_order`` raises."""
        amount_minor, order_id = self._read_amount(wanted), uuid5(_ORDERS, f"{owner}|{wanted.order_id}")
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
        """Raises NotFound, and AlreadyExists if it was paid otherwise or taken back."""
        async with self._store.transaction() as rows:
            stored = await self._lock(rows, number)
            invoice = stored.invoice
            if invoice.state is InvoiceState.PAID and invoice.reference == reference:
                return invoice
            _ensure_open(invoice)
            paid = await rows.settle(number, await rows.now(), reference)
            await self._fulfil(rows, stored)
        self._on_paid(invoice.document)
        _log.info("invoice paid", number=number, owner=invoice.owner)
        await self.apply()
        return paid

    async def _fulfil(self, rows: BillingRows, stored: StoredInvoice) -> None:
        document = stored.invoice.document
        if document.purpose is InvoicePurpose.TOP_UP:
            await self._give_credit(rows, stored)
            return
        held = await rows.lock(stored.invoice.owner, MANUAL)
        if held.invoice == document.number and held.next_plan is not None:
            await rows.keep_period(document.number, await self._begin(rows, held, held.next_plan))
            return
        if held.is_past_due:
            held = msgspec.structs.replace(held, is_past_due=False)
            await rows.write(held)
        is_bought = stored.period_start is not None and stored.ended_plan is None
        if not await self._give_back(rows, held, stored) and document.purpose is InvoicePurpose.PLAN and not is_bought:
            # Its plan has ended, or nobody waits for the order any more: the money must not be lost.
            await self._give_credit(rows, stored)

    async def _give_credit(self, rows: BillingRows, stored: StoredInvoice) -> None:
        await rows.give_credit(RequestId(stored.order_id), stored.invoice.owner, _worth(stored), f"invoice {stored.invoice.number}")

    async def _give_back(self, rows: BillingRows, held: Subscription, stored: StoredInvoice) -> bool:
        """Return whether the plan that ended unpaid was begun again, for the rest of its period."""
        if stored.ended_plan is None or stored.ended_tokens is None or held.subscription is not None:
            return False
        _, period_end = await rows.lock_period(held.owner)
        # Another plan that has begun since then has changed the end.
        if period_end != stored.ended_until:
            return False
        started = await self._begin_rest(rows, held, stored.ended_plan, stored.ended_tokens)
        if stored.period_start is not None:
            await rows.keep_period(stored.invoice.number, started)
        return True

    async def void(self, number: str, reason: str, *, refund: bool = False) -> Invoice:
        """Take an open invoice back; with ``refund``, a paid one, and what its payment gave. Raises NotFound, and AlreadyExists in another
        state."""
        async with self._store.transaction() as rows:
            stored = await self._lock(rows, number)
            if not refund:
                _ensure_open(stored.invoice)
            elif stored.invoice.state is not InvoiceState.PAID or stored.invoice.document.corrects:
                raise errors.AlreadyExists(f"{number} is no paid invoice", hint="see `aicli admin invoices list`")
            else:
                await self._reverse(rows, stored)
            found = await self._take_back(rows, stored, reason)
        await self.apply()
        return found

    async def _reverse(self, rows: BillingRows, stored: StoredInvoice) -> None:
        """Take back the credits that a payment gave, or end the period that it paid."""
        owner, number = stored.invoice.owner, stored.invoice.number
        held, (period_start, _) = await rows.lock(owner, MANUAL), await rows.lock_period(owner)
        if await rows.is_given(RequestId(stored.order_id), owner, _worth(stored)):
            transfer = RequestId(uuid5(_ORDERS, f"refund {number}"))
            await rows.give_credit(transfer, owner, MicroCredits(-_worth(stored)), f"refund of the invoice {number}")
        elif stored.period_start == period_start and held.subscription is None:
            await self._withdraw(rows, held)
            await self._begin(rows, held, self.offer(Tier.FREE.value).versioned)

    async def _take_back(self, rows: BillingRows, stored: StoredInvoice, reason: str) -> Invoice:
        """With it goes the change of plan that waited for it."""
        number = stored.invoice.document.number
        held = await rows.lock(stored.invoice.owner, MANUAL)
        if held.invoice == number:
            await rows.write(msgspec.structs.replace(held, next_plan=None, invoice=None))
        return await rows.take_back(self._seller, stored, uuid5(_ORDERS, f"void {number}"), reason)

    @staticmethod
    async def _lock(rows: BillingRows, number: str) -> StoredInvoice:
        stored = await rows.lock_invoice(number)
        if stored is None:
            raise errors.NotFound(f"there is no invoice {number}", hint="see `aicli admin invoices list`")
        return stored

    # --- what time does -----------------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Raises Unavailable; the next round does the rest."""
        await self.handle_events()
        refused: list[UUID] = []
        await self._items.drain(ItemKind.RENEWAL, self._renew_one)
        await self._items.drain(ItemKind.OVERAGE, partial(self._bill_owed, refused))
        await self._items.drain(ItemKind.REMINDER, self._remind_one)
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
            await self._store.release_subscription(held.owner)
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
            await self._store.release_subscription(held.owner)
        if customer is None:
            await self._cancel(held)
        return True

    async def _renew(self, rows: BillingRows, held: Subscription, plan: str, customer: Party) -> None:
        if held.next_plan is not None and held.invoice is None:
            plan = held.next_plan
        started = await rows.open_period(held.owner, self._included(plan))
        changed = msgspec.structs.replace(held, billed_period=started, plan=plan)
        if plan != held.plan:
            changed = msgspec.structs.replace(changed, next_plan=None, is_applied=False)
        fee = self._fee_of(plan)
        if fee and held.subscription is None:
            line = InvoiceLine(f"Plan {plan_names.name_of(plan)}, a month from {started:%Y-%m-%d}", fee)
            order_id = uuid5(_ORDERS, f"{held.owner}|{started.isoformat()}")
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
            await self._store.release_owed(owed.id)
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

    async def _remind_one(self, taken: TakenItem) -> bool:
        """Remember one late invoice; after the last reminder, its plan ends."""
        async with self._store.transaction() as rows:
            late = await rows.take_late()
            if late is None:
                return False
            number, owner = late.invoice.document.number, late.invoice.owner
            taken.id = number
            await rows.count_reminder(number)
            held, is_last = await rows.lock(owner, MANUAL), late.reminders + 1 == len(invoices.REMINDER_DAYS)
            await rows.notify(owner, f"{number}/{late.reminders + 1}", PaymentLate(number, late.invoice.document.due_at, is_last))
            if held.invoice == number or late.invoice.document.purpose is InvoicePurpose.TOP_UP:
                # Nothing was delivered for it.
                if is_last:
                    await self._take_back(rows, late, "it was not paid")
                return True
            if held.plan is None or held.subscription is not None:
                return True
            await rows.write(msgspec.structs.replace(held, is_past_due=True))
            if is_last and plan_names.name_of(held.plan) != Tier.FREE:
                _log.info("plan ends unpaid", owner=owner, plan=held.plan, invoice=number)
                await rows.lock_period(owner)  # nothing is used between what is kept and the end
                await rows.keep_ended_plan(owner, number, held.plan)
                await self._begin_rest(rows, held, self.offer(Tier.FREE.value).versioned, 0)
        return True


def _worth(stored: StoredInvoice) -> MicroCredits:
    """Return an invoice in credits, without tax."""
    return stored.credit_micro or currency.micro(stored.invoice.document.net_minor, stored.invoice.document.currency)


def _party(described: api.AccountName) -> Party:
    return Party(described.name, (described.email,) if described.email else ())


def _is_open(invoice: Invoice) -> bool:
    return invoice.state in {InvoiceState.OPEN, InvoiceState.LATE}


def _ensure_open(invoice: Invoice) -> None:
    if not _is_open(invoice):
        is_paid = invoice.state is InvoiceState.PAID
        how = f"was paid ({invoice.reference})" if is_paid else "was taken back"
        hint = "refund it with `aicli admin invoices void --refund`" if is_paid else "see `aicli admin invoices list`"
        raise errors.AlreadyExists(f"the invoice {invoice.document.number} {how}", hint=hint)
