"""Tokens and credits follow what was paid through Paddle, and what of it was kept."""

from typing import Any

import pytest

from shared.config_documents import ConfigKind, PlanDocument
from shared.types import TenantId
from tests.services.gateway.payments import test_paddle_provider
from tests.services.gateway.payments.paddle_server import PaddleServer
from tests.services.gateway.payments.shop import PLANS, Shop, balance, orders_of, owner, top_up
from tests.services.gateway.payments.test_followed_payments import stuck
from tests.services.gateway.payments.test_paddle_provider import subscribe, tell, transaction_of
from tests.services.gateway.payments.test_paid_periods import findings, pass_period, plan_of, tokens, use

selling_shop = test_paddle_provider.selling_shop
SOLD: dict[tuple[ConfigKind, str], Any] = {
    **PLANS,
    (ConfigKind.PLAN, "pro"): PlanDocument(fee=29.0, included_tokens=1_000_000, for_sale=True, paddle_price="pri_pro"),
    (ConfigKind.PLAN, "gold"): PlanDocument(fee=29.0, included_tokens=5_000_000, for_sale=True, paddle_price="pri_gold"),
}


@pytest.fixture
async def sold(selling_shop: Shop) -> Shop:
    await selling_shop.live.change(lambda *_: SOLD, origin="applied", author=None)
    return selling_shop


async def buy(shop: Shop, paddle: PaddleServer, ada: TenantId) -> str:
    number = transaction_of(await top_up(shop, ada))
    paddle.pay(number)
    await tell(shop, paddle, number)
    assert await balance(shop, ada) == 25_000_000
    return number


# --- credits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_top", [True, False])
async def test_refunds_take_their_share_of_the_credits_once(sold: Shop, paddle: PaddleServer, on_top: bool) -> None:
    shop, ada = sold, owner()
    paddle.tax_percent, paddle.tax_is_on_top = 25, on_top
    number = await buy(shop, paddle, ada)
    paid = 3125 if on_top else 2500
    part = paddle.adjust(number, "refund", paid // 5)
    for told in (part, part, number):
        await tell(shop, paddle, told)
        assert await balance(shop, ada) == 20_000_000
    rest = paddle.adjust(number, "refund", paid - paid // 5)
    await tell(shop, paddle, rest, part, rest)
    assert (await balance(shop, ada), await stuck(shop), await findings(shop)) == (0, {}, ())
    assert [month.net_minor for month in await shop.rows.sum_revenue("EUR")] == [0]


@pytest.mark.parametrize(
    ("action", "status", "left"),
    [
        ("refund", "pending_approval", 25_000_000), ("refund", "rejected", 25_000_000), ("refund", "approved", 0),
        ("credit", "approved", 0), ("chargeback", "approved", 0), ("chargeback", "reversed", 25_000_000),
        ("chargeback_warning", "approved", 25_000_000),
    ],
)  # fmt: skip
async def test_only_money_that_went_back_takes_credits(sold: Shop, paddle: PaddleServer, action: str, status: str, left: int) -> None:
    shop, ada = sold, owner()
    number = await buy(shop, paddle, ada)
    await tell(shop, paddle, paddle.adjust(number, action, 2500, status))
    assert (await balance(shop, ada), await findings(shop)) == (left, ())


async def test_a_refund_counts_when_paddle_approves_it(sold: Shop, paddle: PaddleServer) -> None:
    shop, ada = sold, owner()
    refund = paddle.adjust(await buy(shop, paddle, ada), "refund", 2500, "pending_approval")
    for status, left in (("pending_approval", 25_000_000), ("approved", 0)):
        paddle.adjustments[0]["status"] = status
        await tell(shop, paddle, refund)
        assert await balance(shop, ada) == left


@pytest.mark.parametrize("is_marked", [True, False])
async def test_a_chargeback_that_is_won_gives_the_credits_again(sold: Shop, paddle: PaddleServer, is_marked: bool) -> None:
    """Marked: Paddle has written it into the chargeback, too."""
    shop, ada = sold, owner()
    number = await buy(shop, paddle, ada)
    lost = paddle.adjust(number, "chargeback", 2500)
    await tell(shop, paddle, lost)
    assert await balance(shop, ada) == 0
    won = paddle.adjust(number, "chargeback_reverse", 2500)
    if is_marked:
        paddle.adjustments[0]["status"] = "reversed"
    for told in (won, lost, won):
        await tell(shop, paddle, told)
        assert await balance(shop, ada) == 25_000_000
    await tell(shop, paddle, paddle.adjust(number, "chargeback", 2500))
    assert (await balance(shop, ada), await findings(shop)) == (0, ()), "once more"


async def test_a_refund_before_the_payments_event_leaves_nothing(sold: Shop, paddle: PaddleServer) -> None:
    shop, ada = sold, owner()
    number = transaction_of(await top_up(shop, ada))
    paddle.pay(number)
    await tell(shop, paddle, paddle.adjust(number, "refund", 2500), number)
    assert (await balance(shop, ada), await findings(shop)) == (0, ())


async def test_an_adjustment_whose_webhook_was_lost_is_found(sold: Shop, paddle: PaddleServer) -> None:
    shop, ada = sold, owner()
    number = await buy(shop, paddle, ada)
    for count in range(35):
        paddle.adjust(number, "refund", 50 if count == 0 else 1)
    for _ in range(2):
        await orders_of(shop).find_lost()
        await shop.billing.work()
        assert await balance(shop, ada) == 24_160_000


async def test_an_adjustment_of_another_shop_changes_nothing(sold: Shop, paddle: PaddleServer) -> None:
    shop, ada = sold, owner()
    begun = transaction_of(await shop.order(ada, "pro"))
    await tell(shop, paddle, paddle.pay(begun))
    foreign = paddle.open_in_browser("pri_mug", {"cart": "17"})
    paddle.pay(foreign)
    await tell(shop, paddle, paddle.adjust(foreign, "refund", 2900))
    assert (await tokens(shop, ada), await stuck(shop), await shop.billing.measure_events()) == ((1_000_000, 0), {}, 0)


# --- tokens -------------------------------------------------------------------------------------------------------------


async def test_a_period_whose_payment_failed_has_no_tokens_until_it_is_paid(sold: Shop, paddle: PaddleServer) -> None:
    shop, ada = sold, owner()
    subscription = await subscribe(shop, paddle, ada)
    await use(shop, ada, 400_000)
    await tell(shop, paddle, subscription)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (1_000_000, 400_000))
    await pass_period(shop, ada)
    renewal = paddle.renew(subscription, is_paid=False)
    for told in (renewal, subscription):
        await tell(shop, paddle, told)
        assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (0, 0))
    paddle.transactions[renewal]["status"] = "completed"
    paddle.subscriptions[subscription]["status"] = "active"
    for told in (renewal, subscription):
        await tell(shop, paddle, told)
        assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (1_000_000, 0))
    assert await findings(shop) == ()


async def test_a_change_of_plans_begins_with_its_payment(sold: Shop, paddle: PaddleServer) -> None:
    """Pro, gold, pro without a payment, and then gold with one."""
    shop, ada = sold, owner()
    subscription = await subscribe(shop, paddle, ada)
    (item,) = paddle.subscriptions[subscription]["items"]
    for price in ("pri_gold", "pri_pro"):
        item["price"] = item["price"] | {"id": price}
        await tell(shop, paddle, subscription)
        assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (1_000_000, 0))
    await tell(shop, paddle, paddle.renew(subscription, price="pri_gold"))
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("gold", (5_000_000, 0))
    assert await findings(shop) == ()


@pytest.mark.parametrize(("action", "amount", "left"), [("refund", 2900, 0), ("chargeback", 2900, 0), ("refund", 1450, 500_000)])
async def test_a_period_that_was_paid_back_has_the_tokens_of_the_rest(
    sold: Shop, paddle: PaddleServer, action: str, amount: int, left: int
) -> None:
    shop, ada = sold, owner()
    begun = transaction_of(await shop.order(ada, "pro"))
    subscription = paddle.pay(begun)
    await tell(shop, paddle, subscription)
    await use(shop, ada, 300_000)
    back = paddle.adjust(begun, action, amount)
    for told in (back, back, subscription, begun):
        await tell(shop, paddle, told)
        assert (plan_of(shop, ada), await tokens(shop, ada)) == ("pro", (left, 300_000))
    # What Paddle credits for changes of plans pays for those.
    await tell(shop, paddle, paddle.adjust(begun, "credit", 100))
    assert await tokens(shop, ada) == (left, 300_000)
    await tell(shop, paddle, paddle.renew(subscription))
    assert await tokens(shop, ada) == (1_000_000, 0)
    # It was of the period before.
    await tell(shop, paddle, paddle.adjust(begun, "refund", 1))
    assert (await tokens(shop, ada), await findings(shop)) == ((1_000_000, 0), ())


async def test_an_upgrade_within_the_period_is_a_part_of_what_was_paid(sold: Shop, paddle: PaddleServer) -> None:
    shop, ada = sold, owner()
    subscription = await subscribe(shop, paddle, ada)
    await use(shop, ada, 10)
    charge = paddle.upgrade(subscription, "pri_gold")
    await tell(shop, paddle, charge)
    assert (plan_of(shop, ada), await tokens(shop, ada)) == ("gold", (5_000_000, 10))
    await tell(shop, paddle, paddle.adjust(charge, "refund", 2900))
    assert await tokens(shop, ada) == (2_500_000, 10), "29.00 of 58.00 are kept"
    # It ends at once: Paddle names no period any more.
    paddle.subscriptions[subscription] |= {"status": "canceled", "current_billing_period": None}
    await tell(shop, paddle, subscription)
    assert (plan_of(shop, ada), (await tokens(shop, ada))[1]) == ("free", 10)
    assert await findings(shop) == ()
