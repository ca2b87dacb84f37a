"""Events arrive at least once, signed, from whichever gateway lives; on a real PostgreSQL, with a role that is no superuser."""

import asyncio
import base64
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Self
from uuid import UUID

import asyncpg
import msgspec
import openai
import pytest
import standardwebhooks
from openai.types.webhooks import BatchCompletedWebhookEvent

from features.webhooks import contract as api
from features.webhooks import instruments
from features.webhooks.contract import EventType, WebhookEndpoint
from features.webhooks.gateway import deliveries
from features.webhooks.gateway import store as webhook_store
from features.webhooks.gateway.deliveries import Deliveries
from features.webhooks.gateway.endpoint_secrets import EndpointSecrets
from features.webhooks.gateway.store import Delivery, WebhookStore
from features.webhooks.gateway.webhook_rpc import WebhookRpc
from features.webhooks.notices import WebhookDisabled
from features.webhooks.rules.receiver_rules import ReceiverRules
from services.gateway import store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.payments.billing_store import BillingStore
from services.gateway.payments.notice_outbox import NoticeOutbox
from shared import errors
from shared.api import notices as notices_api
from shared.api.auth import Principal
from shared.api.method import Nothing
from shared.api.notices import AddNotice
from shared.stores.database_clock import DatabaseClock
from shared.telemetry import Metrics
from shared.types import Tier, UserId, UserRole
from tests.features.webhooks.gateway.receiver import Receiver, client_of, receiving
from tests.services.gateway import fakes
from tests.services.gateway.fakes import FakeRpc, rpc_call
from tests.services.gateway.models.registries import Acts
from tests.testnet import until

ADA = Principal(UserId(UUID(int=1)), "ada", UserRole.USER, Tier.FREE)
EVE = Principal(UserId(UUID(int=2)), "eve", UserRole.USER, Tier.FREE)
BOB = Principal(UserId(UUID(int=3)), "bob", UserRole.USER, Tier.FREE)
DONE = EventType.BATCH_COMPLETED


@dataclass
class Gateway:
    """One of the mesh's, which sends when it is told to."""

    store: WebhookStore
    deliveries: Deliveries
    rpc: WebhookRpc
    metrics: Metrics
    database: Any
    url: str
    batches: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    async def create(self, receiver: Receiver, by: Principal = ADA, *events: EventType) -> WebhookEndpoint:
        return await self.rpc.create(api.CreateWebhook("mine", receiver.url, events or (DONE,)), rpc_call(by))

    async def get(self, endpoint: WebhookEndpoint, by: Principal = ADA) -> WebhookEndpoint:
        return await self.rpc.get(api.GetWebhook(endpoint.id), rpc_call(by))

    async def enqueue(self, event: EventType = DONE, by: Principal = ADA, about: str | None = None) -> None:
        """Without ``about``, another batch each time, from `batch_1`."""
        async with self.database.transaction() as transaction:
            await webhook_store.enqueue(transaction, by.tenant_id, event, about or f"batch_{next(self.batches)}")

    async def send(self) -> bool:
        """Make an attempt, if one is due."""
        delivery = await self.store.take()
        if delivery is not None:
            await self.deliveries.deliver(delivery)
        return delivery is not None

    async def run_sql(self, text: str, *args: object) -> list[Any]:
        """Also what no query of ours does."""
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute("SET search_path = gateway")
            return list(await connection.fetch(text, *args))
        finally:
            await connection.close()


@asynccontextmanager
async def running(url: str, receiver: Receiver, sql_url: str = "") -> AsyncIterator[Gateway]:
    async with store.opened(url) as opened:
        clock = DatabaseClock(LedgerStore(opened).read_clock)
        await clock.refresh()
        rows, secrets, metrics, client = WebhookStore(opened), EndpointSecrets("s" * 16), Metrics("gateway"), client_of(receiver)
        sender = Deliveries(
            rows,
            client,
            secrets,
            fakes.new_items(),
            count=metrics.counter(instruments.DELIVERIES),
            oldest=metrics.gauge(instruments.OLDEST),
            now=clock.now,
        )
        acts: Any = Acts()
        yield Gateway(rows, sender, WebhookRpc(rows, sender, client, secrets, acts), metrics, opened, sql_url)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


@pytest.fixture
async def gateway(plain_url: str, postgres_url: str, receiver: Receiver) -> AsyncIterator[Gateway]:
    async with running(plain_url, receiver, postgres_url) as found:
        yield found


@pytest.fixture
async def other(plain_url: str, receiver: Receiver) -> AsyncIterator[Gateway]:
    async with running(plain_url, receiver) as found:
        yield found


async def test_an_event_arrives_signed_and_names_only_its_object(gateway: Gateway, receiver: Receiver) -> None:
    made = await gateway.create(receiver)
    await gateway.enqueue()
    assert await gateway.send()
    (got,) = receiver.delivered
    assert made.secret is not None
    event = standardwebhooks.Webhook(made.secret).verify(got.body, got.headers)
    assert event == {
        "id": got.headers["webhook-id"],
        "object": "event",
        "type": "batch.completed",
        "created_at": event["created_at"],
        "timestamp": event["timestamp"],
        "data": {"id": "batch_1"},
    }
    unwrapped = openai.OpenAI(api_key="x", webhook_secret=made.secret).webhooks.unwrap(got.body, got.headers)
    assert isinstance(unwrapped, BatchCompletedWebhookEvent)
    assert (unwrapped.id, unwrapped.data.id) == (event["id"], "batch_1")
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(made.secret).verify(got.body + b" ", got.headers)
    shown = await gateway.get(made)
    assert shown.secret is None
    assert shown.last is not None
    assert (shown.last.status, shown.last.attempt, shown.last.event_id, shown.last.next_at) == (204, 1, event["id"], None)
    assert not await gateway.send()


class _WrongClock(datetime):
    """A machine whose clock is an hour ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(hours=1)


async def test_times_are_postgresqls(gateway: Gateway, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (deliveries, webhook_store):
        monkeypatch.setattr(module, "datetime", _WrongClock)
    made = await gateway.create(receiver)
    await gateway.enqueue()
    assert await gateway.send()
    (got,) = receiver.delivered
    assert made.secret is not None
    # Receivers refuse signatures that are five minutes old or early.
    event = standardwebhooks.Webhook(made.secret).verify(got.body, got.headers)
    assert abs(event["created_at"] - time.time()) < 60


async def test_only_endpoints_that_want_it_get_an_event(gateway: Gateway, receiver: Receiver) -> None:
    await gateway.create(receiver, ADA, EventType.BATCH_FAILED)
    await gateway.create(receiver, EVE)
    await gateway.enqueue()
    assert not await gateway.send()


async def test_an_event_of_a_transaction_that_fails_is_never_sent(gateway: Gateway, receiver: Receiver) -> None:
    await gateway.create(receiver)
    with pytest.raises(ZeroDivisionError):
        async with gateway.database.transaction() as transaction:
            await webhook_store.enqueue(transaction, ADA.tenant_id, DONE, "batch_1")
            raise ZeroDivisionError
    assert not await gateway.send()


async def test_an_events_id_comes_from_its_endpoint_object_and_type(gateway: Gateway, receiver: Receiver) -> None:
    """After a restore a batch ends again, and receivers ignore the event that they know."""
    for _ in range(2):
        await gateway.create(receiver, ADA, DONE, EventType.BATCH_FAILED)

    async def send(event: EventType, about: str, *, times: int = 1) -> set[str]:
        receiver.delivered.clear()
        for _ in range(times):
            await gateway.enqueue(event, about=about)
        while await gateway.send():
            pass
        assert all(each.headers["webhook-id"] == msgspec.json.decode(each.body)["id"] for each in receiver.delivered)
        return {each.headers["webhook-id"] for each in receiver.delivered}

    first = await send(DONE, "batch_1", times=2)
    assert (len(first), len(receiver.delivered)) == (2, 2), "one of each endpoint"
    assert await send(DONE, "batch_1") == set()
    assert len(first | await send(EventType.BATCH_FAILED, "batch_1") | await send(DONE, "batch_2")) == 6
    await gateway.run_sql("DELETE FROM webhook_deliveries")
    assert await send(DONE, "batch_1") == first
    tests = {await gateway.store.add_test(ADA.tenant_id, each.id, EventType.TEST) for each in await gateway.store.list(ADA.tenant_id) * 2}
    assert len(tests) == 4


async def test_both_secrets_sign_for_a_day_unless_the_former_one_ends_at_once(gateway: Gateway, receiver: Receiver) -> None:
    made = await gateway.create(receiver)
    rotated = await gateway.rpc.rotate(api.RotateWebhookSecret(made.id), rpc_call(ADA))
    assert made.secret is not None
    assert rotated.secret is not None
    assert made.secret != rotated.secret
    assert len(base64.b64decode(rotated.secret.removeprefix("whsec_"))) == 32
    assert rotated.secret_hint != made.secret_hint
    await gateway.enqueue()
    await gateway.send()
    for secret in (made.secret, rotated.secret):
        standardwebhooks.Webhook(secret).verify(receiver.delivered[0].body, receiver.delivered[0].headers)
    await gateway.run_sql("UPDATE webhook_endpoints SET former_until = now()")
    third = await gateway.rpc.rotate(api.RotateWebhookSecret(made.id, at_once=True), rpc_call(ADA))
    await gateway.enqueue()
    await gateway.send()
    last = receiver.delivered[1]
    assert third.secret is not None
    standardwebhooks.Webhook(third.secret).verify(last.body, last.headers)
    assert " " not in last.headers["webhook-signature"]


async def test_a_gateway_that_dies_after_the_claim_lets_another_send_it_again_with_the_same_id(
    gateway: Gateway, other: Gateway, receiver: Receiver
) -> None:
    await gateway.create(receiver)
    await gateway.enqueue()
    taken = await gateway.store.take()
    assert taken is not None
    # It has sent it, and dies before it notes the result.
    await gateway.deliveries._post(taken)
    assert not await other.send()
    await gateway.run_sql("UPDATE webhook_deliveries SET lease_until = now() - interval '1 second'")
    assert await other.send()
    first, second = receiver.delivered
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    # The dead one comes back: its result is too late.
    assert not await gateway.store.end_attempt(taken, 500, "", 5.0)
    assert not await gateway.send()


async def test_postgresql_dies_before_the_result_is_noted(gateway: Gateway, receiver: Receiver, postgres: Any) -> None:
    await gateway.create(receiver)
    await gateway.enqueue()
    taken = await gateway.store.take()
    assert taken is not None
    try:
        postgres.kill()
        with pytest.raises(errors.Unavailable):
            await gateway.deliveries.deliver(taken)
    finally:
        postgres.ensure_running()
    await gateway.run_sql("UPDATE webhook_deliveries SET lease_until = now() - interval '1 second'")
    assert await gateway.send()
    assert len({each.headers["webhook-id"] for each in receiver.delivered}) == 1


async def test_two_gateways_never_send_the_same_delivery_at_once(gateway: Gateway, other: Gateway, receiver: Receiver) -> None:
    await gateway.create(receiver)
    await gateway.create(receiver)
    for _ in range(10):
        await gateway.enqueue()
    taken = [each for each in await asyncio.gather(*(each.store.take() for each in (gateway, other) * 10)) if each is not None]
    taken += [each for each in [await gateway.store.take() for _ in range(4)] if each is not None]
    # Two of each endpoint.
    assert len({each.id for each in taken}) == len(taken) == 4
    assert sorted([each.endpoint_id for each in taken].count(endpoint) for endpoint in {each.endpoint_id for each in taken}) == [2, 2]


async def test_a_slow_endpoint_with_many_due_events_holds_up_no_other(gateway: Gateway, receiver: Receiver) -> None:
    slow, other = await gateway.create(receiver), await gateway.create(receiver, EVE)
    for _ in range(8):
        await gateway.enqueue()
    await gateway.enqueue(by=EVE)
    taken = [await gateway.store.take() for _ in range(4)]
    found = [each.tenant_id for each in taken if each is not None]
    assert found == [ADA.tenant_id, EVE.tenant_id, ADA.tenant_id]
    assert slow.id != other.id


async def test_a_tenant_with_twenty_silent_endpoints_holds_up_no_other(gateway: Gateway, receiver: Receiver) -> None:
    receiver.open.clear()
    for _ in range(api.MAX_ENDPOINTS):
        await gateway.create(receiver)
    for _ in range(2):
        await gateway.enqueue()
    async with receiving() as fast:
        places = frozenset(("receiver.example", each.port) for each in (receiver, fast))
        gateway.deliveries._client._rules = ReceiverRules(places)
        running = asyncio.create_task(gateway.deliveries.run())
        try:
            await until(lambda: receiver.connections == webhook_store.MAX_OF_TENANT)
            await gateway.create(fast, EVE)
            await gateway.enqueue(by=EVE)
            await until(lambda: len(fast.delivered) == 1)
            assert receiver.connections == webhook_store.MAX_OF_TENANT == deliveries.MAX_AT_ONCE / 4
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_tenants_take_turns_whatever_is_due_longest(gateway: Gateway, receiver: Receiver) -> None:
    for who in (BOB, EVE, ADA):
        await gateway.create(receiver, who)
        for _ in range(2):
            await gateway.enqueue(by=who)
    taken = []
    for _ in range(6):
        delivery = await gateway.store.take()
        assert delivery is not None
        taken.append(delivery.tenant_id)
        await gateway.store.end_attempt(delivery, 204, "", None)
    assert taken == [who.tenant_id for who in (ADA, EVE, BOB)] * 2


async def test_an_endpoint_that_timed_out_gets_one_place_until_it_answers(gateway: Gateway, receiver: Receiver) -> None:
    await gateway.create(receiver)
    for _ in range(4):
        await gateway.enqueue()

    async def take_all() -> list[Delivery]:
        found = [await gateway.store.take() for _ in range(3)]
        return [each for each in found if each is not None]

    first, second = await take_all()
    await gateway.store.end_attempt(first, None, "no answer in time", 300.0, timed_out=True)
    await gateway.store.end_attempt(second, None, "no answer in time", 300.0, timed_out=True)
    (third,) = await take_all()
    await gateway.store.end_attempt(third, 500, "", 300.0)
    assert len(await take_all()) == 1
    await gateway.enqueue()
    assert len(await take_all()) == 1


async def test_the_task_sends_all_that_is_due_two_at_a_time(gateway: Gateway, receiver: Receiver) -> None:
    await gateway.create(receiver)
    for _ in range(5):
        await gateway.enqueue()
    receiver.open.clear()
    running = asyncio.create_task(gateway.deliveries.run())
    try:
        await until(lambda: receiver.connections == 2)
        assert len(receiver.delivered) <= 2
        receiver.open.set()
        await until(lambda: len(receiver.delivered) == 5)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len({each.headers["webhook-id"] for each in receiver.delivered}) == 5


async def test_a_failure_is_tried_again_later_and_a_success_ends_it(gateway: Gateway, receiver: Receiver) -> None:
    receiver.answers = [b"HTTP/1.1 503 Busy\r\nretry-after: 900\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
    made = await gateway.create(receiver)
    await gateway.enqueue()
    assert await gateway.send()
    shown = await gateway.get(made)
    assert shown.fails_since is not None
    assert shown.last is not None
    assert shown.last.next_at is not None
    assert 890 < (shown.last.next_at - datetime.now(UTC)).total_seconds() <= 900
    assert not await gateway.send()
    await gateway.run_sql("UPDATE webhook_deliveries SET next_at = now()")
    assert await gateway.send()
    shown = await gateway.get(made)
    assert shown.last is not None
    assert (shown.fails_since, shown.last.attempt, shown.last.status, shown.last.next_at) == (None, 2, 200, None)


async def notices(gateway: Gateway) -> list[object]:
    """Return what auth is told, on a mesh that sells nothing."""
    told: list[object] = []

    async def add(request: AddNotice) -> Nothing:
        told.append(request.notice)
        return Nothing()

    rpc: Any = FakeRpc()
    rpc.answers[notices_api.add_notice.name] = add
    await NoticeOutbox(BillingStore(gateway.database), rpc, fakes.new_items(), "EUR", sells=False).work()
    return told


async def test_410_disables_the_endpoint_and_its_owner_is_told(gateway: Gateway, receiver: Receiver) -> None:
    receiver.answers = [b"HTTP/1.1 410 Gone\r\n\r\n"]
    made = await gateway.create(receiver)
    for _ in range(2):
        await gateway.enqueue()
    assert await gateway.send()
    assert (await gateway.get(made)).disabled_why == "it answered 410 Gone"
    assert await notices(gateway) == [WebhookDisabled("mine", "it answered 410 Gone")]
    await gateway.enqueue()
    assert not await gateway.send()
    assert await gateway.store.measure() == 0
    with pytest.raises(errors.AlreadyExists, match="disabled"):
        await gateway.rpc.test(api.TestWebhook(made.id), rpc_call(ADA))
    assert (await gateway.rpc.change(api.ChangeWebhook(made.id), rpc_call(ADA))).disabled_why == ""
    await gateway.enqueue()
    assert await gateway.send()


async def test_five_days_of_failures_disable_it_and_a_success_between_starts_over(gateway: Gateway, receiver: Receiver) -> None:
    bad, good = b"HTTP/1.1 500 No\r\n\r\n", b"HTTP/1.1 204 OK\r\n\r\n"
    receiver.answers = [bad, good, bad, bad]
    made = await gateway.create(receiver)
    for _ in range(4):
        await gateway.enqueue()
    for is_disabled in (False, False, False, True):
        assert not (await gateway.get(made)).disabled_why
        assert await gateway.send()
        assert bool((await gateway.get(made)).disabled_why) is is_disabled
        await gateway.run_sql("UPDATE webhook_endpoints SET fails_since = fails_since - interval '6 days'")
    assert await notices(gateway) == [WebhookDisabled("mine", "all attempts of 5 days failed")]
    assert not await gateway.run_sql("SELECT FROM webhook_deliveries WHERE ended_at IS NULL")


async def test_a_test_is_sent_once_and_its_result_returned(gateway: Gateway, receiver: Receiver) -> None:
    receiver.answers = [b"HTTP/1.1 418 Teapot\r\n\r\n"]
    made = await gateway.create(receiver)
    running = asyncio.create_task(gateway.deliveries.run())
    try:
        call = rpc_call(ADA)
        call._deadline = time.monotonic() + 10
        tested = await gateway.rpc.test(api.TestWebhook(made.id), call)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert (tested.status, tested.is_delivered, tested.next_at) == (418, False, None)
    assert msgspec.json.decode(receiver.delivered[0].body)["type"] == "webhook.test"
    for _ in range(webhook_store.MAX_TESTS_PER_MINUTE - 1):
        await gateway.store.add_test(ADA.tenant_id, (await gateway.store.list(ADA.tenant_id))[0].id, DONE)
    with pytest.raises(errors.Limited):
        await gateway.rpc.test(api.TestWebhook(made.id), rpc_call(ADA))


@pytest.mark.parametrize(
    "ask",
    [
        lambda rpc, id_, call: rpc.get(api.GetWebhook(id_), call),
        lambda rpc, id_, call: rpc.change(api.ChangeWebhook(id_, name="x"), call),
        lambda rpc, id_, call: rpc.rotate(api.RotateWebhookSecret(id_), call),
        lambda rpc, id_, call: rpc.delete(api.DeleteWebhook(id_), call),
        lambda rpc, id_, call: rpc.test(api.TestWebhook(id_), call),
    ],
    ids=["get", "change", "rotate", "delete", "test"],
)
async def test_others_see_and_change_nothing(
    gateway: Gateway, receiver: Receiver, ask: Callable[[WebhookRpc, str, Any], Awaitable[object]]
) -> None:
    made = await gateway.create(receiver)
    with pytest.raises(errors.NotFound):
        await ask(gateway.rpc, made.id, rpc_call(EVE))
    with pytest.raises(errors.NotFound):
        await ask(gateway.rpc, "whe_" + "a" * 26, rpc_call(ADA))
    assert (await gateway.rpc.list(api.ListWebhooks(), rpc_call(EVE))).endpoints == ()
    assert (await gateway.get(made)).name == "mine"


async def test_an_account_has_twenty_endpoints_at_most(gateway: Gateway, other: Gateway, receiver: Receiver) -> None:
    wanted = [each.create(receiver) for each in (gateway, other) * 15]
    results = await asyncio.gather(*wanted, return_exceptions=True)
    assert [type(each) for each in results].count(errors.NotAllowed) == 10
    assert len(await gateway.store.list(ADA.tenant_id)) == api.MAX_ENDPOINTS


async def test_a_deleted_or_erased_endpoint_takes_its_deliveries_along(gateway: Gateway, receiver: Receiver) -> None:
    made, kept = await gateway.create(receiver), await gateway.create(receiver, EVE)
    for by in (ADA, EVE):
        await gateway.enqueue(by=by)
    taken = await gateway.store.take()
    await gateway.rpc.delete(api.DeleteWebhook(made.id), rpc_call(ADA))
    assert taken is not None
    assert not await gateway.store.end_attempt(taken, 500, "", 5.0)
    await gateway.create(receiver)
    await gateway.rpc.store.erase(ADA.tenant_id)
    assert [row["tenant_id"] for row in await gateway.run_sql("SELECT tenant_id FROM webhook_endpoints")] == [EVE.tenant_id]
    assert [row["tenant_id"] for row in await gateway.run_sql("SELECT tenant_id FROM webhook_deliveries")] == [EVE.tenant_id]
    assert (await gateway.get(kept, EVE)).name == "mine"


async def test_a_secret_of_another_key_sends_nothing(gateway: Gateway, receiver: Receiver) -> None:
    made = await gateway.create(receiver)
    await gateway.run_sql("UPDATE webhook_endpoints SET secret = 'damaged'")
    await gateway.enqueue()
    assert await gateway.send()
    assert receiver.connections == 0
    shown = await gateway.get(made)
    assert shown.secret_hint == "unreadable: rotate it"
    assert shown.last is not None
    assert "PROMPT_HASH_SECRET" in shown.last.error


async def test_old_deliveries_are_deleted(gateway: Gateway, receiver: Receiver) -> None:
    await gateway.create(receiver)
    for _ in range(2):
        await gateway.enqueue()
        await gateway.send()
    await gateway.enqueue()
    await gateway.run_sql(
        "UPDATE webhook_deliveries SET ended_at = now() - interval '8 days' "
        "WHERE id = (SELECT id FROM webhook_deliveries ORDER BY id LIMIT 1)"
    )
    await gateway.store.delete_old()
    assert len(await gateway.run_sql("SELECT FROM webhook_deliveries")) == 2


async def test_the_gauge_counts_only_what_gateways_leave_lying(gateway: Gateway, receiver: Receiver) -> None:
    await gateway.create(receiver)
    await gateway.enqueue()
    await gateway.run_sql("UPDATE webhook_deliveries SET next_at = now() - interval '20 minutes'")
    assert 1190 < await gateway.store.measure() < 1300
    # Its receiver fails: that is for its owner.
    await gateway.run_sql("UPDATE webhook_endpoints SET fails_since = now()")
    assert await gateway.store.measure() == 0
    await gateway.run_sql("UPDATE webhook_endpoints SET fails_since = NULL")
    # Another one of its tenant has the turn.
    await gateway.create(receiver)
    assert await gateway.store.take() is not None
    assert await gateway.store.measure() == 0


async def test_tenants_are_walled(gateway: Gateway, receiver: Receiver) -> None:
    await gateway.create(receiver)
    await gateway.enqueue()
    async with gateway.database.bound(EVE.tenant_id) as transaction:
        assert await transaction.rows("list_webhook_endpoints", ADA.tenant_id, None) == []
        assert await transaction.rows("lock_webhook_receivers", ADA.tenant_id, DONE) == []
