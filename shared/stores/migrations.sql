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
SELECT '' AS feature, number, name, sha256 FROM migrations ORDER BY number;

-- name: has_table_of_features
-- Whether a version ran here that knows features.
SELECT to_regclass('feature_migrations') IS NOT NULL;

-- name: create_table_of_features
-- The same for features, each of which has its own numbers.
CREATE TABLE IF NOT EXISTS feature_migrations (
    feature text,
    number integer,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (feature, number)
);

-- name: list_applied_of_features
-- Every migration of a feature that has run, also of features that are gone.
SELECT feature, number, name, sha256 FROM feature_migrations ORDER BY feature, number;

-- name: add_applied_of_feature
-- Remember that a migration of a feature has run.
INSERT INTO feature_migrations (feature, number, name, sha256) VALUES ($1, $2, $3, $4);

-- name: add_applied
-- Remember that a migration has run.
INSERT INTO migrations (number, name, sha256) VALUES ($1, $2, $3);
