-- The newest report of the backup agent, so that every replica of auth shows and exports the same.

CREATE TABLE backup_reports (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- When auth first ran with backups. Ages count from here until there is a report, a backup, or a restore test.
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- By PostgreSQL's clock; null until the agent reports for the first time.
    reported_at timestamptz,
    -- JSON (BackupReport of shared/api/recovery.py).
    report text,
    CHECK ((report IS NULL) = (reported_at IS NULL))
);
