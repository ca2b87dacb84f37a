"""Sells plans and prepaid credits through a payment provider, and follows what becomes of them there.

A payment, and a subscription's state, is only what the provider says when asked: a webhook and a lost webhook lead to the same. Whose they
are is what our own orders say. Every step is one transaction, and safe to repeat; the provider is read before it.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from uuid import UUID, uuid4, uuid5

import msgspec

from services.gateway.facts.config_snapshot import ConfigSource
from services.gateway.facts.plan_offers import PlanOffer
from services.gateway.facts.tiers import TierPlan
from services.gateway.payments.billing_store import BillingRows, BillingStore, Followed, Subscription
from services.gateway.payments.payment_provider import (
    CheckoutState,
    OwedUsage,
    PaymentProvider,
    ProviderOrder,
    ProviderSubscription,
    WebhookEvent,
    WrittenOrder,
)
from shared import currency, errors, plan_names
from shared.api.billing import Order
from shared.api.notices import PaymentLate
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.telemetry import logs
from shared.types import MicroCredits, RequestId, TenantId, Tier

#: Who has never paid at a provider.
MANUAL = "manual"
#: Two gateways that read one account take turns at once; who is too late this often has more than two beside.
_MAX_READS = 5
#: How far back events are asked for whose webhooks may be lost: when a gateway starts, and after that. Known ones are kept for longer.
_LOST, _LOST_SINCE = timedelta(days=14), timedelta(hours=1)
#: For ids of transfers: the same payment is the same transfer.
_PAYMENTS = UUID("5a0f8f0e-6f0c-4a57-8f0f-2b8a1f6d1c3e")

_log = logs.get(part="payments")


class Mismatch(errors.CallerError):
    """What was paid is not what was ordered."""


class ProviderOrders:
    def __init__(
        self, name: str, provider: PaymentProvider, store: BillingStore, source: ConfigSource, sold_in: str, *, items: BackgroundItems,
        on_paid: Callable[[int], None] = lambda _minor: None, on_reversed: Callable[[int], None] = lambda _minor: None,
    ) -> None:  # fmt: skip
        """``on_paid``: called with the amount of each order that is paid, without tax; ``on_reversed``: of what is refunded or disputed."""
        self.name = name
        self.provider = provider
        self._store = store
        self._source = source
        self._items = items
        self._currency = sold_in
        self._on_paid = on_paid
        self._on_reversed = on_reversed
        #: Until when it has kept lost events.
        self._listed_at: datetime | None = None

    # --- orders -------------------------------------------------------------------------------------------------------

    async def order_plan(self, owner: TenantId, offer: PlanOffer, email: str) -> Order:
        """Return the page on which to pay. Raises BadRequest, AlreadyExists while the checkout of another plan is open, Unavailable, and
        what ``count_order`` raises."""
        if self.provider.price_of(offer.terms) is None:
            raise errors.BadRequest(f"the plan {offer.name} has no price at {self.name}", hint="an administrator can add it to the plan")
        async with self._store.transaction() as rows:
            held = await rows.lock(owner, MANUAL)
            order = await rows.find_plan_order(owner, self.name)
            if held.subscription is None and order is None:
                await rows.count_order(owner)
                order = await rows.add_order(
                    uuid4(), owner, self.name, offer.versioned, currency.minor(offer.fee_micro or MicroCredits(0), self._currency)
                )
        if held.subscription is not None or order is None:
            return Order(done=False, url=await self.open_portal(owner))
        if order.plan != offer.versioned:
            raise errors.AlreadyExists(
                f"a checkout for the plan {plan_names.name_of(order.plan or '')} is open", hint="pay it, or wait an hour and choose again"
            )
        return await self._check_out(order, offer.terms, self.customer_of(held), email)

    async def order_credits(self, owner: TenantId, order_id: UUID, amount_minor: int, email: str) -> Order:
        """Raises IdempotencyConflict, AlreadyExists for an order that was not paid in time, Unavailable, and what ``count_order``
        raises."""
        held = await self._store.find_subscription(owner)
        async with self._store.transaction() as rows:
            order = await rows.lock_order(order_id)
            if order is None:
                await rows.lock(owner, MANUAL)
                await rows.count_order(owner)
                order = await rows.add_order(order_id, owner, self.name, None, amount_minor) or await rows.lock_order(order_id)
        assert order is not None  # they are never deleted
        if order.amount_minor != amount_minor:
            raise errors.IdempotencyConflict("this order id was used with another amount", hint="use a new id for a new order")
        if order.payment is not None:
            return Order(done=True)
        if order.ended_at is not None:
            raise errors.AlreadyExists("this order was not paid in time", hint="use a new id for a new order")
        return await self._check_out(order, None, self.customer_of(held), email)

    async def _check_out(self, order: ProviderOrder, plan: TierPlan | None, customer: str | None, email: str) -> Order:
        if order.url is not None:
            return Order(done=False, url=order.url)
        if customer is not None and not await self._pays_alone(order.owner, customer):
            customer = None
        object_id, url = await self.provider.check_out(order, plan, customer, email)
        async with self._store.transaction() as rows:
            await rows.name_order(order.id, object_id, url)
        _log.info("checkout opened", owner=order.owner, plan=order.plan, amount=order.amount_minor)
        return Order(done=False, url=url)

    async def open_portal(self, owner: TenantId) -> str:
        """Raises NotFound for somebody who has never paid here, NotAllowed if the page would show payments of others, and Unavailable."""
        customer = self.customer_of(await self._store.find_subscription(owner))
        if customer is None:
            raise errors.NotFound(f"nothing was paid through {self.name} yet", hint="choose a plan first: aicli billing plans")
        if not await self._pays_alone(owner, customer):
            _log.warning("a portal stays closed: not all of its customer's payments are of this account", owner=owner, customer=customer)
            raise errors.NotAllowed(
                f"{self.name}'s page would also show payments that are not of this account, but have the same email address",
                hint=f"use the links in the mails that {self.name} sends to that address: receipts lead to invoices, cards and canceling",
            )
        return await self.provider.open_portal(customer)

    async def _pays_alone(self, owner: TenantId, customer: str) -> bool:
        """Return whether all that a customer has paid are orders of this account. What a payment claims to be is no proof."""
        paid = await self.provider.list_payments(customer)
        return paid is not None and (not paid or await self._store.are_orders_of(owner, self.name, paid))

    def customer_of(self, held: Subscription | None) -> str | None:
        """Return the provider's id of a customer; None for somebody who has never paid here."""
        return held.customer if held is not None and held.provider == self.name else None

    async def bill(self, owed: OwedUsage, held: Subscription, amount_minor: int) -> bool:
        """Return whether the provider bills what an owner used beyond the plan; if not, an invoice has to. Raises Unavailable."""
        customer = self.customer_of(held)
        if customer is None or held.subscription is None or held.plan is None:
            return False
        plan = self._source.config.limits.plan_of(held.plan)
        return await self.provider.bill(owed, plan, customer, held.subscription, amount_minor)

    async def cancel(self, held: Subscription) -> None:
        """End a subscription with its period. Raises NotFound, and Unavailable."""
        if self.customer_of(held) is not None and held.subscription is not None:
            await self.provider.cancel(held.subscription)

    async def adopt(self, object_id: str, owner: TenantId | None) -> CheckoutState:
        """Return what the provider says of a payment, or of that with which a subscription began; with an owner, give them what was paid.
        Raises NotFound, BadRequest if nothing was paid, AlreadyExists, Unavailable, and what ``_follow`` raises."""
        bought = await self.provider.find_bought(object_id)
        found = None if bought is None else await self._begun_by(await self.provider.read(bought))
        if found is None:
            raise errors.NotFound(f"{self.name} has no payment {object_id}", hint="see `aicli admin deferred list`")
        if owner is None:
            return found
        plan = None
        if found.subscription is not None:
            begun = await self.provider.read(found.subscription)
            if not isinstance(begun, ProviderSubscription) or begun.has_ended:
                raise errors.BadRequest(f"the subscription {found.subscription} has ended", hint=f"refund it at {self.name}")
            plan = self._plan_of(begun, begun.prices)
        elif found.payment is None or found.amount_minor <= 0 or found.currency != self._currency:
            raise errors.BadRequest(f"{found.id} did not pay any {self._currency}", hint=f"refund what was paid at {self.name}")
        order = WrittenOrder(id=uuid5(_PAYMENTS, f"order|{self.name}|{found.id}"), owner=owner, plan=plan, amount_minor=found.amount_minor)
        async with self._store.transaction() as rows:
            if not await rows.restore_order(self.name, order, found.id, is_adopted=True):
                raise errors.AlreadyExists(f"the payment {found.id} was given, or is an order of another account")
        taken_at = await self._store.now()
        await self._follow(found.id, None)
        for told in {found.id, object_id, found.subscription, found.payment} - {None}:
            assert told is not None
            await self._items.attempt(ItemKind.PAYMENT, told, self._store.end_events(self.name, told, taken_at))
        return found

    # --- what the provider tells --------------------------------------------------------------------------------------

    async def receive(self, event: WebhookEvent) -> bool:
        """Keep an event. Return False if it was known, or is about something else. Raises Unavailable."""
        return event.object_id is not None and await self._store.add_event(self.name, event)

    async def find_lost(self) -> None:
        """Keep events of payments, refunds and disputes whose webhooks were lost, also of orders that a restored database lacks. Raises
        Unavailable."""
        now = await self._store.now()
        for event in await self.provider.list_events(now - _LOST if self._listed_at is None else self._listed_at - _LOST_SINCE):
            await self.receive(event)
        self._listed_at = now

    async def handle_one(self) -> bool | None:
        """Follow the object of an event, or one of which the provider hasn't told for long. Return whether that was done; None if there is
        nothing to do."""
        event = await self._store.take_event(self.name)
        if event is not None:
            object_id, taken_at = event
        elif (due := await self._items.take_due(ItemKind.PAYMENT)) is not None:
            object_id, taken_at = due, await self._store.now()
        elif (unheard := await self._store.take_unheard(self.name)) is not None:
            object_id, taken_at = unheard, None
        else:
            return None
        try:
            return await self._items.attempt(ItemKind.PAYMENT, object_id, self._follow(object_id, taken_at))
        except errors.AimeshError as error:
            # The event is due again later.
            _log.warning("event not handled", object=object_id, reason=error.message)
            return False

    async def _follow(self, object_id: str, taken_at: datetime | None) -> None:
        """Raises Unavailable, also if others change the account all the time, and NotFound and Mismatch, for an administrator."""
        bought = await self.provider.find_bought(object_id)
        for _ in range(_MAX_READS):
            if bought is None or await self._follow_once(bought):
                if taken_at is not None:
                    await self._store.end_events(self.name, object_id, taken_at)
                return
        raise errors.Unavailable(f"what {object_id} belongs to changes all the time", hint="it is tried again later")

    async def _follow_once(self, object_id: str) -> bool:
        """Return False if the account has changed since before the read: what was read may be older than what is written."""
        known = await self._store.find_followed(self.name, object_id)
        found = await self.provider.read(object_id)
        checkout = found if isinstance(found, CheckoutState) else None
        if known is None:
            # The event of a subscription's checkout is late or lost, or the database was restored.
            checkout = await self._begun_by(found)
        if checkout is not None:
            known = known or await self._identify(checkout)
            found = None if known is None or checkout.subscription is None else await self.provider.read(checkout.subscription)
        if known is None:
            return True
        async with self._store.transaction() as rows:
            order = None if known.order_id is None else await rows.lock_order(known.order_id)
            held = await rows.lock(known.owner, MANUAL)
            if held.version != known.version:
                return False
            # The other payments of a subscription lead to the order with which it began, too.
            if checkout is not None and order is not None and order.object_id == checkout.id:
                held = await self._end_checkout(rows, order, held, checkout)
                await self._reverse_credits(rows, order, held, checkout)
            if isinstance(found, ProviderSubscription) and (order is None or order.plan is not None):
                await self._follow_subscription(rows, held, found, None if order is None else order.plan)
        return True

    async def _begun_by(self, found: CheckoutState | ProviderSubscription | None) -> CheckoutState | None:
        """Return the checkout of a subscription, or the one that is given."""
        if isinstance(found, ProviderSubscription):
            checkout_id = await self.provider.find_checkout(found.id)
            found = None if checkout_id is None else await self.provider.read(checkout_id)
        return found if isinstance(found, CheckoutState) else None

    async def _identify(self, found: CheckoutState) -> Followed | None:
        """Return whose a checkout is that the database doesn't know, or doesn't know by this id; None if it isn't of this mesh, or nobody
        has paid. Raises NotFound if only an administrator can say it."""
        for known_by in (found.id, found.subscription):
            known = None if known_by is None else await self._store.find_followed(self.name, known_by)
            # Of a subscription from the recovery log, the order is lost, unless the provider has it.
            if known is not None and (known.order_id is not None or found.order is None):
                return known
        is_of_a_mesh = found.goods_of is not None or "order" in found.claimed
        if not is_of_a_mesh or (found.payment is None and found.subscription is None):
            return None
        if found.order is None:
            _log.error("a payment waits for an administrator: its order is not known", payment=found.id)
            raise errors.NotFound(f"no order has the payment {found.id}", hint=f"see `aicli admin billing adopt {found.id}`")
        async with self._store.transaction() as rows:
            await rows.restore_order(self.name, found.order, found.id, is_adopted=False)
        _log.warning("an order was restored from the provider", order=found.order.id, owner=found.order.owner, payment=found.id)
        return await self._store.find_followed(self.name, found.id)

    async def _end_checkout(self, rows: BillingRows, order: ProviderOrder, held: Subscription, found: CheckoutState) -> Subscription:
        """Return what is held then."""
        if found.subscription is not None and order.plan is not None:
            await rows.name_subscription(order.id, found.subscription)
        is_bought = found.payment is not None and order.plan is None
        if order.ended_at is not None or not (found.is_over or is_bought):
            return held
        if is_bought:
            self._ensure_matches(order, found)
        if found.customer is not None and self.customer_of(held) is None:
            held = msgspec.structs.replace(held, provider=self.name, customer=found.customer)
            await rows.write(held)
        if is_bought:
            credit = currency.micro(order.amount_minor, self._currency)
            await rows.give_credit(self._transfer(found.payment), order.owner, credit, f"{self.name} {found.payment}")
            _log.info("credits paid", owner=order.owner, amount=order.amount_minor, payment=found.payment)
        await rows.end_order(order.id, found.payment)
        if found.payment is not None:
            self._on_paid(order.amount_minor)
        return held

    async def _reverse_credits(self, rows: BillingRows, order: ProviderOrder, held: Subscription, found: CheckoutState) -> None:
        """Take back the credits of what was refunded or disputed, and give those again that were taken for what was returned since."""
        given = await rows.find_moved(self._transfer(found.payment), order.owner) if found.reversals else None
        if given is None:
            return
        known = {one.id: await rows.find_moved(self._transfer(one.id), order.owner) for one in found.reversals}
        left = given + sum(known[one.id] or 0 for one in found.reversals if not one.is_returned)
        for one in found.reversals:
            note, taken = f"{self.name} {one.id}", known[one.id]
            if one.is_returned and taken is not None:
                await rows.give_credit(self._transfer(f"{one.id}|returned"), order.owner, MicroCredits(-taken), f"{note} returned")
            elif not one.is_returned and taken is None and (part := min(left, given * one.amount_minor // found.paid_minor)):
                await rows.give_credit(self._transfer(one.id), order.owner, MicroCredits(-part), note)
                _log.info("credits taken back", owner=order.owner, micro=part, payment=found.payment, reversal=one.id)
                left -= part
        reversed_minor = order.amount_minor - order.amount_minor * left // given
        if more := reversed_minor - order.reversed_minor:
            await rows.reverse_order(order.id, reversed_minor)
            # An older state of the payment, which another gateway may have read, is read again.
            await rows.write(held)
            (self._on_reversed if more > 0 else self._on_paid)(abs(more))

    def _transfer(self, cause: str | None) -> RequestId:
        return RequestId(uuid5(_PAYMENTS, f"{self.name}|{cause}"))

    def _ensure_matches(self, order: ProviderOrder, found: CheckoutState) -> None:
        """Raises Mismatch unless the credits of the order, and nothing else, were paid."""
        is_of_order = order.is_adopted or (found.goods_of == str(order.id) and found.subscription is None)
        if is_of_order and found.currency == self._currency and found.amount_minor >= order.amount_minor > 0:
            return
        paid = {"paid": found.amount_minor, "currency": found.currency, "goods_of": found.goods_of}
        _log.error("a payment waits for an administrator: it is not what was ordered", order=order.id, amount=order.amount_minor, **paid)
        raise Mismatch(f"{found.id} is not what was ordered", hint=f"see `aicli admin billing adopt {found.id}`")

    async def _follow_subscription(self, rows: BillingRows, held: Subscription, found: ProviderSubscription, ordered: str | None) -> None:
        """``ordered``: the plan with which it began."""
        owner, is_held = held.owner, held.subscription == found.id
        if held.subscription is not None and not is_held:
            if not found.has_ended:
                _log.error("an account has two subscriptions: cancel one", owner=owner, one=held.subscription, other=found.id)
            return
        paid = None if found.paid is None else self._plan_of(found, found.paid.prices, held.plan, ordered)
        tokens = 0 if found.paid is None or paid is None else found.paid.share_of(self._included(paid))
        free = self._source.config.offers[Tier.FREE].versioned
        if found.has_ended:
            # It may be refunded later, too; what was read of it before is then read again.
            await rows.pay_period(owner, found.period_start, tokens, is_over=True)
            if not is_held:
                await rows.write(held)
                return
            plan, subscription = free, None
            _log.info("plan ended", owner=owner, plan=held.plan, subscription=found.id)
        else:
            # A change that is not paid yet changes nothing.
            plan, subscription = paid or (held.plan if is_held else None) or self._plan_of(found, found.prices, ordered), found.id
            await rows.open_period(owner, 0)
            await rows.follow_anchor(owner, found.period_start)
            # Until a new period is charged, which may take an hour, the tokens are left that the one before has paid.
            if found.paid is not None or found.status == "past_due" or not is_held:
                await rows.pay_period(owner, found.period_start, tokens, is_over=False)
                plan = free if tokens == 0 and self._included(plan) is None else plan
        if found.status == "past_due" and not held.is_past_due:
            await rows.notify(owner, f"{found.id}/{found.period_start.isoformat()}", PaymentLate())
        await rows.write(
            msgspec.structs.replace(
                held,
                plan=plan,
                provider=self.name,
                customer=found.customer,
                subscription=subscription,
                is_past_due=found.status == "past_due",
                # Auth is asked each time, which is how an erased account is noticed.
                is_applied=False,
            )
        )

    def _plan_of(self, found: ProviderSubscription, prices: Iterable[str], *preferred: str | None) -> str:
        """Return the plan with the first of these prices that a plan has: a preferred version, else the newest. Customers change plans at
        the provider, so the prices decide."""
        config = self._source.config
        for price in prices:
            for name in (*preferred, *(offer.versioned for offer in config.offers.values())):
                if name and self.provider.price_of(config.limits.plan_of(name)) == price:
                    return name
        raise errors.NotFound(f"no plan has a price of the subscription {found.id}: {', '.join(sorted(prices))}")

    def _included(self, plan: str) -> int | None:
        return self._source.config.limits.plan_of(plan).included_tokens
