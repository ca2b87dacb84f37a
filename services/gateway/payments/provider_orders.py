"""Sells plans and prepaid credits through a payment provider, and follows what becomes of them there.

A payment, and a subscription's state, is only what the provider says when asked: a webhook and a lost webhook lead to the same. Every step
is one transaction, and safe to repeat.
"""

from datetime import datetime
from uuid import UUID, uuid4, uuid5

import msgspec

from services.gateway.facts import tiers
from services.gateway.facts.config_snapshot import ConfigSource
from services.gateway.facts.plan_offers import PlanOffer
from services.gateway.facts.tiers import TierPlan
from services.gateway.payments.billing_store import BillingRows, BillingStore, Subscription
from services.gateway.payments.payment_provider import (
    CheckoutState,
    OwedUsage,
    PaymentProvider,
    ProviderOrder,
    ProviderSubscription,
    WebhookEvent,
)
from shared import currency, errors
from shared.api.billing import Order
from shared.api.notices import PaymentLate
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.telemetry import logs
from shared.types import RequestId, TenantId, Tier

#: Who has never paid at a provider.
MANUAL = "manual"
#: For ids of transfers: the same payment is the same transfer.
_PAYMENTS = UUID("5a0f8f0e-6f0c-4a57-8f0f-2b8a1f6d1c3e")

_log = logs.get(part="payments")


class ProviderOrders:
    def __init__(
        self, name: str, provider: PaymentProvider, store: BillingStore, source: ConfigSource, sold_in: str, *, items: BackgroundItems
    ) -> None:
        self.name = name
        self.provider = provider
        self._store = store
        self._source = source
        self._items = items
        self._currency = sold_in

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
                order = await rows.add_order(uuid4(), owner, self.name, offer.versioned, 0)
        if held.subscription is not None or order is None:
            return Order(done=False, url=await self.open_portal(owner))
        if order.plan != offer.versioned:
            raise errors.AlreadyExists(
                f"a checkout for the plan {tiers.name_of(order.plan or '')} is open", hint="pay it, or wait an hour and choose again"
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
        object_id, url = await self.provider.check_out(order, plan, customer, email)
        async with self._store.transaction() as rows:
            await rows.name_order(order.id, object_id, url)
        _log.info("checkout opened", owner=order.owner, plan=order.plan, amount=order.amount_minor)
        return Order(done=False, url=url)

    async def open_portal(self, owner: TenantId) -> str:
        """Raises NotFound for somebody who has never paid here, and Unavailable."""
        customer = self.customer_of(await self._store.find_subscription(owner))
        if customer is None:
            raise errors.NotFound(f"nothing was paid through {self.name} yet", hint="choose a plan first: aicli billing plans")
        return await self.provider.open_portal(customer)

    def customer_of(self, held: Subscription | None) -> str | None:
        """Return the provider's id of a customer; None for somebody who has never paid here."""
        return held.customer if held is not None and held.provider == self.name else None

    async def bill(self, owed: OwedUsage, held: Subscription, amount_minor: int) -> bool:
        """Return whether the provider bills what an owner used beyond the plan; if not, an invoice has to. Raises Unavailable."""
        customer = self.customer_of(held)
        if customer is None or held.subscription is None or held.plan is None:
            return False
        plan = tiers.plan_of(self._source.config.limits.plans, held.plan)
        return await self.provider.bill(owed, plan, customer, held.subscription, amount_minor)

    async def cancel(self, held: Subscription) -> None:
        """End a subscription with its period. Raises NotFound, and Unavailable."""
        if self.customer_of(held) is not None and held.subscription is not None:
            await self.provider.cancel(held.subscription)

    # --- what the provider tells --------------------------------------------------------------------------------------

    async def receive(self, event: WebhookEvent) -> bool:
        """Keep an event. Return False if it was known, or is about something else. Raises Unavailable."""
        return event.object_id is not None and await self._store.add_event(self.name, event)

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
        async with self._store.transaction() as rows:
            await rows.lock_object(self.name, object_id)
            found = await self.provider.read(object_id)
            if isinstance(found, CheckoutState):
                await self._end_checkout(rows, found)
                if found.subscription is not None:
                    # Always in this order, so that two of these locks never wait for each other.
                    await rows.lock_object(self.name, found.subscription)
                    found = await self.provider.read(found.subscription)
            if isinstance(found, ProviderSubscription):
                await self._follow_subscription(rows, found)
            if taken_at is not None:
                await rows.end_events(self.name, object_id, taken_at)

    async def _end_checkout(self, rows: BillingRows, found: CheckoutState) -> None:
        order = await rows.lock_order(found.order_id)
        if order is None or order.ended_at is not None or not (found.is_over or (found.payment and order.plan is None)):
            return
        if found.customer is not None:
            held = await rows.lock(order.owner, MANUAL)
            if self.customer_of(held) is None:
                await rows.write(msgspec.structs.replace(held, provider=self.name, customer=found.customer))
        if found.payment is not None and order.plan is None:
            transfer = RequestId(uuid5(_PAYMENTS, f"{self.name}|{found.payment}"))
            credit = currency.micro(order.amount_minor, self._currency)
            await rows.give_credit(transfer, order.owner, credit, f"{self.name} {found.payment}")
            _log.info("credits paid", owner=order.owner, amount=order.amount_minor, payment=found.payment)
        await rows.end_order(order.id, found.payment)

    async def _follow_subscription(self, rows: BillingRows, found: ProviderSubscription) -> None:
        held = await rows.lock(found.owner, MANUAL)
        if held.subscription != found.id:
            if found.has_ended:
                return
            if held.subscription is not None:
                _log.error("an account has two subscriptions: cancel one", owner=found.owner, one=held.subscription, other=found.id)
                return
        if found.has_ended:
            plan, subscription = self._source.config.offers[Tier.FREE].versioned, None
            _log.info("plan ended", owner=found.owner, plan=held.plan, subscription=found.id)
        else:
            plan, subscription = self._plan_of(found, held.plan), found.id
            await self._follow_period(rows, found, plan)
        if found.status == "past_due" and not held.is_past_due:
            await rows.notify(found.owner, f"{found.id}/{await rows.now()}", PaymentLate())
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

    def _plan_of(self, found: ProviderSubscription, present: str | None) -> str:
        """Return the plan with a price of the subscription: of the present version, of the ordered one, else the newest."""
        config = self._source.config
        for name in (present, found.plan, *(offer.versioned for offer in config.offers.values())):
            if name and self.provider.price_of(tiers.plan_of(config.limits.plans, name)) in found.prices:
                return name
        raise errors.NotFound(f"no plan has a price of the subscription {found.id}: {', '.join(sorted(found.prices))}")

    async def _follow_period(self, rows: BillingRows, found: ProviderSubscription, plan: str) -> None:
        included = tiers.plan_of(self._source.config.limits.plans, plan).included_tokens
        await rows.open_period(found.owner, 0)
        await rows.follow_anchor(found.owner, found.period_start)
        await rows.open_period(found.owner, included)
