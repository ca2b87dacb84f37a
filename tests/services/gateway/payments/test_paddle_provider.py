"""Plans and credits through Paddle: the official library against a fake, with faults."""

import random
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from paddle_billing.Notifications import Secret, Verifier

from services.gateway.billing.reservations import Spending
from services.gateway.facts.provider_settings import ProviderSettings
from services.gateway.payments import payment_provider
from services.gateway.payments.payment_provider import MAX_AGE_SECONDS, Forged, PaymentProvider
from shared import errors
from shared.api.billing import Order
from shared.api.notices import PaymentLate
from shared.types import TenantId
from tests.services.gateway.payments import paddle_server
from tests.services.gateway.payments.paddle_server import PaddleServer
from tests.services.gateway.payments.shop import Shop, balance, deliver, owner, selling, top_up


@pytest.fixture
async def selling_shop(shop: Shop, paddle: PaddleServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    monkeypatch.setattr(payment_provider, "READ_SECONDS", 1.0)
    settings = ProviderSettings(
        name="paddle", secret=paddle_server.KEY, webhook_secret=paddle_server.SECRET, api_url=paddle.url,
        return_url="http://localhost:3000/billing", currency="EUR",
    )  # fmt: skip
    async with payment_provider.open_provider(settings) as provider:
        assert provider is not None
        async with selling(shop, "paddle", provider) as selling_shop:
            yield selling_shop


async def tell(shop: Shop, paddle: PaddleServer, *objects: str) -> None:
    for object_id in objects:
        await deliver(shop, paddle.signed(object_id))
    await shop.billing.work()


def transaction_of(order: Order) -> str:
    assert order.url is not None
    return order.url.rpartition("=")[2]


async def subscribe(shop: Shop, paddle: PaddleServer, ada: TenantId) -> str:
    subscription = paddle.pay(transaction_of(await shop.order(ada, "pro")))
    await tell(shop, paddle, subscription)
    return subscription


async def test_a_subscription_is_followed_from_checkout_to_end(selling_shop: Shop, paddle: PaddleServer) -> None:
    shop, ada = selling_shop, owner()
    order = await shop.order(ada, "pro")
    assert await shop.order(ada, "pro") == order
    await tell(shop, paddle, transaction_of(order))
    assert shop.plan_of(ada) == "free"
    subscription = paddle.pay(transaction_of(order))
    # The transaction names the subscription, whose own event was lost.
    await tell(shop, paddle, transaction_of(order))
    assert shop.plan_of(ada) == "pro@1"
    customer = paddle.subscriptions[subscription]["customer_id"]
    assert (await shop.order(ada, "gold")).url == f"https://portal.test/{customer}"
    for status, plan in (("past_due", "pro@1"), ("canceled", "free@0")):
        paddle.subscriptions[subscription]["status"] = status
        await tell(shop, paddle, subscription)
        held = await shop.rows.find_subscription(ada)
        assert held is not None
        assert (shop.plan_of(ada), held.is_past_due) == (plan, status == "past_due")


async def test_an_event_about_what_is_gone_ends(selling_shop: Shop, paddle: PaddleServer) -> None:
    await tell(selling_shop, paddle, "txn_of_another_account", "sub_of_another_account")
    assert await selling_shop.billing.measure_events() == 0


async def test_credits_are_added_once(selling_shop: Shop, paddle: PaddleServer) -> None:
    shop, ada = selling_shop, owner()
    transaction = transaction_of(await top_up(shop, ada))
    price = paddle.transactions[transaction]["items"][0]["price"]["unit_price"]
    assert price == {"amount": "2500", "currency_code": "EUR"}
    paddle.pay(transaction)
    await tell(shop, paddle, *[transaction] * 3)
    assert await balance(shop, ada) == 25_000_000
    assert (await shop.ledger.verify(grace_seconds=1)).findings == ()


@pytest.mark.parametrize("fault", ["lost", "down"])
async def test_usage_beyond_the_plan_is_charged_once(selling_shop: Shop, paddle: PaddleServer, fault: str) -> None:
    """The charge happens, and its answer is lost; or Paddle is down."""
    shop, ada = selling_shop, owner()
    await subscribe(shop, paddle, ada)
    spending = Spending(100, None, has_plan=True)
    await shop.execute("UPDATE accounts SET balance_micro = -12345678 WHERE owner = $1", ada)
    await shop.end_period(ada)
    await shop.ledger.read_account(ada, spending)
    paddle.faults = ["", fault]
    for _ in range(3):
        await shop.billing.work()
    charges = [one for one in paddle.transactions.values() if one["origin"] == "subscription_charge"]
    assert [one["items"][0]["price"]["unit_price"]["amount"] for one in charges] == ["1234"]
    assert (await shop.invoices(ada), await shop.fetch("SELECT count(*) FROM owed")) == ([], 0)


@pytest.mark.parametrize("fault", ["", "lost"])
async def test_a_period_that_is_charged_again_costs_only_what_it_used_more(selling_shop: Shop, paddle: PaddleServer, fault: str) -> None:
    """A restored database bills the same charge with another amount."""
    shop, ada = selling_shop, owner()
    await subscribe(shop, paddle, ada)
    charge = await shop.fetch("INSERT INTO owed VALUES (gen_random_uuid(), $1, 12340000, now(), clock_timestamp()) RETURNING id", ada)
    await shop.billing.work()
    for micro in (15_000_000, 15_000_000, 12_340_000, 15_500_000):
        await shop.execute("INSERT INTO owed VALUES ($1, $2, $3, now(), clock_timestamp())", charge, ada, micro)
        paddle.faults = ["", fault]
        for _ in range(2):
            await shop.billing.work()
        assert await shop.fetch("SELECT count(*) FROM owed") == 0
    prices = [one["items"][0]["price"] for one in paddle.transactions.values() if one["origin"] == "subscription_charge"]
    assert [price["unit_price"]["amount"] for price in prices] == ["1234", "266", "50"]
    assert prices[0]["custom_data"] == {"order": str(charge)}
    assert len({price["custom_data"]["order"] for price in prices}) == 3


async def test_a_late_payment_is_told_once_in_a_period_also_after_a_restore(selling_shop: Shop, paddle: PaddleServer) -> None:
    shop, ada, subjects = selling_shop, owner(), list[str]()
    subscription = await subscribe(shop, paddle, ada)
    paddle.subscriptions[subscription]["status"] = "past_due"
    period = paddle.subscriptions[subscription]["current_billing_period"]
    for start in (period["starts_at"], period["starts_at"], period["ends_at"]):
        await shop.execute("UPDATE subscriptions SET is_past_due = false")
        period["starts_at"] = start
        await tell(shop, paddle, subscription)
        subjects += [subject for subject, notice in await shop.notices() if isinstance(notice, PaymentLate)]
    assert len(subjects) == 3
    assert subjects[0] == subjects[1] != subjects[2], "auth mails each subject once"


async def test_the_subscription_of_an_erased_account_is_canceled(selling_shop: Shop, paddle: PaddleServer) -> None:
    shop, ada = selling_shop, owner()
    subscription = await subscribe(shop, paddle, ada)
    shop.gone.add(ada)
    await shop.execute("UPDATE subscriptions SET changed_at = now() - interval '25 hours'")
    await shop.billing.work()
    assert paddle.canceled == [subscription]


async def test_one_refused_charge_does_not_hold_up_the_others(selling_shop: Shop, paddle: PaddleServer) -> None:
    shop, ada, bob = selling_shop, owner(), owner()
    for one in (ada, bob):
        await subscribe(shop, paddle, one)
    for one in (ada, bob):
        await shop.execute("INSERT INTO owed VALUES (gen_random_uuid(), $1, 5000000, now(), clock_timestamp())", one)
    paddle.faults = ["down"]
    await shop.billing.work()
    assert await shop.fetch("SELECT owner FROM owed") == ada
    await shop.billing.work()
    assert await shop.fetch("SELECT count(*) FROM owed") == 0


async def test_a_checkout_without_an_answer_is_made_again(selling_shop: Shop, paddle: PaddleServer) -> None:
    shop, ada = selling_shop, owner()
    paddle.faults = ["lost"]
    with pytest.raises(errors.Unavailable, match="Paddle did not accept the call or did not answer"):
        await shop.order(ada, "pro")
    order = await shop.order(ada, "pro")
    # Nobody has the address of the first.
    assert [*paddle.transactions][-1] == transaction_of(order)


def test_the_verdict_on_altered_signatures_is_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    provider, rng = _verifying(), random.Random(52)
    monkeypatch.delenv("TEST_MODE", raising=False)
    verdicts = []
    for _ in range(5000):
        body, signature = paddle_server.PaddleServer().signed("txn_1", age=rng.choice((0, 0, 0, 290, 310, -310)))
        altered, header = bytearray(body), bytearray(signature.encode())
        for text in (altered, header):
            if rng.random() < 0.5:
                continue
            at = rng.randrange(len(text))
            match rng.randrange(4):
                case 0:
                    text[at] = rng.randrange(32, 127)
                case 1:
                    del text[at : at + rng.randrange(3)]
                case 2:
                    text[at:at] = rng.choice((b";h1=", b"ts=1;", b"=", b";", b" ", b"\x80"))
                case _:
                    text.extend(rng.choice((b";h1=" + b"0" * 64, b";ts=%d" % rng.randrange(2**40), b";x=1", b" ")))
        ours = _is_accepted(provider, bytes(altered), header.decode("latin-1"))
        assert ours == _librarys(bytes(altered), header.decode("latin-1")), (bytes(altered), bytes(header))
        verdicts.append(ours)
    assert 500 < sum(verdicts) < 2500
    # With it, the library's Verifier accepts any age.
    monkeypatch.setenv("TEST_MODE", "1")
    assert not _is_accepted(provider, *paddle_server.PaddleServer().signed("txn_1", age=310))


def _verifying() -> PaymentProvider:
    from services.gateway.payments.paddle_provider import PaddleProvider

    settings = ProviderSettings(
        name="paddle", secret=paddle_server.KEY, webhook_secret=paddle_server.SECRET, api_url=None, return_url="", currency="EUR"
    )
    return PaddleProvider(None, None, settings)  # type: ignore[arg-type]


def _is_accepted(provider: PaymentProvider, body: bytes, signature: str) -> bool:
    try:
        provider.verify(body, signature)
    except Forged:
        return False
    return True


def _librarys(body: bytes, signature: str) -> bool:
    request = SimpleNamespace(body=body, headers={"Paddle-Signature": signature})
    try:
        return bool(Verifier(MAX_AGE_SECONDS).verify(request, Secret(paddle_server.SECRET)))
    except (ValueError, TypeError, OverflowError):
        return False
