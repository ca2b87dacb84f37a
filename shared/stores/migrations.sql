-- name: has_table
-- Whether anything ever ran here; looks in the schema because it is the whole search_path.
SELECT to_regclass('migrations') IS NOT NULL;

-- name: try_lock
-- Whether no other process migrates this schema now; if so, none does until the unlock.
SELECT pg_try_advisory_lock(hashtextextended('aimesh.migrations.' || $1, 0));

-- name: unlock
-- Let the next one in.
SELECT pg_advisory_unlock(hashtextextended('aimesh.migrations.' || $1, 0));

-- name: plan_schema
-- The statement that creates the schema, quoted by the server; null when it is there, because creating needs more rights than using.
SELECT CASE WHEN to_regnamespace(quote_ident($1::text)) IS NULL THEN format('CREATE SCHEMA %I', $1::text) END;

-- name: create_table
-- What has run here; lands in the schema because it is the whole search_path.
CREATE TABLE IF NOT EXISTS migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: list_applied
-- Every migration that has run.
SELECT number, name, sha256 FROM migrations ORDER BY number;

-- name: add_applied
-- Remember that a migration has run.
INSERT INTO migrations (number, name, sha256) VALUES ($1, $2, $3);
