"""Receives the webhooks of the payment provider: verifies their raw bytes, keeps them, and answers 200 after the commit."""

import asyncio

from services.gateway import background_jobs
from services.gateway.background_jobs import UpkeepJob
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.payments.billing import Billing
from services.gateway.payments.payment_provider import Forged
from shared import errors
from shared.telemetry import Metrics

MAX_BYTES, MAX_SECONDS = 256 * 1024, 10.0


class Webhooks:
    def __init__(self, billing: Billing, metrics: Metrics) -> None:
        self._billing = billing
        self._metrics = metrics
        self._arrived = asyncio.Event()

    def routes(self) -> tuple[HttpRoute, ...]:
        if self._billing.provider is None:
            return ()
        path = f"/webhooks/{self._billing.provider.name}"
        return (HttpRoute("POST", path, self._receive, "receiveWebhook", "For the payment provider: something has happened there"),)

    async def _receive(self, call: HttpCall) -> None:
        provider = self._billing.provider
        assert provider is not None
        await call.read_body(most_bytes=MAX_BYTES, most_seconds=MAX_SECONDS, any_media_type=True)
        try:
            event = provider.provider.verify(call.body, (call.header(provider.provider.signature_header) or b"").decode("latin-1"))
        except Forged:
            self._metrics.webhooks.labels(provider.name, "refused").inc()
            raise errors.BadRequest("the signature is missing, wrong or older than 5 minutes", hint="check the webhook secret") from None
        is_new = await provider.receive(event)
        self._metrics.webhooks.labels(provider.name, "kept" if is_new else "ignored").inc()
        await call.answer_bytes(b"", b"text/plain")
        self._arrived.set()

    async def run(self) -> None:
        """Handle events soon after they arrive; ``Billing.work`` handles the rest."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await background_jobs.attempt(UpkeepJob.BILLING, self._billing.handle_events)
