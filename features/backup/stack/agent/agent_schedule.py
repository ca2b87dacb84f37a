"""Decides when the backup agent does what. Pure. All moments are by PostgreSQL's clock, which may be set back or forward."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta

from features.backup.settings import BackupSettings
from features.backup.stack.agent.source_database import SourcePosition
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import BackupManifest

_TEST_INTERVAL = timedelta(days=7)
_RETRY_INTERVAL = timedelta(days=1)
#: The first test comes soon, because it finds a wrong setup.
_FIRST_TEST_AFTER = timedelta(hours=1)
#: A moment that is later than this is from a clock that was set forward, and counts for nothing.
_LEEWAY = timedelta(minutes=5)


def why_backup(catalog: StoreCatalog, term: int, now: SourcePosition, settings: BackupSettings) -> str | None:
    """Return why a backup must be made now, or None."""
    own = [backup for backup in catalog.backups if (backup.term, backup.timeline) == (term, now.timeline)]
    if not own:
        return "there is none of this term and timeline yet"
    # Not by its time, which may be from a clock that was set forward.
    newest = max(own, key=lambda backup: backup.start_lsn)
    if has_gap(catalog, newest):
        return "write-ahead log is missing since the last one"
    if now.lsn - newest.start_lsn >= settings.base_after_wal_bytes:
        return "of the write-ahead log since the last one"
    known = [backup.started_at for backup in own if backup.started_at <= now.at + _LEEWAY]
    if not known or max(known) < last_daily(now.at, settings.base_backup_time):
        return "of the time of day"
    return None


def has_gap(catalog: StoreCatalog, backup: BackupManifest) -> bool:
    """Return whether a segment is missing between the start of ``backup`` and the newest segment of its timeline."""
    first = backup.start_lsn // backup.segment_size
    stored = {segment.number for segment in catalog.segments if segment.timeline == backup.timeline and segment.number >= first}
    return bool(stored) and len(stored) <= max(stored) - first


def last_daily(now: datetime, daily_at: time) -> datetime:
    """Return the newest moment at which the daily backup was due."""
    today = datetime.combine(now.astimezone(UTC).date(), daily_at, UTC)
    return today if today <= now else today - timedelta(days=1)


def is_test_due(catalog: StoreCatalog, now: datetime) -> bool:
    if not catalog.backups:
        return False
    tests = catalog.tests
    if tests is None or tests.at > now + _LEEWAY:
        return _is_old(catalog.backups, now)
    return now - tests.at >= (_TEST_INTERVAL if tests.ok else _RETRY_INTERVAL)


def _is_old(backups: Sequence[BackupManifest], now: datetime) -> bool:
    """Return whether the first backup is, or its moment is wrong."""
    return not timedelta() <= now - backups[0].finished_at < _FIRST_TEST_AFTER


def day_to_copy(now: datetime) -> date:
    """Return the last day whose program logs are complete."""
    return now.astimezone(UTC).date() - timedelta(days=1)
