"""Keeps the newest report of the backup agent, and exports it as gauges.

The report is one row, so every replica exports the same numbers: alerts take the highest, never the sum. Without backups there are no
gauges. Ages are by PostgreSQL's clock.
"""

from features.backup import contract, instruments
from features.backup.auth.store import BackupStore, StoredReport
from features.backup.contract import Backups, BackupState
from shared import errors
from shared.api.method import Nothing
from shared.node import lifecycle
from shared.rpc import RpcCall, serves
from shared.telemetry import Metrics

_MEASURE_SECONDS = 10.0


class BackupReports:
    def __init__(self, state: BackupState, metrics: Metrics, row: BackupStore) -> None:
        self._state = state
        self._metrics = metrics
        self._row = row

    @serves(contract.report_backup)
    async def report_backup(self, request: contract.ReportBackup, call: RpcCall) -> Nothing:
        if self._state is not BackupState.ON:
            raise errors.BadRequest(f"auth runs with BACKUP_STATE={self._state}", hint="set BACKUP_STATE=on for auth, and restart it")
        await self._row.keep(request.report)
        return Nothing()

    @serves(contract.get_backups)
    async def get_backups(self, request: contract.GetBackups, call: RpcCall) -> Backups:
        stored = await self._row.find() if self._state is BackupState.ON else None
        if stored is None:
            return Backups(state=self._state)
        age = stored.age_of(stored.reported_at)
        return Backups(state=self._state, report=stored.report, reported_at=stored.reported_at, age_seconds=age)

    async def run(self) -> None:
        """Run until canceled."""
        self._metrics.gauge(instruments.BACKUP_MISSING).set(self._state is BackupState.MISSING)
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
    report, gauge = stored.report, metrics.gauge
    backups = () if report is None else report.backups
    verified = [each.verified_at for each in backups if each.verified_at]
    gauge(instruments.BACKUP_REPORT_AGE).set(stored.age_of(stored.reported_at))
    gauge(instruments.BACKUP_AGE).set(stored.age_of(max((each.at for each in backups), default=None)))
    gauge(instruments.BACKUP_VERIFIED_AGE).set(stored.age_of(max(verified, default=None)))
    gauge(instruments.WAL_LAG).clear()
    if report is None:
        return
    failing = report.store_failing_since
    gauge(instruments.WAL_SLOT_BYTES).set(report.wal_slot_bytes)
    gauge(instruments.WAL_SLOT_MAX).set(report.wal_slot_most_bytes)
    gauge(instruments.RECOVERY_LOG_STORE_BEHIND).set(report.log_behind_seconds)
    gauge(instruments.BACKUP_STORE_FAILING).set(0 if failing is None else stored.age_of(failing))
    if report.wal_lag_seconds is not None:
        gauge(instruments.WAL_LAG).labels(report.site).set(report.wal_lag_seconds)
    if report.last_test is not None:
        gauge(instruments.BACKUP_TEST_OK).set(report.last_test.ok)
