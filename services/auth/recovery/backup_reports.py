"""Keeps the newest report of the backup agent, and exports it as gauges.

The report is one row, so every replica exports the same numbers: alerts take the highest, never the sum. Without backups there are no
gauges. Ages are by PostgreSQL's clock.
"""

from services.auth.dependencies import Dependencies
from services.auth.recovery.backup_store import BackupStore, StoredReport
from shared import errors
from shared.api import recovery
from shared.api.method import Nothing
from shared.api.recovery import Backups, BackupState
from shared.node import lifecycle
from shared.rpc import RpcCall, serves
from shared.telemetry import Metrics

_MEASURE_SECONDS = 10.0


class BackupReports:
    def __init__(self, parts: Dependencies, row: BackupStore) -> None:
        self._state = parts.settings.backup_state
        self._metrics = parts.node.metrics
        self._row = row

    @serves(recovery.report_backup)
    async def report_backup(self, request: recovery.ReportBackup, call: RpcCall) -> Nothing:
        if self._state is not BackupState.ON:
            raise errors.BadRequest(f"auth runs with BACKUP_STATE={self._state}", hint="set BACKUP_STATE=on for auth, and restart it")
        await self._row.keep(request.report)
        return Nothing()

    @serves(recovery.get_backups)
    async def get_backups(self, request: recovery.GetBackups, call: RpcCall) -> Backups:
        stored = await self._row.find() if self._state is BackupState.ON else None
        if stored is None:
            return Backups(state=self._state)
        age = stored.age_of(stored.reported_at)
        return Backups(state=self._state, report=stored.report, reported_at=stored.reported_at, age_seconds=age)

    async def run(self) -> None:
        """Run until canceled."""
        self._metrics.backup_missing.set(self._state is BackupState.MISSING)
        if self._state is BackupState.ON:
            await lifecycle.every(_MEASURE_SECONDS, self.measure, first=0)

    async def measure(self) -> None:
        """Raises Unavailable."""
        if (stored := await self._row.find()) is None:
            await self._row.expect()
        else:
            export(stored, self._metrics)


def export(stored: StoredReport, metrics: Metrics) -> None:
    """Set the gauges. The one with a site is cleared first, because a restore may have changed the site."""
    report = stored.report
    backups = () if report is None else report.backups
    metrics.backup_report_age.set(stored.age_of(stored.reported_at))
    metrics.backup_age.set(stored.age_of(max((each.at for each in backups), default=None)))
    metrics.backup_verified_age.set(stored.age_of(max((each.verified_at for each in backups if each.verified_at), default=None)))
    metrics.wal_lag.clear()
    if report is None:
        return
    metrics.wal_slot_bytes.set(report.wal_slot_bytes)
    metrics.wal_slot_most.set(report.wal_slot_most_bytes)
    metrics.recovery_log_store_behind.set(report.log_behind_seconds)
    metrics.backup_store_failing.set(0 if report.store_failing_since is None else stored.age_of(report.store_failing_since))
    if report.wal_lag_seconds is not None:
        metrics.wal_lag.labels(report.site).set(report.wal_lag_seconds)
    if report.last_test is not None:
        metrics.backup_test_ok.set(report.last_test.ok)
