-- The guardrails that a request under an idempotency key began with: a gateway that takes it over applies the same.
SET LOCAL lock_timeout = '1s';

-- Of the configuration at the request's start; null for requests of earlier releases and for embeddings.
ALTER TABLE idempotency_keys ADD COLUMN config_revision bigint;
