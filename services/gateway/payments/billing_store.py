"""Reads and writes subscriptions and invoices. Every method may raise Unavailable."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from services.gateway.billing import ledger_store
from services.gateway.facts.plan_offers import Seller
from services.gateway.payments import invoices
from services.gateway.payments.payment_provider import OwedUsage, ProviderOrder, WebhookEvent, WrittenOrder
from shared import errors
from shared.api.billing import (
    Customer,
    Invoice,
    InvoiceDocument,
    InvoiceLine,
    InvoicePurpose,
    InvoiceState,
    MonthRevenue,
    Party,
    PlanState,
)
from shared.api.notices import PaymentLate
from shared.stores import database
from shared.stores.database import DatabaseRow, Transaction
from shared.types import MicroCredits, Moment, RequestId, TenantId

_NO_CREDIT = MicroCredits(0)
#: Of one account. Orders and changes of plans count per day in UTC; an administrator's don't.
MAX_OPEN_ORDERS, MAX_CHANGES_A_DAY = 10, 20
#: Numbers that an administrator gives up at once: a typing error must not use up those of a year.
MAX_LOST = 100


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table."""

    owner: TenantId
    plan: str | None
    next_plan: str | None
    invoice: str | None
    provider: str
    customer: str | None
    subscription: str | None
    is_past_due: bool
    is_applied: bool
    billed_period: Moment | None
    #: Grows with each write.
    version: int
    #: By the gateway that works on it.
    taken_until: Moment

    @property
    def state(self) -> PlanState:
        return PlanState.GIVEN if self.plan is None else PlanState.PAST_DUE if self.is_past_due else PlanState.ACTIVE


#: In the order of `change_subscription`, which counts the version itself.
_WRITTEN = tuple(name for name in Subscription.__struct_fields__ if name not in ("version", "taken_until"))


class Followed(msgspec.Struct, frozen=True, kw_only=True):
    """Whose an object of a provider is."""

    owner: TenantId
    #: None: only the account's subscription says it.
    order_id: UUID | None
    #: Of the account's subscription.
    version: int


class StoredInvoice(msgspec.Struct, frozen=True, kw_only=True):
    invoice: Invoice
    order_id: UUID
    credit_micro: MicroCredits
    reminders: int
    #: Of a fee.
    period_start: Moment | None
    #: What ended because it was not paid, until when the period was, and how many tokens were used.
    ended_plan: str | None
    ended_until: Moment | None
    ended_tokens: int | None


class BillingRows:
    """What one transaction sees and changes."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    async def lock(self, owner: TenantId, provider: str) -> Subscription:
        await self._transaction.run("ensure_subscription", owner, provider)
        row = await self._transaction.row("lock_subscription", owner)
        assert row is not None  # they are never deleted
        return _subscription(row)

    async def write(self, changed: Subscription) -> None:
        await self._transaction.run("change_subscription", *(getattr(changed, name) for name in _WRITTEN))

    async def count_change(self, owner: TenantId) -> None:
        """Count a change of plan by an account whose subscription is locked. Raises Limited."""
        if not await self._transaction.run("count_change", owner, MAX_CHANGES_A_DAY):
            now = (await self.now()).astimezone(UTC)
            tomorrow = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
            raise errors.Limited(
                f"this account has ordered or changed its plan {MAX_CHANGES_A_DAY} times today",
                hint="wait until tomorrow (UTC), or ask an administrator",
                retry_after_seconds=(tomorrow - now).total_seconds(),
            )

    async def count_order(self, owner: TenantId) -> None:
        """Count an order by an account whose subscription is locked. Raises Limited, and NotAllowed if too many wait to be paid."""
        if await self._transaction.value("count_open_orders", owner) >= MAX_OPEN_ORDERS:
            raise errors.NotAllowed(
                f"this account has {MAX_OPEN_ORDERS} unpaid orders and invoices, the most allowed",
                hint="pay one (aicli billing invoices), wait a day for unpaid checkouts to expire, or ask an administrator",
            )
        await self.count_change(owner)

    async def is_ordered(self, order_id: UUID) -> bool:
        """Return whether the order has an invoice."""
        return await self._transaction.row("find_order", order_id) is not None

    async def end_owed(self, owed_id: UUID) -> bool:
        """Return False if it was billed already."""
        return bool(await self._transaction.run("end_owed", owed_id))

    async def begin_period(self, owner: TenantId) -> None:
        await self._transaction.run("begin_period", owner, False)

    async def begin_rest(self, owner: TenantId, used_tokens: int) -> None:
        """As ``begin_period``, but it ends when the one before would have, and has used tokens."""
        await self._transaction.run("begin_period", owner, True)
        await self.open_period(owner, 0)
        await self._transaction.run("begin_rest", owner, used_tokens)

    async def lock_period(self, owner: TenantId) -> tuple[datetime, datetime]:
        """Lock an account; return the start and the end of its present period."""
        row = await self._transaction.row("lock_period", owner)
        assert row is not None  # the function adds a missing account
        return row["period_start"], row["period_end"]

    async def open_period(self, owner: TenantId, included_tokens: int | None) -> datetime:
        started: datetime = await self._transaction.value("open_period", owner, included_tokens)
        return started

    async def add_invoice(
        self,
        seller: Seller,
        owner: TenantId,
        customer: Party,
        lines: tuple[InvoiceLine, ...],
        purpose: InvoicePurpose,
        *,
        order_id: UUID,
        credit_micro: MicroCredits = _NO_CREDIT,
        period_start: datetime | None = None,
    ) -> Invoice:
        """Return the invoice of this order, which is new if there is none yet."""
        row = await self._transaction.row("find_order", order_id)
        if row is None:
            now: datetime = await self._transaction.value("read_clock")
            document = invoices.write(await self._next_number(seller, now), seller, customer, lines, purpose=purpose, now=now)
            row = await self._add(document, owner, order_id, credit=credit_micro, period_start=period_start)
        return _invoice(row).invoice

    async def take_back(self, seller: Seller, stored: StoredInvoice, order_id: UUID, reason: str) -> Invoice:
        """Write the credit note of an invoice; return the invoice."""
        now: datetime = await self._transaction.value("read_clock")
        note = invoices.take_back(await self._next_number(seller, now), seller, stored.invoice.document, now)
        await self._add(note, stored.invoice.owner, order_id, paid_at=now, reference=reason)
        return await self.settle(stored.invoice.number, stored.invoice.paid_at, stored.invoice.reference, void_by=note.number)

    async def _next_number(self, seller: Seller, now: datetime) -> str:
        series = seller.series(now.year)
        return invoices.number(series, await self._transaction.value("next_number", series))

    async def _add(
        self,
        document: InvoiceDocument,
        owner: TenantId,
        order_id: UUID,
        *,
        credit: MicroCredits = _NO_CREDIT,
        paid_at: datetime | None = None,
        reference: str = "",
        period_start: datetime | None = None,
    ) -> DatabaseRow:
        text, dates = msgspec.json.encode(document).decode(), (document.issued_at, document.due_at, paid_at)
        row = await self._transaction.row("add_invoice", document.number, owner, order_id, text, credit, *dates, reference, period_start)
        assert row is not None
        return row

    async def count_lost(self, number: str) -> bool:
        """Count on after a number that was used and is lost. Return False for one that is not among the next MAX_LOST."""
        return bool(await self._transaction.run("count_lost", number[:-7], int(number[-6:]), MAX_LOST))

    async def void_lost(self, seller: Seller, reason: str) -> None:
        """Write a void invoice for each number whose document is lost, so that nobody misses it or gets it again."""
        line, now = InvoiceLine(reason, 0), await self.now()
        document = invoices.write("", seller, Party(""), (line,), purpose=InvoicePurpose.OVERAGE, now=now)
        await self._transaction.run("void_lost", msgspec.json.encode(document).decode(), reason)

    async def lock_invoice(self, number: str) -> StoredInvoice | None:
        row = await self._transaction.row("lock_invoice", number)
        return None if row is None else _invoice(row)

    async def settle(self, number: str, paid_at: datetime | None, reference: str, *, void_by: str | None = None) -> Invoice:
        row = await self._transaction.row("settle_invoice", number, paid_at, reference, void_by)
        assert row is not None
        return _invoice(row).invoice

    async def keep_period(self, number: str, period_start: datetime) -> None:
        await self._transaction.run("keep_period", number, period_start)

    async def keep_ended_plan(self, owner: TenantId, unpaid: str, plan: str) -> None:
        """Let a payment give back the plan that ends now."""
        await self._transaction.run("keep_ended_plan", owner, unpaid, plan)

    async def give_credit(self, transfer: RequestId, owner: TenantId, micro: MicroCredits, note: str) -> None:
        """Safe to repeat. Raises what ``move_credits`` raises."""
        await ledger_store.move_credits(self._transaction, transfer, owner, micro, note=note)

    async def find_moved(self, transfer: RequestId, owner: TenantId) -> MicroCredits | None:
        """Return how many credits a transfer gave, below zero if it took them; None if there is no such transfer."""
        found: MicroCredits | None = await self._transaction.value("find_moved", transfer, owner)
        return found

    async def take_late(self) -> StoredInvoice | None:
        row = await self._transaction.row("take_late_invoice", list(invoices.REMINDER_DAYS))
        return None if row is None else _invoice(row)

    async def notify(self, owner: TenantId, subject: str, notice: PaymentLate) -> None:
        """Add a notice; the same subject again adds nothing."""
        await self._transaction.run("add_notice", owner, f"payment/{subject}", msgspec.json.encode(notice).decode())

    async def take_notice(self) -> tuple[TenantId, str, bytes] | None:
        """Take the oldest notice, with its owner and subject. It stays if the transaction fails."""
        row = await self._transaction.row("take_threshold_notice")
        return None if row is None else (row["owner"], row["subject"], row["notice"].encode())

    async def count_reminder(self, number: str) -> None:
        await self._transaction.run("count_reminder", number)

    async def now(self) -> datetime:
        found: datetime = await self._transaction.value("read_clock")
        return found

    # --- at a provider ------------------------------------------------------------------------------------------------

    async def follow_anchor(self, owner: TenantId, period_start: datetime) -> None:
        await self._transaction.run("follow_anchor", owner, period_start)

    async def pay_period(self, owner: TenantId, period_start: datetime, tokens: int | None, *, is_over: bool) -> None:
        """Let an account have the tokens that were paid for a period of the provider, and no others. None: as many as are used.
        ``is_over``: the subscription has ended, and tokens of another period stay as they are."""
        await self._transaction.run("pay_period", owner, period_start, tokens, is_over)

    async def add_order(self, order_id: UUID, owner: TenantId, provider: str, plan: str | None, amount_minor: int) -> ProviderOrder | None:
        """Return the order if it is new."""
        return _order(await self._transaction.row("add_order", order_id, owner, provider, plan, amount_minor))

    async def lock_order(self, order_id: UUID) -> ProviderOrder | None:
        return _order(await self._transaction.row("lock_order", order_id))

    async def find_plan_order(self, owner: TenantId, provider: str) -> ProviderOrder | None:
        return _order(await self._transaction.row("find_plan_order", owner, provider))

    async def name_order(self, order_id: UUID, object_id: str, url: str) -> None:
        await self._transaction.run("name_order", order_id, object_id, url)

    async def end_order(self, order_id: UUID, payment: str | None) -> None:
        await self._transaction.run("end_order", order_id, payment)

    async def reverse_order(self, order_id: UUID, reversed_minor: int) -> None:
        await self._transaction.run("reverse_order", order_id, reversed_minor)

    async def name_subscription(self, order_id: UUID, subscription: str) -> None:
        await self._transaction.run("name_subscription", order_id, subscription)

    async def restore_order(self, provider: str, order: WrittenOrder, object_id: str, *, is_adopted: bool) -> bool:
        """Add an order that the database lacks, or adopt the open one of the same owner. Return False if neither is possible."""
        values = (order.id, order.owner, provider, order.plan, order.amount_minor, object_id, is_adopted)
        return bool(await self._transaction.value("restore_order", *values))


class BillingStore:
    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[BillingRows]:
        async with self._database.transaction() as transaction:
            yield BillingRows(transaction)

    async def find_subscription(self, owner: TenantId) -> Subscription | None:
        async with self._database.bound(owner) as transaction:
            row = await transaction.row("find_subscription", owner)
        return None if row is None else _subscription(row)

    async def add_event(self, provider: str, event: WebhookEvent) -> bool:
        """Return False for an event that is known. It is kept when this returns."""
        return bool(await self._database.value("add_event", provider, event.id, event.object_id))

    async def end_events(self, provider: str, object_id: str, taken_at: datetime) -> None:
        await self._database.run("end_events", provider, object_id, taken_at)

    async def take_event(self, provider: str) -> tuple[str, datetime] | None:
        """Return the object of an event, and when it was taken."""
        row = await self._database.row("take_event", provider)
        return None if row is None else (row["object_id"], row["taken_at"])

    async def find_followed(self, provider: str, object_id: str) -> Followed | None:
        """Return whose a checkout or a subscription is; None if no order of ours led to it."""
        row = await self._database.row("find_followed", provider, object_id)
        return None if row is None else Followed(owner=row["owner"], order_id=row["order_id"], version=row["version"])

    async def are_orders_of(self, owner: TenantId, provider: str, payments: Mapping[str, str | None]) -> bool:
        """Return whether an owner's orders led to all of these payments. Each has the subscription that it belongs to."""
        return bool(await self._database.value("are_orders_of", owner, provider, [*payments], [*payments.values()]))

    async def now(self) -> datetime:
        found: datetime = await self._database.value("read_clock")
        return found

    async def take_unheard(self, provider: str) -> str | None:
        """Return an object of which the provider hasn't told for long."""
        found: str | None = await self._database.value("take_order", provider) or await self._database.value("take_followed", provider)
        return found

    async def measure_events(self) -> float:
        """Return the age of the oldest event that waits, in seconds, and delete old ones."""
        await self._database.run("forget_events")
        return float(await self._database.value("measure_events"))

    async def take_unapplied(self) -> Subscription | None:
        """Return a subscription of which auth doesn't know the plan. Only this caller has it for half a minute."""
        row = await self._database.row("take_unapplied")
        return None if row is None else _subscription(row)

    async def take_due(self) -> Subscription | None:
        """Return a subscription whose next period is not billed, likewise."""
        row = await self._database.row("take_due_subscription")
        return None if row is None else _subscription(row)

    async def release_subscription(self, taken: Subscription) -> None:
        await self._database.run("release_subscription", taken.owner, taken.taken_until)

    async def take_owed(self, skipped: list[UUID]) -> OwedUsage | None:
        """Return what an account owes, which only this caller bills for two minutes."""
        row = await self._database.row("take_owed", skipped)
        return None if row is None else OwedUsage(**{name: row[name] for name in OwedUsage.__slots__})

    async def release_owed(self, taken: OwedUsage) -> None:
        await self._database.run("release_owed", taken.id, taken.taken_until)

    async def measure_owed(self) -> float:
        """Return the age of the oldest usage that is not billed yet, in seconds."""
        return float(await self._database.value("measure_owed"))

    async def find_invoice(self, number: str, owner: TenantId | None) -> Invoice | None:
        """With an owner, only their own."""
        if owner is None:
            row = await self._database.row("find_invoice", number)
        else:
            async with self._database.bound(owner) as transaction:
                row = await transaction.row("find_invoice", number)
        return None if row is None else _invoice(row).invoice

    async def list_invoices(self, owner: TenantId | None, *, only_open: bool, before: str | None, limit: int) -> tuple[Invoice, ...]:
        if owner is None:
            rows = await self._database.rows("list_invoices", owner, only_open, before, limit)
        else:
            async with self._database.bound(owner) as transaction:
                rows = await transaction.rows("list_invoices", owner, only_open, before, limit)
        return tuple(_invoice(row).invoice for row in rows)

    async def list_customers(self, after: TenantId | None, limit: int) -> tuple[Customer, ...]:
        found = ((_subscription(row), row) for row in await self._database.rows("list_customers", after, limit))
        return tuple(Customer(held.owner, held.plan, held.next_plan, held.state, held.provider, row["period_end"]) for held, row in found)

    async def sum_revenue(self, sold_in: str) -> tuple[MonthRevenue, ...]:
        rows = await self._database.rows("sum_revenue", sold_in)
        return tuple(MonthRevenue(row["month"], row["currency"], row["net_minor"]) for row in rows)


def _subscription(row: DatabaseRow) -> Subscription:
    return Subscription(**{name: row[name] for name in Subscription.__struct_fields__})


def _order(row: DatabaseRow | None) -> ProviderOrder | None:
    return None if row is None else ProviderOrder(**{name: row[name] for name in ProviderOrder.__slots__})


def _invoice(row: DatabaseRow) -> StoredInvoice:
    document = msgspec.json.decode(row["document"], type=InvoiceDocument)
    if row["void_by"]:
        state = InvoiceState.REFUNDED if row["paid_at"] else InvoiceState.VOID
    else:
        state = InvoiceState.PAID if row["paid_at"] else InvoiceState.LATE if row["is_late"] else InvoiceState.OPEN
    invoice = Invoice(document, row["owner"], state, row["paid_at"], row["reference"])
    return StoredInvoice(invoice=invoice, **{name: row[name] for name in StoredInvoice.__struct_fields__ if name != "invoice"})
