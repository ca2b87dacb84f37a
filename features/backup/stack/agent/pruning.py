"""Decides which objects of the store to delete. Pure.

Any second of the last days stays recoverable, and one backup a day for longer. A kept backup keeps all that it needs. The newest backup and
the newest that passed a restore test always stay, and so does the recovery log.
"""

import math
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from features.backup.settings import BackupSettings
from features.backup.stack import layout
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import BackupManifest


def plan_pruning(catalog: StoreCatalog, program_logs: Collection[str], now: datetime, settings: BackupSettings) -> list[str]:
    """Return what to delete: backups first, manifest before parts, so that no listed backup ever lacks anything.

    ``program_logs`` are the names of their objects. ``now`` is PostgreSQL's clock: if it is behind the newest backup, it was set
    back, and nothing is deleted.
    """
    if not catalog.backups or now < max(backup.finished_at for backup in catalog.backups):
        return []
    kept, start = choose_kept(catalog, now, settings), _start(now, settings)
    size = catalog.backups[-1].segment_size
    needed = _needed_log(catalog, kept, start)
    useless = [
        segment.object(size)
        for segment in catalog.segments
        if not any(timeline == segment.timeline and first <= segment.number <= last for timeline, first, last in needed)
    ]
    dropped = [backup.name for backup in catalog.backups if backup not in kept]
    oldest_day = (now - timedelta(days=settings.backup_log_days)).date()
    return [
        *map(layout.manifest_object, dropped),
        *(layout.part_object(name, part) for name in dropped for part in (layout.DATA, layout.SECRETS, layout.FILES)),
        *useless,
        *(name for name in program_logs if (day := layout.parse_program_log(name)) and day < oldest_day),
    ]


def choose_kept(catalog: StoreCatalog, now: datetime, settings: BackupSettings) -> list[BackupManifest]:
    """Return the backups to keep, oldest first."""
    backups, start = catalog.backups, _start(now, settings)
    kept = {backups[-1].name, _first_needed(backups, start).name}
    kept |= {backup.name for backup in backups if backup.finished_at > start}
    daily = [backup for backup in backups if backup.started_at > now - timedelta(days=settings.backup_days)]
    kept.update({backup.started_at.date(): backup.name for backup in daily}.values())
    passed = catalog.tests.passed if catalog.tests else {}
    kept |= set([backup.name for backup in backups if backup.name in passed][-1:])
    return [backup for backup in backups if backup.name in kept]


def _start(now: datetime, settings: BackupSettings) -> datetime:
    """Return the moment from which any second stays recoverable."""
    return now - timedelta(days=settings.backup_pitr_days)


def _first_needed(backups: Sequence[BackupManifest], start: datetime) -> BackupManifest:
    """Return the backup from which every second after ``start`` can be reached."""
    return next((backup for backup in reversed(backups) if backup.finished_at <= start), backups[0])


def _needed_log(catalog: StoreCatalog, kept: Sequence[BackupManifest], start: datetime) -> list[tuple[int, float, float]]:
    """Return timelines, each with the first and the last segment that are needed of it."""
    base, newest = _first_needed(catalog.backups, start), max(backup.timeline for backup in catalog.backups)
    needed: list[tuple[int, float, float]] = [
        (backup.timeline, backup.start_lsn // backup.segment_size, backup.stop_lsn // backup.segment_size) for backup in kept
    ]
    # Until then, the first seconds of the newest timeline are reached through earlier ones, and where it begins is not known here.
    is_covered = any(backup.finished_at <= start for backup in catalog.backups if backup.timeline == newest)
    timelines = {segment.timeline for segment in catalog.segments}
    whole = (each for each in timelines if each > base.timeline or (each < newest and not is_covered))
    needed.extend((timeline, 0, math.inf) for timeline in whole)
    return [*needed, (base.timeline, base.start_lsn // base.segment_size, math.inf)]
