"""Made-up contents of a store, for the pure modules. Each segment of the write-ahead log has its own moment."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from features.backup.stack import layout
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import BackupManifest, RestoreTests, Segment
from shared.types import MeshName

SEGMENT = 16 << 20
#: The moment of segment 0.
START = datetime(2026, 11, 1, tzinfo=UTC)


def moment(segment: int) -> datetime:
    """Return the moment of a segment, one hour per segment: a day has 24."""
    return START + timedelta(hours=segment)


def backup(start: int, stop: int | None = None, *, timeline: int = 1, term: int = 1) -> BackupManifest:
    stop = start if stop is None else stop
    return BackupManifest(
        name=layout.name_backup(moment(start), term), mesh=MeshName("home"), site="here", term=term, system="7", timeline=timeline,
        segment_size=SEGMENT, start_lsn=start * SEGMENT + 40, stop_lsn=stop * SEGMENT + 80, started_at=moment(start),
        finished_at=moment(stop) + timedelta(minutes=1), seconds=60, postgres=180000, version="0.1", migrations={}, parts=(), rows={},
        ledger_entries=0, ledger_micro=0, audit_heads={}, log_heads={}, secrets_salt="", secrets={}, machine="",
    )  # fmt: skip


def catalog(backups: Iterable[BackupManifest], segments: Iterable[Segment] = (), tests: RestoreTests | None = None) -> StoreCatalog:
    return StoreCatalog(tuple(sorted(backups, key=lambda each: each.name)), tuple(sorted(segments)), frozenset(), None, tests)


def segments(first: int, last: int, timeline: int = 1) -> list[Segment]:
    return [Segment(timeline, number) for number in range(first, last + 1)]


def passed(*backups: BackupManifest, at: datetime = START, ok: bool = True) -> RestoreTests:
    return RestoreTests(at=at, backup="", ok=ok, seconds=1, passed={each.name: at for each in backups})
