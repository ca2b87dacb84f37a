"""Plans and credits through Stripe: the official library against localstripe, with faults and kills between any two steps."""

import asyncio
import logging
import re
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from services.gateway.billing.reservations import Spending
from services.gateway.facts.provider_settings import ProviderSettings
from services.gateway.facts.tiers import TierPlan
from services.gateway.payments import payment_provider, stripe_provider
from services.gateway.payments.payment_provider import Forged, ProviderOrder, WebhookEvent
from shared import errors
from shared.api.billing import Order, OrderTopUp
from shared.api.notices import PaymentLate
from shared.config_documents import ConfigKind, PlanDocument
from shared.stores import transactions
from shared.types import MicroCredits, RequestId, TenantId
from tests.services.gateway.payments import stripe_server
from tests.services.gateway.payments.shop import Shop, balance, deliver, orders_of, owner, session_of, tell, top_up
from tests.services.gateway.payments.stripe_server import StripeServer

GUIDE = Path(__file__).parents[4] / "docs/howto/billing.md"


async def test_a_plan_begins_when_its_checkout_is_paid(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada = selling_shop, owner()
    order = await shop.order(ada, "pro")
    assert await shop.order(ada, "pro") == order, "the same checkout"
    with pytest.raises(errors.AlreadyExists, match="a checkout for the plan pro is open"):
        await shop.order(ada, "gold")
    with pytest.raises(errors.BadRequest, match="the plan silver has no price at stripe"):
        await shop.order(owner(), "silver")
    await tell(shop, stripe, session_of(order))
    assert (shop.plan_of(ada), await shop.invoices(ada)) == ("free", []), "coming back changes nothing"
    subscription = await stripe.pay(session_of(order))
    form = stripe.sessions[session_of(order)]["_form"]
    assert [item["price"] for item in form["line_items"]] == ["price_pro", "price_tokens"]
    await tell(shop, stripe, subscription)
    held = await shop.rows.find_subscription(ada)
    assert held is not None
    assert (shop.plan_of(ada), held.subscription, held.provider, held.is_past_due) == ("pro@1", subscription, "stripe", False)
    account = await shop.ledger.read_account(ada, Spending(1_000_000, MicroCredits(0), has_plan=True))
    assert account.allowance.included == 1_000_000
    assert await shop.order(ada, "gold") == Order(done=False, url=f"https://portal.test/{held.customer}")
    with pytest.raises(errors.AlreadyExists, match="pays through stripe"):
        await shop.billing.give_plan(ada, "gold")


def flattened(found: Any, at: str = "") -> dict[str, str]:
    """Return a nested form as Stripe's parameters."""
    if not isinstance(found, dict | list):
        return {at: found}
    items = found.items() if isinstance(found, dict) else enumerate(found)
    return {name: text for key, value in items for name, text in flattened(value, f"{at}[{key}]" if at else key).items()}


@pytest.mark.parametrize("is_plan", [True, False])
async def test_the_guide_tells_what_is_sent_for_taxes(stripe: StripeServer, is_plan: bool) -> None:
    guide = GUIDE.read_text(encoding="utf-8").partition("### Taxes at Stripe")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\S+)` \| (?:`(\w+)`|–) \| (?:`(\w+)`|–) \|$", guide, re.M)
    told = {name: of_plan if is_plan else of_credits for name, of_plan, of_credits in rows if (of_plan if is_plan else of_credits)}
    assert len(told) == (5 if is_plan else 7)
    sent: dict[tuple[bool, str | None], dict[str, str]] = {}
    plan = TierPlan(stripe_price="price_pro") if is_plan else None
    for has_tax in (False, True):
        settings = ProviderSettings(
            name="stripe", secret=stripe_server.KEY, webhook_secret=stripe_server.SECRET, api_url=stripe.url,
            return_url="http://localhost:3000/billing", currency="EUR", has_tax=has_tax,
        )  # fmt: skip
        async with payment_provider.open_provider(settings) as provider:
            assert provider is not None
            for customer in (None, "cus_1"):
                order = ProviderOrder(
                    id=uuid4(), owner=owner(), plan="pro@1" if is_plan else None, amount_minor=2500, created_at=datetime.now(UTC),
                    object_id=None, url=None, ended_at=None, payment=None,
                )  # fmt: skip
                session, _ = await provider.check_out(order, plan, customer, "ada@example.org")
                sent[has_tax, customer] = flattened(stripe.sessions[session]["_form"])
    for customer in (None, "cus_1"):
        before, after = sent[False, customer], sent[True, customer]
        more = {name: text for name, text in after.items() if name not in before}
        assert more == {name: text for name, text in told.items() if customer or not name.startswith("customer_update")}
        assert before.keys() <= after.keys()


async def test_a_subscription_is_followed_to_its_end(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada = selling_shop, owner()
    subscription = await stripe.pay(session_of(await shop.order(ada, "pro")))
    await tell(shop, stripe, subscription)
    for change, plan, past_due in (
        ({"status": "past_due"}, "pro@1", True),
        ({"status": "active"}, "pro@1", False),
        # In the portal.
        ({"price": "price_gold"}, "gold@1", False),
        ({"status": "canceled"}, "free@0", False),
        # An older state that arrives late has the present one.
        ({}, "free@0", False),
    ):
        if "price" in change:
            await stripe.change_plan(subscription, change["price"])
        stripe.changed.setdefault(subscription, {}).update(change)
        for _ in range(2):
            await tell(shop, stripe, subscription)
        held = await shop.rows.find_subscription(ada)
        assert held is not None
        assert (shop.plan_of(ada), held.is_past_due) == (plan, past_due), change
    assert (await shop.order(ada, "pro")).url != f"https://portal.test/{held.customer}", "a new checkout"
    assert [notice for _, notice in await shop.notices()] == [PaymentLate()]


async def test_a_period_of_the_provider_gives_tokens_once(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada = selling_shop, owner()
    await shop.ledger.read_account(ada, Spending(100_000, MicroCredits(0), has_plan=True))
    await shop.execute("UPDATE accounts SET anchor = now() - interval '20 days', period_start = now() - interval '20 days'")
    subscription = await stripe.pay(session_of(await shop.order(ada, "pro")))
    for _ in range(3):
        await tell(shop, stripe, subscription)
    spending = Spending(1_000_000, MicroCredits(0), has_plan=True)
    began = (await shop.ledger.read_account(ada, spending)).allowance
    assert began.included == 1_000_000
    # Of a year, as seen in its fifth month.
    await stripe.renew(subscription, days_ago=130)
    for _ in range(3):
        await tell(shop, stripe, subscription)
    grants = "SELECT count(*) FROM entries WHERE kind = 'grant' AND account = 'allowance'"
    assert await shop.fetch(grants) == 3, "of free, of pro, and of the moved period"
    assert (await shop.ledger.verify(grace_seconds=1)).findings == ()


async def test_a_price_that_no_plan_names_waits_for_the_operator(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada = selling_shop, owner()
    subscription = await stripe.pay(session_of(await shop.order(ada, "pro")))
    await stripe.change_plan(subscription, "price_platinum")
    await tell(shop, stripe, subscription)
    assert shop.plan_of(ada) == "free"
    assert await shop.billing.measure_events() > 0
    await shop.live.change(
        lambda *_: {(ConfigKind.PLAN, "platinum"): PlanDocument(fee=1.0, stripe_price="price_platinum")}, origin="applied", author=None
    )
    await shop.retry()
    await shop.billing.work()
    assert (shop.plan_of(ada), await shop.billing.measure_events()) == ("platinum@1", 0)


async def test_odd_objects_of_the_provider_hold_up_nobody(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada, ben, eve = selling_shop, owner(), owner(), owner()
    odd, fine = [session_of(await top_up(shop, each)) for each in (ada, ben)]
    order_id = stripe.sessions[odd]["metadata"]["order"]
    stripe.sessions[odd]["metadata"] = {"order": "my first order"}
    empty = await stripe.pay(session_of(await shop.order(eve, "pro")))
    stripe.changed[empty] = {"items": {"object": "list", "data": []}}
    for session in (odd, fine):
        await stripe.pay(session)
    await tell(shop, stripe, odd, empty, fine)
    assert (await balance(shop, ada), await balance(shop, ben)) == (0, 25_000_000)
    kept = await shop.deferred.list(None, 10)
    assert {(one.kind, one.id) for one in kept} == {("payment", odd), ("payment", empty)}
    assert "my first order" not in str(kept)
    assert (await shop.deferred.count_stuck(["payment"])) == {"payment": 2}, "an administrator learns of it now"
    stripe.sessions[odd]["metadata"] = {"order": order_id}
    await shop.retry()
    await shop.billing.work()
    assert await balance(shop, ada) == 25_000_000
    assert [one.id for one in await shop.deferred.list(None, 10)] == [empty]


async def test_credits_are_added_once_however_often_stripe_tells(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada, order_id = selling_shop, owner(), RequestId(uuid4())
    order = await top_up(shop, ada, order_id)
    assert await top_up(shop, ada, order_id) == order
    with pytest.raises(errors.IdempotencyConflict):
        await shop.billing.order_top_up(ada, OrderTopUp("26", order_id))
    early = stripe.signed(session_of(order))
    assert await deliver(shop, early)
    await shop.billing.work()
    assert await balance(shop, ada) == 0
    await stripe.pay(session_of(order))
    for _ in range(3):
        await tell(shop, stripe, session_of(order), session_of(order))
    assert not await deliver(shop, early), "a replay"
    await shop.billing.work()
    assert await balance(shop, ada) == 25_000_000
    assert (await top_up(shop, ada, order_id)).done
    assert (await shop.ledger.verify(grace_seconds=1)).findings == ()
    # The second time, Stripe knows them.
    again = await top_up(shop, ada)
    assert stripe.sessions[session_of(again)]["customer"] == stripe.sessions[session_of(order)]["customer"]


async def test_a_checkout_that_was_not_paid_in_time_ends(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada, order_id = selling_shop, owner(), RequestId(uuid4())
    order = await top_up(shop, ada, order_id)
    stripe.sessions[session_of(order)]["status"] = "expired"
    await tell(shop, stripe, session_of(order))
    with pytest.raises(errors.AlreadyExists, match="not paid in time"):
        await top_up(shop, ada, order_id)
    assert await balance(shop, ada) == 0


@pytest.mark.parametrize("fault", ["lost", "down"])
async def test_a_call_without_an_answer_is_repeated_with_its_key(
    selling_shop: Shop, stripe: StripeServer, fault: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    shop, ada, order_id = selling_shop, owner(), RequestId(uuid4())
    stripe.faults = [fault, "", fault]
    with pytest.raises(errors.Unavailable, match="Stripe did not accept the call or did not answer"):
        await top_up(shop, ada, order_id)
    order = await top_up(shop, ada, order_id)
    with pytest.raises(errors.Unavailable):
        await shop.order(ada, "pro")
    await shop.order(ada, "pro")
    assert len(stripe.sessions) == 2, "one for each order"
    shown = "".join((caplog.text, *capfd.readouterr()))
    assert stripe_server.KEY not in shown
    assert "ada@example.org" not in shown
    await stripe.pay(session_of(order))
    await tell(shop, stripe, session_of(order))
    assert await balance(shop, ada) == 25_000_000


async def test_a_lost_webhook_is_asked_for(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada = selling_shop, owner()
    order, plan = await top_up(shop, ada), await shop.order(ada, "pro")
    await stripe.pay(session_of(order))
    subscription = await stripe.pay(session_of(plan))
    await shop.billing.work()
    assert await balance(shop, ada) == 0
    await shop.execute("UPDATE payment_orders SET asked_at = now() - interval '6 minutes', created_at = now() - interval '6 minutes'")
    await shop.billing.work()
    assert (await balance(shop, ada), shop.plan_of(ada)) == (25_000_000, "pro@1")
    stripe.changed[subscription] = {"status": "canceled"}
    await shop.billing.work()
    assert shop.plan_of(ada) == "pro@1"
    await shop.execute("UPDATE subscriptions SET changed_at = now() - interval '25 hours'")
    await shop.billing.work()
    assert shop.plan_of(ada) == "free@0"


async def test_the_subscription_of_an_erased_account_is_canceled(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada = selling_shop, owner()
    subscription = await stripe.pay(session_of(await shop.order(ada, "pro")))
    await tell(shop, stripe, subscription)
    shop.gone.add(ada)
    for faults, canceled in (([], []), (["", "down"], []), ([], [subscription]), ([], [subscription] * 2)):
        stripe.faults = list(faults)
        await shop.billing.work()
        assert stripe.canceled == canceled
        await shop.execute("UPDATE subscriptions SET changed_at = now() - interval '25 hours'")
    stripe.changed[subscription] = {"status": "canceled"}
    await tell(shop, stripe, subscription)
    held = await shop.rows.find_subscription(ada)
    assert held is not None
    assert (held.plan, held.subscription, len(stripe.canceled)) == (None, None, 2)


async def subscribe(shop: Shop, stripe: StripeServer, ada: TenantId) -> str:
    """Return the customer."""
    await tell(shop, stripe, await stripe.pay(session_of(await shop.order(ada, "pro"))))
    held = await shop.rows.find_subscription(ada)
    assert held is not None
    assert held.customer is not None
    return held.customer


async def owe(shop: Shop, ada: TenantId, micro: int, *, ended: str = "1 minute") -> None:
    """Let a period end with a debt."""
    await shop.execute("UPDATE accounts SET balance_micro = -$2::bigint WHERE owner = $1", ada, micro)
    await shop.end_period(ada)
    await shop.ledger.read_account(ada, Spending(100, None, has_plan=True))
    await shop.execute("UPDATE owed SET at = at - $2::text::interval WHERE owner = $1", ada, ended)


async def bill(shop: Shop) -> int:
    """Return how many are left."""
    await shop.billing.work()
    return int(await shop.fetch("SELECT count(*) FROM owed"))


@pytest.mark.parametrize("fault", ["", "lost", "down", "busy"])
async def test_usage_beyond_the_plan_is_counted_once_with_what_is_owed(selling_shop: Shop, stripe: StripeServer, fault: str) -> None:
    """The event is stored, and its answer is lost; or Stripe refuses it."""
    shop, ada = selling_shop, owner()
    customer = await subscribe(shop, stripe, ada)
    await owe(shop, ada, 12_345_678)
    ended = (await shop.fetch("SELECT at FROM owed")).timestamp()
    stripe.faults = ["", "", fault]
    assert await bill(shop) == (fault != "")
    for _ in range(2):
        assert await bill(shop) == 0
    (event,) = stripe.meter_events.values()
    assert (event["event_name"], event["payload"]) == ("mesh_usage", {"customer": customer, "tokens": "1234"})
    assert ended - 2 <= int(event["timestamp"]) < ended, "in the period that ended"
    assert await shop.invoices(ada) == []
    assert len([path for path in stripe.reads if path == "/v1/prices/price_tokens"]) == 1


async def test_usage_that_comes_after_the_draft_goes_on_the_next_invoice(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada = selling_shop, owner()
    await subscribe(shop, stripe, ada)
    await owe(shop, ada, 12_345_678, ended="51 minutes")
    assert await bill(shop) == 0
    (event,) = stripe.meter_events.values()
    assert abs(int(event["timestamp"]) - datetime.now(UTC).timestamp()) < 30


@pytest.mark.parametrize("fault", ["lost", "down"])
async def test_an_identifier_that_stripe_has_forgotten_is_asked_for(selling_shop: Shop, stripe: StripeServer, fault: str) -> None:
    shop, ada = selling_shop, owner()
    await subscribe(shop, stripe, ada)
    await owe(shop, ada, 12_345_678)
    stripe.faults = ["", "", fault]
    assert await bill(shop) == 1
    await shop.execute("UPDATE owed SET at = at - interval '25 hours'")
    for event in stripe.meter_events.values():
        event["timestamp"] = int(event["timestamp"]) - 25 * 3600
    stripe.remembered.clear()
    assert await bill(shop) == 0
    assert [event["payload"]["tokens"] for event in stripe.meter_events.values()] == ["1234"]


async def test_usage_is_held_if_the_meter_has_another_sum(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada, bob = selling_shop, owner(), owner()
    customer = await subscribe(shop, stripe, ada)
    await subscribe(shop, stripe, bob)
    await owe(shop, ada, 12_345_678, ended="25 hours")
    await owe(shop, bob, 5_000_000)
    other = {"timestamp": int(datetime.now(UTC).timestamp()) - 60, "payload": {"customer": customer, "tokens": "7"}}
    stripe.meter_events["of the operator"] = other
    assert await bill(shop) == 1, "only that of ada"
    assert 25 * 3600 <= await shop.billing.measure_owed() < 26 * 3600
    # Those of an account are billed in order, so that a sum is never that of a later period.
    await owe(shop, ada, 7_000_000)
    assert await bill(shop) == 2
    del stripe.meter_events["of the operator"]
    assert await bill(shop) == 0
    assert sorted(event["payload"]["tokens"] for event in stripe.meter_events.values()) == ["1234", "500", "700"]


async def test_a_period_that_ends_again_after_a_restore_asks_the_meter(selling_shop: Shop, stripe: StripeServer) -> None:
    """Stripe was told of 1,234, has forgotten the identifier, and the restored database knows nothing of it."""
    shop, ada = selling_shop, owner()
    await subscribe(shop, stripe, ada)
    await owe(shop, ada, 12_345_678)
    owed = await shop.fetch("SELECT owed::text FROM owed")
    assert await bill(shop) == 0
    for micro, counted in ((12_345_678, []), (12_000_000, []), (20_000_000, ["766"]), (20_000_000, []), (21_000_000, ["100"])):
        stripe.remembered.clear()
        known = set(stripe.meter_events)
        await shop.execute("INSERT INTO database_restores (id, details) VALUES (gen_random_uuid(), '')")
        await shop.execute("INSERT INTO owed SELECT ($1::text::owed).*", owed)
        await shop.execute("UPDATE owed SET micro = $1", micro)
        assert await bill(shop) == 0
        assert [event["payload"]["tokens"] for id_, event in stripe.meter_events.items() if id_ not in known] == counted
    # A period that began after the restore is not asked for.
    for micro in (0, 5_000_000):
        await owe(shop, ada, micro)
    assert await bill(shop) == 0
    assert sorted(event["payload"]["tokens"] for event in stripe.meter_events.values()) == ["100", "1234", "500", "766"]


async def test_a_plan_without_a_metered_price_leads_to_an_invoice(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada = selling_shop, owner()
    await tell(shop, stripe, await stripe.pay(session_of(await shop.order(ada, "gold"))))
    await owe(shop, ada, 12_345_678)
    assert await bill(shop) == 0
    assert [one.document.net_minor for one in await shop.invoices(ada)] == [1234]
    assert stripe.meter_events == {}


async def test_an_event_about_what_is_gone_ends(selling_shop: Shop, stripe: StripeServer) -> None:
    await tell(selling_shop, stripe, "cs_test_of_another_account", "sub_of_another_account")
    assert await selling_shop.billing.measure_events() == 0


async def test_a_provider_that_is_down_does_not_hold_up_the_rest(selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada = selling_shop, owner()
    await shop.billing.give_plan(ada, "silver")
    await shop.end_period(ada)
    for number in range(10):
        await deliver(shop, stripe.signed(f"cs_test_of_others_{number}"))
    stripe.faults = ["down"] * 3
    await shop.billing.work()
    assert len(await shop.invoices(ada)) == 1
    assert await shop.fetch("SELECT count(*) FROM webhook_events WHERE handled_at IS NULL") == 10
    await shop.billing.work()
    assert await shop.fetch("SELECT count(*) FROM webhook_events WHERE handled_at IS NULL") == 3, "those are due again later"


class Killed(BaseException):
    pass


async def test_a_kill_between_any_two_steps_leads_to_the_same(
    selling_shop: Shop, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, steps, left = selling_shop, 0, 0

    def dying(method: Any) -> Any:
        async def step(*args: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return await method(*args)

        return step

    for name in ("row", "value", "run"):
        monkeypatch.setattr(transactions.Transaction, name, dying(getattr(transactions.Transaction, name)))
    provider = orders_of(shop).provider
    monkeypatch.setattr(provider, "read", dying(provider.read))
    while True:
        ada, steps, left = owner(), steps + 1, 0
        order, plan = await top_up(shop, ada), await shop.order(ada, "pro")
        await stripe.pay(session_of(order))
        subscription = await stripe.pay(session_of(plan))
        for object_id in (session_of(plan), session_of(order), subscription):
            await deliver(shop, stripe.signed(object_id))
        left = steps
        try:
            await shop.billing.work()
            survived = True
        except Killed:
            survived = False
        left = 0
        await shop.execute("UPDATE webhook_events SET next_at = now()")
        await shop.billing.work()
        assert (await balance(shop, ada), shop.plan_of(ada), await shop.billing.measure_events()) == (25_000_000, "pro@1", 0), steps
        if survived:
            break
    assert steps > 20
    assert (await shop.ledger.verify(grace_seconds=1)).findings == ()


async def test_a_kill_while_usage_is_billed_counts_it_once(
    selling_shop: Shop, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, steps, left = selling_shop, 0, 0

    def dying(method: Any) -> Any:
        async def step(*args: Any) -> Any:
            nonlocal left
            left -= 2
            if left == -1:
                raise Killed
            found = await method(*args)
            if left == 0:
                raise Killed
            return found

        return step

    for name in ("row", "value", "run"):
        monkeypatch.setattr(transactions.Transaction, name, dying(getattr(transactions.Transaction, name)))
    provider = orders_of(shop).provider
    monkeypatch.setattr(provider, "bill", dying(provider.bill))
    survived = False
    while not survived:
        ada, steps = owner(), steps + 1
        await subscribe(shop, stripe, ada)
        await owe(shop, ada, 12_345_678)
        left = steps
        try:
            await shop.billing.work()
            survived = left > 0
        except Killed:
            pass
        left = 0
        # Two minutes later.
        await shop.execute("UPDATE owed SET taken_until = now()")
        assert await bill(shop) == 0
        assert [event["payload"]["tokens"] for event in stripe.meter_events.values()] == ["1234"] * steps
    assert steps > 6


async def test_an_older_state_is_never_written_after_a_newer_one(
    selling_shop: Shop, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gateways handle events of one subscription. The first reads its state, and is slow; the second does not wait for it."""
    shop, ada = selling_shop, owner()
    subscription = await stripe.pay(session_of(await shop.order(ada, "pro")))
    await tell(shop, stripe, subscription)
    provider = orders_of(shop).provider
    read, has_read, may_go_on = provider.read, asyncio.Event(), asyncio.Event()

    async def slow(object_id: str) -> Any:
        found = await read(object_id)
        if not has_read.is_set():
            has_read.set()
            await may_go_on.wait()
        return found

    monkeypatch.setattr(provider, "read", slow)
    await deliver(shop, stripe.signed(subscription))
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(shop.billing.handle_events())
        await has_read.wait()
        stripe.changed[subscription] = {"status": "canceled"}
        await deliver(shop, stripe.signed(subscription))
        await shop.billing.handle_events()
        assert not first.done()
        may_go_on.set()
    await shop.billing.apply()
    held = await shop.rows.find_subscription(ada)
    assert held is not None
    assert (held.plan, held.subscription, shop.plan_of(ada)) == ("free@0", None, "free@0")


async def test_webhooks_of_others_are_refused(selling_shop: Shop, stripe: StripeServer) -> None:
    provider = orders_of(selling_shop).provider
    body, signature = stripe.signed("cs_test_1")
    assert isinstance(provider.verify(body, signature), WebhookEvent)
    forged = [
        (body, ""), (body, "t=1,v1=2"), (body + b" ", signature), (body, signature[:-1]), (body, signature.replace("v1", "v0")),
        stripe.signed("cs_test_1", age=301), stripe.signed("cs_test_1", secret="whsec_other"), (b"\xff", signature), (b"", signature),
    ]  # fmt: skip
    for forgery in forged:
        with pytest.raises(Forged):
            provider.verify(*forgery)


def test_the_guide_names_the_events_that_are_followed() -> None:
    guide = (Path(__file__).parents[4] / "docs/howto/billing.md").read_text()
    live = guide.partition("create a webhook in the dashboard")[2].partition("A restricted key")[0]
    named = re.findall(r"`([a-z_]+\.[a-z_.*]+)`", live)
    assert len(named) == 9
    for told in (*stripe_provider.REVERSING, "invoice.paid", "invoice.payment_failed", "checkout.session.expired"):
        assert any(fnmatchcase(told, name) for name in named), told


async def test_localstripe_signs_as_the_library_verifies(selling_shop: Shop, stripe: StripeServer) -> None:
    hook = {"url": f"{stripe.url}/hook", "secret": stripe_server.SECRET, "events": ["customer.subscription.created"]}
    status, _ = await stripe.configure(hook)
    assert status == 200
    subscription = await stripe.pay(session_of(await selling_shop.order(owner(), "pro")))
    async with asyncio.timeout(10):
        body, signature = await stripe.delivered.get()
    event = orders_of(selling_shop).provider.verify(body, signature)
    assert event.object_id == subscription
