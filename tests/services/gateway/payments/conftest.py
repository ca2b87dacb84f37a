"""Shops that sell by invoice, and through Stripe."""

from collections.abc import AsyncIterator

import pytest

from services.gateway import store
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.facts.provider_settings import ProviderSettings
from services.gateway.payments import payment_provider
from tests.services.gateway.payments import paddle_server, stripe_server
from tests.services.gateway.payments.paddle_server import PaddleServer
from tests.services.gateway.payments.shop import Shop, selling
from tests.services.gateway.payments.stripe_server import StripeServer


@pytest.fixture
async def shop(postgres_url: str) -> AsyncIterator[Shop]:
    async with store.opened(postgres_url) as opened:
        live = LiveConfiguration(ConfigStore(opened))
        await live.reload()
        yield Shop(opened, live, postgres_url)


@pytest.fixture
async def stripe() -> AsyncIterator[StripeServer]:
    async with stripe_server.running() as running:
        yield running


@pytest.fixture
async def selling_shop(shop: Shop, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    monkeypatch.setattr(payment_provider, "WRITE_SECONDS", 1.0)
    settings = ProviderSettings(
        name="stripe", secret=stripe_server.KEY, webhook_secret=stripe_server.SECRET, api_url=stripe.url,
        return_url="http://localhost:3000/billing", currency="EUR",
    )  # fmt: skip
    async with payment_provider.open_provider(settings) as provider:
        assert provider is not None
        async with selling(shop, "stripe", provider) as selling_shop:
            yield selling_shop


@pytest.fixture
async def paddle() -> AsyncIterator[PaddleServer]:
    async with paddle_server.running() as running:
        yield running
