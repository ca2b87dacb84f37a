"""A payment provider in this process, for many events at once."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime
from typing import ClassVar

from services.gateway.facts.tiers import TierPlan
from services.gateway.payments import stripe_provider
from services.gateway.payments.payment_provider import (
    CheckoutState,
    OwedUsage,
    PaidPeriod,
    ProviderOrder,
    ProviderSubscription,
    WebhookEvent,
)
from tests.services.gateway.payments import stripe_server


class MemoryProvider:
    meters: ClassVar[None] = None
    signature_header: ClassVar[bytes] = b"signature"

    def __init__(self) -> None:
        self.objects: dict[str, CheckoutState | ProviderSubscription] = {}
        self.orders: dict[str, ProviderOrder] = {}
        self.reads = 0
        self._numbers = itertools.count(1)

    def price_of(self, plan: TierPlan) -> str | None:
        return plan.stripe_price

    def verify(self, body: bytes, signature: str) -> WebhookEvent:
        return stripe_provider.verify(body, signature, stripe_server.SECRET)

    async def check_out(self, order: ProviderOrder, plan: TierPlan | None, customer: str | None, email: str) -> tuple[str, str]:
        object_id = f"cs_{next(self._numbers)}"
        self.objects[object_id] = CheckoutState(
            id=object_id, is_over=False, payment=None, customer=customer, subscription=None, amount_minor=order.amount_minor,
            paid_minor=order.amount_minor, reversals=(), currency="EUR", goods_of=str(order.id), claimed={}, order=None,
        )  # fmt: skip
        self.orders[object_id] = order
        return object_id, f"https://checkout.test/{object_id}"

    async def find_bought(self, object_id: str) -> str | None:
        return object_id

    async def list_events(self, since: datetime) -> list[WebhookEvent]:
        return []

    async def read(self, object_id: str) -> CheckoutState | ProviderSubscription | None:
        self.reads += 1
        return self.objects.get(object_id)

    async def find_checkout(self, subscription: str) -> str | None:
        found = (one for one in self.objects.values() if isinstance(one, CheckoutState) and one.subscription == subscription)
        return next((one.id for one in found), None)

    async def list_payments(self, customer: str) -> dict[str, str | None]:
        return {}

    async def open_portal(self, customer: str) -> str:
        return f"https://portal.test/{customer}"

    async def bill(self, owed: OwedUsage, plan: TierPlan, customer: str, subscription: str, amount_minor: int) -> bool:
        return True

    async def cancel(self, subscription: str) -> None:
        raise NotImplementedError

    def signed(self, object_id: str) -> tuple[bytes, str]:
        """Return an event about the object, as Stripe sends it."""
        return stripe_server.sign(object_id, f"evt_{next(self._numbers)}")

    # --- what customers do --------------------------------------------------------------------------------------------

    def pay(self, object_id: str) -> str | None:
        """Return the subscription that begins."""
        found, order, customer = self.objects[object_id], self.orders[object_id], f"cus_{next(self._numbers)}"
        assert isinstance(found, CheckoutState)
        if order.plan is None:
            self.objects[object_id] = replace(found, is_over=True, payment=f"pi_{object_id}", customer=customer)
            return None
        made = f"sub_{next(self._numbers)}"
        self.objects[made] = ProviderSubscription(
            id=made, customer=customer, status="active", prices=("price_pro",), period_start=datetime.now(UTC),
            paid=PaidPeriod(prices=("price_pro",), paid_minor=2900, kept_minor=2900),
        )  # fmt: skip
        self.objects[object_id] = replace(found, is_over=True, payment=made, customer=customer, subscription=made)
        return made

    def end(self, subscription: str) -> None:
        found = self.objects[subscription]
        assert isinstance(found, ProviderSubscription)
        self.objects[subscription] = replace(found, status="canceled")
