"""gateway: servers of an account or organization that get events of its jobs."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from shared.api.method import PEOPLE, Body, Method, Nothing
from shared.types import Moment

#: `whe_` and 128 bits in base32.
EndpointId = Annotated[str, Meta(pattern=r"^whe_[a-z2-7]{26}\Z")]
EndpointName = Annotated[str, Meta(min_length=1, max_length=100)]
EndpointUrl = Annotated[str, Meta(min_length=1, max_length=2000)]
#: Of one account or organization.
MAX_ENDPOINTS = 20


class EventType(StrEnum):
    """A ``TenantEvent``, or a test."""

    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"
    RESPONSE_COMPLETED = "response.completed"
    RESPONSE_FAILED = "response.failed"
    RESPONSE_CANCELLED = "response.cancelled"
    RESPONSE_INCOMPLETE = "response.incomplete"
    TEST = "webhook.test"


EventTypes = Annotated[tuple[EventType, ...], Meta(min_length=1, max_length=len(EventType))]


class WebhookAttempt(Body, frozen=True, omit_defaults=False):
    """How the latest attempt to deliver an event ended."""

    #: The header `webhook-id` of all its attempts.
    event_id: str
    #: From 1.
    attempt: int
    at: Moment
    #: What the server answered; None: it didn't.
    status: int | None
    #: Why it did not.
    error: str = ""
    #: None: it is delivered, or given up.
    next_at: Moment | None = None

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class WebhookEndpoint(Body, frozen=True, omit_defaults=False):
    id: str
    name: str
    url: str
    event_types: tuple[EventType, ...]
    created_at: Moment
    #: Of the last change by a person.
    updated_at: Moment
    #: Its end.
    secret_hint: str
    #: Why it gets no events; empty: it gets them.
    disabled_why: str = ""
    #: No attempt has succeeded since.
    fails_since: Moment | None = None
    last: WebhookAttempt | None = None
    #: What signs its events: shown when it is new, and never again.
    secret: str | None = None


class CreateWebhook(Body, frozen=True):
    name: EndpointName
    #: https:// and a public server, except for those of WEBHOOK_ALLOWED_HOSTS.
    url: EndpointUrl
    event_types: EventTypes


class ListWebhooks(Body, frozen=True):
    """Those of the caller's account or organization."""


class WebhookEndpoints(Body, frozen=True):
    #: Newest first.
    endpoints: tuple[WebhookEndpoint, ...] = ()


class GetWebhook(Body, frozen=True):
    id: EndpointId


class ChangeWebhook(Body, frozen=True):
    """Also enables it again."""

    id: EndpointId
    name: EndpointName | None = None
    url: EndpointUrl | None = None
    #: All that it gets from now on.
    event_types: EventTypes | None = None


class RotateWebhookSecret(Body, frozen=True):
    id: EndpointId
    #: The former secret signs nothing from now on; otherwise both sign for 24 hours.
    at_once: bool = False


class DeleteWebhook(Body, frozen=True):
    id: EndpointId


class TestWebhook(Body, frozen=True):
    """Send one event now, and return how that ended."""

    id: EndpointId
    event_type: EventType = EventType.TEST


create_webhook = Method("gateway.createWebhook", CreateWebhook, WebhookEndpoint, callers=PEOPLE)
list_webhooks = Method("gateway.listWebhooks", ListWebhooks, WebhookEndpoints, callers=PEOPLE)
get_webhook = Method("gateway.getWebhook", GetWebhook, WebhookEndpoint, callers=PEOPLE)
change_webhook = Method("gateway.changeWebhook", ChangeWebhook, WebhookEndpoint, callers=PEOPLE)
rotate_webhook_secret = Method("gateway.rotateWebhookSecret", RotateWebhookSecret, WebhookEndpoint, callers=PEOPLE)
delete_webhook = Method("gateway.deleteWebhook", DeleteWebhook, Nothing, callers=PEOPLE)
test_webhook = Method("gateway.testWebhook", TestWebhook, WebhookAttempt, callers=PEOPLE)
