-- name: find_end_of_recovery
-- The last commit that was replayed, and the position behind the last record. Both stay after the recovery.
SELECT pg_last_xact_replay_timestamp() AS last_commit_at, pg_last_wal_replay_lsn() AS lsn;
