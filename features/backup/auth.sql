-- name: expect_backup_reports
-- Ages count from the first start with backups.
INSERT INTO backup_reports DEFAULT VALUES ON CONFLICT DO NOTHING;

-- name: keep_backup_report
-- Replace the report.
INSERT INTO backup_reports (reported_at, report) VALUES (clock_timestamp(), $1)
ON CONFLICT (only_row) DO UPDATE SET reported_at = excluded.reported_at, report = excluded.report;

-- name: find_backup_report
-- The report and the time now.
SELECT since, reported_at, report, clock_timestamp() AS now FROM backup_reports;
