"""Webhook endpoints as the gateway keeps them."""

from datetime import UTC, datetime

from msgspec.structs import replace

from features.webhooks import contract as api
from features.webhooks.contract import WebhookAttempt, WebhookEndpoint
from shared import errors
from shared.api.method import Nothing
from shared.types import Credential

NOW = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)


class FakeWebhooks:
    def __init__(self) -> None:
        super().__init__()
        self.webhook_endpoints: dict[str, WebhookEndpoint] = {}
        self.webhook_status: int | None = 204

    def _create_webhook(self, request: api.CreateWebhook, _: Credential | None) -> WebhookEndpoint:
        if not request.url.startswith("https://"):
            raise errors.BadRequest.of("url", "must begin with https://")
        id_ = f"whe_{'abcdef'[len(self.webhook_endpoints)] * 26}"
        made = WebhookEndpoint(id_, request.name, request.url, request.event_types, NOW, NOW, "whsec_…wxyz")
        self.webhook_endpoints[made.id] = made
        return replace(made, secret="whsec_first")

    def _list_webhooks(self, _: api.ListWebhooks, __: Credential | None) -> api.WebhookEndpoints:
        return api.WebhookEndpoints(tuple(self.webhook_endpoints.values()))

    def _rotate_webhook_secret(self, request: api.RotateWebhookSecret, _: Credential | None) -> WebhookEndpoint:
        return replace(self._of(request.id), secret="whsec_second")

    def _change_webhook(self, request: api.ChangeWebhook, _: Credential | None) -> WebhookEndpoint:
        self.webhook_endpoints[request.id] = replace(self._of(request.id), disabled_why="")
        return self.webhook_endpoints[request.id]

    def _delete_webhook(self, request: api.DeleteWebhook, _: Credential | None) -> Nothing:
        del self.webhook_endpoints[self._of(request.id).id]
        return Nothing()

    def _test_webhook(self, request: api.TestWebhook, _: Credential | None) -> WebhookAttempt:
        tested = WebhookAttempt(f"evt_{'a' * 26}", 1, NOW, self.webhook_status)
        self.webhook_endpoints[request.id] = replace(self._of(request.id), last=tested)
        return tested

    def _of(self, endpoint: str) -> WebhookEndpoint:
        if endpoint not in self.webhook_endpoints:
            raise errors.NotFound("there is no such webhook endpoint")
        return self.webhook_endpoints[endpoint]


FAKE = FakeWebhooks
