"""What customers write is not believed: whose a payment is, and what it paid, comes from our orders and from the provider's figures."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from services.gateway.payments import payment_provider
from services.gateway.payments.billing import Billing
from services.gateway.payments.billing_rpc import BillingRpc
from services.gateway.payments.provider_orders import ProviderOrders
from shared import errors
from shared.api.billing import AdoptPayment, OrderTopUp, ProviderPayment
from shared.rpc.audit_reporting import AuditReporting
from shared.types import RequestId, UserRole
from tests.services.gateway.fakes import PERSON, rpc_call
from tests.services.gateway.payments import conftest, test_paddle_provider, test_stripe_provider
from tests.services.gateway.payments.paddle_server import PaddleServer
from tests.services.gateway.payments.shop import SELLER, Shop, balance, deliver, orders_of, owner, session_of, top_up
from tests.services.gateway.payments.shop import tell as tell_of_stripe
from tests.services.gateway.payments.stripe_server import StripeServer
from tests.services.gateway.payments.test_paddle_provider import transaction_of
from tests.testnet import until

at_paddle = test_paddle_provider.selling_shop
at_stripe = conftest.selling_shop
tell = test_paddle_provider.tell


async def stuck(shop: Shop) -> dict[str, int]:
    """Return what the alert payments_failing counts."""
    return await shop.deferred.count_stuck(["payment"])


async def handle_all(shop: Shop) -> None:
    """Handle what is due again later."""
    await shop.execute("UPDATE webhook_events SET next_at = now()")
    await shop.billing.work()


# --- what is written by a browser ---------------------------------------------------------------------------------------


async def test_custom_data_gives_nobody_anything(at_paddle: Shop, paddle: PaddleServer) -> None:
    shop, ada, eve = at_paddle, owner(), owner()
    dear = transaction_of(await shop.billing.order_top_up(ada, OrderTopUp("10000", RequestId(ada))))
    cheap = transaction_of(await top_up(shop, eve))
    paddle.transactions[cheap]["custom_data"] = dict(paddle.transactions[dear]["custom_data"])
    paddle.pay(cheap)
    await tell(shop, paddle, cheap)
    assert [await balance(shop, one) for one in (ada, eve)] == [0, 25_000_000]
    assert await stuck(shop) == {}


@pytest.mark.parametrize("price", ["pri_mug", "pri_pro"])
async def test_a_checkout_that_a_browser_opened_waits_for_an_administrator(at_paddle: Shop, paddle: PaddleServer, price: str) -> None:
    """It claims to be the order, or the plan, of somebody."""
    shop, ada = at_paddle, owner()
    dear = transaction_of(await shop.billing.order_top_up(ada, OrderTopUp("10000", RequestId(ada))))
    forged = paddle.open_in_browser(price, paddle.transactions[dear]["custom_data"])
    await tell(shop, paddle, forged)
    assert (await stuck(shop), await shop.billing.measure_events()) == ({}, 0), "nobody has paid"
    made = paddle.pay(forged)
    await tell(shop, paddle, made, forged)
    assert (await balance(shop, ada), shop.plan_of(ada)) == (0, "free")
    assert await shop.fetch("SELECT count(*) FROM subscriptions WHERE subscription IS NOT NULL OR plan IS NOT NULL") == 0
    assert await stuck(shop) == {"payment": len({made, forged})}
    assert {one.id for one in await shop.deferred.list("payment", 10)} == {made, forged}


async def test_a_checkout_of_another_shop_is_left_alone(at_paddle: Shop, paddle: PaddleServer) -> None:
    shop = at_paddle
    made = paddle.pay(sold := paddle.open_in_browser("pri_pro", {"cart": "17"}))
    await tell(shop, paddle, made, sold)
    assert (await stuck(shop), await shop.billing.measure_events()) == ({}, 0)


async def test_who_types_the_address_of_another_sees_nothing_of_theirs(at_paddle: Shop, paddle: PaddleServer) -> None:
    shop, ada, eve, orders = at_paddle, owner(), owner(), orders_of(at_paddle)
    begun = transaction_of(await shop.order(ada, "pro"))
    await tell(shop, paddle, paddle.pay(begun, "ada@example.org"))
    customer = paddle.customers["ada@example.org"]
    assert await orders.open_portal(ada) == f"https://portal.test/{customer}"
    typed = transaction_of(await top_up(shop, eve))
    paddle.transactions[typed]["custom_data"] = dict(paddle.transactions[begun]["custom_data"])
    await tell(shop, paddle, paddle.pay(typed, "ada@example.org"))
    held = await shop.rows.find_subscription(eve)
    assert held is not None
    assert (held.customer, await balance(shop, eve)) == (customer, 25_000_000)
    for opening in (orders.open_portal(eve), orders.open_portal(ada), shop.order(ada, "gold")):
        with pytest.raises(errors.NotAllowed, match="the same email address") as raised:
            await opening
        assert "the mails that paddle sends" in raised.value.hint
    later = [transaction_of(await top_up(shop, one)) for one in (ada, eve)]
    assert [paddle.transactions[one]["customer_id"] for one in later] == [None, None], "they would show saved cards of another"


async def test_a_customer_alone_has_the_portal_however_often_they_paid(at_paddle: Shop, paddle: PaddleServer) -> None:
    shop, ada, orders = at_paddle, owner(), orders_of(at_paddle)
    begun = transaction_of(await shop.order(ada, "pro"))
    subscription = paddle.pay(begun)
    await tell(shop, paddle, subscription)
    customer = paddle.transactions[begun]["customer_id"]
    for number in range(299):
        paddle.transactions[f"txn_renewal_{number}"] = paddle.transactions[begun] | {"id": f"txn_renewal_{number}"}
    # Nobody has paid this one.
    paddle.transactions["txn_open"] = paddle.transactions[begun] | {"id": "txn_open", "status": "ready", "subscription_id": None}
    assert await orders.open_portal(ada) == f"https://portal.test/{customer}"
    assert paddle.transactions[transaction_of(await top_up(shop, ada))]["customer_id"] == customer
    paddle.transactions["txn_one_more"] = paddle.transactions[begun] | {"id": "txn_one_more"}
    with pytest.raises(errors.NotAllowed):
        await orders.open_portal(ada)


def _other_goods(paddle: PaddleServer, number: str) -> None:
    paddle.put_in(number, "pri_mug")


def _many_other_goods(paddle: PaddleServer, number: str) -> None:
    paddle.put_in(number, "pri_mug", 90)


def _a_plan(paddle: PaddleServer, number: str) -> None:
    paddle.put_in(number, "pri_pro")


def _goods_of_another_order(paddle: PaddleServer, number: str) -> None:
    (item,) = paddle.transactions[number]["items"]
    item["price"] |= {"custom_data": {"order": "6e5e2c33-3a4c-4bd2-9f0b-0a8f5e7f4b10"}}


def _another_currency(paddle: PaddleServer, number: str) -> None:
    paddle.transactions[number]["currency_code"] = "JPY"


def _a_lower_price(paddle: PaddleServer, number: str) -> None:
    paddle.discount = 1


def _a_lower_price_with_tax_on_top(paddle: PaddleServer, number: str) -> None:
    paddle.discount, paddle.tax_percent, paddle.tax_is_on_top = 1, 19, True


def _nothing_paid(paddle: PaddleServer, number: str) -> None:
    paddle.discount = 2500


@pytest.mark.parametrize(
    "forge",
    [
        _other_goods, _many_other_goods, _a_plan, _goods_of_another_order, _another_currency, _a_lower_price,
        _a_lower_price_with_tax_on_top, _nothing_paid,
    ],
)  # fmt: skip
async def test_credits_are_only_for_what_was_ordered(
    at_paddle: Shop, paddle: PaddleServer, forge: Callable[[PaddleServer, str], None]
) -> None:
    shop, ada = at_paddle, owner()
    number = transaction_of(await top_up(shop, ada))
    forge(paddle, number)
    paddle.pay(number)
    for _ in range(2):
        await tell(shop, paddle, number)
    assert (await balance(shop, ada), shop.plan_of(ada), await stuck(shop)) == (0, "free", {"payment": 1})
    assert (await shop.ledger.verify(grace_seconds=1)).findings == ()


@pytest.mark.parametrize("on_top", [True, False])
async def test_credits_are_the_same_with_tax(at_paddle: Shop, paddle: PaddleServer, on_top: bool) -> None:
    shop, ada = at_paddle, owner()
    paddle.tax_percent, paddle.tax_is_on_top = 19, on_top
    number = transaction_of(await top_up(shop, ada))
    paddle.pay(number)
    await tell(shop, paddle, number)
    assert (await balance(shop, ada), await stuck(shop)) == (25_000_000, {})


@pytest.mark.parametrize(
    "changed",
    [
        {"amount_total": 2499}, {"amount_total": 0}, {"amount_total": -1}, {"currency": "jpy"},
        {"amount_total": 2974, "total_details": {"amount_tax": 475}},
    ],
)  # fmt: skip
async def test_stripes_figures_are_compared_with_the_order(at_stripe: Shop, stripe: StripeServer, changed: dict[str, Any]) -> None:
    shop, ada = at_stripe, owner()
    session = session_of(await top_up(shop, ada))
    await stripe.pay(session)
    before, _ = dict(stripe.sessions[session]), stripe.sessions[session].update(changed)
    await tell_of_stripe(shop, stripe, session)
    assert (await balance(shop, ada), await stuck(shop)) == (0, {"payment": 1})
    stripe.sessions[session] |= {name: before[name] for name in changed}
    await shop.retry()
    await shop.billing.work()
    assert (await balance(shop, ada), await stuck(shop)) == (25_000_000, {})


async def test_credits_are_what_was_paid_at_stripe_without_tax(at_stripe: Shop, stripe: StripeServer) -> None:
    shop, ada, bob = at_stripe, owner(), owner()
    ordered, lost = session_of(await top_up(shop, ada)), session_of(await top_up(shop, bob))
    for session in (ordered, lost):
        stripe.sessions[session] |= {"amount_total": 2975, "total_details": {"amount_tax": 475}}
        await stripe.pay(session)
    await shop.execute("DELETE FROM payment_orders WHERE owner = $1", bob)
    stripe.sessions[lost]["metadata"].pop("mesh")
    await tell_of_stripe(shop, stripe, ordered, lost)
    assert (await balance(shop, ada), await balance(shop, bob), await stuck(shop)) == (25_000_000, 0, {"payment": 1})
    assert (await orders_of(shop).adopt(lost, bob)).amount_minor == 2500
    assert (await balance(shop, bob), await stuck(shop)) == (25_000_000, {})
    assert [month.net_minor for month in await shop.rows.sum_revenue("EUR")] == [5000]


# --- order and time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["checkout", "subscription"])
async def test_a_subscription_is_the_same_whichever_event_comes_first(at_paddle: Shop, paddle: PaddleServer, first: str) -> None:
    shop, ada = at_paddle, owner()
    number = transaction_of(await shop.order(ada, "pro"))
    subscription = paddle.pay(number)
    order = [number, subscription] if first == "checkout" else [subscription, number]
    await tell(shop, paddle, *order, *order)
    held = await shop.rows.find_subscription(ada)
    assert held is not None
    assert (held.plan, held.subscription, shop.plan_of(ada)) == ("pro@1", subscription, "pro@1")
    assert await shop.fetch("SELECT subscription FROM payment_orders WHERE object_id = $1", number) == subscription
    assert (await shop.billing.measure_events(), await stuck(shop)) == (0, {})


async def test_a_renewal_belongs_to_the_subscription_whatever_it_claims(at_paddle: Shop, paddle: PaddleServer) -> None:
    shop, ada = at_paddle, owner()
    number = transaction_of(await shop.order(ada, "pro"))
    subscription = paddle.pay(number)
    await tell(shop, paddle, number)
    await shop.execute("UPDATE payment_orders SET ended_at = NULL")
    renewal = paddle.open_in_browser("pri_pro", paddle.transactions[number]["custom_data"])
    paddle.transactions[renewal] |= {"origin": "subscription_recurring", "subscription_id": subscription, "status": "completed"}
    paddle.subscriptions[subscription]["status"] = "past_due"
    await tell(shop, paddle, renewal)
    held = await shop.rows.find_subscription(ada)
    assert held is not None
    assert (held.plan, held.is_past_due, await stuck(shop)) == ("pro@1", True, {})
    assert await shop.fetch("SELECT ended_at FROM payment_orders") is None, "it is not the order's payment"


async def test_a_silent_provider_holds_no_connection(at_stripe: Shop, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """More events are being handled than the pool has connections."""
    shop, count = at_stripe, 12
    monkeypatch.setattr(payment_provider, "READ_SECONDS", 60.0)
    sessions = [session_of(await top_up(shop, owner())) for _ in range(count)]
    for session in sessions:
        await deliver(shop, stripe.signed(session))
    stripe.faults, stripe.reads = ["lost"] * count, []
    tasks = [asyncio.create_task(orders_of(shop).handle_one()) for _ in range(count)]
    try:
        await until(lambda: len(stripe.reads) == count)
        assert await shop.fetch("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'") == 0
        assert await shop.fetch("SELECT count(*) FROM pg_locks WHERE locktype IN ('advisory', 'tuple')") == 0
        assert await shop.rows.find_subscription(owner()) is None, "the pool has connections"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_billing_and_canceling_hold_no_connection_either(
    at_stripe: Shop, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, ada, provider, open_ones = at_stripe, owner(), orders_of(at_stripe).provider, []

    def watched(method: Any) -> Any:
        async def call(*args: Any) -> Any:
            found = await shop.fetch("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
            open_ones.append((method.__name__, found))
            return await method(*args)

        return call

    for name in ("bill", "cancel"):
        monkeypatch.setattr(provider, name, watched(getattr(provider, name)))
    await test_stripe_provider.subscribe(shop, stripe, ada)
    await test_stripe_provider.owe(shop, ada, 12_345_678)
    await shop.billing.work()
    shop.gone.add(ada)
    await shop.end_period(ada)
    await shop.billing.work()
    assert open_ones == [("bill", 0), ("cancel", 0)]


async def test_usage_is_billed_by_one_gateway_at_a_time(at_stripe: Shop, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, ada, provider, calls = at_stripe, owner(), orders_of(at_stripe).provider, 0
    bill = provider.bill

    async def meanwhile(*args: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            await shop.billing.work()
        return await bill(*args)

    monkeypatch.setattr(provider, "bill", meanwhile)
    await test_stripe_provider.subscribe(shop, stripe, ada)
    await test_stripe_provider.owe(shop, ada, 12_345_678)
    await shop.billing.work()
    assert (calls, await shop.fetch("SELECT count(*) FROM owed")) == (1, 0)


@pytest.mark.parametrize("fault", ["busy", "lost", "down"])
async def test_a_provider_that_does_not_answer_is_asked_again(
    at_stripe: Shop, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(payment_provider, "READ_SECONDS", 1.0)
    shop, ada = at_stripe, owner()
    session = session_of(await top_up(shop, ada))
    await stripe.pay(session)
    stripe.faults = [fault]
    await tell_of_stripe(shop, stripe, session)
    assert (await balance(shop, ada), await stuck(shop)) == (0, {})
    await handle_all(shop)
    assert (await balance(shop, ada), await shop.billing.measure_events()) == (25_000_000, 0)


async def test_what_changes_all_the_time_is_left_for_later(at_stripe: Shop, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, ada = at_stripe, owner()
    session = session_of(await top_up(shop, ada))
    await stripe.pay(session)
    provider = orders_of(shop).provider
    read, reads = provider.read, 0

    async def overtaken(object_id: str) -> Any:
        nonlocal reads
        reads += 1
        await shop.execute("UPDATE subscriptions SET version = version + 1")
        return await read(object_id)

    with monkeypatch.context() as patch:
        patch.setattr(provider, "read", overtaken)
        await tell_of_stripe(shop, stripe, session)
    assert (await balance(shop, ada), reads, await stuck(shop)) == (0, 5, {})
    await handle_all(shop)
    assert await balance(shop, ada) == 25_000_000


async def test_two_gateways_give_credits_once(at_paddle: Shop, paddle: PaddleServer) -> None:
    shop, owners = at_paddle, [owner() for _ in range(4)]
    told = []
    for ada in owners:
        number = transaction_of(await top_up(shop, ada))
        told += [number, paddle.pay(transaction_of(await shop.order(ada, "pro")))]
        paddle.pay(number)
    for object_id in [*told, *reversed(told)]:
        await deliver(shop, paddle.signed(object_id))
    other = ProviderOrders("paddle", orders_of(shop).provider, shop.rows, shop.live, SELLER.currency, items=shop.items)
    second = Billing(shop.rows, shop.live, shop.rpc, SELLER, other, items=shop.items)
    await asyncio.gather(shop.billing.work(), second.work())
    await handle_all(shop)
    assert [(await balance(shop, ada), shop.plan_of(ada)) for ada in owners] == [(25_000_000, "pro@1")] * 4
    assert (await shop.billing.measure_events(), await stuck(shop)) == (0, {})
    assert (await shop.ledger.verify(grace_seconds=1)).findings == ()


# --- a restored database ------------------------------------------------------------------------------------------------


async def restore(shop: Shop) -> None:
    """Go back to before all orders."""
    for table in ("payment_orders", "subscriptions", "webhook_events"):
        await shop.execute(f"DELETE FROM {table}")


@pytest.mark.parametrize("is_named", [True, False])
async def test_an_order_is_made_again_from_what_stripe_has(at_stripe: Shop, stripe: StripeServer, is_named: bool) -> None:
    shop, ada = at_stripe, owner()
    credits_, plan = session_of(await top_up(shop, ada)), session_of(await shop.order(ada, "pro"))
    await stripe.pay(credits_)
    subscription = await stripe.pay(plan)
    if is_named:
        await restore(shop)
    else:
        await shop.execute("UPDATE payment_orders SET object_id = NULL")
    # The event of the plan's checkout came before the restore.
    for _ in range(2):
        await tell_of_stripe(shop, stripe, credits_, subscription)
    assert (await balance(shop, ada), shop.plan_of(ada), await stuck(shop)) == (25_000_000, "pro@1", {})
    orders = "SELECT string_agg(object_id || ' ' || owner || ' ' || amount_minor, ', ' ORDER BY object_id) FROM payment_orders"
    assert await shop.fetch(orders) == f"{credits_} {ada} 2500, {plan} {ada} 2900"
    assert (await shop.ledger.verify(grace_seconds=1)).findings == ()


async def test_the_order_of_a_subscription_from_the_recovery_log_is_made_again(at_stripe: Shop, stripe: StripeServer) -> None:
    shop, ada = at_stripe, owner()
    plan = session_of(await shop.order(ada, "pro"))
    subscription = await stripe.pay(plan)
    await tell_of_stripe(shop, stripe, plan, subscription)
    await shop.execute("DELETE FROM payment_orders")
    await tell_of_stripe(shop, stripe, plan)
    orders = "SELECT object_id || ' ' || owner || ' ' || amount_minor FROM payment_orders WHERE payment IS NOT NULL"
    assert (await shop.fetch(orders), shop.plan_of(ada)) == (f"{plan} {ada} 2900", "pro@1")


async def test_stripe_is_asked_for_payments_whose_webhooks_and_orders_are_lost(at_stripe: Shop, stripe: StripeServer) -> None:
    shop, ada = at_stripe, owner()
    await stripe.pay(session_of(await top_up(shop, ada)))
    await stripe.pay(session_of(await shop.order(ada, "pro")))
    await restore(shop)
    for _ in range(2):
        await orders_of(shop).find_lost()
        await shop.billing.work()
    assert (await balance(shop, ada), shop.plan_of(ada), await stuck(shop)) == (25_000_000, "pro@1", {})


async def test_paddle_is_asked_for_payments_whose_webhooks_and_orders_are_lost(at_paddle: Shop, paddle: PaddleServer) -> None:
    shop, ada = at_paddle, owner()
    paddle.pay(transaction_of(await top_up(shop, ada)))
    open_one = transaction_of(await top_up(shop, ada))
    await restore(shop)
    await orders_of(shop).find_lost()
    await shop.billing.work()
    assert (await balance(shop, ada), await stuck(shop)) == (0, {"payment": 1}), f"an administrator is asked, but not about {open_one}"


@pytest.mark.parametrize(
    ("changed", "waits"), [({"mesh": "https://other.example/billing"}, True), ({"owner": "ada"}, True), ({"order": None}, False)]
)
async def test_only_what_this_mesh_wrote_is_made_again(
    at_stripe: Shop, stripe: StripeServer, changed: dict[str, str | None], waits: bool
) -> None:
    shop, ada = at_stripe, owner()
    session = session_of(await top_up(shop, ada))
    await stripe.pay(session)
    written = stripe.sessions[session]["metadata"] | changed
    stripe.sessions[session]["metadata"] = {name: value for name, value in written.items() if value is not None}
    await restore(shop)
    await tell_of_stripe(shop, stripe, session)
    assert (await balance(shop, ada), await stuck(shop)) == (0, {"payment": 1} if waits else {})
    assert await shop.fetch("SELECT count(*) FROM payment_orders") == 0


async def test_an_order_that_only_paddle_has_waits_for_an_administrator(
    at_paddle: Shop, paddle: PaddleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, ada, eve = at_paddle, owner(), owner()
    credits_, plan = transaction_of(await top_up(shop, ada)), transaction_of(await shop.order(ada, "pro"))
    paddle.pay(credits_)
    subscription = paddle.pay(plan)
    await restore(shop)
    await tell(shop, paddle, credits_, plan, subscription)
    assert (await balance(shop, ada), shop.plan_of(ada), await stuck(shop)) == (0, "free", {"payment": 3})
    orders = orders_of(shop)
    shown = await orders.adopt(subscription, None)
    assert (shown.id, shown.subscription, shown.claimed["owner"]) == (plan, subscription, str(ada))
    assert await shop.fetch("SELECT count(*) FROM payment_orders") == 0, "it was only shown"
    read, reads = orders.provider.read, list[str]()

    async def counted(object_id: str) -> Any:
        reads.append(object_id)
        return await read(object_id)

    with monkeypatch.context() as patch:
        patch.setattr(orders.provider, "read", counted)
        for object_id in (credits_, subscription):
            await orders.adopt(object_id, ada)
    assert reads == [credits_, credits_, subscription, plan, subscription, plan, subscription], "once to see and once to follow"
    await shop.billing.apply()
    assert (await balance(shop, ada), shop.plan_of(ada), await stuck(shop)) == (25_000_000, "pro@1", {})
    assert await shop.billing.measure_events() == 0
    for whose in (ada, eve):
        with pytest.raises(errors.AlreadyExists, match="was given, or is an order of another account"):
            await orders.adopt(credits_, whose)
    assert [await balance(shop, one) for one in (ada, eve)] == [25_000_000, 0]
    # From now on, it is followed.
    paddle.subscriptions[subscription]["status"] = "canceled"
    await tell(shop, paddle, subscription)
    assert shop.plan_of(ada) == "free@0"


async def test_an_administrator_gives_what_was_paid_and_no_more(at_paddle: Shop, paddle: PaddleServer) -> None:
    shop, ada, eve = at_paddle, owner(), owner()
    number = transaction_of(await top_up(shop, ada))
    paddle.put_in(number, "pri_mug")
    paddle.discount = 2000
    with pytest.raises(errors.BadRequest, match="did not pay any EUR"):
        await orders_of(shop).adopt(number, ada)
    paddle.pay(number)
    await tell(shop, paddle, number)
    with pytest.raises(errors.AlreadyExists):
        await orders_of(shop).adopt(number, eve)
    await orders_of(shop).adopt(number, ada)
    assert (await balance(shop, ada), await balance(shop, eve), await stuck(shop)) == (9_000_000, 0, {})


@pytest.mark.parametrize("change", [{"discount": 2500}, {"currency": "JPY"}, {"id": "txn_of_another_account"}])
async def test_nobody_adopts_what_was_not_paid_here(at_paddle: Shop, paddle: PaddleServer, change: dict[str, Any]) -> None:
    shop, ada = at_paddle, owner()
    number = transaction_of(await top_up(shop, ada))
    paddle.pay(number)
    paddle.discount = change.get("discount", 0)
    paddle.transactions[number]["currency_code"] = change.get("currency", "EUR")
    with pytest.raises(errors.CallerError, match=r"did not pay any EUR|has no payment"):
        await orders_of(shop).adopt(change.get("id", number), ada)
    assert await balance(shop, ada) == 0


async def test_an_administrator_adopts_for_accounts_that_exist(at_paddle: Shop, paddle: PaddleServer) -> None:
    shop, ada, gone = at_paddle, owner(), owner()
    number = paddle.open_in_browser("pri_mug", {"order": "o" * 101, "owner": "someone", "cart": "17", "plan": 3})
    paddle.pay(number)
    rpc = BillingRpc(shop.billing, shop.rows, shop.live, shop.ledger, shop.rpc, AuditReporting(shop.rpc), "EUR", is_on=True)
    call = rpc_call(msgspec.structs.replace(PERSON, role=UserRole.ADMIN))
    shown = await rpc.adopt_payment(AdoptPayment(number), call)
    assert shown == ProviderPayment(number, True, 2900, "EUR", shown.customer, None, {"order": "o" * 100, "owner": "someone"})
    shop.gone.add(gone)
    with pytest.raises(errors.NotFound):
        await rpc.adopt_payment(AdoptPayment(number, gone), call)
    await rpc.adopt_payment(AdoptPayment(number, ada), call)
    assert await balance(shop, ada) == 29_000_000
