"""The usage export to a meter at Stripe: the official library against a fake meter, with faults."""

import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from features.usage_export.gateway.store import Unit
from features.usage_export.gateway.stripe_sink import StripeSink
from services.gateway.facts.provider_settings import ProviderSettings
from services.gateway.payments import payment_provider
from shared.types import UserId
from tests.features.usage_export.gateway import exports as exports_
from tests.features.usage_export.gateway.exports import Exports
from tests.services.gateway.payments import stripe_server
from tests.services.gateway.payments.stripe_server import StripeServer


@pytest.fixture
async def exports(plain_url: str) -> AsyncIterator[Exports]:
    async with exports_.opened_exports(plain_url) as found:
        for owner in found.owners[:2]:
            await become_customer(found, owner)
        yield found


@pytest.fixture
async def stripe() -> AsyncIterator[StripeServer]:
    async with stripe_server.running() as running:
        yield running


@pytest.fixture
async def sink(exports: Exports, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StripeSink]:
    monkeypatch.setattr(payment_provider, "WRITE_SECONDS", 0.5)
    settings = ProviderSettings(
        name="stripe", secret=stripe_server.KEY, webhook_secret=stripe_server.SECRET, api_url=stripe.url, return_url="", currency="EUR"
    )
    async with payment_provider.open_provider(settings) as provider:
        assert provider is not None
        assert provider.meters is not None
        yield StripeSink(provider.meters, "mesh_usage", exports.outbox)


async def become_customer(exports: Exports, owner: UserId, *, ago: str = "3 days") -> None:
    await exports.execute(
        f"INSERT INTO subscriptions (owner, provider, customer) VALUES ('{owner}', 'stripe', 'cus_{owner}');"
        "INSERT INTO payment_orders (id, owner, provider, amount_minor, object_id, ended_at)"
        f" VALUES (gen_random_uuid(), '{owner}', 'stripe', 0, 'cs_{owner}', now() - interval '{ago}')"
    )


async def end_minutes(exports: Exports, ago: str) -> None:
    await exports.execute(
        f"UPDATE usage_outbox SET settled_at = settled_at - interval '{ago}' WHERE settled_at > now() - interval '1 minute'"
    )


async def difference(exports: Exports, sink: StripeSink) -> int:
    await exports_.new_export(exports.outbox, sink).compare()
    (state,) = await exports.outbox.list_sinks([sink.name])
    return state.difference_tokens


def counted(stripe: StripeServer) -> Counter[str]:
    found: Counter[str] = Counter()
    for event in stripe.meter_events.values():
        found[event["payload"]["customer"]] += int(event["payload"]["tokens"])
    return found


@pytest.mark.parametrize("unit", ["request", "minute"])
async def test_a_meter_gets_the_tokens_that_no_plan_covers_less_refunds(
    exports: Exports, stripe: StripeServer, sink: StripeSink, unit: Unit
) -> None:
    # Of 3, 4, 5, 6, 7 and 8 tokens.
    requests = await exports.settle_some(6)
    await exports.execute(
        f"UPDATE usage_outbox SET covered_tokens = 2 WHERE id IN ('{requests[0]}', '{requests[3]}');"
        f"UPDATE reservations SET covered_tokens = 2 WHERE request_id IN ('{requests[0]}', '{requests[3]}')"
    )
    await exports.ledger.revert(requests[0], "wrong answer")
    await exports.ledger.revert(requests[1], "wrong answer")
    await end_minutes(exports, "1 day")
    await exports.send_all(sink, unit)
    ada, bob = (f"cus_{owner}" for owner in exports.owners[:2])
    assert counted(stripe) == {ada: 6 - 2, bob: 7}
    assert len(stripe.meter_events) == (6 if unit == "request" else 2)
    assert await difference(exports, sink) == 0
    stripe.meter_events.popitem()
    assert await difference(exports, sink) > 0


async def test_a_refund_of_a_request_that_was_not_exported_counts_nothing(exports: Exports, stripe: StripeServer, sink: StripeSink) -> None:
    (request,) = await exports.settle_some()
    await exports.execute(f"DELETE FROM usage_outbox; UPDATE reservations SET covered_tokens = 2 WHERE request_id = '{request}'")
    await exports.ledger.revert(request, "wrong answer")
    await exports.send_all(sink)
    assert stripe.meter_events == {}


async def test_who_has_become_a_customer_since_is_not_compared(exports: Exports, stripe: StripeServer, sink: StripeSink) -> None:
    late = exports.owners[2]
    await exports.settle_some(3, owner=late)
    await end_minutes(exports, "1 day")
    await exports.send_all(sink)
    await become_customer(exports, late, ago="1 hour")
    assert (stripe.meter_events, await difference(exports, sink)) == ({}, 0)
    await exports.settle_some(2, owner=late)
    await exports.send_all(sink)
    assert counted(stripe) == {f"cus_{late}": 3 + 4}


@pytest.mark.parametrize("seed", range(3))
async def test_every_token_is_counted_once_whatever_stripe_does(
    exports: Exports, stripe: StripeServer, sink: StripeSink, seed: int
) -> None:
    rng = random.Random(seed)
    sink.batch = 5
    for _ in range(6):
        await exports.settle_some(rng.randint(1, 12))
        stripe.faults = [rng.choice(["", "", "lost", "down", "busy"]) for _ in range(6)]
        async with exports.sending(sink) as (export, session):
            for _ in range(4):
                await export.step(session)
    stripe.faults = []
    await exports.send_all(sink)
    totals = await exports.ledger_totals()
    assert counted(stripe) == {f"cus_{owner}": totals[f"{owner} tokens"] for owner in exports.owners[:2]}


@pytest.mark.parametrize(("fault", "is_held"), [("busy", False), ("lost", True), ("down", True)])
async def test_what_stripe_may_have_is_held_once_it_has_forgotten_the_ids(
    exports: Exports, stripe: StripeServer, sink: StripeSink, fault: str, *, is_held: bool
) -> None:
    await exports.settle_some(1)
    async with exports.sending(sink) as (export, session):
        await export.step(session)
        stripe.faults = ["", fault]
        for _ in range(3):
            await export.step(session)
            if not stripe.faults:
                break
        await exports.execute("UPDATE usage_sinks SET doubtful_since = doubtful_since - interval '23 hours'")
        stripe.remembered.clear()
        await export.step(session)
    (state,) = await exports.outbox.list_sinks([sink.name])
    assert state.error == ("held: it may have events whose ids it has forgotten" if is_held else None)
    assert len(stripe.meter_events) == (fault != "down")


async def test_a_meter_that_does_not_exist_is_reported(exports: Exports, sink: StripeSink) -> None:
    wrong = StripeSink(sink._meters, "typo", exports.outbox)
    await exports.settle_some(1)
    async with exports.sending(wrong) as (export, session):
        for _ in range(3):
            await export.step(session)
    (state,) = await exports.outbox.list_sinks([sink.name])
    assert (state.error, state.doubtful_since) == ("no meter has the event name typo", None)
