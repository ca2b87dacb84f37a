-- Facts about the database that is copied. Its schemas may be on other servers, so a query runs only if its tables can be read.

-- name: read_identity
-- Read what never changes while the server runs.
SELECT
    (SELECT system_identifier FROM pg_control_system())::text AS system,
    current_setting('server_version_num')::int AS postgres,
    pg_size_bytes(current_setting('wal_segment_size')) AS segment_size,
    pg_database_size(current_database()) AS database_bytes;

-- name: read_position
-- Read the clock, and then how far the log is on the disk: every commit that was confirmed before ``at`` is below ``lsn``. ``received`` is
-- how far our slot's reader has it on its own disk.
SELECT
    now.at, pg_current_wal_flush_lsn()::text AS lsn,
    ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int AS timeline,
    slot.restart_lsn::text AS received,
    coalesce(slot.wal_status, 'missing') AS slot_status,
    coalesce(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), slot.restart_lsn), 0)::bigint AS slot_bytes
FROM (SELECT clock_timestamp() AS at OFFSET 0) AS now
LEFT JOIN pg_replication_slots AS slot ON slot.slot_name = $1;

-- name: create_slot
-- Keep the log from now on, unless the slot exists.
SELECT pg_create_physical_replication_slot($1, true) WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1);

-- name: drop_slot
-- Drop the slot, if nobody reads it.
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active;

-- name: list_tables
-- List the tables of the services that we can read.
SELECT schemas.nspname || '.' || tables.relname AS name
FROM pg_class AS tables JOIN pg_namespace AS schemas ON schemas.oid = tables.relnamespace
WHERE schemas.nspname IN ('auth', 'gateway', 'metrics') AND tables.relkind IN ('r', 'p')
    AND has_schema_privilege(schemas.oid, 'USAGE') AND has_table_privilege(tables.oid, 'SELECT');

-- name: count_users
-- Count the rows of a table that is never huge, like the next ones.
SELECT count(*) FROM auth.users;

-- name: count_organizations
-- Count them.
SELECT count(*) FROM auth.organisations;

-- name: count_keys
-- Count them.
SELECT count(*) FROM auth.api_keys;

-- name: count_nodes
-- Count them.
SELECT count(*) FROM auth.nodes;

-- name: count_accounts
-- Count them.
SELECT count(*) FROM gateway.accounts;

-- name: count_prices
-- Count them.
SELECT count(*) FROM gateway.prices;

-- name: sum_ledger
-- Count the ledger's entries, and sum up what is in the accounts of users: of closed days from their checkpoints.
SELECT
    (closed.entries + open.entries)::bigint AS entries, (closed.micro + open.micro)::bigint AS micro
FROM
    (SELECT coalesce(sum(entries), 0) AS entries, coalesce(sum(included_micro + balance_micro), 0) AS micro FROM gateway.ledger_checkpoints)
    AS closed,
    (
        SELECT count(*) AS entries, coalesce(sum(amount_micro) FILTER (WHERE account IN ('included', 'balance')), 0) AS micro
        FROM gateway.entries
        WHERE at >= coalesce((SELECT (max(day) + 1)::timestamp AT TIME ZONE 'UTC' FROM gateway.ledger_checkpoints), '-infinity')
    ) AS open;

-- name: list_audit_heads
-- List the newest row of the audit log's longest chains.
SELECT chain, sequence FROM auth.audit_heads ORDER BY sequence DESC, chain LIMIT 1000;

-- name: count_audit_rows
-- Count the rows of all chains of the audit log, by their heads.
SELECT coalesce(sum(sequence), 0)::bigint FROM auth.audit_heads;

-- name: list_feature_migrations_of_auth
-- The newest migration of each feature.
SELECT feature, max(number) AS number FROM auth.feature_migrations GROUP BY feature;

-- name: list_feature_migrations_of_gateway
-- The newest migration of each feature.
SELECT feature, max(number) AS number FROM gateway.feature_migrations GROUP BY feature;

-- name: list_feature_migrations_of_metrics
-- The newest migration of each feature.
SELECT feature, max(number) AS number FROM metrics.feature_migrations GROUP BY feature;

-- name: read_log_head_of_auth
-- Read the newest line of a recovery log.
SELECT coalesce(max(number), 0) FROM auth.recovery_log;

-- name: read_log_head_of_gateway
-- Read the newest line of a recovery log.
SELECT coalesce(max(number), 0) FROM gateway.recovery_log;

-- name: read_migration_of_auth
-- Read the newest migration of a schema.
SELECT coalesce(max(number), 0) FROM auth.migrations;

-- name: read_migration_of_gateway
-- Read the newest migration of a schema.
SELECT coalesce(max(number), 0) FROM gateway.migrations;

-- name: read_migration_of_metrics
-- Read the newest migration of a schema.
SELECT coalesce(max(number), 0) FROM metrics.migrations;
