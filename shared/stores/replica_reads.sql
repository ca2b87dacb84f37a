-- name: look
-- What a server is, and how far it is: a primary has written this much, a standby has replayed this much.
SELECT pg_is_in_recovery() AS is_standby, system_identifier AS system,
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0')::bigint AS position
FROM pg_control_system();

-- name: written
-- Where the log ends, including what is not on the disk yet.
SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint;
