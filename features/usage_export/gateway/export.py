"""Sends the outbox to its sinks: each batch at least once, and in doubt again with the same ids, which sinks ignore.

One gateway sends to a sink at a time. It claims a range of rows, sends it, and moves the cursor; a range that was claimed is repeated as it
was until the sink has acknowledged it. If the sink may have forgotten the ids, it is asked first; otherwise the range is held.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from features.usage_export import contract as api
from features.usage_export import instruments
from features.usage_export.gateway import store as outbox_store
from features.usage_export.gateway.acknowledged_files import AcknowledgedFiles
from features.usage_export.gateway.sinks import NotSent, Sink
from features.usage_export.gateway.store import ExportSession, OutboxFence, OutboxStore, Unit, UsageClaim
from features.usage_export.rules import usage_events
from features.usage_export.rules.usage_events import UsageSum
from shared import errors
from shared.rpc import RpcCall, serves
from shared.telemetry import Metrics, logs
from shared.telemetry.instrument import Instrument
from shared.timing.backoff import Backoff
from shared.timing.bounded_waits import wait_until_set

#: Between two looks for new rows, and between two attempts to become the one that sends.
POLL_SECONDS, ELECTION_SECONDS = 1.0, 5.0
#: Between two full batches, so that catching up leaves most of the processor and PostgreSQL to requests.
PACE_SECONDS = 0.2
SEND_SECONDS = 15.0
COMPARE_SECONDS = 3600.0
#: As long as the alert database_restored.
EXCESS_IS_NEWS = timedelta(days=7)
BACKOFF = Backoff(first_seconds=1.0, longest_seconds=300.0, jitter=0.5)

_log = logs.get(part="usage_export")


class SinkExport:
    """Sends to one sink. Use ``run``, or ``step`` in a session that holds the lock."""

    def __init__(
        self,
        store: OutboxStore,
        sink: Sink,
        names: Sequence[str],
        unit: Unit,
        files: AcknowledgedFiles,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``names`` are those of all sinks."""
        self.name = sink.name
        self._store, self._sink, self._names, self._unit, self._files, self._clock = store, sink, names, unit, files, clock
        self._fence = OutboxFence()
        self._failures = 0
        self._compare_at = 0.0

    async def run(self) -> None:
        """Send for ever, while this gateway has the lock."""
        await self._files.has_read.wait()
        while True:
            try:
                async with self._store.leadership(self._sink.name) as session:
                    await _elect(session)
                    await self._store.add_sinks(self._names)
                    self._fence = OutboxFence()
                    async with self._sink.opened():
                        await self._lead(session)
            except (errors.Unavailable, NotSent) as error:
                _log.warning("usage export interrupted", sink=self._sink.name, reason=str(error))
            await asyncio.sleep(ELECTION_SECONDS)

    async def _lead(self, session: ExportSession) -> None:
        due_at = 0.0
        while await session.take():
            if self._clock() >= due_at:
                due_at = self._clock() + await self.step(session)
            # The session ends if it is idle for long.
            await asyncio.sleep(min(ELECTION_SECONDS, max(0.0, due_at - self._clock())))

    async def step(self, session: ExportSession) -> float:
        """Send one batch if there is one. Return the seconds until the next step."""
        claim = await self._store.claim(session, self._sink.name, self._fence, self._unit, self._sink.batch)
        if claim is not None:
            try:
                await _keep(session, self._send(claim))
            except NotSent as error:
                return await self._fail(session, claim, error)
            await self._store.acknowledge(session, claim)
            self._files.note_change()
            self._succeed()
        if self._clock() >= self._compare_at:
            self._compare_at = self._clock() + COMPARE_SECONDS
            await _keep(session, self.compare())
        return POLL_SECONDS if claim is None or not claim.is_full else PACE_SECONDS

    async def _send(self, claim: UsageClaim) -> None:
        """Raises NotSent."""
        events = claim.events
        if claim.doubtful_since is not None and claim.claimed_at - claim.doubtful_since >= self._sink.deduplicates:
            stored = await self._sink.find_stored(events)
            if stored is None:
                raise NotSent("held: it may have events whose ids it has forgotten", may_be_stored=False)
            events = [event for event in events if event.id not in stored]
        for start in range(0, len(events), self._sink.batch):
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await self._sink.send(events[start : start + self._sink.batch])
            except TimeoutError as error:
                raise NotSent("no answer in time", may_be_stored=True) from error
            except NotSent as error:
                error.may_be_stored |= start > 0
                raise

    async def _fail(self, session: ExportSession, claim: UsageClaim, error: NotSent) -> float:
        self._failures += 1
        if self._failures == 1:
            _log.warning("usage not exported; retrying", sink=self._sink.name, reason=str(error))
        await self._store.record_error(session, claim, str(error), may_be_stored=error.may_be_stored)
        return max(BACKOFF.pause(self._failures), error.retry_after_seconds)

    def _succeed(self) -> None:
        if self._failures:
            _log.info("usage exported again", sink=self._sink.name, failures=self._failures)
        self._failures = 0

    async def compare(self) -> None:
        """Compare yesterday and today with the outbox, and the outbox with the ledger. Call it while nothing is being sent."""
        name, since = self._sink.name, datetime.now(UTC).date() - timedelta(days=1)
        expected = await self._store.sum_days(name, since)
        try:
            asked = await self._sink.find_difference(expected, since) or UsageSum(0, 0)
        except NotSent as error:
            _log.warning("the sink can't be asked what it has", sink=name, reason=str(error))
            return
        days = usage_events.sum_up((day, total) for (_, day), total in expected.items())
        found = usage_events.difference(days, await self._store.list_acknowledged(name, since))
        unexported = await self._store.sum_unexported(since)
        most = UsageSum(max(found.tokens, asked.tokens), max(found.cost_micro, asked.cost_micro) + unexported)
        await self._store.record_comparison(name, most)


class UsageExport:
    """All sinks of this gateway, their measurements and their state for administrators."""

    def __init__(self, store: OutboxStore, sinks: Sequence[Sink], unit: Unit, files: AcknowledgedFiles, metrics: Metrics) -> None:
        self._store, self._metrics, self._files = store, metrics, files
        self._names = [sink.name for sink in sinks]
        self.exports = [SinkExport(store, sink, self._names, unit, files) for sink in sinks]

    async def keep_files(self) -> None:
        """Run until canceled; without sinks, return. Raises Unavailable."""
        if self.exports:
            await self._files.run()

    async def measure(self) -> None:
        for sink in await self._store.list_sinks(self._names):
            self._set(instruments.LAG, sink, sink.lag_seconds)
            self._set(instruments.DIFFERENCE_TOKENS, sink, sink.difference_tokens)
            self._set(instruments.DIFFERENCE_MICRO, sink, sink.difference_micro)
            # People have seen it by then, and can't take it out of the receiver's past.
            is_new = sink.excess is not None and datetime.now(UTC) - sink.excess.found_at < EXCESS_IS_NEWS
            self._set(instruments.EXCESS_TOKENS, sink, sink.excess.tokens if sink.excess and is_new else 0)
            self._set(instruments.EXCESS_MICRO, sink, sink.excess.cost_micro if sink.excess and is_new else 0)

    def _set(self, instrument: Instrument, sink: api.UsageSink, value: float) -> None:
        self._metrics.gauge(instrument).labels(sink=sink.name).set(value)

    async def delete_old(self) -> None:
        await self._store.delete_old(self._names)

    @serves(api.read_usage_export)
    async def read(self, request: api.ReadUsageExport, call: RpcCall) -> api.UsageExportState:
        return api.UsageExportState(await self._store.list_sinks(self._names))


async def _elect(session: ExportSession) -> None:
    while True:
        if await session.take():
            return
        await asyncio.sleep(ELECTION_SECONDS)


async def _keep(session: ExportSession, work: Coroutine[object, object, None]) -> None:
    """Wait for long work without losing the session."""
    done, failure = asyncio.Event(), None

    async def keep() -> None:
        while not await wait_until_set(done, ELECTION_SECONDS):
            # If it is lost, its next use says so.
            with suppress(errors.Unavailable):
                await session.take()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep())
        try:
            await work
        except (NotSent, errors.Unavailable, *outbox_store.REFUSALS) as error:
            # Not here, where the group would wrap it.
            failure = error
        finally:
            done.set()
    if failure is not None:
        raise failure
