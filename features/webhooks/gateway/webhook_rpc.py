"""Serves webhook endpoints to the members of their account or organization."""

import asyncio
from dataclasses import dataclass
from uuid import UUID

from msgspec.structs import replace

from features.webhooks import contract as api
from features.webhooks.contract import WebhookAttempt, WebhookEndpoint, WebhookEndpoints
from features.webhooks.gateway import endpoint_secrets
from features.webhooks.gateway import store as webhook_store
from features.webhooks.gateway.deliveries import Deliveries
from features.webhooks.gateway.endpoint_secrets import EndpointSecrets
from features.webhooks.gateway.receiver_client import TOTAL_SECONDS, ReceiverClient
from features.webhooks.gateway.store import StoredEndpoint, WebhookStore
from shared import context, errors
from shared.api.auth import Principal
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves
from shared.rpc.audit_reporting import AuditReporting

_LOOK_SECONDS = 0.1
#: After an attempt, until its result is noted.
_NOTE_SECONDS = 2.0
#: What remains of a call to answer it.
_ANSWER_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class WebhookRpc:
    store: WebhookStore
    deliveries: Deliveries
    client: ReceiverClient
    secrets: EndpointSecrets
    audit_reporting: AuditReporting

    @serves(api.create_webhook)
    async def create(self, request: api.CreateWebhook, call: RpcCall) -> WebhookEndpoint:
        await self.client.check(request.url)
        tenant, endpoint, secret = call.principal.tenant_id, context.new_request_id(), endpoint_secrets.new_secret()
        await self.store.add(tenant, endpoint, request, self.secrets.seal(secret, tenant, endpoint))
        return await self._report_action("webhook.create", call.principal, endpoint, secret=secret)

    @serves(api.list_webhooks)
    async def list(self, request: api.ListWebhooks, call: RpcCall) -> WebhookEndpoints:
        return WebhookEndpoints(tuple(map(self._show, await self.store.list(call.principal.tenant_id))))

    @serves(api.get_webhook)
    async def get(self, request: api.GetWebhook, call: RpcCall) -> WebhookEndpoint:
        return self._show(await self.store.get(call.principal.tenant_id, webhook_store.read_id(request.id)))

    @serves(api.change_webhook)
    async def change(self, request: api.ChangeWebhook, call: RpcCall) -> WebhookEndpoint:
        if request.url is not None:
            await self.client.check(request.url)
        endpoint = webhook_store.read_id(request.id)
        await self.store.change(call.principal.tenant_id, endpoint, request)
        return await self._report_action("webhook.change", call.principal, endpoint)

    @serves(api.rotate_webhook_secret)
    async def rotate(self, request: api.RotateWebhookSecret, call: RpcCall) -> WebhookEndpoint:
        tenant, endpoint, secret = call.principal.tenant_id, webhook_store.read_id(request.id), endpoint_secrets.new_secret()
        await self.store.rotate(tenant, endpoint, self.secrets.seal(secret, tenant, endpoint), at_once=request.at_once)
        return await self._report_action("webhook.rotate", call.principal, endpoint, secret=secret)

    @serves(api.delete_webhook)
    async def delete(self, request: api.DeleteWebhook, call: RpcCall) -> Nothing:
        tenant = call.principal.tenant_id
        await self.store.delete(tenant, webhook_store.read_id(request.id))
        self.audit_reporting.report_action("webhook.delete", call.principal, tenant=tenant, target=request.id)
        return Nothing()

    @serves(api.test_webhook)
    async def test(self, request: api.TestWebhook, call: RpcCall) -> WebhookAttempt:
        """Raises Limited, AlreadyExists for an endpoint that is disabled, and Unavailable if the event is not sent in time."""
        tenant, endpoint = call.principal.tenant_id, webhook_store.read_id(request.id)
        if (await self.store.get(tenant, endpoint)).facts.disabled_why:
            raise errors.AlreadyExists("the endpoint is disabled", hint=f"enable it: aicli webhooks update {request.id}")
        event_id = await self.store.add_test(tenant, endpoint, request.event_type)
        self.deliveries.wake.set()
        try:
            async with asyncio.timeout(min(TOTAL_SECONDS + _NOTE_SECONDS, call.remaining_seconds() - _ANSWER_SECONDS)):
                while True:
                    # Any gateway may send it.
                    if (found := await self.store.find_attempt(tenant, event_id)) is not None:
                        return found
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise errors.Unavailable(
                "the server has not answered yet", hint=f"the result will be in `aicli webhooks show {request.id}`"
            ) from None

    async def _report_action(self, action: str, by: Principal, endpoint: UUID, *, secret: str | None = None) -> WebhookEndpoint:
        shown = self._show(await self.store.get(by.tenant_id, endpoint), secret)
        self.audit_reporting.report_action(action, by, tenant=by.tenant_id, target=shown.id, url=shown.url)
        return shown

    def _show(self, stored: StoredEndpoint, secret: str | None = None) -> WebhookEndpoint:
        return replace(stored.facts, secret_hint=self.secrets.hint(stored.secret, stored.tenant_id, stored.id), secret=secret)
