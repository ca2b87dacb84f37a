"""Manage webhook endpoints of a user or organization: list, create, test, enable, rotate and delete. New secrets are shown once."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, ClassVar

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from features.webhooks import contract as api
from features.webhooks.contract import EventType, WebhookAttempt, WebhookEndpoint
from features.webhooks.lists import WEBHOOKS, result
from services.web.http import forms
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api.method import Method
from shared.lists.columns import Listing

_HERE = "/settings/webhooks"
#: A test waits for the server, up to 15 s.
_SECONDS = 20.0
_ACTIONS: Mapping[str, Method[Any, Any]] = {
    "test": api.test_webhook,
    "enable": api.change_webhook,
    "rotate": api.rotate_webhook_secret,
    "delete": api.delete_webhook,
}
_DONE = {"delete": "Endpoint deleted.", "enable": "Endpoint enabled.", "test": "Test delivered."}
#: The beginning of event types -> label.
EVENTS: Mapping[str, str] = {"": "All events", "batch.": "Batches", "response.": "Background responses"}


class EndpointForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    url: str = ""
    events: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhooksPage:
    endpoints: tuple[WebhookEndpoint, ...]
    #: The organization that owns them; None for personal ones.
    team: str | None
    typed: EndpointForm
    #: Only in the response that made its secret.
    created: WebhookEndpoint | None
    listing: ClassVar[Listing[WebhookEndpoint]] = WEBHOOKS
    events: ClassVar[Mapping[str, str]] = EVENTS
    request: ClassVar[type[api.CreateWebhook]] = api.CreateWebhook


async def read_own(page_request: PageRequest, _now: datetime) -> bytes:
    """Return the file of a person's data."""
    found = await page_request.call(api.list_webhooks, api.ListWebhooks())
    return msgspec.json.format(msgspec.json.encode(found.endpoints), indent=2)


@get(_HERE)
async def show_webhooks(page_request: NamedDependency[PageRequest]) -> Page:
    return await _show(page_request)


@post(_HERE)
async def create_webhook(page_request: NamedDependency[PageRequest]) -> Page:
    """Create an endpoint. Responds with the page itself, because a redirect would have to carry the secret."""
    form = await page_request.read_form(EndpointForm)
    events = tuple(event for event in EventType if event.startswith(form.events) and event is not EventType.TEST)
    try:
        request = api.CreateWebhook(form.name.strip(), form.url.strip(), events)
        created = await page_request.submit(api.create_webhook, request)
    except errors.CallerError as error:
        return await _show(page_request, typed=form, problem=error)
    return await _show(page_request, created=created)


@post(f"{_HERE}/{{endpoint_id:str}}/{{action:str}}")
async def change_webhook(page_request: NamedDependency[PageRequest], endpoint_id: FromPath[str], action: FromPath[str]) -> Page:
    """Responds to a rotation with the page itself, like ``create_webhook``."""
    await page_request.read_form(forms.Confirmation)
    method = _ACTIONS.get(action)
    if method is None:
        raise errors.NotFound("there is no such page", hint="choose an action under Webhooks")
    try:
        reply = await page_request.submit(method, method.request(endpoint_id), deadline_seconds=_SECONDS)
    except errors.CallerError as error:
        return await _show(page_request, problem=error)
    if isinstance(reply, WebhookAttempt) and not reply.is_delivered:
        failed = errors.BadRequest(f"the test failed: {result(reply)}", hint="the server must answer with a status from 200 to 299")
        return await _show(page_request, problem=failed)
    if method is api.rotate_webhook_secret:
        return await _show(page_request, created=reply)
    return page_request.redirect(f"{_HERE}?done={action}")


async def _show(
    page_request: PageRequest,
    *,
    typed: EndpointForm = EndpointForm(),  # noqa: B008 - frozen
    created: WebhookEndpoint | None = None,
    problem: errors.CallerError | None = None,
) -> Page:
    found = await page_request.call(api.list_webhooks, api.ListWebhooks())
    person = page_request.person
    team = person.team_name if person.team_id is not None else None
    view = WebhooksPage(endpoints=found.endpoints, team=team, typed=typed, created=created)
    status = None if created is None else HTTPStatus.CREATED
    return page_request.page("webhooks/webhooks.html", view, status=status, problem=problem, notices=_DONE)
