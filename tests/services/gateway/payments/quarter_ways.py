"""How the customers of a simulated quarter pay: by invoice, through Stripe, or through Paddle. What was kept is in the fakes' books."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import pytest
from dateutil.relativedelta import relativedelta

from services.gateway.facts.provider_settings import ProviderSettings
from services.gateway.payments import payment_provider
from services.gateway.payments.payment_provider import PaymentProvider
from services.gateway.payments.provider_orders import ProviderOrders
from shared import errors
from shared.api.billing import InvoicePurpose, Order, OrderTopUp
from shared.types import RequestId
from tests.services.gateway.payments import paddle_server, stripe_server
from tests.services.gateway.payments.paddle_server import PaddleServer
from tests.services.gateway.payments.quarter import INCLUDED, TOP_UP_MINOR, Customer, Quarter, VirtualTime
from tests.services.gateway.payments.quarter_judge import Account
from tests.services.gateway.payments.stripe_server import StripeServer

FEE_MINOR = 2900


# --- by invoice ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Wire:
    customer: Customer
    number: str
    purpose: InvoicePurpose
    at: datetime
    #: Of a payment that was sent back: the tokens that were used until then.
    used: int | None = None

    @property
    def reference(self) -> str:
        return f"wire for {self.number}"


class Manual:
    """Invoices of ours, a bank, and an administrator who reads its statements."""

    name = "manual"
    habits = ("spends", "buys", "pays late", "never pays again", "changes its mind", "pays twice", "gets its fee back")

    def __init__(self) -> None:
        self.forged: set[str] = set()
        self.taken_back = 0
        self.wires: list[Wire] = []
        #: When customers pay what they were sent; None: never.
        self.plans: dict[str, int | None] = {}
        self.ordered: set[Customer] = set()
        self.undone: set[Customer] = set()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[PaymentProvider | None]:
        yield None

    async def act(self, quarter: Quarter, customer: Customer) -> None:
        rng = quarter.rng
        if customer not in self.ordered:
            await quarter.until_done(lambda: quarter.desk.order_plan(customer.owner, "pro"))
            if customer.habit == "changes its mind" and customer not in self.undone:
                self.undone.add(customer)
                await quarter.until_done(lambda: quarter.desk.order_plan(customer.owner, "free"))
                return
            self.ordered.add(customer)
        if customer.habit == "never pays again" and customer.began is not None and customer.period_of(quarter.moment) > 0:
            customer.rests_until = datetime.max.replace(tzinfo=UTC)
        if customer.habit == "buys" and rng.random() < 0.06:
            await self._buy(quarter, customer)
        for wire in self.wires:
            if wire.customer is not customer or wire.used is not None:
                continue
            is_of_credits = customer.habit == "buys" and wire.purpose is InvoicePurpose.TOP_UP
            is_of_month = (
                customer.habit == "gets its fee back" and customer.period_of(quarter.moment) == 1 and self._fees(customer)[1:] == [wire]
            )
            if (is_of_credits and rng.random() < 0.02) or (is_of_month and rng.random() < 0.2):
                self.taken_back += 1
                wire.used = customer.used[customer.period_of(quarter.moment)]
                await self._refund(quarter, wire)

    async def _buy(self, quarter: Quarter, customer: Customer) -> str | None:
        wanted = OrderTopUp("25.00", RequestId(UUID(int=quarter.rng.getrandbits(128), version=4)))
        order: Order = await quarter.until_done(lambda: quarter.desk.order_top_up(customer.owner, wanted))
        return order.invoice

    async def buy_now(self, quarter: Quarter, customer: Customer) -> None:
        number = await self._buy(quarter, customer)
        assert number is not None
        self.plans[number] = 0
        await self.tell(quarter)

    async def tell(self, quarter: Quarter) -> None:
        day = (quarter.moment - quarter.start_at).days
        for customer in quarter.customers:
            for invoice in await quarter.shop.rows.list_invoices(customer.owner, only_open=True, before=None, limit=100):
                if invoice.number not in self.plans:
                    self.plans[invoice.number] = self._plan(quarter, customer, invoice.document.purpose, day)
                if (due := self.plans[invoice.number]) is not None and due <= day:
                    wire = Wire(customer, invoice.number, invoice.document.purpose, quarter.moment)
                    self.wires.append(wire)
                    await self._pay(quarter, wire)

    def _plan(self, quarter: Quarter, customer: Customer, purpose: InvoicePurpose, day: int) -> int | None:
        is_renewal = purpose is InvoicePurpose.PLAN and customer.began is not None
        if is_renewal and customer.habit == "never pays again":
            return None
        if is_renewal and customer.habit == "pays late":
            return day + 27
        return day if customer.began is None else day + quarter.rng.randrange(8)

    async def _pay(self, quarter: Quarter, wire: Wire) -> None:
        await quarter.until_done(lambda: quarter.desk.pay(wire.number, wire.reference))
        if wire.purpose is InvoicePurpose.PLAN and wire.customer.began is None:
            wire.customer.began = quarter.moment
        if wire.customer.habit == "pays twice":
            await quarter.until_done(lambda: quarter.desk.pay(wire.number, wire.reference))
            # The bank sends this one back.
            with pytest.raises(errors.AlreadyExists):
                await quarter.desk.pay(wire.number, "another wire")

    async def _refund(self, quarter: Quarter, wire: Wire) -> None:
        with suppress(errors.AlreadyExists):
            await quarter.until_done(lambda: quarter.desk.void(wire.number, "sorry", refund=True))

    async def restored(self, quarter: Quarter, since: datetime) -> None:
        for wire in self.wires:
            if wire.at >= since:
                with suppress(errors.NotFound):
                    await self._pay(quarter, wire)
            if wire.used is not None:
                await self._refund(quarter, wire)

    async def account(self, quarter: Quarter, customer: Customer) -> Account:
        mine = [wire for wire in self.wires if wire.customer is customer]
        credits_ = [wire for wire in mine if wire.purpose is InvoicePurpose.TOP_UP and wire.used is None]
        fees, last = self._fees(customer), customer.period_of(quarter.moment)
        tokens = dict.fromkeys(range(last + 1), INCLUDED)
        if customer.habit == "never pays again":
            tokens = {0: INCLUDED}
        if customer.habit == "pays late" and len(fees) <= last:
            # The plan has ended, or does soon, and comes back with the payment.
            tokens[last] = customer.used[last]
        refunded = [period for period, wire in enumerate(fees) if wire.used is not None]
        if refunded:
            tokens = dict.fromkeys(range(refunded[0]), INCLUDED) | {
                # A restore may have lost some of it.
                period: min(fees[period].used or 0, customer.used[period])
                for period in refunded
            }
        due = {"never pays again": 2, "changes its mind": last + 2}.get(customer.habit, refunded[0] + 1 if refunded else last + 1)
        paid = {period: amount for period, amount in tokens.items() if amount}
        return Account(customer.name, kept=len(credits_) * TOP_UP_MINOR, paid_tokens=paid, due_fees=due)

    def _fees(self, customer: Customer) -> list[Wire]:
        return [wire for wire in self.wires if wire.customer is customer and wire.purpose is InvoicePurpose.PLAN]


# --- by card ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Card:
    """What a customer has at a provider."""

    checkout: str = ""
    subscription: str = ""
    #: The payment of each period, made or not.
    payments: list[str] = field(default_factory=list)
    failed: int = 0
    is_lapsed: bool = False
    #: Used tokens when a fee was taken back, by period.
    used: dict[int, int] = field(default_factory=dict)


class ByCard(ABC):
    """Webhooks come late, twice, in any order or never, and some are about what is none of the mesh's business."""

    name: ClassVar[str]
    habits: ClassVar[tuple[str, ...]] = ("spends", "buys", "gets its money back", "fails once", "lapses", "gets its fee back", "cheats")

    def __init__(self, clock: VirtualTime) -> None:
        self.clock = clock
        self.cards: defaultdict[Customer, Card] = defaultdict(Card)
        self.bought: list[tuple[Customer, str]] = []
        self.forged: set[str] = set()
        self.taken_back = 0
        #: Objects of which webhooks will tell, and when.
        self._queue: list[tuple[datetime, str]] = []
        #: When disputes are decided, and how.
        self._disputes: list[tuple[datetime, str, bool]] = []

    # --- the provider

    @property
    @abstractmethod
    def settings(self) -> ProviderSettings: ...

    @abstractmethod
    async def pay_plan(self, url: str) -> Card: ...

    @abstractmethod
    async def pay_credits(self, url: str) -> str:
        """Return the payment."""

    @abstractmethod
    async def renew(self, subscription: str, start: datetime, *, is_paid: bool) -> str:
        """Begin a period; return its payment."""

    @abstractmethod
    def pay_late(self, subscription: str, payment: str) -> None: ...

    @abstractmethod
    def cancel(self, subscription: str) -> None: ...

    @abstractmethod
    def refund(self, payment: str, amount_minor: int) -> str: ...

    @abstractmethod
    def dispute(self, payment: str) -> str: ...

    @abstractmethod
    def decide(self, dispute: str, *, is_won: bool) -> None: ...

    @abstractmethod
    def kept(self, payment: str) -> int:
        """Return what was paid, less refunds and disputes that are open or lost."""

    @abstractmethod
    def forge(self, quarter: Quarter, payment: str | None) -> str:
        """Make an object that gives nobody anything, or change what a payment paid."""

    @abstractmethod
    def signed(self, object_id: str, age: int) -> tuple[bytes, str]: ...

    @abstractmethod
    def break_next(self, fault: str) -> None: ...

    @abstractmethod
    def billed(self, card: Card) -> int:
        """Return what was billed beyond the plan."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[PaymentProvider | None]:
        async with payment_provider.open_provider(self.settings) as provider:
            yield provider

    # --- customers

    async def act(self, quarter: Quarter, customer: Customer) -> None:
        rng, now = quarter.rng, quarter.moment
        if customer not in self.cards:
            order = await quarter.until_done(lambda: quarter.desk.order_plan(customer.owner, "pro"))
            self.cards[customer] = card = await self.pay_plan(order.url)
            customer.began = now.replace(microsecond=0)
            self._tell(quarter, card.checkout, card.subscription)
        card = self.cards[customer]
        if customer.habit in {"buys", "gets its money back", "cheats"} and rng.random() < 0.06:
            await self._buy(quarter, customer)
        if customer.habit == "gets its money back" and rng.random() < 0.06:
            await self._take_back(quarter, [payment for who, payment in self.bought if who is customer])
        assert customer.began is not None
        period = customer.period_of(now)
        age = now - (customer.began + relativedelta(months=period))
        if (
            customer.habit == "gets its fee back"
            and timedelta(days=4) < age < timedelta(days=12)
            and period < 3
            and period not in card.used
        ):
            self.taken_back += 1
            card.used[period] = customer.used[period]
            customer.rests_until = now + timedelta(days=9)
            match period:
                case 0:
                    self._tell(quarter, self.refund(card.payments[0], FEE_MINOR // 2))
                case 1:
                    self._tell(quarter, self.refund(card.payments[1], FEE_MINOR))
                case _:
                    self._open_dispute(quarter, card.payments[2])

    async def buy_now(self, quarter: Quarter, customer: Customer) -> None:
        await self._buy(quarter, customer)
        payment = self.bought[-1][1]
        await self._deliver_signed(quarter, payment)

    async def _buy(self, quarter: Quarter, customer: Customer) -> None:
        wanted = OrderTopUp("25.00", RequestId(UUID(int=quarter.rng.getrandbits(128), version=4)))
        order = await quarter.until_done(lambda: quarter.desk.order_top_up(customer.owner, wanted))
        payment = await self.pay_credits(order.url)
        if customer.habit == "cheats" and quarter.rng.random() < 0.7:
            self.forged.add(self.forge(quarter, payment))
        else:
            self.bought.append((customer, payment))
        self._tell(quarter, payment)

    async def _take_back(self, quarter: Quarter, payments: list[str]) -> None:
        paid = [payment for payment in payments if self.kept(payment) == TOP_UP_MINOR]
        if not paid:
            return
        self.taken_back += 1
        payment = quarter.rng.choice(paid)
        if quarter.rng.random() < 0.5:
            self._tell(quarter, self.refund(payment, quarter.rng.choice([1, 1000, TOP_UP_MINOR])))
        else:
            self._open_dispute(quarter, payment)

    def _open_dispute(self, quarter: Quarter, payment: str) -> None:
        dispute = self.dispute(payment)
        self._tell(quarter, dispute)
        self._disputes.append((quarter.moment + timedelta(days=3), dispute, quarter.rng.random() < 0.5))

    # --- the outside

    def _tell(self, quarter: Quarter, *objects: str) -> None:
        """Let webhooks tell of objects: now, an hour or a day late, some twice, and some never."""
        for object_id in objects:
            for _ in range(quarter.rng.choice([0, 1, 1, 2])):
                self._queue.append((quarter.moment + timedelta(hours=quarter.rng.choice([0, 1, 24])), object_id))

    async def tell(self, quarter: Quarter) -> None:
        rng, now = quarter.rng, quarter.moment
        for customer, card in self.cards.items():
            await self._renew(quarter, customer, card)
        for due, dispute, is_won in [one for one in self._disputes if one[0] <= now]:
            self._disputes.remove((due, dispute, is_won))
            self.decide(dispute, is_won=is_won)
            self._tell(quarter, dispute)
        if self.bought and rng.random() < 0.1:
            self._tell(quarter, self.forge(quarter, None))
        due = [one for one in self._queue if one[0] <= now]
        self._queue = [one for one in self._queue if one[0] > now]
        for _, object_id in rng.sample(due, len(due)):
            await self._deliver_signed(quarter, object_id)
        if rng.random() < 0.2:
            self.break_next(rng.choice(["busy", "down"]))
        orders = quarter.desk.provider
        assert orders is not None
        await quarter.killer.mortal(orders.find_lost())

    async def _deliver_signed(self, quarter: Quarter, object_id: str) -> None:
        signed = self.signed(object_id, int(self.clock.shift.total_seconds()))
        await quarter.until_done(lambda: self._deliver(quarter, signed))

    async def _deliver(self, quarter: Quarter, signed: tuple[bytes, str]) -> None:
        orders = quarter.desk.provider
        assert isinstance(orders, ProviderOrders)
        await orders.receive(orders.provider.verify(*signed))

    async def _renew(self, quarter: Quarter, customer: Customer, card: Card) -> None:
        assert customer.began is not None
        period, last = customer.period_of(quarter.moment), len(card.payments) - 1
        if card.is_lapsed:
            return
        if period > last and customer.habit == "cancels":
            card.is_lapsed = True
            self.cancel(card.subscription)
            self._tell(quarter, card.subscription)
        elif period > last:
            fails = {"fails once": period == 1, "lapses": period > 0}.get(customer.habit, False)
            start = customer.began + relativedelta(months=period)
            card.payments.append(await self.renew(card.subscription, start, is_paid=not fails))
            card.failed += fails
            customer.rests_until = quarter.moment + timedelta(hours=30)
            self._tell(quarter, card.subscription)
        if period > last:
            return
        is_open = self.kept(card.payments[last]) == 0 and last not in card.used
        if is_open and quarter.moment > customer.began + relativedelta(months=last, days=4):
            if customer.habit == "lapses":
                card.is_lapsed = True
                self.cancel(card.subscription)
            else:
                self.pay_late(card.subscription, card.payments[last])
            customer.rests_until = quarter.moment + timedelta(hours=30)
            self._tell(quarter, card.subscription)

    async def restored(self, quarter: Quarter, since: datetime) -> None:
        """Nothing is left to an administrator. What was used since the copy is lost, also of what was used before money went back."""
        for customer, card in self.cards.items():
            # Until the gateway has asked, an account has the tokens of the copy, perhaps of a period that has ended.
            customer.rests_until = max(customer.rests_until, quarter.moment + timedelta(hours=30))
            card.used = {period: min(used, customer.used[period]) for period, used in card.used.items()}

    async def account(self, quarter: Quarter, customer: Customer) -> Account:
        card = self.cards[customer]
        kept = sum(self.kept(payment) for who, payment in self.bought if who is customer)
        tokens = {period: INCLUDED * self.kept(payment) // FEE_MINOR for period, payment in enumerate(card.payments)}
        if quarter.moment < customer.rests_until:
            tokens[len(card.payments) - 1] = customer.used[len(card.payments) - 1]
        # What was used before the money went back stays used.
        tokens |= {period: max(used, tokens[period]) for period, used in card.used.items()}
        return Account(
            customer.name, kept=kept, paid_tokens={period: amount for period, amount in tokens.items() if amount},
            billed=self.billed(card), failed=card.failed,
        )  # fmt: skip


class VirtualStripe(StripeServer):
    """Its subscriptions begin in virtual time."""

    async def make(self, path: str, form: dict[str, Any]) -> str:
        made = await super().make(path, form)
        if path == "/v1/subscriptions":
            self.changed[made] = {"current_period_start": int(stripe_server.time.time())}
        return made


class Stripe(ByCard):
    name = "stripe"

    def __init__(self, fake: StripeServer, clock: VirtualTime) -> None:
        super().__init__(clock)
        self.fake = fake

    @property
    def settings(self) -> ProviderSettings:
        return ProviderSettings(
            name="stripe", secret=stripe_server.KEY, webhook_secret=stripe_server.SECRET, api_url=self.fake.url,
            return_url="http://localhost:3000/billing", currency="EUR",
        )  # fmt: skip

    async def pay_plan(self, url: str) -> Card:
        session = url.rpartition("/")[2]
        return Card(session, await self.fake.pay(session), [self.fake.invoices[-1]["id"]])

    async def pay_credits(self, url: str) -> str:
        session = url.rpartition("/")[2]
        await self.fake.pay(session)
        return session

    async def renew(self, subscription: str, start: datetime, *, is_paid: bool) -> str:
        self.fake.changed[subscription]["status"] = "active" if is_paid else "past_due"
        return await self.fake.renew(subscription, state="paid" if is_paid else "open")

    def pay_late(self, subscription: str, payment: str) -> None:
        self.fake.pay_invoice(payment)
        self.fake.changed[subscription]["status"] = "active"

    def cancel(self, subscription: str) -> None:
        self.fake.changed[subscription]["status"] = "canceled"

    def refund(self, payment: str, amount_minor: int) -> str:
        return self.fake.refund(payment, amount_minor)

    def dispute(self, payment: str) -> str:
        return self.fake.dispute(payment, self.kept(payment))

    def decide(self, dispute: str, *, is_won: bool) -> None:
        self.fake.tell_of(dispute, status="won" if is_won else "lost")

    def kept(self, payment: str) -> int:
        return self.fake.kept(payment)

    def forge(self, quarter: Quarter, payment: str | None) -> str:
        rng = quarter.rng
        if payment is not None:
            self.fake.sessions[payment] |= rng.choice(
                [{"amount_total": 0}, {"amount_total": -2500}, {"currency": "jpy"}, {"amount_total": 1}]
            )
            return payment
        kind = rng.choice(["of nobody", "of another shop", "without a name"])
        if kind == "of nobody":
            return f"cs_test_of_nobody_{rng.getrandbits(32)}"
        ours = rng.choice([*self.fake.sessions.values()])
        name = f"cs_test_forged_{rng.getrandbits(32)}"
        metadata = ours["metadata"] | {"mesh": "https://other.example/billing"} if kind == "of another shop" else {}
        self.fake.sessions[name] = ours | {"id": name, "metadata": metadata, "payment_status": "paid", "payment_intent": f"pi_{name}"}
        self.forged.add(name)
        return name

    def signed(self, object_id: str, age: int) -> tuple[bytes, str]:
        return self.fake.signed(object_id, age=age)

    def break_next(self, fault: str) -> None:
        self.fake.faults.append(fault)

    def billed(self, card: Card) -> int:
        customer = self.fake.sessions[card.checkout]["customer"]
        events = [event["payload"] for event in self.fake.meter_events.values()]
        return sum(int(payload["tokens"]) for payload in events if payload["customer"] == customer)


class Paddle(ByCard):
    """An order that a restored database lacks waits for an administrator."""

    name = "paddle"
    habits = ("spends", "buys", "cancels", "gets its money back", "fails once", "lapses", "gets its fee back", "cheats")

    def __init__(self, fake: PaddleServer, clock: VirtualTime) -> None:
        super().__init__(clock)
        self.fake = fake

    @property
    def settings(self) -> ProviderSettings:
        return ProviderSettings(
            name="paddle", secret=paddle_server.KEY, webhook_secret=paddle_server.SECRET, api_url=self.fake.url,
            return_url="http://localhost:3000/billing", currency="EUR",
        )  # fmt: skip

    async def pay_plan(self, url: str) -> Card:
        number = url.rpartition("=")[2]
        subscription = self.fake.pay(number)
        self._begin(subscription, self.clock.datetimes.now(UTC).replace(microsecond=0), number)
        return Card(number, subscription, [number])

    async def pay_credits(self, url: str) -> str:
        return self.fake.pay(url.rpartition("=")[2])

    async def renew(self, subscription: str, start: datetime, *, is_paid: bool) -> str:
        self.fake.subscriptions[subscription]["status"] = "active" if is_paid else "past_due"
        renewal = self.fake.open_in_browser("pri_pro", self.fake.subscriptions[subscription]["custom_data"])
        status = "completed" if is_paid else "past_due"
        self.fake.transactions[renewal] |= {"origin": "subscription_recurring", "subscription_id": subscription, "status": status}
        self._begin(subscription, start, renewal)
        return renewal

    def _begin(self, subscription: str, start: datetime, payment: str) -> None:
        period = {"starts_at": start, "ends_at": start + relativedelta(months=1)}
        written = {name: f"{at:%Y-%m-%dT%H:%M:%S.%fZ}" for name, at in period.items()}
        self.fake.subscriptions[subscription]["current_billing_period"] = written
        self.fake.transactions[payment] |= {"billing_period": written, "billed_at": written["starts_at"]}

    def pay_late(self, subscription: str, payment: str) -> None:
        self.fake.transactions[payment]["status"] = "completed"
        self.fake.subscriptions[subscription]["status"] = "active"

    def cancel(self, subscription: str) -> None:
        self.fake.subscriptions[subscription]["status"] = "canceled"

    def refund(self, payment: str, amount_minor: int) -> str:
        return self.fake.adjust(payment, "refund", amount_minor)

    def dispute(self, payment: str) -> str:
        return self.fake.adjust(payment, "chargeback", self.kept(payment))

    def decide(self, dispute: str, *, is_won: bool) -> None:
        (taken,) = (one for one in self.fake.adjustments if one["id"] == dispute)
        if is_won:
            self.fake.adjust(taken["transaction_id"], "chargeback_reverse", int(taken["totals"]["total"]))

    def kept(self, payment: str) -> int:
        found = self.fake.transactions[payment]
        prices = [int(item["price"]["unit_price"]["amount"]) for item in found["items"]]
        signs = {"refund": -1, "chargeback": -1, "chargeback_reverse": 1}
        moved = [signs[one["action"]] * int(one["totals"]["total"]) for one in self.fake.adjustments if one["transaction_id"] == payment]
        return sum(prices) + sum(moved) if found["status"] == "completed" else 0

    def forge(self, quarter: Quarter, payment: str | None) -> str:
        rng = quarter.rng
        if payment is not None and rng.random() < 0.5:
            self.fake.put_in(payment, "pri_mug")
        elif payment is not None:
            self.fake.transactions[payment]["currency_code"] = "JPY"
        else:
            claimed = rng.choice([*self.fake.transactions.values()])["custom_data"]
            payment = self.fake.open_in_browser(rng.choice(["pri_pro", "pri_mug"]), claimed)
            self.forged.add(self.fake.pay(payment))
        self.forged.add(payment)
        return rng.choice([payment, self.fake.transactions[payment]["subscription_id"] or payment])

    async def tell(self, quarter: Quarter) -> None:
        await super().tell(quarter)
        owners = {payment: customer for customer, payment in self.bought}
        owners |= {found: customer for customer, card in self.cards.items() for found in (card.checkout, card.subscription)}
        for one in await quarter.shop.deferred.list(None, 100):
            if one.id in owners and one.id not in self.forged:
                orders = quarter.desk.provider
                assert orders is not None
                with suppress(errors.AlreadyExists):
                    await orders.adopt(one.id, owners[one.id].owner)

    def signed(self, object_id: str, age: int) -> tuple[bytes, str]:
        return self.fake.signed(object_id, age=age)

    def break_next(self, fault: str) -> None:
        self.fake.faults.append("down")

    def billed(self, card: Card) -> int:
        charges = [one for one in self.fake.transactions.values() if one["origin"] == "subscription_charge"]
        mine = [one for one in charges if one["subscription_id"] == card.subscription]
        return sum(int(item["price"]["unit_price"]["amount"]) for one in mine for item in one["items"])
