"""Puts the recovery logs and the audit log's anchors of the store back, where auth and the gateway read them at their next start."""

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg
import msgspec

from features.backup.stack import catalog, layout, sealing, upgrade
from features.backup.stack.layout import LogPart, RestoreRefused
from features.backup.stack.restoring.recovered_database import RecoveredDatabase, RestoreSource
from features.backup.stack.sealing import DamagedObject
from features.backup.stack.upgrade import RestorePoint
from shared import audit_anchors
from shared.audit_anchors import Anchor
from shared.identity import private_file
from shared.identity.node_keys import NodeKey
from shared.recovery.log_place import AcceptedGap
from shared.stores import queries, signed_lines
from shared.types import Moment
from stack import settings
from stack.stack_home import StackHome

_ANCHOR_FILE = "anchors.jsonl"
_WAY_ON = "docs/howto/recovery.md#damaged-recovery-log says how to continue"
_SQL = queries.load(Path(__file__).with_suffix(".sql"))
_SECONDS = 60.0
_LAST_LINE_BYTES = 1 << 20


class LogFacts(msgspec.Struct, frozen=True):
    #: Lines that the services will apply.
    lines: int = 0
    newest_at: Moment | None = None
    #: Rows of the audit log that the store knows and the database lacks; None if they were not counted.
    lost_rows: int | None = None
    #: Lines behind a gap, and which ones the gap has, by service.
    unusable: int = 0
    missing: tuple[LogPart, ...] = ()


class LastLine(msgspec.Struct, frozen=True):
    number: int
    at: Moment


async def fetch(source: RestoreSource, work: StackHome, home: StackHome, *, known: Mapping[str, int], accepts_gap: bool) -> LogFacts:
    """Gather the files for ``place``: from the store, and from the old home, which may have newer lines. ``known`` is the newest line of
    each log that the restored database surely has. Raises RestoreRefused for damaged lines, and for missing ones: between others, or at the
    end, where a later backup knows of them."""
    folder, unusable, missing = work.gathered_log, 0, list[LogPart]()
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True)
    backups = await catalog.read_backups(source.store, source.mesh)
    for service in (*layout.LOG_SERVICES, layout.ANCHORS):
        name = _ANCHOR_FILE if service == layout.ANCHORS else f"{service}-restored.jsonl"
        stored = await _gather(source, service, folder / name, accepts_gap=accepts_gap)
        unusable += sum(part.last - part.first + 1 for part in stored.behind)
        own = await asyncio.to_thread(_end, service, home.recovery_log, _log_folder(work))
        end = max(stored.end, known.get(service, 0), 0 if own is None else own.number)
        newest = layout.newest_known_line(service, stored.parts, backups)
        if stored.missing is not None:
            missing.append(stored.missing)
        elif newest > end:
            missing.append(LogPart(service, end + 1, newest))
    if missing and not accepts_gap:
        gap = missing[0]
        raise _refusal(f"lines {gap.first} to {gap.last} of the recovery log of {gap.service} are missing in the store")
    await asyncio.to_thread(_add_own, folder, home)
    return LogFacts(unusable=unusable, missing=tuple(missing))


@dataclass(frozen=True, slots=True)
class _StoredLog:
    """What the store has of a log."""

    parts: tuple[LogPart, ...]
    #: The last line before any gap.
    end: int
    #: The gap behind it, and the objects behind the gap.
    missing: LogPart | None
    behind: tuple[LogPart, ...]


async def _gather(source: RestoreSource, service: str, file: Path, *, accepts_gap: bool) -> _StoredLog:
    """Write the lines to ``file``. With ``accepts_gap``, damaged objects count as missing."""
    parts, damaged, end = await _list(source, service), set[LogPart](), 0
    while True:
        chosen, behind = layout.choose_log([part for part in parts if part not in damaged])
        for part, _ in chosen:
            if part.last <= end:
                continue
            try:
                lines = (await source.open(part.object)).splitlines(keepends=True)
            except DamagedObject as error:
                parts = await _list(source, service)  # the agent may have joined it with others meanwhile
                if part in parts and not accepts_gap:
                    raise _refusal(error.message) from error
                damaged.add(part)
                break
            await asyncio.to_thread(signed_lines.append, file, b"".join(lines[end + 1 - part.first :]))
            end = part.last
        else:
            last = behind[0].first - 1 if behind else max((part.last for part in damaged if part in parts), default=0)
            missing = LogPart(service, end + 1, last) if last > end else None
            return _StoredLog(tuple(parts), end, missing, tuple(behind))


async def _list(source: RestoreSource, service: str) -> list[LogPart]:
    names = [found.name async for found in source.store.list(f"{layout.RECOVERY_LOG}{service}/")]
    parts = [part for name in names if (part := layout.parse_log(name)) is not None]
    for part in parts:
        if part.is_cut:
            await source.open(part.object)  # nobody else may hide lines
    return parts


def _refusal(message: str) -> RestoreRefused:
    return RestoreRefused(message, hint=f"revocations may be in them: {_WAY_ON}")


async def read_points(source: RestoreSource) -> list[RestorePoint]:
    """Raises DamagedObject."""
    names = [found.name async for found in source.store.list(f"{layout.RECOVERY_LOG}{layout.POINTS}/")]
    return [point for name in names for point in upgrade.parse_points(await source.open(name))]


async def fetch_into(folder: Path, anchors: Path, source: RestoreSource, home: StackHome) -> None:
    """Write what the store has where auth and the gateway of another machine read it. Safe to repeat. Raises what ``fetch`` raises; then
    nothing was written."""
    with tempfile.TemporaryDirectory(prefix="aimesh-") as name:
        work = StackHome(Path(name), Path(name) / "run")
        await fetch(source, work, home, known={}, accepts_gap=False)
        await asyncio.to_thread(_put_fetched, work.gathered_log, folder, anchors)


def _put_fetched(gathered: Path, folder: Path, anchors: Path) -> None:
    """Leave the files alone that a service here may be writing."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in gathered.glob("*-restored.jsonl"):
        private_file.replace(folder / path.name, path.read_bytes(), synced=True)
    stored = gathered / _ANCHOR_FILE
    # Both begin with the same anchors.
    if stored.exists() and (not anchors.exists() or anchors.stat().st_size < stored.stat().st_size):
        private_file.replace(anchors, stored.read_bytes(), synced=True)


async def compare(database: RecoveredDatabase, facts: LogFacts, work: StackHome, audit_rows: int) -> LogFacts:
    """Count what is ahead of the database. ``audit_rows``: how many the old one had last, as far as the store knows."""
    ends = {service: await asyncio.to_thread(_end, service, work.gathered_log, _log_folder(work)) for service in layout.LOG_SERVICES}
    anchors = await asyncio.to_thread(_newest_anchors, work.gathered_log / _ANCHOR_FILE)
    lines = 0
    connection = await asyncpg.connect(database.url, timeout=_SECONDS)
    try:
        for service, end in ends.items():
            if end is not None:
                head = await _value(connection, f"read_log_head_of_{service}")
                lines += max(0, end.number - head)
        lost = sum([max(0, last - await _value(connection, "read_audit_head", chain)) for chain, last in anchors.items()])
        lost = max(lost, audit_rows - await _value(connection, "count_audit_rows"))
    finally:
        connection.terminate()
    newest = max((end.at for end in ends.values() if end is not None), default=None)
    return msgspec.structs.replace(facts, lines=lines, newest_at=newest, lost_rows=lost)


def place(work: StackHome, home: StackHome, term: int, facts: LogFacts) -> None:
    """Put the gathered files where the settings of the new home want them. Safe to repeat; blocks."""
    log, gathered = _log_folder(work), work.gathered_log
    log = work.root / log.relative_to(home.root) if log.is_relative_to(home.root) else log
    log.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in _log_files(gathered):
        # RECOVERY_LOG_DIR may be on another disk, with files of before.
        shutil.copyfile(path, log / path.name.replace("-restored.", f"-restored-{term}."))
    if facts.missing:
        missing = ", ".join(f"{part.service} {part.first} to {part.last}" for part in facts.missing)
        private_file.replace(log / "auth.gap", msgspec.json.encode(AcceptedGap(id=uuid4(), missing=missing)), synced=True)
    anchors = Path(settings.read_recorded(work).get("AUDIT_ANCHOR_FILE", home.audit_anchors))
    if anchors.is_relative_to(home.root):
        anchors = work.root / anchors.relative_to(home.root)
    elif anchors.exists():
        return
    if (gathered / _ANCHOR_FILE).exists():
        anchors.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(gathered / _ANCHOR_FILE, anchors)


async def cut(source: RestoreSource, key: NodeKey, term: int, facts: LogFacts) -> None:
    """Give up the lines behind the accepted gaps in the store: the new site writes others with their numbers. Safe to repeat."""
    recipients = (*source.mesh.recipients, source.mesh.own_recipient)
    for part in facts.missing:
        name = LogPart(part.service, part.first, part.first - 1, term).object
        await source.store.put(name, await asyncio.to_thread(sealing.seal_bytes, name, b"", key, source.mesh.mesh, recipients))


def _log_folder(work: StackHome) -> Path:
    """Return RECOVERY_LOG_DIR of the new home, as it will be."""
    final = StackHome(work.root.with_name(work.root.name.removesuffix(".restoring")), work.sockets)
    return Path(settings.read_recorded(work).get("RECOVERY_LOG_DIR", final.recovery_log))


def _log_files(folder: Path) -> list[Path]:
    """Return the services' files of lines, of what they saw last, and of what receivers of usage have."""
    return [path for pattern in ("*-*.jsonl", "recovery_state*") for path in folder.glob(pattern)]


def _add_own(folder: Path, home: StackHome) -> None:
    for path in _log_files(home.recovery_log):
        shutil.copyfile(path, folder / path.name)
    own, stored = home.audit_anchors, folder / _ANCHOR_FILE
    # Both begin with the same anchors.
    if own.exists() and (not stored.exists() or own.stat().st_size > stored.stat().st_size):
        shutil.copyfile(own, stored)


def _end(service: str, *folders: Path) -> LastLine | None:
    """Return the newest line of all files."""
    paths = [path for folder in folders for path in folder.glob(f"{service}-*.jsonl")]
    lines = (line for path in paths for line in map(_line, signed_lines.read_end(path, _LAST_LINE_BYTES)[-2:]) if line is not None)
    return max(lines, key=lambda line: line.number, default=None)


def _line(text: bytes) -> LastLine | None:
    try:
        return msgspec.json.decode(text, type=LastLine)
    except msgspec.DecodeError:  # a crash has cut it off
        return None


def _newest_anchors(file: Path) -> dict[str, int]:
    """Return each chain's row of the newest anchor. After an earlier restore, rows with the same numbers were anchored again."""
    newest: dict[str, Anchor] = {}
    if file.exists():
        for anchor in audit_anchors.read_lines(signed_lines.read(file))[0]:
            if anchor.chain not in newest or newest[anchor.chain].at <= anchor.at:
                newest[anchor.chain] = anchor
    return {chain: anchor.sequence for chain, anchor in newest.items()}


async def _value(connection: asyncpg.Connection, query: str, *arguments: object) -> int:
    try:
        return int(await connection.fetchval(_SQL[query].text, *arguments, timeout=_SECONDS) or 0)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):  # an older version had no such table
        return 0
