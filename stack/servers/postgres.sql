-- Brings a server to what aimesh needs; run by psql as the superuser at every start, so it must be idempotent.
-- One role per service that keeps tables. It owns the schema of its name, migrates it and runs in it, and sees nothing of the others.
-- The role of the backup agent may copy the whole server, so it may also read everything, and writes nothing.
SET client_min_messages = warning;

\getenv auth_verifier AUTH_VERIFIER
\getenv gateway_verifier GATEWAY_VERIFIER
\getenv metrics_verifier METRICS_VERIFIER
\getenv backup_verifier BACKUP_VERIFIER

SELECT 'CREATE DATABASE aimesh' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'aimesh') \gexec
SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['auth', 'gateway', 'metrics', 'backup']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

ALTER ROLE auth PASSWORD :'auth_verifier';
ALTER ROLE gateway PASSWORD :'gateway_verifier';
ALTER ROLE metrics PASSWORD :'metrics_verifier';
ALTER ROLE backup REPLICATION PASSWORD :'backup_verifier';
GRANT pg_read_all_data TO backup;

REVOKE ALL ON DATABASE aimesh, postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE aimesh TO auth, gateway, metrics, backup;

\connect aimesh
SET client_min_messages = warning;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
CREATE SCHEMA IF NOT EXISTS auth AUTHORIZATION auth;
CREATE SCHEMA IF NOT EXISTS gateway AUTHORIZATION gateway;
CREATE SCHEMA IF NOT EXISTS metrics AUTHORIZATION metrics;
