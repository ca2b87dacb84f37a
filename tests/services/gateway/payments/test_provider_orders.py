"""Many events, repeated and out of order, and several gateways that handle them."""

import asyncio
import random
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from services.gateway.payments.billing import Billing
from services.gateway.payments.payment_provider import WebhookEvent
from services.gateway.payments.provider_orders import ProviderOrders
from shared import errors
from shared.api.billing import MonthRevenue
from shared.types import RequestId, TenantId
from tests.services.gateway.payments.memory_provider import MemoryProvider
from tests.services.gateway.payments.shop import SELLER, Shop, balance, orders_of, owner, selling, session_of, top_up


async def send_events(shop: Shop, provider: MemoryProvider, owners: list[TenantId], count: int, rng: random.Random) -> int:
    """Let each owner buy credits twice and a plan, of which every third cancels it; then send so many events about it, in any order and
    some repeated. Return how many were new."""
    told: list[str] = []
    for number, ada in enumerate(owners):
        for order in [await top_up(shop, ada), await top_up(shop, ada), await shop.order(ada, "pro")]:
            subscription = provider.pay(session_of(order))
            told += [session_of(order)] + ([] if subscription is None else [subscription])
            if subscription is not None and number % 3 == 0:
                provider.end(subscription)
    events = [WebhookEvent(id=f"evt_{at}", object_id=told[at % len(told)]) for at in range(count)]
    sent = [*events, *rng.sample(events, count // 10)]
    rng.shuffle(sent)
    news = 0
    for batch in (sent[at : at + 20] for at in range(0, len(sent), 20)):
        news += sum(await asyncio.gather(*(orders_of(shop).receive(event) for event in batch)))
    return news


async def test_events_out_of_order_are_handled_once_each_by_three_gateways(shop: Shop) -> None:
    provider, owners, rng = MemoryProvider(), [owner() for _ in range(12)], random.Random(1000)
    async with selling(shop, "stripe", provider):
        assert await send_events(shop, provider, owners, 1000, rng) == 1000
        orders = ProviderOrders("stripe", provider, shop.rows, shop.live, SELLER.currency, items=shop.items)
        others = [Billing(shop.rows, shop.live, shop.rpc, SELLER, orders, items=shop.items) for _ in range(2)]
        await asyncio.gather(*(desk.work() for desk in (shop.billing, *others)))
        await shop.billing.work()
    assert await shop.fetch("SELECT count(*) FROM webhook_events WHERE handled_at IS NULL") == 0
    assert [await balance(shop, ada) for ada in owners] == [50_000_000] * 12
    held = [await shop.rows.find_subscription(ada) for ada in owners]
    assert [None if one is None else one.plan for one in held] == [None if at % 3 == 0 else "pro@1" for at in range(12)]
    assert (await shop.ledger.verify(grace_seconds=1)).findings == ()
    assert provider.reads < 300, "events of one object are handled together"


async def test_paid_orders_are_revenue(shop: Shop) -> None:
    """A provider's sales were in no sum."""
    provider, ada, paid = MemoryProvider(), owner(), list[int]()
    async with selling(shop, "stripe", provider):
        orders = ProviderOrders("stripe", provider, shop.rows, shop.live, SELLER.currency, items=shop.items, on_paid=paid.append)
        desk = Billing(shop.rows, shop.live, shop.rpc, SELLER, orders, items=shop.items)
        await top_up(shop, ada)
        bought = await shop.order(ada, "pro"), await top_up(shop, ada)
        for order in bought:
            provider.pay(session_of(order))
        for number in range(2):
            for order in bought:
                await orders.receive(WebhookEvent(id=f"{session_of(order)}/{number}", object_id=session_of(order)))
            await desk.work()
    assert sorted(paid) == [2500, 2900], "one is not paid"
    assert await shop.rows.sum_revenue("EUR") == (MonthRevenue(f"{datetime.now(UTC):%Y-%m}", "EUR", 5400),)


async def test_an_account_has_ten_open_checkouts_at_most(shop: Shop) -> None:
    provider, ada, order_id = MemoryProvider(), owner(), RequestId(uuid4())
    async with selling(shop, "stripe", provider):
        first = await top_up(shop, ada, order_id)
        for _ in range(9):
            await top_up(shop, ada)
        for order in (top_up(shop, ada), shop.order(ada, "pro")):
            with pytest.raises(errors.NotAllowed, match="10 unpaid orders and invoices"):
                await order
        assert await top_up(shop, ada, order_id) == first
        provider.pay(session_of(first))
        await orders_of(shop).receive(WebhookEvent(id="evt_1", object_id=session_of(first)))
        await shop.billing.work()
        await top_up(shop, ada)
        # Nobody can pay these any more.
        await shop.execute("UPDATE payment_orders SET created_at = now() - interval '25 hours'")
        await shop.order(ada, "pro")


async def test_a_checkout_whose_credits_survived_a_restore_ends_and_stops_no_round(shop: Shop) -> None:
    provider, ada, bob = MemoryProvider(), owner(), owner()
    async with selling(shop, "stripe", provider):
        paid, later = session_of(await top_up(shop, ada)), session_of(await top_up(shop, bob))
        for session, event in ((paid, "evt_1"), (later, "evt_2")):
            provider.pay(session)
            await orders_of(shop).receive(WebhookEvent(id=event, object_id=session))
            if session is paid:
                await shop.billing.work()
                # The recovery log gave the credits back, and the order is open again.
                await shop.execute("UPDATE payment_orders SET ended_at = NULL, payment = NULL")
                await shop.execute("UPDATE webhook_events SET handled_at = NULL, next_at = now()")
        await shop.billing.work()
    assert (await balance(shop, ada), await balance(shop, bob)) == (25_000_000, 25_000_000)
    assert await shop.fetch("SELECT count(*) FROM payment_orders WHERE ended_at IS NULL") == 0
    assert await shop.fetch("SELECT count(*) FROM webhook_events WHERE handled_at IS NULL") == 0


async def test_old_events_are_forgotten(shop: Shop) -> None:
    async with selling(shop, "stripe", MemoryProvider()):
        for event_id in ("evt_1", "evt_2"):
            await orders_of(shop).receive(WebhookEvent(id=event_id, object_id="cs_of_others"))
        await shop.billing.work()
        await shop.execute("UPDATE webhook_events SET handled_at = now() - interval '31 days' WHERE event_id = 'evt_1'")
        assert await shop.billing.measure_events() == 0
    assert await shop.fetch("SELECT string_agg(event_id, ',') FROM webhook_events") == "evt_2"
