"""Serves /v1/webhook_endpoints, compatible with OpenAI's clients; the handlers are those of the methods."""

from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta

from features.webhooks import contract as api
from features.webhooks.contract import EventType, WebhookEndpoint
from features.webhooks.gateway.webhook_rpc import WebhookRpc
from features.webhooks.lists import result
from services.gateway.http_api import request_bodies
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.tolerant_json import BodyDialect
from shared import errors
from shared.protocol import public_ids
from shared.types import NodeId

#: A test waits for the server.
_SECONDS = 20.0
_ROTATE, _TEST = "/rotate_secret", "/test"


class CreateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: api.EndpointName
    url: api.EndpointUrl
    event_types: api.EventTypes


class UpdateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Also enables the endpoint again."""

    name: api.EndpointName | None = None
    url: api.EndpointUrl | None = None
    event_types: api.EventTypes | None = None


class RotateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keep_old_secret_active_for_24_hours: bool = False


class TestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    event_type: EventType = EventType.TEST


class EndpointsQuery(msgspec.Struct, frozen=True):
    #: The id of the last endpoint of the page before.
    after: api.EndpointId | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


_CREATE, _UPDATE = BodyDialect("webhooks", CreateBody), BodyDialect("webhooks", UpdateBody)
_ROTATION, _TESTED = BodyDialect("webhooks", RotateBody), BodyDialect("webhooks", TestBody)


class Endpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    name: str
    url: str
    event_types: tuple[str, ...]
    created_at: int
    updated_at: int
    signing_secret_hint: str
    #: Only when it is new.
    signing_secret: str | None = None
    object: str = msgspec.field(default_factory=lambda: "webhook_endpoint")


class EndpointList(msgspec.Struct, frozen=True):
    data: tuple[Endpoint, ...]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: str = "list"


class DeletedEndpoint(msgspec.Struct, frozen=True):
    id: str
    deleted: bool = True
    object: str = "webhook_endpoint.deleted"


class TestResult(msgspec.Struct, frozen=True):
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: bool = True
    object: str = "webhook_endpoint.test"


class EventTypeList(msgspec.Struct, frozen=True):
    data: tuple[str, ...]
    object: str = "list"


class RestWebhooks:
    def __init__(self, webhooks: WebhookRpc, node: NodeId) -> None:
        self._webhooks = webhooks
        self._node = node

    def routes(self) -> tuple[HttpRoute, ...]:
        every, one = "/v1/webhook_endpoints", "/v1/webhook_endpoints/{endpoint}"
        return (
            HttpRoute("POST", every, self._create, "createWebhook", "Create a webhook endpoint; its secret is shown once",
                      body=CreateBody, answer=Endpoint),
            HttpRoute("GET", every, self._list, "listWebhooks", "List your webhook endpoints, newest first",
                      query=EndpointsQuery, answer=EndpointList),
            HttpRoute("GET", one, self._get, "getWebhook", "Get a webhook endpoint", answer=Endpoint),
            HttpRoute("POST", one, self._update, "changeWebhook", "Change a webhook endpoint, and enable it",
                      body=UpdateBody, answer=Endpoint),
            HttpRoute("DELETE", one, self._delete, "deleteWebhook", "Delete a webhook endpoint", answer=DeletedEndpoint),
            HttpRoute("POST", one + _ROTATE, self._rotate, "rotateWebhookSecret", "Replace the secret of a webhook endpoint",
                      body=RotateBody, answer=Endpoint),
            HttpRoute("POST", one + _TEST, self._test, "testWebhook", "Send a webhook endpoint an event",
                      body=TestBody, answer=TestResult, watches=True),
            HttpRoute("GET", "/v1/webhook_event_types", self._event_types, "listWebhooks", "List the types of events",
                      answer=EventTypeList),
        )  # fmt: skip

    async def _create(self, call: HttpCall) -> None:
        body = await call.read(_CREATE)
        await call.answer(
            _shown(await self._webhooks.create(api.CreateWebhook(body.name, body.url, body.event_types), call.as_rpc(self._node, _SECONDS)))
        )

    async def _list(self, call: HttpCall) -> None:
        query = request_bodies.read_query(call.query, EndpointsQuery)
        found = (await self._webhooks.list(api.ListWebhooks(), call.as_rpc(self._node, _SECONDS))).endpoints
        # Later endpoints have larger ids.
        before = None if query.after is None else _number(query.after)
        following = [each for each in found if before is None or _number(each.id) < before]
        data = tuple(map(_shown, following[: query.limit]))
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        await call.answer(EndpointList(data, len(following) > query.limit, first, last))

    async def _get(self, call: HttpCall) -> None:
        await call.answer(_shown(await self._webhooks.get(api.GetWebhook(call.rest_of_path), call.as_rpc(self._node, _SECONDS))))

    async def _update(self, call: HttpCall) -> None:
        body = await call.read(_UPDATE)
        request = api.ChangeWebhook(call.rest_of_path, body.name, body.url, body.event_types)
        await call.answer(_shown(await self._webhooks.change(request, call.as_rpc(self._node, _SECONDS))))

    async def _delete(self, call: HttpCall) -> None:
        await self._webhooks.delete(api.DeleteWebhook(call.rest_of_path), call.as_rpc(self._node, _SECONDS))
        await call.answer(DeletedEndpoint(call.rest_of_path))

    async def _rotate(self, call: HttpCall) -> None:
        body = await call.read(_ROTATION)
        request = api.RotateWebhookSecret(call.rest_of_path, at_once=not body.keep_old_secret_active_for_24_hours)
        await call.answer(_shown(await self._webhooks.rotate(request, call.as_rpc(self._node, _SECONDS))))

    async def _test(self, call: HttpCall) -> None:
        """Raises BadRequest if the server doesn't take the event."""
        body = await call.read(_TESTED)
        tested = await self._webhooks.test(api.TestWebhook(call.rest_of_path, body.event_type), call.as_rpc(self._node, _SECONDS))
        if tested.status is None or not tested.is_delivered:
            raise errors.BadRequest(f"the test failed: {result(tested)}", hint="the server must answer with a status from 200 to 299")
        await call.answer(TestResult(call.rest_of_path, body.event_type, tested.status))

    async def _event_types(self, call: HttpCall) -> None:
        await call.answer(EventTypeList(tuple(EventType)))


def _number(endpoint: str) -> UUID:
    found = public_ids.decode("whe", endpoint)
    assert found is not None  # of its type
    return found


def _shown(found: WebhookEndpoint) -> Endpoint:
    created, updated = int(found.created_at.timestamp()), int(found.updated_at.timestamp())
    return Endpoint(found.id, found.name, found.url, found.event_types, created, updated, found.secret_hint, found.secret)
