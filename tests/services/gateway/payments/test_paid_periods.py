"""The tokens of a plan follow what was paid for the present period of its subscription, and what of it was kept."""

from typing import Any

import pytest

from services.gateway.billing.reservations import Spending
from shared import plan_names
from shared.api.notices import PaymentLate
from shared.config_documents import ConfigKind, PlanDocument
from shared.types import MicroCredits, TenantId
from tests.services.gateway.payments.shop import PLANS, Shop, orders_of, owner, session_of, tell
from tests.services.gateway.payments.stripe_server import StripeServer

SOLD: dict[tuple[ConfigKind, str], Any] = {
    **PLANS,
    (ConfigKind.PLAN, "pro"): PlanDocument(fee=29.0, included_tokens=1_000_000, for_sale=True, stripe_price="price_pro"),
    (ConfigKind.PLAN, "gold"): PlanDocument(fee=99.0, included_tokens=5_000_000, for_sale=True, stripe_price="price_gold"),
    (ConfigKind.PLAN, "gift"): PlanDocument(fee=1.0, included_tokens=200_000, for_sale=True, stripe_price="price_gift"),
    (ConfigKind.PLAN, "endless"): PlanDocument(fee=499.0, included_tokens="unlimited", for_sale=True, stripe_price="price_platinum"),
}


@pytest.fixture
async def sold(selling_shop: Shop) -> Shop:
    await selling_shop.live.change(lambda *_: SOLD, origin="applied", author=None)
    return selling_shop


def plan_of(shop: Shop, ada: TenantId) -> str:
    return plan_names.name_of(shop.plan_of(ada))


async def subscribe(shop: Shop, stripe: StripeServer, ada: TenantId, plan: str = "pro") -> str:
    subscription = await stripe.pay(session_of(await shop.order(ada, plan)))
    await tell(shop, stripe, subscription)
    return subscription


async def tokens(shop: Shop, ada: TenantId) -> tuple[int | None, int]:
    """Return how many are included for a request of this account, and how many of them were used."""
    plan = shop.live.config.limits.plan_of(shop.plan_of(ada))
    allowance = (await shop.ledger.read_account(ada, Spending(plan.included_tokens, MicroCredits(0), has_plan=True))).allowance
    assert allowance is not None
    return allowance.included, allowance.used


async def use(shop: Shop, ada: TenantId, count: int) -> None:
    await shop.execute(
        "WITH used AS (UPDATE accounts SET allowance_tokens = allowance_tokens - $2 WHERE owner = $1"
        " RETURNING gen_random_uuid() AS id, period_start)"
        " INSERT INTO entries (transfer, kind, account, owner, amount_tokens, period, at)"
        " SELECT id, 'expiry', side, $1, amount, period_start, clock_timestamp()"
        " FROM used, (VALUES ('allowance', -$2::bigint), ('grants', $2)) AS sides (side, amount)",
        ada, count,
    )  # fmt: skip


async def pass_period(shop: Shop, ada: TenantId) -> None:
    """Let the account's month pass; its gateway doesn't wait for the provider."""
    await shop.execute("UPDATE accounts SET anchor = now(), period_end = now() WHERE owner = $1", ada)


async def findings(shop: Shop) -> tuple[str, ...]:
    return (await shop.ledger.verify(grace_seconds=1)).findings


async def test_changes_that_nobody_paid_give_nothing(sold: Shop, stripe: StripeServer) -> None:
    """Pro, gold, pro, canceled: the credit for gold cancels its price, and 5,000,000 tokens stayed."""
    shop, ada = sold, owner()
    subscription = await subscribe(shop, stripe, ada)
    for price in ("price_gold", "price_pro"):
        await stripe.change_plan(subscription, price, state=None)
        await tell(shop, stripe, subscription)
        assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (1_000_000, 0)), price
    stripe.changed[subscription] |= {"status": "canceled"}
    await tell(shop, stripe, subscription)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("free", (1_000_000, 0)), "those that were paid"
    assert await findings(shop) == ()


async def test_a_change_begins_when_its_invoice_is_paid(sold: Shop, stripe: StripeServer) -> None:
    shop, ada = sold, owner()
    subscription = await subscribe(shop, stripe, ada)
    await use(shop, ada, 400_000)
    invoice = await stripe.change_plan(subscription, "price_gold", state="open")
    assert invoice is not None
    await tell(shop, stripe, invoice, subscription)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (1_000_000, 400_000))
    stripe.pay_invoice(invoice)
    for _ in range(2):
        await tell(shop, stripe, invoice)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("gold", (5_000_000, 400_000))
    # What is not used of gold is credit for later invoices.
    back = await stripe.change_plan(subscription, "price_pro")
    assert back is not None
    await tell(shop, stripe, back)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (1_000_000, 400_000))
    assert await findings(shop) == ()


async def test_what_a_change_costs_is_paid_with_the_next_period(sold: Shop, stripe: StripeServer) -> None:
    shop, ada = sold, owner()
    subscription = await subscribe(shop, stripe, ada)
    await stripe.change_plan(subscription, "price_gold", state=None)
    await tell(shop, stripe, subscription)
    invoice = await stripe.renew(subscription)
    assert stripe.find(invoice)["amount_paid"] == 9900 + 4950 - 1450
    await tell(shop, stripe, invoice)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("gold", (5_000_000, 0))


async def test_a_renewal_that_is_not_charged_yet_leaves_what_is_left(sold: Shop, stripe: StripeServer) -> None:
    shop, ada = sold, owner()
    subscription = await subscribe(shop, stripe, ada)
    await use(shop, ada, 900_000)
    await pass_period(shop, ada)
    assert await tokens(shop, ada) == (1_000_000, 900_000)
    invoice = await stripe.renew(subscription, state="draft")
    await shop.billing.work()
    await tell(shop, stripe, subscription)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (1_000_000, 900_000))
    stripe.pay_invoice(invoice)
    for _ in range(2):
        await tell(shop, stripe, invoice)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (1_000_000, 0))
    assert await findings(shop) == ()


async def test_a_period_whose_payment_failed_has_no_tokens_until_it_is_paid(sold: Shop, stripe: StripeServer) -> None:
    shop, ada = sold, owner()
    subscription = await subscribe(shop, stripe, ada)
    await pass_period(shop, ada)
    invoice = await stripe.renew(subscription, state="open")
    stripe.changed[subscription] |= {"status": "past_due"}
    for _ in range(2):
        await tell(shop, stripe, invoice)
        held = await shop.rows.find_subscription(ada)
        assert held is not None
        assert (plan_of(shop, ada), held.is_past_due, await tokens(shop, ada)) == ("pro", True, (0, 0))
    stripe.changed[subscription] |= {"status": "active"}
    stripe.pay_invoice(invoice)
    await tell(shop, stripe, invoice)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (1_000_000, 0))
    assert await findings(shop) == ()
    # A restored database mails nothing twice.
    ((subject, notice),) = await shop.notices()
    assert (subject.startswith(f"payment/{subscription}/2"), notice) == (True, PaymentLate())


async def test_a_failed_payment_takes_none_of_what_was_paid(sold: Shop, stripe: StripeServer) -> None:
    shop, ada = sold, owner()
    subscription = await subscribe(shop, stripe, ada)
    await use(shop, ada, 10)
    stripe.changed[subscription] |= {"status": "past_due"}
    await tell(shop, stripe, subscription)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (1_000_000, 10))


async def test_a_price_of_nothing_is_paid(sold: Shop, stripe: StripeServer) -> None:
    shop, ada = sold, owner()
    subscription = await subscribe(shop, stripe, ada, "gift")
    await tell(shop, stripe, subscription)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("gift", (200_000, 0))


async def test_a_plan_that_nobody_has_paid_yet_has_no_tokens(sold: Shop, stripe: StripeServer) -> None:
    """The operator has chosen to send invoices."""
    shop, ada = sold, owner()
    subscription = await stripe.pay(session_of(await shop.order(ada, "pro")))
    stripe.invoices[0] |= {"status": "open", "amount_paid": 0}
    await tell(shop, stripe, subscription)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (0, 0))
    stripe.pay_invoice(stripe.invoices[0]["id"])
    await tell(shop, stripe, stripe.invoices[0]["id"])
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (1_000_000, 0))


async def test_a_plan_that_ends_with_its_period_leaves_those_of_the_next(sold: Shop, stripe: StripeServer) -> None:
    shop, ada = sold, owner()
    subscription = await stripe.pay(session_of(await shop.order(ada, "pro")))
    await stripe.renew(subscription, days_ago=32)
    await tell(shop, stripe, subscription)
    await use(shop, ada, 300_000)
    stripe.changed[subscription] |= {"status": "canceled"}
    await tell(shop, stripe, subscription)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("free", (100_000, 0))
    assert await findings(shop) == ()


async def test_as_many_tokens_as_are_used_end_with_the_payment(sold: Shop, stripe: StripeServer) -> None:
    shop, ada = sold, owner()
    subscription = await subscribe(shop, stripe, ada, "endless")
    assert (plan_of(shop, ada), (await tokens(shop, ada))[0]) == ("endless", None)
    invoice = await stripe.renew(subscription, state="draft")
    await tell(shop, stripe, subscription)
    assert plan_of(shop, ada) == "endless"
    stripe.find(invoice)["status"] = "open"
    stripe.changed[subscription] |= {"status": "past_due"}
    await tell(shop, stripe, invoice)
    assert plan_of(shop, ada) == "free"
    stripe.changed[subscription] |= {"status": "active"}
    stripe.pay_invoice(invoice)
    await tell(shop, stripe, invoice)
    assert plan_of(shop, ada) == "endless"


# --- refunds and disputes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [0, 300_000, 1_000_000])
@pytest.mark.parametrize(("amount", "left"), [(2900, 0), (1450, 500_000), (1, 999_655)])
async def test_a_refunded_period_keeps_the_tokens_that_are_still_paid(
    sold: Shop, stripe: StripeServer, amount: int, left: int, used: int
) -> None:
    shop, ada = sold, owner()
    subscription = await subscribe(shop, stripe, ada)
    await use(shop, ada, used)
    refund = stripe.refund(stripe.invoices[0]["id"], amount)
    for told in (refund, refund, subscription):
        await tell(shop, stripe, told)
        assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (left, used))
    # The next period is paid again.
    await stripe.renew(subscription)
    await tell(shop, stripe, subscription)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (1_000_000, 0))
    assert await findings(shop) == ()


async def test_a_refunded_change_leaves_what_the_first_payment_was_worth(sold: Shop, stripe: StripeServer) -> None:
    shop, ada = sold, owner()
    subscription = await subscribe(shop, stripe, ada)
    change = await stripe.change_plan(subscription, "price_gold")
    assert change is not None
    refund = stripe.refund(change, 3500)
    await tell(shop, stripe, refund)
    # 29.00 of 64.00 are kept.
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("gold", (2_265_625, 0))


async def test_a_dispute_that_is_won_gives_the_tokens_again(sold: Shop, stripe: StripeServer) -> None:
    shop, ada = sold, owner()
    await subscribe(shop, stripe, ada)
    await use(shop, ada, 10)
    dispute = stripe.dispute(stripe.invoices[0]["id"], 2900)
    for state, left in (("needs_response", 0), ("under_review", 0), ("won", 1_000_000), ("lost", 0)):
        stripe.tell_of(dispute, status=state)
        await tell(shop, stripe, dispute)
        assert await tokens(shop, ada) == (left, 10), state
    assert await findings(shop) == ()


async def test_a_refund_after_the_end_takes_what_is_left(sold: Shop, stripe: StripeServer) -> None:
    """This is how most people cancel."""
    shop, ada = sold, owner()
    subscription = await subscribe(shop, stripe, ada)
    stripe.changed[subscription] |= {"status": "canceled"}
    await tell(shop, stripe, subscription)
    assert await tokens(shop, ada) == (1_000_000, 0)
    await tell(shop, stripe, stripe.refund(stripe.invoices[0]["id"], 2900))
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("free", (100_000, 0)), "those of the free plan"
    assert await findings(shop) == ()


async def test_a_late_refund_of_an_earlier_plan_takes_nothing_of_the_next(sold: Shop, stripe: StripeServer) -> None:
    shop, ada = sold, owner()
    first = await subscribe(shop, stripe, ada)
    stripe.changed[first] |= {"status": "canceled"}
    await tell(shop, stripe, first)
    second = await subscribe(shop, stripe, ada, "gold")
    refund = stripe.refund(stripe.invoices[0]["id"], 2900)
    await tell(shop, stripe, refund)
    held = await shop.rows.find_subscription(ada)
    assert held is not None
    assert (held.subscription, plan_of(shop, ada), await tokens(shop, ada)) == (second, "gold", (5_000_000, 0))
    # The account's month has passed, and the second subscription, too.
    stripe.changed[second] |= {"status": "canceled"}
    await tell(shop, stripe, second)
    await pass_period(shop, ada)
    await tell(shop, stripe, stripe.dispute(stripe.invoices[1]["id"], 9900))
    assert await tokens(shop, ada) == (100_000, 0)
    assert await findings(shop) == ()


async def test_a_refund_whose_webhook_was_lost_is_found(sold: Shop, stripe: StripeServer) -> None:
    shop, ada = sold, owner()
    await subscribe(shop, stripe, ada)
    stripe.refund(stripe.invoices[0]["id"], 2900)
    await orders_of(shop).find_lost()
    await shop.billing.work()
    assert await tokens(shop, ada) == (0, 0)
