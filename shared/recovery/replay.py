"""At every start: read the recovery log's files, and apply what a restored database has forgotten.

A damaged file is refused, because the lines behind the damage may be the revocation that matters: the service does not start.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from shared import errors
from shared.recovery import recovery_lines
from shared.recovery.log_place import LogPlace
from shared.recovery.recovery_lines import CheckedLog, DamagedLine, LogEnd, RecoveryLine
from shared.recovery.recovery_store import RecoveryStore
from shared.stores import signed_lines
from shared.stores.transactions import Transaction
from shared.telemetry import logs

ApplyLines = Callable[[Transaction, Sequence[RecoveryLine]], Awaitable[None]]

#: Lines of one kind per query.
_BATCH = 1000
_DAMAGED_HINT = "save the folder, find out who changed it (docs/runbooks/database_restored.md), and put the intact file back"

_log = logs.get(part="recovery")


@dataclass(frozen=True, slots=True)
class LogFile:
    path: Path
    checked: CheckedLog


async def read_files(place: LogPlace, head: LogEnd, rows: RecoveryStore) -> tuple[LogFile, ...]:
    """Verify all replicas' files that are here, and that they belong to this database. Raises BadSettings and Unavailable."""
    files = await asyncio.to_thread(_read_all, place, head.number)
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
    """Applies lines in one transaction. ``kinds`` are queries by kind; None where ``special`` has a function, or nothing is to do."""

    def __init__(
        self,
        rows: RecoveryStore,
        kinds: Mapping[str, str | None],
        special: Mapping[str, ApplyLines] | None = None,
        stepwise: Container[str] = (),
    ) -> None:
        """``stepwise``: kinds whose lines about one subject build on each other, so that one query may have only one of them."""
        self._rows = rows
        self._kinds = kinds
        self._special = special or {}
        self._stepwise = stepwise

    async def apply(self, transaction: Transaction, lines: Sequence[RecoveryLine]) -> None:
        """Apply lines, and append them to the table. Idempotent. Lines of one kind are applied in their order; kinds are independent of
        each other, so a log in which they alternate costs no query for each line."""
        by_kind: dict[str, list[RecoveryLine]] = {}
        for line in lines:
            by_kind.setdefault(line.kind, []).append(line)
        if unknown := by_kind.keys() - self._kinds.keys():
            raise errors.BadSettings(
                f"the recovery log has a line of the kind {min(unknown)!r}, which this version does not know",
                hint="start the newer version",
            )
        for kind, of_kind in by_kind.items():
            for step in _steps(of_kind) if kind in self._stepwise else (of_kind,):
                for start in range(0, len(step), _BATCH):
                    await self._apply(transaction, kind, step[start : start + _BATCH])
        for start in range(0, len(lines), _BATCH):
            await self._rows.append(transaction, lines[start : start + _BATCH])

    async def _apply(self, transaction: Transaction, kind: str, lines: Sequence[RecoveryLine]) -> None:
        if (special := self._special.get(kind)) is not None:
            await special(transaction, lines)
        elif (query := self._kinds[kind]) is not None:
            await transaction.run(query, *columns_of(lines))


def columns_of(lines: Sequence[RecoveryLine]) -> tuple[list[str], list[str], list[datetime]]:
    """Return the arguments of a replay's query."""
    return [line.subject for line in lines], [line.details for line in lines], [line.at for line in lines]


def _steps(lines: Sequence[RecoveryLine]) -> list[list[RecoveryLine]]:
    """Return first the first line of each subject, then the second of each, and so on."""
    steps: list[list[RecoveryLine]] = []
    seen: Counter[str] = Counter()
    for line in lines:
        if seen[line.subject] == len(steps):
            steps.append([])
        steps[seen[line.subject]].append(line)
        seen[line.subject] += 1
    return steps


def _read_all(place: LogPlace, after: int) -> list[LogFile]:
    return [LogFile(path, _read(path, after, place)) for path in place.list_files()]


def _read(path: Path, after: int, place: LogPlace) -> CheckedLog:
    try:
        checked = recovery_lines.check(signed_lines.read(path), after=after, keys=place.keys.ids, mesh=place.mesh)
    except DamagedLine as damage:
        raise _refusal(path, f"line {damage.line}: {damage.why}", _DAMAGED_HINT) from damage
    except OSError as error:
        raise errors.BadSettings(f"the recovery log {path} cannot be read: {error.strerror}", hint="check RECOVERY_LOG_DIR") from error
    if checked.cut_off:
        _log.warning("a crash cut off lines of the recovery log; they are ignored", file=str(path), lines=checked.cut_off)
    return checked


def _refusal(path: Path, why: str, hint: str) -> errors.BadSettings:
    return errors.BadSettings(f"the recovery log {path} is damaged: {why}", hint=hint)
