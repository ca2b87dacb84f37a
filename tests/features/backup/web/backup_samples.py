"""Reports of a backup agent, as auth returns them."""

from datetime import timedelta
from typing import Any

import msgspec

from features.backup.contract import BackupEntry, BackupReport, Backups, BackupState, RestoreTest
from tests.services.web.fake_mesh import NOW

NEWEST = BackupEntry(name="20261125T023000Z-3", at=NOW - timedelta(hours=9), label="before <1.4>", size_bytes=1_800_000_000, seconds=95.0)
VERIFIED = BackupEntry(
    name="20261124T023000Z-3", at=NOW - timedelta(hours=33), size_bytes=1_700_000_000, seconds=90.0, verified_at=NOW - timedelta(hours=20)
)
REPORT = BackupReport(
    site="north",
    term=3,
    to="s3://backups/aimesh",
    recoverable_from=NOW - timedelta(days=7),
    recoverable_until=NOW - timedelta(seconds=4),
    wal_lag_seconds=4.0,
    backups=(NEWEST, VERIFIED),
    last_test=RestoreTest(at=NOW - timedelta(hours=20), ok=True, seconds=240.0),
)


def backups(age_seconds: float = 5.0, **changed: Any) -> Backups:
    """Return a report that auth received ``age_seconds`` ago."""
    at = NOW - timedelta(seconds=age_seconds)
    report = msgspec.structs.replace(REPORT, **changed)
    return Backups(state=BackupState.ON, report=report, reported_at=at, age_seconds=age_seconds)
