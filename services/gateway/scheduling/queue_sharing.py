"""Exchanges the reports of ``peer_queues`` between gateways, over a log in Valkey.

Without Valkey, each gateway schedules alone. Nothing is sent while no request waits.
"""

import asyncio
from contextlib import suppress

from services.gateway.scheduling import peer_queues
from services.gateway.scheduling.dispatch import Dispatch
from shared import errors
from shared.stores.cache import Cache, UnexpectedReply
from shared.telemetry import logs

LOG = "gateway:queues"
#: A few seconds of a busy mesh; a gateway that fell further behind starts at the end.
MAX_ENTRIES = 1_000
#: How often to check for unused delegated slots, silent peers and slots to free while requests wait.
_LOOK_SECONDS = 0.1
_RETRY_SECONDS = 1.0

_log = logs.get(part="queue_sharing")


class QueueSharing:
    def __init__(self, log: Cache, dispatch: Dispatch, name: str) -> None:
        self._log = log
        self._dispatch = dispatch
        self._name = name
        self._changed = asyncio.Event()
        self._failing: set[str] = set()
        dispatch.on_change = self._changed.set

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_reports())
            tasks.create_task(self._read_reports())

    async def _send_reports(self) -> None:
        """Send one entry at a time; changes meanwhile go out with the next."""
        while True:
            await self._wait_for_change()
            self._dispatch.expire_peers()
            self._dispatch.preempt()
            reports = self._dispatch.reports()
            if not reports:
                continue
            try:
                await self._log.append(LOG, peer_queues.encode(reports), most=MAX_ENTRIES)
                self._failing.discard("append")
            except (errors.Unavailable, UnexpectedReply) as error:
                await self._schedule_alone("append", error)

    async def _wait_for_change(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS if self._dispatch.has_waiting else None):
                await self._changed.wait()
        self._changed.clear()

    async def _read_reports(self) -> None:
        while True:
            try:
                after = await self._log.log_end(LOG)
                while True:
                    entries, after = await self._log.read_log(LOG, after)
                    self._failing.discard("read")
                    for entry in entries:
                        self._apply(entry)
            except (errors.Unavailable, UnexpectedReply) as error:
                await self._schedule_alone("read", error)

    def _apply(self, entry: bytes) -> None:
        try:
            reports = peer_queues.decode(entry)
        except errors.ProtocolViolation as error:
            # Of another version: the queues of that gateway count as before until they are too old. Nothing is allowed by it.
            _log.warning("unreadable queue report", error=error.message)
            return
        for report in reports:
            if report.gateway != self._name:
                self._dispatch.apply_report(report)

    async def _schedule_alone(self, call: str, error: Exception) -> None:
        if call not in self._failing:
            self._failing.add(call)
            _log.warning("scheduling without the queues of other gateways", call=call, reason=str(error))
        self._dispatch.forget_peers()
        await asyncio.sleep(_RETRY_SECONDS)
