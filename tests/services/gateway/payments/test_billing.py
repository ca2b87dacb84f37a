"""Plans, prepaid credits and invoices without a payment provider, on a real PostgreSQL and with a fake auth."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from services.gateway.billing.reservations import Spending
from services.gateway.payments.billing import Billing
from services.gateway.payments.billing_rpc import BillingRpc
from shared import errors
from shared.api import billing as api
from shared.api.billing import InvoiceState, OrderTopUp, Party
from shared.api.ledger import ModelPrice
from shared.api.method import Nothing
from shared.api.notices import PaymentLate
from shared.config_documents import ConfigKind, PlanDocument
from shared.rpc import RpcCall
from shared.rpc.audit_reporting import AuditReporting
from shared.types import MicroCredits, Peer, RequestId, Role, TenantId, UserRole
from tests.services.gateway.fakes import PERSON, node_id, rpc_call
from tests.services.gateway.payments.shop import SELLER, Shop, balance, owner


async def test_a_larger_plan_begins_when_its_invoice_is_paid(shop: Shop) -> None:
    ada = owner()
    order = await shop.order(ada, "pro")
    assert (order.done, shop.plan_of(ada)) == (False, "free")
    assert await shop.order(ada, "pro") == order, "the same order again"
    (invoice,) = await shop.invoices(ada)
    document = invoice.document
    assert (document.number, document.net_minor, document.tax_minor, document.total_minor, document.currency) == (
        f"INV-{datetime.now(UTC).year}-000001", 2900, 551, 3451, "EUR",
    )  # fmt: skip
    assert (document.seller.name, document.customer, invoice.state) == ("Mesh GmbH", Party("ada", ("ada@example.org",)), InvoiceState.OPEN)
    for _ in range(2):
        assert (await shop.billing.pay(document.number, "wire 17")).state is InvoiceState.PAID
    assert shop.plan_of(ada) == "pro@0"
    with pytest.raises(errors.AlreadyExists, match=r"was paid \(wire 17\)"):
        await shop.billing.pay(document.number, "wire 18")
    assert (await shop.ledger.read_account(ada, Spending(1_000_000, MicroCredits(0), has_plan=True))).allowance.included == 1_000_000
    await shop.billing.work()
    assert len(await shop.invoices(ada)) == 1, "the first period is paid"


async def test_one_of_two_changes_at_once_wins(shop: Shop) -> None:
    ada = owner()
    await shop.live.change(lambda *_: {(ConfigKind.PLAN, "gold"): PlanDocument(fee=99.0, for_sale=True)}, origin="applied", author=None)
    first = await shop.order(ada, "pro")
    with pytest.raises(errors.AlreadyExists, match=f"a change to pro waits for the invoice {first.invoice}"):
        await shop.order(ada, "gold")
    assert (await shop.order(ada, "free")).done, "undone"
    assert [(one.state, one.document.total_minor) for one in await shop.invoices(ada)] == [
        (InvoiceState.VOID, 3451), (InvoiceState.PAID, -3451),
    ]  # fmt: skip
    assert (await shop.order(ada, "gold")).invoice is not None
    with pytest.raises(errors.NotFound, match="no plan is called silver"):
        await shop.order(ada, "silver")


@pytest.mark.parametrize("lost", [False, True], ids=["not for sale", "gone from the configuration"])
async def test_a_change_from_a_plan_that_is_not_for_sale_is_undone(shop: Shop, lost: bool) -> None:
    call = rpc_call(PERSON)
    rpc = BillingRpc(shop.billing, shop.rows, shop.live, shop.ledger, shop.rpc, AuditReporting(shop.rpc), "EUR", is_on=True)
    ada = call.principal.tenant_id
    await shop.live.change(lambda *_: {(ConfigKind.PLAN, "house"): PlanDocument(fee=5.0)}, origin="applied", author=None)
    await shop.billing.give_plan(ada, "house")
    order = await rpc.set_plan(api.SetPlan("pro"), call)
    if lost:
        await shop.live.change(lambda *_: {(ConfigKind.PLAN, "house"): None}, origin="applied", author=None)
    assert await rpc.set_plan(api.SetPlan("house"), call) == api.Order(done=True)
    assert await shop.rows.list_invoices(ada, only_open=True, before=None, limit=9) == (), order
    held = await shop.rows.find_subscription(ada)
    assert held is not None
    assert (held.plan, held.next_plan, held.invoice) == ("house@1", None, None)
    with pytest.raises(errors.NotFound if lost else errors.NotAllowed):
        await shop.billing.order_plan(owner(), "house")


async def test_a_subscription_keeps_its_terms_and_is_billed_each_month(shop: Shop) -> None:
    ada = owner()
    await shop.live.change(lambda *_: {(ConfigKind.PLAN, "pro"): PlanDocument(fee=10.0)}, origin="applied", author=None)
    order = await shop.order(ada, "pro")
    assert order.invoice is not None
    await shop.billing.pay(order.invoice, "cash")
    assert shop.plan_of(ada) == "pro@1"
    await shop.live.change(lambda *_: {(ConfigKind.PLAN, "pro"): PlanDocument(fee=90.0)}, origin="applied", author=None)
    await shop.end_period(ada)
    for _ in range(2):
        await shop.billing.work()
    first, second = await shop.invoices(ada)
    assert (first.document.net_minor, second.document.net_minor) == (1000, 1000)
    assert second.document.lines[0].text.startswith("Plan pro, a month from 20")


async def test_a_cheaper_plan_begins_at_the_end_of_the_period(shop: Shop) -> None:
    ada = owner()
    await shop.billing.give_plan(ada, "pro")
    assert await shop.order(ada, "free") == api.Order(done=True)
    await shop.billing.work()
    assert shop.plan_of(ada) == "pro@0"
    await shop.end_period(ada)
    await shop.billing.work()
    assert (shop.plan_of(ada), await shop.invoices(ada)) == ("free@0", [])


async def test_an_unpaid_plan_is_reminded_of_and_ends(shop: Shop) -> None:
    ada = owner()
    await shop.billing.give_plan(ada, "pro")
    await shop.end_period(ada)
    await shop.billing.work()
    (late,) = await shop.invoices(ada)
    for days, plan, past_due in (
        (13, "pro@0", False), (14, "pro@0", True), (17, "pro@0", True), (20, "pro@0", True), (21, "free@0", False),
    ):  # fmt: skip
        await shop.wait_days(late.document.number, days)
        for _ in range(2):
            await shop.billing.work()
        held = await shop.rows.find_subscription(ada)
        assert held is not None
        assert (shop.plan_of(ada), held.is_past_due) == (plan, past_due), days
    number = late.document.number
    told = await shop.notices()
    assert [subject for subject, _ in told] == [f"payment/{number}/{reminder}" for reminder in (1, 2, 3)]
    assert [notice.is_last for _, notice in told if isinstance(notice, PaymentLate) and notice.invoice == number] == [False, False, True]
    await shop.billing.work()
    assert len(await shop.invoices(ada)) == 1, "a free plan costs nothing"


async def late_plan(shop: Shop, ada: TenantId, days: int = 14) -> str:
    """Return the number of the invoice of a second month; it is so many days old."""
    await shop.billing.give_plan(ada, "pro")
    await shop.end_period(ada)
    await shop.billing.work()
    (invoice,) = await shop.invoices(ada)
    await shop.wait_days(invoice.number, days)
    return invoice.number


async def test_reminders_that_are_late_leave_a_day_and_the_end_three(shop: Shop) -> None:
    """As after a week without gateways, or when PostgreSQL's clock jumps."""
    ada = owner()
    number, sent = await late_plan(shop, ada, 25), []
    for days in range(25, 31):
        await shop.wait_days(number, days)
        await shop.billing.work()
        sent.append((len(await shop.notices()), shop.plan_of(ada)))
    assert sent == [(1, "pro@0"), (1, "pro@0"), (0, "pro@0"), (0, "pro@0"), (1, "free@0"), (0, "free@0")]


async def test_three_gateways_at_once_remind_once(shop: Shop) -> None:
    await late_plan(shop, owner())
    await asyncio.gather(*(shop.billing.work() for _ in range(3)))
    assert len(await shop.notices()) == 1


async def test_nobody_is_reminded_in_the_first_day_after_a_restore(shop: Shop) -> None:
    number = await late_plan(shop, owner())
    await shop.execute("INSERT INTO database_restores (id, found_at, details) VALUES (gen_random_uuid(), now() - interval '23 hours', '')")
    await shop.billing.work()
    assert (await shop.notices(), await shop.fetch("SELECT reminders FROM invoices WHERE number = $1", number)) == ([], 0)
    await shop.execute("UPDATE database_restores SET found_at = now() - interval '25 hours'")
    await shop.billing.work()
    assert len(await shop.notices()) == 1


async def test_only_the_clock_of_postgresql_says_what_is_late(shop: Shop) -> None:
    """Frozen at a time that this machine's clock takes for past."""
    ada = owner()
    number = await late_plan(shop, ada, 0)
    await shop.execute(
        "CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT clock_timestamp() + interval '15 days' $$;"
        "ALTER FUNCTION is_late(invoices) SET search_path = gateway, pg_catalog"
    )
    (invoice,) = await shop.invoices(ada)
    assert (invoice.number, invoice.state) == (number, InvoiceState.LATE)


async def used(shop: Shop, ada: TenantId, tokens: int = 0) -> tuple[int | None, int]:
    """Let an account of the plan pro use tokens; return how many are included, and how many it has used."""
    if tokens:
        request = RequestId(uuid4())
        await shop.ledger.add_price(ModelPrice(None, MicroCredits(1), MicroCredits(1)))
        await shop.fetch(
            "SELECT granted_tokens FROM reserve($1, $2, NULL, 'm', (SELECT max(id) FROM prices), 'g', 90, $3, 0, 0, 1, 0, 1, 1, 1,"
            " 1000000, 0, true, NULL, NULL, NULL, NULL)", request, ada, tokens,
        )  # fmt: skip
        await shop.fetch("SELECT settle($1, 0, $2, 'settled')", request, tokens)
    allowance = (await shop.ledger.read_account(ada, Spending(0, MicroCredits(0), has_plan=True))).allowance
    assert allowance is not None
    return allowance.included, allowance.used


async def test_a_late_payment_gives_the_plan_back_for_the_rest_of_its_period(shop: Shop) -> None:
    """Also where months begin on the 31st: the next ones keep their dates."""
    ada = owner()
    await shop.billing.give_plan(ada, "pro")
    await shop.execute("UPDATE accounts SET anchor = '2020-01-31 10:00Z', period_end = now() WHERE owner = $1", ada)
    await shop.billing.work()
    number = (await shop.invoices(ada))[0].number
    dates = "SELECT anchor || ' ' || period_end FROM accounts WHERE owner = $1"
    period = await shop.fetch(dates, ada)
    assert await used(shop, ada, 300_000) == (1_000_000, 300_000)
    for days in (14, 17, 21):
        await shop.wait_days(number, days)
        await shop.billing.work()
    assert (shop.plan_of(ada), await used(shop, ada), await shop.fetch(dates, ada)) == ("free@0", (0, 0), period)
    for _ in range(2):
        await shop.billing.pay(number, "wire 17")
    assert (shop.plan_of(ada), await used(shop, ada, 100), await shop.fetch(dates, ada)) == ("pro@0", (1_000_000, 300_100), period)
    await shop.billing.work()
    assert len(await shop.invoices(ada)) == 1, "this period is paid"
    assert (await shop.ledger.verify(grace_seconds=1)).findings == ()
    await shop.end_period(ada)
    await shop.billing.work()
    assert [invoice.state for invoice in await shop.invoices(ada)] == [InvoiceState.PAID, InvoiceState.OPEN]


async def end_unpaid(shop: Shop, ada: TenantId) -> str:
    """End the plan pro; return the number of its unpaid invoice."""
    number = await late_plan(shop, ada)
    for days in (14, 17, 21):
        await shop.wait_days(number, days)
        await shop.billing.work()
    assert shop.plan_of(ada) == "free@0"
    return number


@pytest.mark.parametrize("since", ["the period is over", "another plan has begun"])
async def test_a_payment_whose_plan_cannot_come_back_gives_credits(shop: Shop, since: str) -> None:
    ada = owner()
    number = await end_unpaid(shop, ada)
    if since == "another plan has begun":
        await shop.billing.give_plan(ada, "enterprise")
    else:
        await shop.end_period(ada)
    await shop.billing.work()
    plan = shop.plan_of(ada)
    for _ in range(2):
        await shop.billing.pay(number, "wire 17")
    assert (shop.plan_of(ada), await shop.fetch("SELECT balance_micro FROM accounts WHERE owner = $1", ada)) == (plan, 29_000_000)
    assert (await shop.ledger.verify(grace_seconds=1)).findings == ()


async def test_a_payment_in_time_gives_no_credits(shop: Shop) -> None:
    ada = owner()
    await shop.billing.pay(await late_plan(shop, ada, 20), "wire 17")
    assert (shop.plan_of(ada), await shop.fetch("SELECT balance_micro FROM accounts WHERE owner = $1", ada)) == ("pro@0", 0)


async def test_usage_that_is_paid_late_gives_the_plan_back_unless_its_own_fee_is_open(shop: Shop) -> None:
    ada, bob = owner(), owner()
    for of, is_paid in ((ada, True), (bob, False)):
        await shop.billing.give_plan(of, "pro")
        await shop.execute("UPDATE accounts SET balance_micro = -5000000 WHERE owner = $1", of)
        await shop.end_period(of)
        await shop.billing.work()
        fee, usage = sorted(await shop.invoices(of), key=lambda invoice: -invoice.document.net_minor)
        if is_paid:
            await shop.billing.pay(fee.number, "wire 17")
        for days in (14, 17, 21):
            for invoice in (fee, usage):
                await shop.wait_days(invoice.number, days)
            await shop.billing.work()
        await shop.billing.pay(usage.number, "wire 18")
        assert shop.plan_of(of) == ("pro@0" if is_paid else "free@0")
    await shop.billing.pay(fee.number, "wire 19")
    assert shop.plan_of(bob) == "pro@0"
    assert await shop.fetch("SELECT sum(balance_micro)::integer FROM accounts") == 0


async def test_an_order_outlives_the_end_of_an_unpaid_plan(shop: Shop) -> None:
    ada = owner()
    await shop.live.change(lambda *_: {(ConfigKind.PLAN, "gold"): PlanDocument(fee=99.0, for_sale=True)}, origin="applied", author=None)
    number = await late_plan(shop, ada, 17)
    ordered = (await shop.order(ada, "gold")).invoice
    assert ordered is not None
    for days in (14, 17, 21):
        await shop.wait_days(number, days)
        await shop.billing.work()
    assert shop.plan_of(ada) == "free@0"
    await shop.billing.pay(ordered, "wire 17")
    assert shop.plan_of(ada) == "gold@1"


async def test_credits_are_added_once_when_their_invoice_is_paid(shop: Shop) -> None:
    ada, order_id = owner(), RequestId(uuid4())
    orders = [await shop.billing.order_top_up(ada, OrderTopUp("25.00", order_id)) for _ in range(3)]
    assert len(set(orders)) == 1
    with pytest.raises(errors.IdempotencyConflict):
        await shop.billing.order_top_up(ada, OrderTopUp("26", order_id))
    number = orders[0].invoice
    assert number is not None
    for _ in range(2):
        await shop.billing.pay(number, "wire 9")
    assert (await shop.ledger.read_account(ada, Spending())).balance_micro == 25_000_000
    assert (await shop.ledger.verify(grace_seconds=1)).findings == ()
    with pytest.raises(errors.AlreadyExists):
        await shop.billing.void(number, "typo")


async def test_credits_that_survived_a_restore_are_not_given_again(shop: Shop) -> None:
    """The recovery log gives credits back whose invoice is open in the restored database."""
    for amount, paid in ((25_000_000, InvoiceState.PAID), (24_000_000, None)):
        ada, order_id = owner(), RequestId(uuid4())
        order = await shop.billing.order_top_up(ada, OrderTopUp("25.00", order_id))
        assert order.invoice is not None
        transfer = await shop.fetch("SELECT order_id FROM invoices WHERE number = $1", order.invoice)
        assert await shop.ledger.top_up(transfer, ada, MicroCredits(amount), "recovery log", Spending())
        if paid is None:
            with pytest.raises(errors.IdempotencyConflict, match="for another account or amount"):
                await shop.billing.pay(order.invoice, "wire 9")
        else:
            assert (await shop.billing.pay(order.invoice, "wire 9")).state is paid
        assert (await shop.ledger.read_account(ada, Spending())).balance_micro == amount


async def ask(shop: Shop, ada: TenantId, micro: int) -> bool:
    """Let an account without tokens ask for something that costs this much; return whether it may."""
    request = RequestId(uuid4())
    await shop.ledger.add_price(ModelPrice(None, MicroCredits(1), MicroCredits(1)))
    granted = await shop.fetch(
        "SELECT granted_tokens FROM reserve($1, $2, NULL, 'm', (SELECT max(id) FROM prices), 'g', 90, 0, 0, 0, 1, $3, 1, 1, 1,"
        " 0, 0, true, NULL, NULL, NULL, NULL)", request, ada, micro,
    )  # fmt: skip
    await shop.fetch("SELECT settle($1, $2, 0, 'settled')", request, micro)
    return granted is not None


async def test_a_refund_takes_credits_back_and_an_account_below_zero_reads_and_pays_alone(shop: Shop) -> None:
    ada = owner()
    first = (await shop.billing.order_top_up(ada, OrderTopUp("25", RequestId(uuid4())))).invoice
    assert first is not None
    await shop.billing.pay(first, "wire 9")
    assert await ask(shop, ada, 10_000_000)
    assert (await shop.billing.void(first, "sent twice", refund=True)).state is InvoiceState.REFUNDED
    assert (await balance(shop, ada), await ask(shop, ada, 1)) == (-10_000_000, False)
    invoice, note = await shop.invoices(ada)
    assert (invoice.reference, note.reference, note.document.total_minor) == ("wire 9", "sent twice", -2975)
    assert [month.net_minor for month in await shop.rows.sum_revenue("EUR")] == [0]
    for number in (first, note.number):
        with pytest.raises(errors.AlreadyExists, match="is no paid invoice"):
            await shop.billing.void(number, "again", refund=True)
    second = (await shop.billing.order_top_up(ada, OrderTopUp("25", RequestId(uuid4())))).invoice
    assert second is not None
    with pytest.raises(errors.AlreadyExists, match="is no paid invoice"):
        await shop.billing.void(second, "not paid", refund=True)
    await shop.billing.pay(second, "wire 10")
    assert (await balance(shop, ada), await ask(shop, ada, 1)) == (15_000_000, True)
    assert (await shop.ledger.verify(grace_seconds=1)).findings == ()


async def test_a_refund_ends_the_plan_in_the_period_that_was_paid(shop: Shop) -> None:
    ada = owner()
    first = (await shop.order(ada, "pro")).invoice
    assert first is not None
    await shop.billing.pay(first, "wire 9")
    await shop.end_period(ada)
    await shop.billing.work()
    second = (await shop.invoices(ada))[1].number
    await shop.billing.pay(second, "wire 10")
    assert await used(shop, ada, 300_000) == (1_000_000, 300_000)
    await shop.billing.void(first, "goodwill", refund=True)
    assert (shop.plan_of(ada), await used(shop, ada)) == ("pro@0", (1_000_000, 300_000)), "another period"
    await shop.billing.void(second, "canceled", refund=True)
    assert (shop.plan_of(ada), await used(shop, ada)) == ("free@0", (0, 0))
    assert await balance(shop, ada) == 0


async def test_a_refund_takes_the_credits_of_a_late_payment_back(shop: Shop) -> None:
    ada = owner()
    number = await end_unpaid(shop, ada)
    await shop.end_period(ada)
    await shop.billing.pay(number, "wire 9")
    assert await balance(shop, ada) == 29_000_000
    await shop.billing.void(number, "too late", refund=True)
    assert await balance(shop, ada) == 0


async def test_an_account_has_ten_unpaid_orders_at_most(shop: Shop) -> None:
    ada, ordered = owner(), OrderTopUp("25.00", RequestId(uuid4()))
    first = await shop.billing.order_top_up(ada, ordered)
    asked = [shop.billing.order_top_up(ada, OrderTopUp("25.00", RequestId(uuid4()))) for _ in range(15)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in results].count(errors.NotAllowed) == 6
    with pytest.raises(errors.NotAllowed, match="10 unpaid orders and invoices"):
        await shop.order(ada, "pro")
    assert await shop.billing.order_top_up(ada, ordered) == first, "no new one"
    await shop.billing.order_top_up(owner(), OrderTopUp("25.00", RequestId(uuid4())))
    assert first.invoice is not None
    await shop.billing.pay(first.invoice, "wire 9")
    await shop.order(ada, "pro")


async def test_an_account_changes_its_plan_twenty_times_a_day(shop: Shop) -> None:
    ada = owner()
    for plan in ("pro", "free") * 10:
        await shop.order(ada, plan)
        await shop.order(ada, plan)
    with pytest.raises(errors.Limited, match="20 times today") as caught:
        await shop.order(ada, "pro")
    assert 0 < (caught.value.retry_after_seconds or 0) <= 86_400
    with pytest.raises(errors.Limited, match="20 times today"):
        await shop.billing.order_top_up(ada, OrderTopUp("25.00", RequestId(uuid4())))
    assert len(await shop.invoices(ada)) == 20, "with credit notes"
    await shop.billing.give_plan(ada, "pro")
    await shop.execute("UPDATE subscriptions SET changes_on = changes_on - 1 WHERE owner = $1", ada)
    await shop.order(ada, "free")


@pytest.mark.parametrize("wanted", ["4.99", "10000.01", "-5", "1e3", "5.001", "9" * 30, "x"])
async def test_other_amounts_are_refused(shop: Shop, wanted: str) -> None:
    with pytest.raises(errors.BadRequest, match="the amount"):
        await shop.billing.order_top_up(owner(), OrderTopUp(wanted, RequestId(uuid4())))
    with pytest.raises(errors.BadRequest, match="the currency must be EUR"):
        await shop.billing.order_top_up(owner(), OrderTopUp("25", RequestId(uuid4()), "USD"))


async def test_usage_beyond_the_plan_is_billed_at_the_end_of_the_period(shop: Shop) -> None:
    ada = owner()
    await shop.ledger.read_account(ada, Spending(100, None, has_plan=True))
    await shop.execute("UPDATE accounts SET balance_micro = -12345678 WHERE owner = $1", ada)
    await shop.end_period(ada)
    await shop.ledger.read_account(ada, Spending(100, None, has_plan=True))
    for _ in range(2):
        await shop.billing.work()
    (invoice,) = await shop.invoices(ada)
    assert (invoice.document.net_minor, invoice.document.lines[0].text[:28]) == (1234, "Usage beyond the plan, from ")
    assert (await shop.ledger.read_account(ada, Spending(100, None, has_plan=True))).balance_micro == 0


async def test_a_period_that_is_billed_again_costs_only_what_it_used_more(shop: Shop) -> None:
    """After a restore, an invoice may be there whose period is not over yet."""
    ada, charge = owner(), uuid4()
    for micro in (12_340_000, 12_340_000, 20_000_000, 15_000_000, 20_005_000, 21_000_000):
        await shop.execute("INSERT INTO owed (id, owner, micro, period_start, at) VALUES ($1, $2, $3, now(), now())", charge, ada, micro)
        await shop.billing.work()
    assert [one.document.net_minor for one in await shop.invoices(ada)] == [1234, 766, 100]
    assert await shop.fetch("SELECT count(*) FROM owed") == 0


async def test_auth_learns_of_a_plan_when_it_is_back(shop: Shop) -> None:
    ada = owner()
    shop.auth_is_away = True
    await shop.billing.give_plan(ada, "pro")
    assert shop.plan_of(ada) == "free"
    shop.auth_is_away = False
    await shop.billing.work()
    assert shop.plan_of(ada) == "pro@0"


async def in_transactions(shop: Shop) -> int:
    """Return how many connections wait in a transaction for what the gateway does meanwhile."""
    return int(await shop.fetch("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"))


async def test_auth_is_asked_outside_of_transactions(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    ada, bob, asked = owner(), owner(), list[tuple[str, int]]()

    def watched(method: Any) -> Any:
        async def call(request: Any) -> Any:
            asked.append((type(request).__name__, await in_transactions(shop)))
            return await method(request)

        return call

    for one in (ada, bob):
        await shop.billing.give_plan(one, "pro")
        await shop.end_period(one)
    monkeypatch.setitem(shop.rpc.answers, api.describe_account.name, watched(shop._describe))
    monkeypatch.setitem(shop.rpc.answers, api.apply_plan.name, watched(shop._apply))
    shop.gone.add(bob)
    await shop.order(ada, "free")
    await shop.billing.work()
    await shop.end_period(ada)
    await shop.billing.work()
    assert {name for name, _ in asked} == {"DescribeAccount", "ApplyPlan"}
    assert [found for _, found in asked] == [0] * len(asked)
    assert shop.plan_of(ada) == "free@0"
    held = await shop.rows.find_subscription(bob)
    assert held is not None
    assert (held.plan, [invoice.document.net_minor for invoice in await shop.invoices(ada)]) == (None, [])


@pytest.mark.parametrize("is_stalled", [False, True])
async def test_auth_knows_the_newest_plan_although_an_older_one_came_later(shop: Shop, is_stalled: bool) -> None:
    """Another gateway changes the plan while the first one's call is on its way; stalled: for longer than its turn."""
    ada, second = owner(), Billing(shop.rows, shop.live, shop.rpc, SELLER, items=shop.items)
    told, apply = list[str](), shop._apply

    async def meanwhile(request: api.ApplyPlan) -> Nothing:
        if not told:
            told.append("first")
            if is_stalled:
                await shop.execute("UPDATE subscriptions SET taken_until = '-infinity'")
            await second.give_plan(ada, "enterprise")
            assert shop.plan_of(ada) == ("enterprise@0" if is_stalled else "free"), "one at a time"
        told.append(request.plan)
        return await apply(request)

    shop.rpc.answers[api.apply_plan.name] = meanwhile
    await shop.billing.give_plan(ada, "pro")
    assert shop.plan_of(ada) == "enterprise@0"
    assert told == ["first", *(["enterprise@0"] if is_stalled else []), "pro@0", "enterprise@0"]
    assert await shop.fetch("SELECT count(*) FROM subscriptions WHERE NOT is_applied OR taken_until > now()") == 0


async def test_a_period_begins_once_although_two_gateways_see_its_end(shop: Shop) -> None:
    ada, second, describe = owner(), Billing(shop.rows, shop.live, shop.rpc, SELLER, items=shop.items), shop._describe
    await shop.billing.give_plan(ada, "pro")
    await shop.end_period(ada)
    is_first = True

    async def meanwhile(request: api.DescribeAccount) -> api.AccountName:
        nonlocal is_first
        if is_first:
            is_first = False
            await second.work()
            assert await shop.invoices(ada) == [], "one at a time"
            await shop.execute("UPDATE subscriptions SET taken_until = '-infinity'")
            await second.work()
        return await describe(request)

    shop.rpc.answers[api.describe_account.name] = meanwhile
    await shop.billing.work()
    assert [invoice.document.net_minor for invoice in await shop.invoices(ada)] == [2900]


@pytest.mark.parametrize("work", ["plan", "renewal", "usage"])
async def test_a_gateway_that_was_too_slow_does_not_end_the_turn_of_the_next_one(shop: Shop, work: str) -> None:
    ada, method = owner(), api.apply_plan if work == "plan" else api.describe_account
    await shop.billing.give_plan(ada, "pro")
    if work == "plan":
        await shop.execute("UPDATE subscriptions SET is_applied = false")
    else:
        await shop.execute("UPDATE accounts SET balance_micro = -5000000 WHERE owner = $1", ada)
        await shop.end_period(ada)
    if work == "usage":
        await shop.ledger.read_account(ada, Spending(100, None, has_plan=True))
        await shop.execute("UPDATE subscriptions SET taken_until = 'infinity'")
    table = "owed" if work == "usage" else "subscriptions"
    turns = list[object]()

    async def slow(_: object) -> Nothing:
        await shop.execute(f"UPDATE {table} SET taken_until = now() - interval '1 second'")
        taken = await {"plan": shop.rows.take_unapplied, "renewal": shop.rows.take_due, "usage": lambda: shop.rows.take_owed([])}[work]()
        assert taken is not None
        turns.append(taken)
        raise errors.Unavailable("no answer")

    shop.rpc.answers[method.name] = slow
    with suppress(errors.Unavailable):
        await shop.billing.work()
    assert len(turns) == 1
    assert await shop.fetch(f"SELECT count(*) FROM {table} WHERE taken_until BETWEEN now() AND now() + interval '1 hour'") == 1


async def test_an_erased_account_is_billed_no_more(shop: Shop) -> None:
    ada = owner()
    await shop.billing.give_plan(ada, "pro")
    shop.gone.add(ada)
    await shop.end_period(ada)
    await shop.billing.work()
    held = await shop.rows.find_subscription(ada)
    assert held is not None
    assert (held.plan, await shop.invoices(ada)) == (None, [])


async def test_invoices_have_no_gaps_and_never_change(shop: Shop) -> None:
    numbers = []
    for amount in ("5", "6", "x", "7"):
        try:
            numbers.append((await shop.billing.order_top_up(owner(), OrderTopUp(amount, RequestId(uuid4())))).invoice)
        except errors.BadRequest:
            continue
    year = datetime.now(UTC).year
    assert numbers == [f"INV-{year}-00000{number}" for number in (1, 2, 3)]
    for statement in ("UPDATE invoices SET document = '{}'", "DELETE FROM invoices"):
        with pytest.raises(asyncpg.RaiseError, match="never changed"):
            await shop.execute(statement)


async def test_paid_invoices_are_revenue(shop: Shop) -> None:
    ada = owner()
    order = await shop.order(ada, "pro")
    assert order.invoice is not None
    for _ in range(2):
        await shop.billing.pay(order.invoice, "wire 17")
    second = (await shop.billing.order_top_up(ada, OrderTopUp("25", RequestId(uuid4())))).invoice
    assert second is not None
    await shop.billing.void(second, "typo")
    month = f"{datetime.now(UTC):%Y-%m}"
    assert shop.paid == [("EUR", 2900)]
    assert await shop.rows.sum_revenue("EUR") == (api.MonthRevenue(month, "EUR", 2900),), "without the tax of 5.51"
    await shop.execute("UPDATE invoices SET void_by = $1 WHERE paid_at IS NOT NULL AND number = $2", f"{second[:-1]}3", order.invoice)
    note = "SELECT jsonb_set(document, '{netMinor}', '-900') FROM invoices WHERE number = $1"
    await shop.execute("ALTER TABLE invoices DISABLE TRIGGER invoices_are_immutable")
    await shop.execute(f"UPDATE invoices SET document = ({note}) WHERE number = $1", f"{second[:-1]}3")
    assert await shop.rows.sum_revenue("EUR") == (api.MonthRevenue(month, "EUR", 2000),), "a credit note of a paid invoice takes back"
    for months, count in ((10, 2), (13, 1)):
        await shop.execute("UPDATE invoices SET paid_at = now() - make_interval(months => $1)", months)
        assert len(await shop.rows.sum_revenue("EUR")) == count


async def test_customers_are_listed_by_owner(shop: Shop) -> None:
    ada, bob, cleo = sorted(owner() for _ in range(3))
    await shop.billing.give_plan(ada, "pro")
    await shop.order(bob, "pro")
    await shop.order(cleo, "pro")
    await shop.order(cleo, "free")
    await shop.ledger.read_account(ada, Spending(100, MicroCredits(0), has_plan=True))
    first, second = await shop.rows.list_customers(None, 10)
    assert (first.owner, first.plan, first.state, first.provider) == (ada, "pro@0", api.PlanState.ACTIVE, "manual")
    assert first.period_ends_at is not None
    assert second == api.Customer(bob, None, "pro@0", api.PlanState.GIVEN, "manual", None)
    assert await shop.rows.list_customers(None, 1) == (first,)
    assert await shop.rows.list_customers(ada, 10) == (second,)


async def test_visitors_see_the_plans_for_sale(shop: Shop) -> None:
    rpc = BillingRpc(shop.billing, shop.rows, shop.live, shop.ledger, shop.rpc, AuditReporting(shop.rpc), "EUR", is_on=True)
    await shop.live.change(lambda *_: {(ConfigKind.PLAN, "gold"): PlanDocument(fee=99.0)}, origin="applied", author=None)
    admin = msgspec.structs.replace(PERSON, role=UserRole.ADMIN)
    names = {}
    for who in (None, PERSON, admin):
        call = RpcCall(Peer(Role.WEB, node_id(1)), deadline=0, credential=None, idempotency_key=None)
        call.found = who
        names[who] = [plan.name for plan in (await rpc.list_plans(api.ListPlans(), call)).plans]
    assert names[None] == names[PERSON]
    assert set(names[admin]) - set(names[None]) == {"gold", "enterprise"}


async def test_a_paid_plan_needs_no_verified_address_and_the_free_one_after_it_does(shop: Shop) -> None:
    rpc = BillingRpc(shop.billing, shop.rows, shop.live, shop.ledger, shop.rpc, AuditReporting(shop.rpc), "EUR", is_on=True)
    call = rpc_call(msgspec.structs.replace(PERSON, role=UserRole.ADMIN))
    ada = owner()
    shop.unverified.add(ada)

    async def included() -> int | None:
        allowance = (await rpc.read_billing(api.ReadBilling(ada), call)).account.allowance
        assert allowance is not None
        return allowance.included

    assert await included() == 0
    told = msgspec.json.encode(await rpc.read_billing(api.ReadBilling(ada), call))
    assert b"includedMicro" not in told
    assert b"0001-01-01" not in told
    await shop.billing.give_plan(ada, "pro")
    assert await included() == 1_000_000
    await shop.order(ada, "free")
    for _ in range(2):
        await shop.end_period(ada)
        await shop.billing.work()
        assert (shop.plan_of(ada), await included()) == ("free@0", 0)
    await shop.billing.give_plan(ada, "free")
    assert await included() == 0
    shop.unverified.clear()
    assert await included() == 100_000


async def test_an_organization_that_shares_limits_gets_no_tokens_of_its_own(shop: Shop) -> None:
    rpc = BillingRpc(shop.billing, shop.rows, shop.live, shop.ledger, shop.rpc, AuditReporting(shop.rpc), "EUR", is_on=True)
    call = rpc_call(msgspec.structs.replace(PERSON, role=UserRole.ADMIN))
    sharing, own = owner(), owner()
    shop.sharing.add(sharing)
    allowances = [(await rpc.read_billing(api.ReadBilling(of), call)).account.allowance for of in (sharing, own)]
    assert [allowance and allowance.included for allowance in allowances] == [0, 100_000]
