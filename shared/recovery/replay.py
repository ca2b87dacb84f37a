"""At every start of auth: read the recovery log's files, and apply what a restored database has forgotten.

A damaged file is refused, because the lines behind the damage may be the revocation that matters: auth does not start.
"""

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.auth.audit.anchoring import AnchorKeys
from services.auth.audit.audit_store import AuditStore
from services.auth.privacy.privacy_store import PrivacyStore
from services.auth.recovery import kinds, recovery_lines
from services.auth.recovery.recovery_lines import CheckedLog, DamagedLine, LogEnd, RecoveryLine
from services.auth.recovery.recovery_store import RecoveryStore
from shared import errors
from shared.stores import signed_lines
from shared.telemetry import logs
from shared.types import MeshName, UserId

if TYPE_CHECKING:
    from shared.stores.database import Transaction

#: Lines of one kind per query.
_BATCH = 1000
_DAMAGED_HINT = "save the folder, find out who changed it (docs/runbooks/database_restored.md), and put the intact file back"

_log = logs.get(part="recovery")


@dataclass(frozen=True, slots=True)
class LogFile:
    path: Path
    checked: CheckedLog


def name_of(node: str) -> str:
    """Return the name of a replica's file."""
    return f"auth-{node[:16]}.jsonl"


async def read_files(folder: Path, head: LogEnd, rows: RecoveryStore, keys: AnchorKeys, mesh: MeshName) -> tuple[LogFile, ...]:
    """Verify all replicas' files that are here, and that they belong to this database. Raises BadSettings and Unavailable."""
    files = await asyncio.to_thread(_read_all, folder, head.number, keys, mesh)
    for file in files:
        end = file.checked.end
        expected = head.hash if end.number >= head.number else await rows.hash_of(end.number)
        found = file.checked.hash_at if end.number >= head.number else end.hash
        if end.number and found != expected:
            number = min(end.number, head.number)
            raise _refusal(
                file.path, f"number {number} differs from the database", "is it the log of another mesh, or was a part replaced?"
            )
    by_length = sorted(files, key=lambda file: file.checked.end.number)
    for shorter, longer in itertools.pairwise(by_length):
        last = shorter.checked.newer[-1:]
        if last and longer.checked.newer[len(shorter.checked.newer) - 1] != last[0]:
            raise _refusal(shorter.path, f"number {last[0].number} differs from {longer.path}", _DAMAGED_HINT)
    return tuple(by_length)


class Replay:
    """Applies lines in one transaction."""

    def __init__(
        self, rows: RecoveryStore, own_data: PrivacyStore, audit: AuditStore, hash_password: Callable[[str], Awaitable[str]]
    ) -> None:
        self._rows = rows
        self._own_data = own_data
        self._audit = audit
        self._hash_password = hash_password

    async def apply(self, transaction: "Transaction", lines: Sequence[RecoveryLine]) -> None:
        """Apply lines in their order, and append them to the table. Idempotent."""
        for kind, of_kind in itertools.groupby(lines, key=lambda line: line.kind):
            if kind not in kinds.KINDS:
                raise errors.BadSettings(
                    f"the recovery log has a line of the kind {kind!r}, which this version does not know", hint="start the newer version"
                )
            # A chain of rotations must be followed step by step.
            size = 1 if kind == "key.secret_ended" else _BATCH
            batch = list(of_kind)
            for start in range(0, len(batch), size):
                await self._apply(transaction, kind, batch[start : start + size])
        for start in range(0, len(lines), _BATCH):
            await self._rows.append(transaction, lines[start : start + _BATCH])

    async def _apply(self, transaction: "Transaction", kind: str, lines: Sequence[RecoveryLine]) -> None:
        columns = [line.subject for line in lines], [line.details for line in lines], [line.at for line in lines]
        if kind == "user.erased":
            for row in await transaction.rows("list_erasures_to_replay", *columns):
                await self._own_data.erase(transaction, UserId(row["id"]), secrets.token_hex(4))
                await self._audit.shred_of(transaction, UserId(row["id"]))
        elif kind == "user.credentials_changed":
            await transaction.run("replay_user_credentials_changed", *columns, await self._hash_password(secrets.token_urlsafe(32)))
        elif query := kinds.KINDS[kind]:
            await transaction.run(query, *columns)


def _read_all(folder: Path, after: int, keys: AnchorKeys, mesh: MeshName) -> list[LogFile]:
    return [LogFile(path, _read(path, after, keys, mesh)) for path in sorted(folder.glob("auth-*.jsonl"))]


def _read(path: Path, after: int, keys: AnchorKeys, mesh: MeshName) -> CheckedLog:
    try:
        checked = recovery_lines.check(signed_lines.read(path), after=after, keys=keys.ids, mesh=mesh)
    except DamagedLine as damage:
        raise _refusal(path, f"line {damage.line}: {damage.why}", _DAMAGED_HINT) from damage
    except OSError as error:
        raise errors.BadSettings(f"the recovery log {path} cannot be read: {error.strerror}", hint="check RECOVERY_LOG_DIR") from error
    if checked.cut_off:
        _log.warning("a crash cut off lines of the recovery log; they are ignored", file=str(path), lines=checked.cut_off)
    return checked


def _refusal(path: Path, why: str, hint: str) -> errors.BadSettings:
    return errors.BadSettings(f"the recovery log {path} is damaged: {why}", hint=hint)
