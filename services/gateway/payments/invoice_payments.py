"""Follows invoices: what their payment gives, what happens if it is late, and what goes with an invoice that is taken back."""

from collections.abc import Callable
from uuid import uuid5

import msgspec

from services.gateway.payments import invoices
from services.gateway.payments.billing_store import MAX_LOST, BillingRows, BillingStore, StoredInvoice, Subscription
from services.gateway.payments.plan_changes import PlanChanges
from services.gateway.payments.provider_orders import MANUAL
from shared import currency, errors, plan_names
from shared.api.billing import Invoice, InvoiceDocument, InvoicePurpose, InvoiceState
from shared.api.notices import PaymentLate
from shared.background.items import TakenItem
from shared.telemetry import logs
from shared.types import MicroCredits, RequestId, Tier

_log = logs.get(part="billing")


class InvoicePayments:
    """Auth must be told of plans after each method."""

    def __init__(self, store: BillingStore, plans: PlanChanges, on_paid: Callable[[InvoiceDocument], None]) -> None:
        self._store = store
        self._plans = plans
        self._on_paid = on_paid

    async def pay(self, number: str, reference: str) -> Invoice:
        """Raises NotFound, and AlreadyExists if it was paid otherwise or taken back."""
        async with self._store.transaction() as rows:
            stored = await self._lock(rows, number)
            invoice = stored.invoice
            if invoice.state is InvoiceState.PAID and invoice.reference == reference:
                return invoice
            _ensure_open(invoice)
            # First what it gives: if the recovery log ends between the two, paying again completes it.
            await self._fulfil(rows, stored)
            paid = await rows.settle(number, await rows.now(), reference)
        self._on_paid(invoice.document)
        _log.info("invoice paid", number=number, owner=invoice.owner)
        return paid

    async def _fulfil(self, rows: BillingRows, stored: StoredInvoice) -> None:
        document = stored.invoice.document
        if document.purpose is InvoicePurpose.TOP_UP:
            await self._give_credit(rows, stored)
            return
        held = await rows.lock(stored.invoice.owner, MANUAL)
        if held.invoice == document.number and held.next_plan is not None:
            await rows.keep_period(document.number, await self._plans.begin(rows, held, held.next_plan))
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
        started = await self._plans.begin_rest(rows, held, stored.ended_plan, stored.ended_tokens)
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
            return await self._plans.take_back(rows, stored, reason)

    async def void_lost(self, number: str, reason: str) -> Invoice:
        """Let a number that a restored database lacks, and those before it, never be used again. Raises BadRequest for one that it has."""
        async with self._store.transaction() as rows:
            if not await rows.count_lost(number):
                what = f"{number} is not among the {MAX_LOST} numbers after the last invoice"
                raise errors.BadRequest(what, field="number", hint="see `aicli admin invoices list`")
            await rows.void_lost(self._plans.seller, reason)
            return (await self._lock(rows, number)).invoice

    async def _reverse(self, rows: BillingRows, stored: StoredInvoice) -> None:
        """Take back the credits that a payment gave, or end the period that it paid."""
        owner, number = stored.invoice.owner, stored.invoice.number
        held, (period_start, _) = await rows.lock(owner, MANUAL), await rows.lock_period(owner)
        if await rows.find_moved(RequestId(stored.order_id), owner) is not None:
            transfer = RequestId(uuid5(invoices.ORDERS, f"refund {number}"))
            await rows.give_credit(transfer, owner, MicroCredits(-_worth(stored)), f"refund of the invoice {number}")
        elif stored.period_start == period_start and held.subscription is None:
            await self._plans.withdraw(rows, held)
            await self._plans.begin(rows, held, self._plans.free)

    @staticmethod
    async def _lock(rows: BillingRows, number: str) -> StoredInvoice:
        stored = await rows.lock_invoice(number)
        if stored is None:
            raise errors.NotFound(f"there is no invoice {number}", hint="see `aicli admin invoices list`")
        return stored

    async def remind_one(self, taken: TakenItem) -> bool:
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
                    await self._plans.take_back(rows, late, "it was not paid")
                return True
            if held.plan is None or held.subscription is not None:
                return True
            await rows.write(msgspec.structs.replace(held, is_past_due=True))
            if is_last and plan_names.name_of(held.plan) != Tier.FREE:
                _log.info("plan ends unpaid", owner=owner, plan=held.plan, invoice=number)
                await rows.lock_period(owner)  # nothing is used between what is kept and the end
                await rows.keep_ended_plan(owner, number, held.plan)
                await self._plans.begin_rest(rows, held, self._plans.free, 0)
        return True


def _worth(stored: StoredInvoice) -> MicroCredits:
    """Return an invoice in credits, without tax."""
    return stored.credit_micro or currency.micro(stored.invoice.document.net_minor, stored.invoice.document.currency)


def _ensure_open(invoice: Invoice) -> None:
    if not invoices.is_open(invoice):
        is_paid = invoice.state is InvoiceState.PAID
        how = f"was paid ({invoice.reference})" if is_paid else "was taken back"
        hint = "refund it with `aicli admin invoices void --refund`" if is_paid else "see `aicli admin invoices list`"
        raise errors.AlreadyExists(f"the invoice {invoice.document.number} {how}", hint=hint)
