"""Settles requests on a real PostgreSQL and exports them to a sink in memory."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from features.usage_export.gateway.acknowledged_files import AcknowledgedFiles
from features.usage_export.gateway.export import SinkExport
from features.usage_export.gateway.sinks import NotSent, Sink
from features.usage_export.gateway.store import ExportSession, OutboxStore, Unit
from features.usage_export.rules import usage_events
from features.usage_export.rules.usage_events import DaySums, UsageEvent, UsageSum
from services.gateway import store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.store import GatewayStore
from shared.stores.database import Database
from shared.types import NodeId, RequestId, UserId
from tests.services.gateway.billing import test_ledger_store
from tests.services.gateway.billing.test_ledger_store import Books, new_owner, new_request

SOURCE = "/aimesh/test"


class MemorySink:
    """Ignores ids that it has, as all sinks do. ``faults`` are what it does with the next batches, in order."""

    name = "memory"
    batch = 7

    def __init__(self, deduplicates: timedelta = timedelta(days=1), *, can_be_asked: bool = False) -> None:
        self.deduplicates, self.can_be_asked = deduplicates, can_be_asked
        self.stored: dict[UUID, UsageEvent] = {}
        self.order: list[UsageEvent] = []
        self.sends = 0
        self.faults: list[str] = []
        self.remembers = True

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        yield

    async def send(self, events: Sequence[UsageEvent]) -> None:
        self.sends += 1
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "refused":
            raise NotSent("refused", may_be_stored=False)
        kept = events[: random.Random(self.sends).randint(0, len(events))] if fault == "partly stored" else events
        if fault != "lost":
            for event in kept:
                assert self.remembers or event.id not in self.stored, "the sink has forgotten this id and stores it twice"
                if event.id not in self.stored:
                    self.stored[event.id] = event
                    self.order.append(event)
        if fault:
            raise NotSent(fault, may_be_stored=True)

    async def find_stored(self, events: Sequence[UsageEvent]) -> Collection[UUID] | None:
        return {event.id for event in events if event.id in self.stored} if self.can_be_asked else None

    async def find_difference(self, expected: DaySums, since: date) -> UsageSum | None:
        if not self.can_be_asked:
            return None
        return usage_events.difference(expected, usage_events.sum_up((event.account_day, event.total) for event in self.stored.values()))


def new_export(outbox: OutboxStore, sink: Sink, unit: Unit = "request", **more: Any) -> SinkExport:
    """One without a recovery log."""
    return SinkExport(outbox, sink, [sink.name], unit, AcknowledgedFiles(outbox, None, NodeId("one")), **more)


class Exports(Books):
    """Settles requests with an export, and sends what is settled."""

    def __init__(self, opened: Database, url: str) -> None:
        super().__init__(GatewayStore(opened, exports_usage=True), LedgerStore(opened, exports_usage=True), url)
        self.outbox = OutboxStore(opened, SOURCE)
        self.owners = [new_owner() for _ in range(3)]

    async def settle_some(self, count: int = 1, *, owner: UserId | None = None, cost: int = 30) -> list[RequestId]:
        requests = [new_request() for _ in range(count)]
        for number, request in enumerate(requests):
            await self.reserve(owner or self.owners[number % 3], request=request, tokens=cost)
        rows = [
            msgspec.structs.replace(
                test_ledger_store.row(owner or self.owners[number % 3], request, cost), prompt_tokens=number + 1, completion_tokens=2
            )
            for number, request in enumerate(requests)
        ]
        await self.requests.write_requests(rows)
        return requests

    @asynccontextmanager
    async def sending(self, sink: Sink, unit: Unit = "request") -> AsyncIterator[tuple[SinkExport, ExportSession]]:
        await self.outbox.add_sinks([sink.name])
        async with self.outbox.leadership(sink.name) as session, sink.opened():
            # The server may still be ending the session before.
            while not await session.take():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            yield new_export(self.outbox, sink, unit), session

    async def send_all(self, sink: Sink, unit: Unit = "request", *, most_steps: int = 1000) -> None:
        """Send until there is nothing left."""
        async with self.sending(sink, unit) as (export, session):
            for _ in range(most_steps):
                await export.step(session)
                (state,) = await self.outbox.list_sinks([sink.name])
                if export._fence.decided and not state.waiting:
                    return
        raise AssertionError("still waiting")

    async def ledger_totals(self) -> Counter[str]:
        """Return what the request log and the ledger have in all."""
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
        try:
            totals: Counter[str] = Counter()
            for sql in (
                "SELECT owner::text, sum(amount_micro)::bigint FROM entries WHERE account = 'revenue' GROUP BY 1",
                "SELECT tenant_id::text || ' tokens', sum(tokens_used)::bigint FROM request_logs GROUP BY 1",
            ):
                totals.update(dict(tuple(row) for row in await connection.fetch(sql)))
            return totals
        finally:
            await connection.close()


def totals_of(events: Collection[UsageEvent]) -> Counter[str]:
    totals: Counter[str] = Counter()
    for event in events:
        totals[str(event.subject)] += event.data.cost_micro
        totals[f"{event.subject} tokens"] += event.total.tokens
    return totals


@asynccontextmanager
async def opened_exports(url: str) -> AsyncIterator[Exports]:
    async with store.opened(url) as opened:
        exports = Exports(opened, url)
        await exports.ledger.ensure_default_price(100_000_000, 200_000_000)
        yield exports


async def compare(exports: Exports, sink: Sink) -> None:
    """Require that the sink has exactly what was settled."""
    await new_export(exports.outbox, sink).compare()
    (state,) = await exports.outbox.list_sinks([sink.name])
    assert (state.difference_tokens, state.difference_micro) == (0, 0)
    assert state.compared_at is not None
