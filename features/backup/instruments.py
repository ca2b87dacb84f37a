"""The metrics of backups, from the newest report of the backup agent. Without backups there are none of them, except the first."""

from shared.telemetry.instrument import gauge

BACKUP_MISSING = gauge("ai_platform_backup_missing", "1 if there are no backups though other machines can reach the stack, else 0")
BACKUP_REPORT_AGE = gauge("ai_platform_backup_report_age_seconds", "Time since the backup agent last reported to auth", unit="seconds")
BACKUP_AGE = gauge("ai_platform_backup_age_seconds", "Age of the newest backup in the store", unit="seconds")
BACKUP_VERIFIED_AGE = gauge(
    "ai_platform_backup_verified_age_seconds", "Time since a backup was last restored successfully as a test", unit="seconds"
)
BACKUP_TEST_OK = gauge("ai_platform_backup_test_ok", "1 if the last restore test succeeded, else 0; absent before the first one")
BACKUP_STORE_FAILING = gauge(
    "ai_platform_backup_store_failing_seconds", "How long the backup agent has not reached the store; 0 while it works", unit="seconds"
)
WAL_LAG = gauge(
    "ai_platform_wal_lag_seconds",
    "From the newest commit of the database to the newest one in the store; absent while unknown",
    ("site",),
    unit="seconds",
)
WAL_SLOT_BYTES = gauge(
    "ai_platform_wal_slot_bytes", "Write-ahead log that the database keeps because the store does not have it", unit="bytes"
)
WAL_SLOT_MAX = gauge("ai_platform_wal_slot_most_bytes", "The most that it may keep: BACKUP_WAL_MOST", unit="bytes")
RECOVERY_LOG_STORE_BEHIND = gauge(
    "ai_platform_recovery_log_store_behind_seconds",
    "How long the store has lacked lines of the recovery log; 0 if it has all",
    unit="seconds",
)
