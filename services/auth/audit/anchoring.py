"""Sign the heads of the audit log every hour, into a table and into a file, which the database's owner should not be able to write."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from services.auth.audit.audit_store import AuditStore
from shared import audit_anchors, errors
from shared.audit_anchors import Anchor
from shared.identity.node_keys import NodeKey
from shared.telemetry import logs
from shared.types import MeshName, NodeId

_BATCH = 1000

_log = logs.get(part="audit")


@dataclass(frozen=True, slots=True)
class AnchorKeys:
    """The key that signs, and former ones."""

    current: NodeKey
    former: tuple[NodeKey, ...] = ()

    @classmethod
    def of(cls, seed: bytes, *former: bytes) -> "AnchorKeys":
        """Each of 32 secret bytes, derived for this purpose only."""
        return cls(audit_anchors.signing_key(seed), tuple(map(audit_anchors.signing_key, former)))

    @property
    def ids(self) -> frozenset[NodeId]:
        return frozenset(key.id for key in (self.current, *self.former))


class Anchoring:
    """``write`` may be called at any time, by any number of replicas."""

    def __init__(
        self, rows: AuditStore, keys: AnchorKeys, mesh: MeshName, file: Path | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.keys = keys
        self._rows = rows
        self._mesh = mesh
        self._file = file
        self._now = now
        #: The number of the last anchor in the file; None until the file was read.
        self._in_file: int | None = None
        self._writing = asyncio.Lock()

    async def write(self) -> None:
        """Anchor all chains that have grown. Each replica's file gets the anchors of every replica. Raises Unavailable."""
        async with self._writing:
            if self._in_file is None:
                self._in_file = await self._rows.last_anchor()
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
            return await asyncio.to_thread(_read, self._file)
        except FileNotFoundError:  # nothing was anchored yet
            return (), ()
        except OSError as error:
            raise errors.Unavailable(f"the anchor file cannot be read: {error.strerror}", hint="check AUDIT_ANCHOR_FILE") from error

    async def _copy(self, file: Path) -> None:
        assert self._in_file is not None  # ``write`` has looked
        while True:
            anchors, number = await self._rows.anchors_after(self._in_file)
            if not anchors:
                return
            try:
                await asyncio.to_thread(_append, file, anchors)
            except OSError as error:
                # The table has them, and the next hour tries again.
                _log.error("anchors not written to their file", file=str(file), reason=error.strerror)
                return
            self._in_file = number


def _append(file: Path, anchors: Sequence[Anchor]) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "ab") as out:
        # A line that a crash left incomplete stays on its own line.
        start = b"\n" if out.tell() and not _ends_in_newline(file) else b""
        out.write(start + b"".join(map(audit_anchors.line, anchors)))
        out.flush()
        os.fsync(out.fileno())


def _ends_in_newline(file: Path) -> bool:
    with file.open("rb") as text:
        text.seek(-1, os.SEEK_END)
        return text.read(1) == b"\n"


def _read(file: Path) -> tuple[tuple[Anchor, ...], tuple[int, ...]]:
    with file.open("rb") as lines:
        anchors, unreadable = audit_anchors.read_lines(lines)
    return tuple(anchors), tuple(unreadable)
