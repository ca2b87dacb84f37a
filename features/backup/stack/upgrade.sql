-- name: create_restore_point
-- A name in the WAL that a restore can stop at; only superusers may. The time is the server's, as in its WAL.
SELECT pg_create_restore_point($1)::text AS lsn, clock_timestamp() AS at;
