"""What the route for webhooks accepts, and that it answers only what is kept."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from services.gateway.http_api.http_app import HttpAccess, HttpApp
from services.gateway.http_api.webhooks import MAX_BYTES, Webhooks
from shared import errors
from shared.telemetry import Metrics
from tests.services.gateway import fakes
from tests.services.gateway.fakes import RunningService
from tests.services.gateway.payments.conftest import selling_shop, shop, stripe
from tests.services.gateway.payments.shop import Shop, balance, orders_of, owner, session_of, top_up
from tests.services.gateway.payments.stripe_server import StripeServer

__all__ = ["selling_shop", "shop", "stripe"]


class Hooks:
    def __init__(self, shop: Shop, running_service: RunningService) -> None:
        self.metrics = Metrics("gateway")
        self.webhooks = Webhooks(shop.billing, self.metrics)
        access = HttpAccess(identify=running_service.callers.identify, quotas=running_service.quotas)
        app = HttpApp(self.webhooks.routes(), access, self.metrics)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")

    async def send(self, signed: tuple[bytes, str], path: str = "/webhooks/stripe") -> int:
        return (await self.client.post(path, content=signed[0], headers={"stripe-signature": signed[1]})).status_code

    def count(self, result: str) -> float:
        return self.metrics.webhooks.labels("stripe", result)._value.get()


@pytest.fixture
async def hooks(selling_shop: Shop) -> AsyncIterator[Hooks]:
    async with fakes.running_service() as running_service:
        made = Hooks(selling_shop, running_service)
        async with made.client:
            yield made


async def test_a_paid_top_up_arrives_soon_after_its_webhook(hooks: Hooks, selling_shop: Shop, stripe: StripeServer) -> None:
    shop, ada = selling_shop, owner()
    order = await top_up(shop, ada)
    await stripe.pay(session_of(order))
    signed = stripe.signed(session_of(order))
    task = asyncio.create_task(hooks.webhooks.run())
    try:
        assert [await hooks.send(signed) for _ in range(3)] == [200, 200, 200]
        async with asyncio.timeout(10):
            while await balance(shop, ada) == 0:  # noqa: ASYNC110 - of PostgreSQL
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
    assert (await balance(shop, ada), hooks.count("kept"), hooks.count("ignored")) == (25_000_000, 1, 2)


async def test_forged_and_old_webhooks_are_refused_and_counted(hooks: Hooks, selling_shop: Shop, stripe: StripeServer) -> None:
    body, signature = stripe.signed("cs_test_1")
    for signed in ((body, ""), (body + b" ", signature), stripe.signed("cs_test_1", age=400), stripe.signed("cs_1", secret="whsec_")):
        assert await hooks.send(signed) == 400
    assert await hooks.send((b"x" * (MAX_BYTES + 1), signature)) == 413
    assert await hooks.send((body, signature), "/webhooks/paddle") == 404
    assert hooks.count("refused") == 4
    assert await selling_shop.fetch("SELECT count(*) FROM webhook_events") == 0


async def test_an_event_that_is_not_kept_is_not_acknowledged(
    hooks: Hooks, selling_shop: Shop, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: Any) -> bool:
        raise errors.Unavailable("PostgreSQL does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(orders_of(selling_shop), "receive", fail)
        assert await hooks.send(stripe.signed("cs_test_1")) == 503
