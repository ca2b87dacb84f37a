"""Exports tokens that no plan covers to a meter at Stripe, for operators who price tokens there."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

from features.usage_export.gateway.sinks import NotSent
from features.usage_export.gateway.store import OutboxStore
from features.usage_export.rules.usage_events import DaySums, UsageEvent, UsageSum
from services.gateway.payments.payment_provider import Declined, UsageMeters
from shared import errors


class StripeSink:
    """An event without a customer at Stripe, or without tokens, is left out. Refunds are negative quantities, which Stripe takes."""

    name = "stripe"
    #: A day, less the time of a call. Stripe has sums only, so what it may have forgotten is held.
    deduplicates = timedelta(hours=23)
    #: Each is a call.
    batch = 100

    def __init__(self, meters: UsageMeters, meter: str, store: OutboxStore) -> None:
        """``meter``: the name of its events."""
        self._meters, self._meter, self._store = meters, meter, store

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        yield

    async def send(self, events: Sequence[UsageEvent]) -> None:
        customers = await self._store.list_metered({event.subject for event in events})
        queues: dict[str, list[UsageEvent]] = {customer: [] for customer in customers.values()}
        for event in events:
            if event.data.uncovered_tokens and event.subject in customers:
                queues[customers[event.subject]].append(event)
        added, failures = 0, list[errors.AimeshError]()

        async def add(customer: str, queue: Sequence[UsageEvent]) -> None:
            # Stripe takes one call at a time for a customer.
            nonlocal added
            try:
                for event in queue:
                    await self._meters.add(self._meter, customer, event.data.uncovered_tokens, event.id, event.time)
                    added += 1
            except errors.AimeshError as error:
                failures.append(error)

        async with asyncio.TaskGroup() as tasks:
            for each in queues.items():
                tasks.create_task(add(*each))
        if failures:
            has_none = not added and all(isinstance(error, Declined | errors.NotFound) for error in failures)
            raise NotSent(failures[0].message, may_be_stored=not has_none) from failures[0]

    async def find_stored(self, events: Sequence[UsageEvent]) -> Collection[UUID] | None:
        return None

    async def find_difference(self, expected: DaySums, since: date) -> UsageSum | None:
        start = datetime.combine(since, time(), UTC)
        end = start + timedelta(days=1)
        wanted = await self._store.sum_metered(self.name, start, end)
        try:
            found = {customer: await self._meters.sum_up(self._meter, customer, start, end) for customer in wanted}
        except errors.AimeshError as error:
            raise NotSent(error.message, may_be_stored=False) from error
        return UsageSum(sum(abs(tokens - found[customer]) for customer, tokens in wanted.items()), 0)
