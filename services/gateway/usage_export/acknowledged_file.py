"""Keeps what the receivers have acknowledged beside the recovery log, where a restore of the database doesn't undo it.

After a restore, receivers have usage that the ledger doesn't. Each gateway writes the sums of all sinks, and reads the files at its start:
sums that are ahead of the database stay in it as what the receivers have in excess.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from services.gateway.usage_export.outbox_store import AcknowledgedSum, OutboxStore
from shared.identity import private_file
from shared.telemetry import logs
from shared.timing.bounded_waits import wait_until_set
from shared.types import NodeId

_EVERY_SECONDS = 10.0
#: The pause after a write, in its own time.
_SHARE = 20

_log = logs.get(part="usage_export")


class AcknowledgedFile:
    """``run`` is the only writer of this gateway's file. Without a folder it does nothing."""

    def __init__(self, store: OutboxStore, folder: Path | None, node: NodeId) -> None:
        self._store, self._folder, self._name = store, folder, f"usage_export-{node[:16]}.json"
        self._written: Sequence[AcknowledgedSum] = ()
        self._is_failing = False
        self._changed = asyncio.Event()
        #: Set when the files were read: only then is it known which events a sink may have.
        self.has_read = asyncio.Event()
        if folder is None:
            self.has_read.set()

    def note_change(self) -> None:
        """Write it soon: the disk never holds up the export."""
        self._changed.set()

    async def run(self) -> None:
        """Run until canceled. Raises Unavailable."""
        if self._folder is None:
            return
        await self.read()
        while True:
            await wait_until_set(self._changed, _EVERY_SECONDS)
            self._changed.clear()
            began = time.monotonic()
            await self.write()
            await asyncio.sleep(_SHARE * (time.monotonic() - began))

    async def read(self) -> None:
        """Keep what the files of all gateways here say and the database doesn't know. Raises Unavailable."""
        assert self._folder is not None
        await self._keep(await asyncio.to_thread(_read_all, self._folder))
        self.has_read.set()

    async def write(self) -> None:
        """Raises Unavailable."""
        assert self._folder is not None
        sums = await self._store.list_acknowledged_accounts()
        known = {(one.sink, one.owner, one.since): one.events for one in sums}
        if lost := [one for one in self._written if known.get((one.sink, one.owner, one.since), 0) < one.events]:
            # Too old, or the database was replaced while this gateway ran.
            await self._keep(lost)
            sums = await self._store.list_acknowledged_accounts()
        if sums == self._written:
            return
        body = msgspec.json.encode(sums)
        try:
            await asyncio.to_thread(private_file.replace, self._folder / self._name, body, synced=True)
        except OSError as error:
            if not self._is_failing:
                _log.error("what receivers have acknowledged can't be written", folder=str(self._folder), reason=error.strerror)
            self._is_failing = True
        else:
            self._written, self._is_failing = sums, False

    async def _keep(self, sums: Sequence[AcknowledgedSum]) -> None:
        if sums and (count := await self._store.keep_acknowledged(sums)):
            _log.warning("receivers of usage have more than this database knows: it was restored", accounts=count)


def _read_all(folder: Path) -> Sequence[AcknowledgedSum]:
    found = list[AcknowledgedSum]()
    for path in folder.glob("usage_export-*.json"):
        try:
            found += msgspec.json.decode(path.read_bytes(), type=tuple[AcknowledgedSum, ...])
        except (OSError, msgspec.DecodeError) as error:
            _log.error("what receivers have acknowledged can't be read; a restore is not noticed by it", file=str(path), reason=str(error))
    return found
