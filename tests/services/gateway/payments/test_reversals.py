"""Refunds and disputes of prepaid credits take them back, once each, in any order; what is returned gives them again."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import permutations
from typing import Any
from uuid import uuid4

import pytest

from services.gateway.billing.reservations import Spending
from services.gateway.payments.billing import Billing
from services.gateway.payments.provider_orders import ProviderOrders
from shared.api.billing import MonthRevenue
from shared.types import MicroCredits, RequestId
from tests.services.gateway.payments.shop import SELLER, Shop, balance, deliver, orders_of, owner, session_of, tell, top_up
from tests.services.gateway.payments.stripe_server import StripeServer
from tests.services.gateway.payments.test_followed_payments import stuck

PAID = 25_000_000


@dataclass
class Bought:
    owner: Any
    session: str
    payment: str


async def buy(shop: Shop, stripe: StripeServer) -> Bought:
    """Pay for 25 credits, of which the shop isn't told yet."""
    ada = owner()
    session = session_of(await top_up(shop, ada))
    return Bought(ada, session, await stripe.pay(session))


async def findings(shop: Shop) -> tuple[str, ...]:
    return (await shop.ledger.verify(grace_seconds=1)).findings


async def moved(shop: Shop) -> int:
    return int(await shop.fetch("SELECT count(*) FROM entries WHERE kind = 'top_up' AND account = 'balance'"))


@pytest.mark.parametrize(("parts", "left"), [([2500], 0), ([1250], 12_500_000), ([1], 24_990_000), ([1250, 1250], 0), ([833, 833, 834], 0)])
async def test_a_refund_takes_its_part_of_the_credits(selling_shop: Shop, stripe: StripeServer, parts: list[int], left: int) -> None:
    shop = selling_shop
    bought = await buy(shop, stripe)
    await tell(shop, stripe, bought.session)
    refunds = [stripe.refund(bought.session, part) for part in parts]
    for _ in range(2):
        await tell(shop, stripe, *refunds, f"ch_of_{bought.payment}", bought.session)
        assert await balance(shop, bought.owner) == left
    assert await moved(shop) == 1 + len(parts)
    assert (await stuck(shop), await shop.billing.measure_events(), await findings(shop)) == ({}, 0, ())


async def test_credits_that_are_spent_leave_an_account_below_zero(selling_shop: Shop, stripe: StripeServer) -> None:
    shop = selling_shop
    bought = await buy(shop, stripe)
    await tell(shop, stripe, bought.session)
    await shop.ledger.top_up(RequestId(uuid4()), bought.owner, MicroCredits(-20_000_000), "spent", Spending())
    await tell(shop, stripe, stripe.refund(bought.session, 2500))
    assert await balance(shop, bought.owner) == -20_000_000


async def test_a_refund_includes_the_tax(selling_shop: Shop, stripe: StripeServer) -> None:
    """25.00 of credits cost 29.75."""
    shop = selling_shop
    bought = await buy(shop, stripe)
    stripe.sessions[bought.session]["amount_total"] = 2975
    await tell(shop, stripe, bought.session)
    first = stripe.refund(bought.session, 1190)
    await tell(shop, stripe, first)
    assert await balance(shop, bought.owner) == 15_000_000
    await tell(shop, stripe, stripe.refund(bought.session, 1785))
    assert await balance(shop, bought.owner) == 0


async def test_a_refund_before_its_payment_was_heard_of(selling_shop: Shop, stripe: StripeServer) -> None:
    shop = selling_shop
    bought = await buy(shop, stripe)
    refund = stripe.refund(bought.session, 500)
    for told in (refund, bought.session, refund):
        await tell(shop, stripe, told)
        assert await balance(shop, bought.owner) == 20_000_000
    assert await moved(shop) == 2


@pytest.mark.parametrize("status", ["failed", "canceled"])
async def test_a_refund_that_fails_later_gives_the_credits_again(selling_shop: Shop, stripe: StripeServer, status: str) -> None:
    shop = selling_shop
    bought = await buy(shop, stripe)
    await tell(shop, stripe, bought.session)
    refund = stripe.refund(bought.session, 2500, "pending")
    await tell(shop, stripe, refund)
    assert await balance(shop, bought.owner) == 0
    stripe.tell_of(refund, status=status)
    for _ in range(2):
        await tell(shop, stripe, refund)
        assert await balance(shop, bought.owner) == PAID
    # Another one succeeds.
    await tell(shop, stripe, stripe.refund(bought.session, 2500))
    assert (await balance(shop, bought.owner), await moved(shop), await findings(shop)) == (0, 4, ())


async def test_a_refund_that_had_failed_when_it_was_heard_of_changes_nothing(selling_shop: Shop, stripe: StripeServer) -> None:
    shop = selling_shop
    bought = await buy(shop, stripe)
    await tell(shop, stripe, bought.session, stripe.refund(bought.session, 2500, "failed"))
    assert (await balance(shop, bought.owner), await moved(shop)) == (PAID, 1)


@pytest.mark.parametrize(
    ("states", "left"),
    [
        (["needs_response", "under_review", "won"], [0, 0, PAID]),
        (["needs_response", "under_review", "lost"], [0, 0, 0]),
        (["warning_needs_response", "warning_under_review", "warning_closed"], [PAID] * 3),
        (["warning_needs_response", "needs_response", "lost", "appeal_under_review", "won"], [PAID, 0, 0, 0, PAID]),
    ],
)
async def test_a_dispute_takes_the_credits_until_it_is_won(
    selling_shop: Shop, stripe: StripeServer, states: list[str], left: list[int]
) -> None:
    shop = selling_shop
    bought = await buy(shop, stripe)
    await tell(shop, stripe, bought.session)
    dispute = stripe.dispute(bought.session, 2500, states[0])
    found = []
    for state in states:
        stripe.tell_of(dispute, status=state)
        for _ in range(2):
            await tell(shop, stripe, dispute)
        found.append(await balance(shop, bought.owner))
    assert (found, await findings(shop)) == (left, ())


async def test_a_refund_and_a_dispute_take_no_more_than_was_given(selling_shop: Shop, stripe: StripeServer) -> None:
    shop = selling_shop
    bought = await buy(shop, stripe)
    await tell(shop, stripe, bought.session)
    await tell(shop, stripe, stripe.refund(bought.session, 1000))
    dispute = stripe.dispute(bought.session, 2500)
    await tell(shop, stripe, dispute)
    assert await balance(shop, bought.owner) == 0
    stripe.tell_of(dispute, status="won")
    await tell(shop, stripe, dispute)
    assert await balance(shop, bought.owner) == 15_000_000


async def test_payments_that_are_not_of_an_order_change_nothing(selling_shop: Shop, stripe: StripeServer) -> None:
    """Of a mug, of another mesh, and of a customer's own making."""
    shop = selling_shop
    bought = await buy(shop, stripe)
    await tell(shop, stripe, bought.session)
    mug = stripe.refund("pi_of_a_mug", 2500)
    foreign = dict(stripe.sessions[bought.session]) | {"id": "cs_of_a_mug", "payment_intent": "pi_of_another_mug", "metadata": {}}
    stripe.sessions["cs_of_a_mug"] = foreign
    dispute = stripe.dispute("pi_of_another_mug", 2500)
    await tell(shop, stripe, mug, dispute, "ch_of_pi_of_a_mug")
    assert (await balance(shop, bought.owner), await stuck(shop), await shop.billing.measure_events()) == (PAID, {}, 0)


async def test_a_lost_webhook_of_a_refund_is_found_however_old_its_order_is(selling_shop: Shop, stripe: StripeServer) -> None:
    shop = selling_shop
    bought, other = await buy(shop, stripe), await buy(shop, stripe)
    await tell(shop, stripe, bought.session, other.session)
    await shop.execute("UPDATE payment_orders SET created_at = now() - interval '300 days', ended_at = now() - interval '300 days'")
    refund = stripe.refund(bought.session, 2500, "pending")
    for status, left in (("pending", 0), ("failed", PAID)):
        stripe.tell_of(refund, status=status)
        for _ in range(2):
            await orders_of(shop).find_lost()
            await shop.billing.work()
        assert [await balance(shop, one.owner) for one in (bought, other)] == [left, PAID]
    # More than one page.
    stripe.events += [{**stripe.events[0], "id": f"evt_old_{number}"} for number in range(250)]
    await orders_of(shop).find_lost()
    assert await shop.fetch("SELECT count(*) FROM webhook_events WHERE event_id LIKE 'evt_old_%'") == 250
    # What is older than two weeks stays lost.
    for event in stripe.events:
        event["created"] -= 15 * 86400
    await shop.execute("DELETE FROM webhook_events")
    await orders_of(shop).find_lost()
    assert await shop.fetch("SELECT count(*) FROM webhook_events") == 0


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_a_restored_database_has_the_same_balance(selling_shop: Shop, stripe: StripeServer, order: tuple[int, ...]) -> None:
    """The recovery log has the transfers, and the database has lost what led to them."""
    shop = selling_shop
    bought = await buy(shop, stripe)
    await tell(shop, stripe, bought.session)
    refund, dispute = stripe.refund(bought.session, 1000), stripe.dispute(bought.session, 1500)
    await tell(shop, stripe, refund, dispute)
    stripe.tell_of(dispute, status="won")
    await tell(shop, stripe, dispute)
    assert await balance(shop, bought.owner) == 15_000_000
    known = await moved(shop)
    for table in ("payment_orders", "subscriptions", "webhook_events"):
        await shop.execute(f"DELETE FROM {table}")
    told = [bought.session, refund, dispute]
    await tell(shop, stripe, *(told[at] for at in order))
    assert (await balance(shop, bought.owner), await moved(shop), await stuck(shop)) == (15_000_000, known, {})
    assert await shop.fetch("SELECT reversed_minor FROM payment_orders") == 1000


async def test_gateways_at_once_take_credits_once(selling_shop: Shop, stripe: StripeServer) -> None:
    shop = selling_shop
    many = [await buy(shop, stripe) for _ in range(4)]
    told = []
    for bought in many:
        told += [bought.session, stripe.refund(bought.session, 1000), stripe.dispute(bought.session, 500), f"ch_of_{bought.payment}"]
    for object_id in [*told, *reversed(told)]:
        await deliver(shop, stripe.signed(object_id))
    other = ProviderOrders("stripe", orders_of(shop).provider, shop.rows, shop.live, SELLER.currency, items=shop.items)
    second = Billing(shop.rows, shop.live, shop.rpc, SELLER, other, items=shop.items)
    await asyncio.gather(shop.billing.work(), second.work())
    await shop.execute("UPDATE webhook_events SET next_at = now()")
    await shop.billing.work()
    assert [await balance(shop, one.owner) for one in many] == [10_000_000] * 4
    assert (await moved(shop), await shop.billing.measure_events(), await findings(shop)) == (12, 0, ())


async def test_an_older_state_is_never_written_after_a_newer_one(
    selling_shop: Shop, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway has read one refund and is slow; another one reads two."""
    shop = selling_shop
    bought = await buy(shop, stripe)
    await tell(shop, stripe, bought.session)
    provider = orders_of(shop).provider
    read, has_read, may_go_on = provider.read, asyncio.Event(), asyncio.Event()

    async def slow(object_id: str) -> Any:
        found = await read(object_id)
        if not has_read.is_set():
            has_read.set()
            await may_go_on.wait()
        return found

    monkeypatch.setattr(provider, "read", slow)
    await deliver(shop, stripe.signed(stripe.refund(bought.session, 1000)))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(shop.billing.handle_events())
        await has_read.wait()
        await deliver(shop, stripe.signed(stripe.refund(bought.session, 500)))
        await shop.billing.handle_events()
        assert await balance(shop, bought.owner) == 10_000_000
        may_go_on.set()
    assert await balance(shop, bought.owner) == 10_000_000
    assert await shop.fetch("SELECT reversed_minor FROM payment_orders") == 1500


async def test_revenue_is_net_of_what_was_refunded(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, paid, taken = selling_shop, list[int](), list[int]()
    orders = ProviderOrders(
        "stripe", orders_of(shop).provider, shop.rows, shop.live, SELLER.currency, items=shop.items, on_paid=paid.append,
        on_reversed=taken.append,
    )  # fmt: skip
    shop.billing = Billing(shop.rows, shop.live, shop.rpc, SELLER, orders, items=shop.items)
    bought, month = await buy(shop, stripe), f"{datetime.now(UTC):%Y-%m}"
    await tell(shop, stripe, bought.session)
    dispute = stripe.dispute(bought.session, 1500)
    for _ in range(2):
        await tell(shop, stripe, dispute, stripe.refund(bought.session, 500))
    assert await shop.rows.sum_revenue("EUR") == (MonthRevenue(month, "EUR", 0),)
    stripe.tell_of(dispute, status="won")
    await tell(shop, stripe, dispute)
    assert await shop.rows.sum_revenue("EUR") == (MonthRevenue(month, "EUR", 1500),)
    assert (sum(paid), sum(taken)) == (4000, 2500)
