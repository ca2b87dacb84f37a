"""Sign the heads of the audit log regularly, into a table and into a file, which the database's owner should not be able to write."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from services.auth.audit.audit_store import AuditStore
from shared import audit_anchors, errors
from shared.audit_anchors import Anchor, AnchorKeys
from shared.stores import signed_lines
from shared.stores.signed_lines import LineFile
from shared.telemetry import logs
from shared.types import MeshName

_BATCH = 1000
#: Some 100 anchors.
_NEWEST_BYTES = 65_536

_log = logs.get(part="audit")


class Anchoring:
    """``write`` may be called at any time, by any number of replicas."""

    def __init__(
        self, rows: AuditStore, keys: AnchorKeys, mesh: MeshName, file: Path | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.keys = keys
        self._rows = rows
        self._mesh = mesh
        self._file = None if file is None else LineFile(file, rows.anchors_after, audit_anchors.line)
        self._now = now
        self._has_begun = False
        self._writing = asyncio.Lock()

    async def write(self) -> None:
        """Anchor all chains that have grown. Each replica's file gets the anchors of every replica. Raises Unavailable."""
        async with self._writing:
            if self._file is not None and not self._has_begun:
                self._file.last, self._has_begun = await self._rows.last_anchor(), True
            at = self._now()
            signed = [audit_anchors.sign(self.keys.current, self._mesh, chain, head, at) for chain, head in await self._rows.unanchored()]
            for start in range(0, len(signed), _BATCH):
                await self._rows.add_anchors(signed[start : start + _BATCH])
            if self._file is not None:
                await self._copy(self._file)

    async def read(self) -> tuple[tuple[Anchor, ...], tuple[int, ...]]:
        """Return the anchors of the file, and the lines that are none. Raises Unavailable if it cannot be read."""
        if self._file is None:
            return (), ()
        try:
            return await asyncio.to_thread(_read, self._file.path)
        except FileNotFoundError:  # nothing was anchored yet
            return (), ()
        except OSError as error:
            raise errors.Unavailable(f"the anchor file cannot be read: {error.strerror}", hint="check AUDIT_ANCHOR_FILE") from error

    async def read_newest(self) -> tuple[Anchor, ...]:
        """Return the last anchors of the file, oldest first; none if it cannot be read."""
        if self._file is None:
            return ()
        try:
            lines = await asyncio.to_thread(signed_lines.read_end, self._file.path, _NEWEST_BYTES)
        except OSError:  # ``write`` reports it
            return ()
        return tuple(audit_anchors.read_lines(lines)[0])

    async def _copy(self, file: LineFile[Anchor]) -> None:
        try:
            await file.catch_up()
        except OSError as error:
            # The table has them, and the next round tries again.
            _log.error("anchors not written to their file", file=str(file.path), reason=error.strerror)


def _read(file: Path) -> tuple[tuple[Anchor, ...], tuple[int, ...]]:
    anchors, unreadable = audit_anchors.read_lines(signed_lines.read(file))
    return tuple(anchors), tuple(unreadable)
