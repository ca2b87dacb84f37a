"""After an older copy replaces the gateway's database, invoices, their numbers and the plans of accounts are as before."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from services.gateway import store
from services.gateway.billing.reservations import Spending
from services.gateway.recovery import kinds
from shared import errors
from shared.api.billing import InvoiceState, OrderTopUp
from shared.recovery.recovery_lines import RecoveryLine
from shared.recovery.replay import Replay
from shared.types import MicroCredits, RequestId, TenantId
from tests.servers import PostgresServer
from tests.services.gateway.payments.shop import Shop, balance
from tests.services.gateway.recovery.restoring import RestorableGateway, RunningGateway

ADA, BOB = TenantId(UUID(int=1)), TenantId(UUID(int=2))
YEAR = datetime.now(UTC).year

Act = Callable[[Shop], Awaitable[object]]


class Selling(Shop):
    """A shop with a running gateway."""

    gateway: RunningGateway


@pytest.fixture
def stored(plain_url: str, valkey_url: str, postgres: PostgresServer, tmp_path: Path) -> RestorableGateway:
    """A gateway with a role that row-level security applies to."""
    return RestorableGateway(plain_url, valkey_url, postgres, tmp_path)


@asynccontextmanager
async def selling(stored: RestorableGateway, number: int = 1) -> AsyncIterator[Selling]:
    async with stored.running(number) as gateway, store.opened(stored.url) as opened:
        shop = Selling(opened, gateway.live, stored.url)
        shop.gateway = gateway
        yield shop


def lines_in(file: Path) -> list[RecoveryLine]:
    return [msgspec.json.decode(line, type=RecoveryLine) for line in file.read_bytes().splitlines()]


def numbered(count: int) -> str:
    return f"INV-{YEAR}-{count:06d}"


async def nothing(_shop: Shop) -> None:
    pass


async def order_plan(shop: Shop) -> None:
    await shop.order(ADA, "pro")


async def order_credits(shop: Shop, owner: TenantId = ADA) -> str:
    made = (await shop.billing.order_top_up(owner, OrderTopUp("25", RequestId(uuid4())))).invoice
    assert made is not None
    return made


async def pay(shop: Shop) -> None:
    await shop.billing.pay(numbered(1), "wire 17")


async def void(shop: Shop) -> None:
    await shop.billing.void(numbered(1), "the wrong address")


async def refund(shop: Shop) -> None:
    await shop.billing.void(numbered(1), "sent twice", refund=True)


async def buy_plan(shop: Shop) -> None:
    await order_plan(shop)
    await pay(shop)


async def buy_credits(shop: Shop) -> None:
    await order_credits(shop)
    await pay(shop)


async def use_more(shop: Shop) -> None:
    await buy_plan(shop)
    assert await shop.ledger.top_up(RequestId(uuid4()), ADA, MicroCredits(-12_345_678), "", Spending())


async def leave_plan(shop: Shop) -> None:
    shop.plans[ADA] = "pro@1"
    await shop.order(ADA, "free")


async def renew(shop: Shop) -> None:
    await shop.end_period(ADA)
    await shop.billing.work()


async def be_late(shop: Shop) -> None:
    await shop.wait_days(await order_credits(shop), 14)


async def remind(shop: Shop) -> None:
    await shop.billing.work()
    assert await shop.fetch("SELECT reminders FROM invoices") == 1


async def books(shop: Shop) -> list[Any]:
    """Return all that customers are told."""
    sold = "to_jsonb(each) - '{is_applied,changed_at,version,changes,changes_on}'::text[]"
    told = (
        "SELECT jsonb_agg(to_jsonb(each) ORDER BY number) FROM invoices AS each",
        "SELECT jsonb_agg(to_jsonb(each) ORDER BY series) FROM invoice_numbers AS each",
        f"SELECT jsonb_agg({sold}) FROM subscriptions AS each WHERE coalesce(plan, next_plan) IS NOT NULL",
        "SELECT jsonb_agg(jsonb_build_array(owner, anchor, period_end)) FROM accounts JOIN subscriptions USING (owner) WHERE plan <> ''",
    )
    return [json.loads(await shop.fetch(sql) or "[]") for sql in told]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(nothing, order_plan, id="the invoice"),
        pytest.param(nothing, buy_plan, id="the invoice and its payment"),
        pytest.param(order_plan, pay, id="the payment"),
        pytest.param(order_plan, void, id="the credit note"),
        pytest.param(nothing, buy_credits, id="the credits"),
        pytest.param(buy_credits, refund, id="the refund"),
        pytest.param(buy_plan, refund, id="the refund of a plan"),
        pytest.param(buy_plan, leave_plan, id="the cancellation"),
        pytest.param(buy_plan, renew, id="the next period"),
        pytest.param(use_more, renew, id="the bill of a period"),
        pytest.param(be_late, remind, id="the reminder"),
    ],
)
async def test_books_are_as_before(stored: RestorableGateway, before: Act, after: Act) -> None:
    """Restored to before what the name says."""
    async with selling(stored) as shop:
        await before(shop)
    backup = await stored.restore_point()
    async with selling(stored) as shop:
        await after(shop)
        told, credit = await books(shop), await balance(shop, ADA)
    stored.url = backup
    for _ in range(2):
        async with selling(stored) as shop:
            await shop.billing.work()
            assert await books(shop) == told
            assert await balance(shop, ADA) == credit
            assert (await shop.ledger.verify(grace_seconds=60)).findings == ()
    async with selling(stored) as shop:
        assert await order_credits(shop, BOB) == numbered(len(told[0]) + 1)


async def test_auth_learns_of_a_plan_that_was_paid_after_the_restored_moment(stored: RestorableGateway) -> None:
    async with selling(stored) as shop:
        await order_plan(shop)
    backup = await stored.restore_point()
    async with selling(stored) as shop:
        await pay(shop)
        began = await shop.fetch("SELECT period_start FROM accounts WHERE owner = $1", ADA)
    stored.url = backup
    async with selling(stored) as shop:
        assert shop.plan_of(ADA) == "free"
        await shop.billing.work()
        assert shop.plan_of(ADA) == "pro@1"
        # The same payment again is the same.
        await pay(shop)
        assert [one.state for one in await shop.invoices(ADA)] == [InvoiceState.PAID]
        assert await shop.fetch("SELECT period_start FROM accounts WHERE owner = $1", ADA) == began
        for _ in range(2):
            await shop.billing.work()
        assert len(await shop.invoices(ADA)) == 1
        await renew(shop)
        assert len(await shop.invoices(ADA)) == 2


async def test_a_month_that_was_billed_is_not_billed_again_under_another_number(stored: RestorableGateway) -> None:
    """As if its plan's line were lost: the order of the month leads to its invoice."""
    async with selling(stored) as shop:
        await buy_plan(shop)
    backup = await stored.restore_point()
    async with selling(stored) as shop:
        await renew(shop)
        billed = await shop.fetch("SELECT billed_period FROM subscriptions")
        told = await shop.invoices(ADA)
        assert len(told) == 2
    stored.url = backup
    async with selling(stored) as shop:
        await shop.execute("UPDATE subscriptions SET billed_period = billed_period - interval '1 month'")
        await shop.billing.work()
        assert await shop.invoices(ADA) == told
        assert await shop.fetch("SELECT billed_period FROM subscriptions") == billed


async def test_a_subscription_at_a_provider_is_known_and_read_soon(stored: RestorableGateway) -> None:
    async with selling(stored) as shop:
        pass
    backup = await stored.restore_point()
    async with selling(stored) as shop:
        await shop.billing.give_plan(ADA, "pro")
        await shop.execute("UPDATE subscriptions SET provider = 'stripe', customer = 'cus_1', subscription = 'sub_1'")
    stored.url = backup
    async with selling(stored) as shop:
        known = await shop.rows.find_followed("stripe", "sub_1")
        assert known is not None
        assert known.owner == ADA
        assert await shop.rows.take_unheard("stripe") == "sub_1"


async def test_replaying_twice_changes_nothing(stored: RestorableGateway) -> None:
    """The same lines are replayed on a database that already has everything, one at a time."""
    async with selling(stored) as shop:
        await buy_plan(shop)
        await refund(shop)
        await buy_credits_of_bob(shop)
        assert await shop.gateway.recovery.log.is_written()
        told, rows = (await books(shop), await balance(shop, BOB)), shop.gateway.recovery._rows
        async with rows.replaying() as (transaction, _):
            replay = Replay(rows, kinds.KINDS)
            for line in lines_in(stored.file):
                await replay._apply(transaction, line.kind, [line])
        assert (await books(shop), await balance(shop, BOB)) == told
        assert (await shop.ledger.verify(grace_seconds=60)).findings == ()


async def buy_credits_of_bob(shop: Shop) -> None:
    await shop.billing.pay(await order_credits(shop, BOB), "wire 18")


async def test_three_gateways_that_start_at_once_replay_once(stored: RestorableGateway) -> None:
    async with selling(stored) as shop:
        pass
    backup = await stored.restore_point()
    async with selling(stored) as shop:
        await lose(shop, order_credits)
        await order_plan(shop)
        await shop.billing.pay(numbered(2), "wire 17")
        told = await books(shop)
    stored.url = backup

    async def start(number: int) -> list[Any]:
        async with selling(stored, number) as shop:
            await shop.billing.work()
            assert await shop.fetch("SELECT count(*) FROM database_restores") == 1
            assert await order_credits(shop, BOB) in {numbered(count) for count in (3, 4, 5)}
            return await books(shop)

    for invoices, _, plans, periods in await asyncio.gather(*(start(number) for number in (1, 2, 3))):
        assert [invoices[1], plans, [each for each in periods if each[0] == str(ADA)]] == [told[0][1], told[2], told[3]]
        assert (invoices[0]["number"], invoices[0]["void_by"]) == (numbered(1), numbered(1))


async def lose(shop: Shop, act: Act) -> None:
    """Let invoices be written of which the recovery log gets no line."""
    await shop.execute("ALTER TABLE invoices DISABLE TRIGGER invoice_recorded")
    await act(shop)
    await shop.execute("ALTER TABLE invoices ENABLE TRIGGER invoice_recorded")


async def test_a_number_whose_document_is_lost_becomes_a_void_row_with_its_reason(stored: RestorableGateway) -> None:
    async with selling(stored) as shop:
        first = await order_credits(shop)
    backup = await stored.restore_point()
    async with selling(stored) as shop:
        await lose(shop, order_credits)
        # A payment of the lost invoice has a line without its document.
        await shop.billing.pay(numbered(2), "wire 17")
        last = await order_credits(shop)
        assert last == numbered(3)
    stored.url = backup
    for _ in range(2):
        async with selling(stored) as shop:
            found = await shop.rows.list_invoices(None, only_open=False, before=None, limit=10)
            assert [(one.number, one.state) for one in sorted(found, key=lambda one: one.number)] == [
                (first, InvoiceState.OPEN), (numbered(2), InvoiceState.VOID), (last, InvoiceState.OPEN),
            ]  # fmt: skip
            (lost,) = [one for one in found if one.number == numbered(2)]
            reason = f"lost in the restore of {datetime.now(UTC):%Y-%m-%d}"
            assert (lost.reference, lost.document.total_minor, lost.document.lines[0].text) == (reason, 0, reason)
            assert [one.number for one in await shop.invoices(ADA)] == [first, last], "it is nobody's"
            assert await shop.rows.sum_revenue("EUR") == ()
            with pytest.raises(errors.AlreadyExists, match="taken back"):
                await shop.billing.pay(lost.number, "wire 17")
    assert json.loads(lines_in(stored.file)[-1].details)["void_by"] == numbered(2), "the next restore knows it"


async def test_numbers_that_the_log_lacks_too_are_given_up_by_an_administrator(stored: RestorableGateway) -> None:
    stored.log_dir = None
    async with selling(stored) as shop:
        await order_credits(shop)
    backup = await stored.restore_point()
    async with selling(stored) as shop:
        for _ in range(3):
            await order_credits(shop)
    stored.url = backup
    async with selling(stored) as shop:
        reason = "lost with the disk; " + "x" * 480
        lost = await shop.billing.void_lost(numbered(4), reason)
        assert (lost.state, lost.reference) == (InvoiceState.VOID, reason)
        assert await shop.fetch("SELECT array_agg(number ORDER BY number) FROM invoices WHERE reference = $1", reason) == [
            numbered(count) for count in (2, 3, 4)
        ]
        assert await order_credits(shop) == numbered(5)
        for wrong in (numbered(0), numbered(4), numbered(5), numbered(106)):
            with pytest.raises(errors.BadRequest, match=f"{wrong} is not among the 100 numbers"):
                await shop.billing.void_lost(wrong, "typo")
        assert (await shop.billing.void_lost(f"INV-{YEAR + 1}-000001", "lost")).state is InvoiceState.VOID


async def test_credits_are_in_the_log_before_their_payment(stored: RestorableGateway) -> None:
    """A crash may cut off the log between the two lines. Paying again then gives nothing twice, and nothing is missing."""
    async with selling(stored) as shop:
        await order_credits(shop)
    backup = await stored.restore_point()
    async with selling(stored) as shop:
        await pay(shop)
    stored.file.write_bytes(b"".join(stored.file.read_bytes().splitlines(keepends=True)[:-1]))
    stored.url = backup
    async with selling(stored) as shop:
        await pay(shop)
        assert [one.state for one in await shop.invoices(ADA)] == [InvoiceState.PAID]
        assert await balance(shop, ADA) == 25_000_000


async def test_names_and_addresses_are_in_the_log_once_for_each_invoice(stored: RestorableGateway) -> None:
    async with selling(stored) as shop:
        await buy_plan(shop)
    named = [(line.kind, "document" in json.loads(line.details)) for line in lines_in(stored.file) if "ada@example.org" in line.details]
    assert named == [("invoice.written", True)]


async def test_every_column_of_an_invoice_comes_back(stored: RestorableGateway) -> None:
    async with selling(stored) as shop:
        number = await order_credits(shop)
    backup = await stored.restore_point()
    async with selling(stored) as shop:
        await shop.execute(
            "UPDATE invoices SET due_at = now(), paid_at = now(), reference = 'r', void_by = 'v', reminders = 2, reminded_at = now(),"
            " period_start = now(), ended_plan = 'pro@0', ended_until = now(), ended_tokens = 7"
        )
        told = json.loads(await shop.fetch("SELECT to_jsonb(invoices) FROM invoices WHERE number = $1", number))
        assert None not in told.values(), "a new column needs a place in replay_invoices"
    stored.url = backup
    async with selling(stored) as shop:
        assert json.loads(await shop.fetch("SELECT to_jsonb(invoices) FROM invoices WHERE number = $1", number)) == told
