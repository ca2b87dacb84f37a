"""Sends events to endpoints: each at least once, by whichever gateway takes it, and again by another if that one dies."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from functools import partial

from features.webhooks.gateway.endpoint_secrets import EndpointSecrets
from features.webhooks.gateway.receiver_client import Answer, ReceiverClient
from features.webhooks.gateway.store import Delivery, WebhookStore
from features.webhooks.rules import delivery_rules
from features.webhooks.rules.delivery_rules import Result
from services.gateway import background_jobs
from shared.background.items import BackgroundItems
from shared.telemetry import logs
from shared.telemetry.metric_families import Counter, Gauge
from shared.timing.bounded_waits import wait_until_set

#: The label of this background work.
JOB = "webhooks"
#: The kind of item that a delivery is.
ITEM = "delivery"
#: Of one gateway.
MAX_AT_ONCE = 16
_LOOK_SECONDS = 1.0
_UNREADABLE = "its secret was sealed with another PROMPT_HASH_SECRET: rotate it"

_log = logs.get(part="webhooks")


class Deliveries:
    """``run`` is the task that sends. Set ``wake`` when a delivery was added."""

    def __init__(
        self,
        store: WebhookStore,
        client: ReceiverClient,
        secrets: EndpointSecrets,
        items: BackgroundItems,
        *,
        count: Counter,
        oldest: Gauge,
        now: Callable[[], datetime],
    ) -> None:
        """``now`` is PostgreSQL's time: receivers refuse signatures that are minutes old or early."""
        self._store, self._client, self._secrets, self._items = store, client, secrets, items
        self._count, self._oldest, self._now = count, oldest, now
        self._sending = set[asyncio.Task[bool]]()
        self.wake = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                self.wake.clear()
                await background_jobs.attempt(JOB, partial(self._take_due, tasks))
                await wait_until_set(self.wake, _LOOK_SECONDS)

    async def measure(self) -> None:
        self._oldest.set(await self._store.measure())

    async def _take_due(self, tasks: asyncio.TaskGroup) -> None:
        while len(self._sending) < MAX_AT_ONCE and (delivery := await self._store.take()) is not None:
            task = tasks.create_task(background_jobs.attempt(JOB, partial(self._try, delivery)))
            self._sending.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[bool]) -> None:
        self._sending.discard(task)
        self.wake.set()

    async def _try(self, delivery: Delivery) -> None:
        if not await self._items.attempt(ITEM, str(delivery.id), self.deliver(delivery)):
            await self._end_attempt(delivery, Answer(None, "an internal error; the gateway's log has it"))

    async def deliver(self, delivery: Delivery) -> None:
        """Make an attempt and note its result. Raises Unavailable: then it is made again, with the same id."""
        await self._end_attempt(delivery, await self._post(delivery))

    async def _end_attempt(self, delivery: Delivery, answer: Answer) -> None:
        verdict = delivery_rules.judge(delivery.attempt, answer.status, answer.retry_after, self._now(), is_test=delivery.is_test)
        is_hopeless = await self._store.end_attempt(
            delivery, answer.status, answer.error, verdict.pause_seconds, timed_out=answer.timed_out
        )
        self._count.labels(verdict.result.value).inc()
        _log.info("webhook sent", result=verdict.result.value, attempt=delivery.attempt, status=answer.status, tenant=delivery.tenant_id)
        if verdict.result is Result.GONE:
            await self._store.disable(delivery.endpoint_id, "it answered 410 Gone")
        elif is_hopeless:
            await self._store.disable(delivery.endpoint_id, "all attempts of 5 days failed")

    async def _post(self, delivery: Delivery) -> Answer:
        sealed = [each for each in (delivery.secret, delivery.former_secret) if each is not None]
        secrets = [self._secrets.unseal(each, delivery.tenant_id, delivery.endpoint_id) for each in sealed]
        known = [secret for secret in secrets if secret is not None]
        if secrets[0] is None:
            return Answer(None, _UNREADABLE)
        headers = delivery_rules.sign(delivery.event_id, delivery.body, known, self._now())
        return await self._client.post(delivery.url, delivery.body.encode(), headers)
