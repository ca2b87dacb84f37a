-- name: find_recovery_head
-- The last line of the recovery log; no row if there is none.
SELECT number, hash FROM recovery_log ORDER BY number DESC LIMIT 1;

-- name: find_recovery_hash
-- The hash of a line.
SELECT hash FROM recovery_log WHERE number = $1;

-- name: list_recovery_lines
-- Lines by number, oldest first.
SELECT number, at, kind, subject, details, previous_hash, hash FROM recovery_log WHERE number > $1 ORDER BY number LIMIT $2;

-- name: find_database_place
-- Which database this is, how far its log reaches, and the newest restore. The flushed position: an unflushed one may be lost in a crash.
SELECT
    (SELECT system_identifier FROM pg_control_system())::text AS system,
    (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline,
    pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, '0/0')::bigint AS lsn,
    (SELECT number FROM recovery_log ORDER BY number DESC LIMIT 1) AS number,
    (SELECT hash FROM recovery_log ORDER BY number DESC LIMIT 1) AS hash,
    (SELECT id FROM database_restores ORDER BY found_at DESC LIMIT 1) AS restore,
    (SELECT found_at FROM database_restores ORDER BY found_at DESC LIMIT 1) AS restored_at,
    EXISTS (SELECT FROM database_restores WHERE found_at > now() - interval '7 days') AS is_restored;

-- name: lock_recovery
-- One replica at a time replays, and nobody adds a line. The transaction's own changes are not recorded again.
SELECT lock_recovery_log(), set_config('aimesh.recovery_log', 'off', true);

-- name: add_recovery_lines
-- Append lines from a file.
INSERT INTO recovery_log (number, at, kind, subject, details, previous_hash, hash)
SELECT * FROM unnest($1::bigint [], $2::timestamptz [], $3::text [], $4::text [], $5::text [], $6::bytea [], $7::bytea []);

-- name: add_restore
-- This database was replaced by an older one.
INSERT INTO database_restores (id, details) VALUES ($1, $2);

-- name: find_open_restore
-- A restore that nobody has handled completely.
SELECT id, details FROM database_restores WHERE handled_at IS NULL ORDER BY found_at LIMIT 1;

-- name: close_restores
-- Everything was done; no row if another replica was faster.
UPDATE database_restores SET handled_at = clock_timestamp() WHERE handled_at IS NULL;
