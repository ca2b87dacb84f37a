"""Reads and writes endpoints of webhooks and their deliveries. Every method may raise Unavailable."""

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import msgspec

from features.webhooks.contract import MAX_ENDPOINTS, ChangeWebhook, CreateWebhook, EventType, WebhookAttempt, WebhookEndpoint
from features.webhooks.notices import WebhookDisabled
from features.webhooks.rules import delivery_rules
from shared import context, errors
from shared.api.tenant_events import TenantEvent
from shared.protocol import public_ids
from shared.stores import database
from shared.stores.database import DatabaseRow, Transaction
from shared.types import TenantId

_ENDPOINT, _EVENT = "whe", "evt"
#: Longer than an attempt and the note of its result.
LEASE_SECONDS = 60.0
#: Of one endpoint, over all gateways.
MAX_AT_ONCE = 2
#: Of one tenant, over all gateways: a quarter of the places of one.
MAX_OF_TENANT = 4
FORMER_SECRET_SECONDS = 24 * 3600.0
#: An endpoint that only fails for so long is disabled.
MAX_FAILING_SECONDS = 5 * 24 * 3600.0
MAX_TESTS_PER_MINUTE = 10
_KEEP_DAYS = 7
_FIRST = UUID(int=0)


class StoredEndpoint(msgspec.Struct, frozen=True):
    id: UUID
    tenant_id: TenantId
    #: Without the secret and its hint.
    facts: WebhookEndpoint
    #: Sealed.
    secret: bytes


class Delivery(msgspec.Struct, frozen=True):
    """An attempt that this gateway makes."""

    id: UUID
    tenant_id: TenantId
    endpoint_id: UUID
    body: str
    is_test: bool
    attempt: int
    url: str
    #: Sealed.
    secret: bytes
    former_secret: bytes | None

    @property
    def event_id(self) -> str:
        return public_ids.encode(_EVENT, self.id, "_")


async def enqueue(transaction: Transaction, tenant: TenantId, event: TenantEvent, about: str) -> None:
    """Add an event about the object ``about`` for each endpoint that wants it. It is sent once the transaction is committed. The same event
    again adds nothing."""
    kind = EventType(event)
    for row in await transaction.rows("lock_webhook_receivers", tenant, kind):
        await _add(transaction, tenant, row["id"], kind, about, event_id=delivery_rules.derive_event_id(row["id"], kind, about))


async def _add(
    transaction: Transaction, tenant: TenantId, endpoint: UUID, event: EventType, about: str, *, event_id: UUID, is_test: bool = False
) -> None:
    now: datetime = await transaction.value("read_clock")
    body = delivery_rules.write_event(public_ids.encode(_EVENT, event_id, "_"), event, about, now)
    await transaction.run("add_webhook_delivery", event_id, tenant, endpoint, body, is_test)


class WebhookStore:
    def __init__(self, opened: database.Database) -> None:
        self._database = opened
        #: The tenant that had the latest turn. Tenants take turns in the order of their ids.
        self._served = _FIRST

    # --- endpoints

    async def add(self, tenant: TenantId, endpoint: UUID, request: CreateWebhook, secret: bytes) -> None:
        """``secret``: sealed. Raises NotAllowed if the tenant has MAX_ENDPOINTS."""
        async with self._database.bound(tenant) as transaction:
            await transaction.value("lock_webhooks_of", tenant)
            if await transaction.value("count_webhook_endpoints", tenant) >= MAX_ENDPOINTS:
                raise errors.NotAllowed(f"you have {MAX_ENDPOINTS} webhook endpoints, the most allowed", hint="delete one")
            await transaction.run("add_webhook_endpoint", endpoint, tenant, request.name, request.url, _words(request.event_types), secret)

    async def list(self, tenant: TenantId) -> tuple[StoredEndpoint, ...]:
        """Return them, newest first."""
        async with self._database.bound(tenant) as transaction:
            return tuple(map(_stored, await transaction.rows("list_webhook_endpoints", tenant, None)))

    async def get(self, tenant: TenantId, endpoint: UUID) -> StoredEndpoint:
        """Raises NotFound."""
        async with self._database.bound(tenant) as transaction:
            row = await transaction.row("list_webhook_endpoints", tenant, endpoint)
        if row is None:
            raise missing()
        return _stored(row)

    async def change(self, tenant: TenantId, endpoint: UUID, request: ChangeWebhook) -> None:
        events = None if request.event_types is None else _words(request.event_types)
        await self._run_of(tenant, "change_webhook_endpoint", endpoint, request.name, request.url, events)

    async def rotate(self, tenant: TenantId, endpoint: UUID, secret: bytes, *, at_once: bool) -> None:
        await self._run_of(tenant, "rotate_webhook_secret", endpoint, secret, 0.0 if at_once else FORMER_SECRET_SECONDS)

    async def delete(self, tenant: TenantId, endpoint: UUID) -> None:
        await self._run_of(tenant, "delete_webhook_endpoint", endpoint)

    async def erase(self, tenant: TenantId) -> None:
        async with self._database.bound(tenant) as transaction:
            await transaction.run("erase_webhook_endpoints", tenant)

    async def _run_of(self, tenant: TenantId, query: str, endpoint: UUID, *args: object) -> None:
        """Raises NotFound."""
        async with self._database.bound(tenant) as transaction:
            if not await transaction.run(query, tenant, endpoint, *args):
                raise missing()

    # --- deliveries

    async def add_test(self, tenant: TenantId, endpoint: UUID, event: EventType) -> UUID:
        """Return the id of the event. Raises Limited."""
        async with self._database.bound(tenant) as transaction:
            await transaction.value("lock_webhooks_of", tenant)
            if await transaction.value("count_webhook_tests", endpoint) >= MAX_TESTS_PER_MINUTE:
                raise errors.Limited(f"an endpoint gets at most {MAX_TESTS_PER_MINUTE} tests a minute", retry_after_seconds=60)
            # Each test is an event of its own.
            event_id = context.new_request_id()
            await _add(transaction, tenant, endpoint, event, "test", event_id=event_id, is_test=True)
        return event_id

    async def find_attempt(self, tenant: TenantId, event_id: UUID) -> WebhookAttempt | None:
        async with self._database.bound(tenant) as transaction:
            row = await transaction.row("find_webhook_attempt", tenant, event_id)
        return None if row is None else _attempt(row)

    async def take(self) -> Delivery | None:
        """Take a delivery that is due; tenants take turns. It is another gateway's after LEASE_SECONDS."""
        for after in (self._served, _FIRST):
            row = await self._database.row("take_webhook_delivery", LEASE_SECONDS, MAX_AT_ONCE, MAX_OF_TENANT, after)
            if row is not None:
                self._served = row["tenant_id"]
                return Delivery(*(row[name] for name in Delivery.__struct_fields__))
        return None

    async def end_attempt(
        self, delivery: Delivery, status: int | None, error: str, pause_seconds: float | None, *, timed_out: bool = False
    ) -> bool:
        """Note the result. Return whether the endpoint has only failed for MAX_FAILING_SECONDS. Changes nothing if it was taken again."""
        async with self._database.transaction() as transaction:
            # In the order of ``take``.
            await transaction.row("lock_webhook_endpoint", delivery.endpoint_id)
            if not await transaction.run("end_webhook_attempt", delivery.id, delivery.attempt, status, error[:300], pause_seconds):
                return False
            if status is not None and 200 <= status < 300:
                await transaction.run("note_webhook_success", delivery.endpoint_id)
                return False
            return bool(await transaction.value("note_webhook_failure", delivery.endpoint_id, MAX_FAILING_SECONDS, timed_out))

    async def disable(self, endpoint: UUID, why: str) -> None:
        """Send nothing to the endpoint any more, and tell its owner."""
        async with self._database.transaction() as transaction:
            row = await transaction.row("disable_webhook_endpoint", endpoint, why)
            if row is not None:
                notice = msgspec.json.encode(WebhookDisabled(row["name"], why)).decode()
                await transaction.run("add_notice", row["tenant_id"], f"webhook/{context.new_request_id()}", notice)

    async def delete_old(self) -> None:
        await self._database.run("delete_webhook_deliveries", _KEEP_DAYS)

    async def measure(self) -> float:
        """Return for how many seconds the oldest delivery to an endpoint that works has been due."""
        return float(await self._database.value("measure_webhooks"))


def missing() -> errors.NotFound:
    return errors.NotFound("there is no such webhook endpoint", hint="see `aicli webhooks list`")


def _stored(row: DatabaseRow) -> StoredEndpoint:
    facts = WebhookEndpoint(
        public_ids.encode(_ENDPOINT, row["id"], "_"),
        row["name"],
        row["url"],
        tuple(EventType(each) for each in row["event_types"] if each in set(EventType)),
        row["created_at"],
        row["updated_at"],
        "",
        row["disabled_why"] or "",
        row["fails_since"],
        None if row["event_id"] is None else _attempt(row),
    )
    return StoredEndpoint(row["id"], row["tenant_id"], facts, row["secret"])


def _words(events: Iterable[EventType]) -> list[str]:
    return [event.value for event in dict.fromkeys(events)]


def read_id(text: str) -> UUID:
    """Raises NotFound."""
    found = public_ids.decode(_ENDPOINT, text)
    if found is None:
        raise missing()
    return found


def _attempt(row: DatabaseRow) -> WebhookAttempt:
    next_at = None if row["ended_at"] is not None else row["next_at"]
    event_id = public_ids.encode(_EVENT, row["event_id"], "_")
    return WebhookAttempt(event_id, row["attempt"], row["attempted_at"], row["last_status"], row["last_error"] or "", next_at)
