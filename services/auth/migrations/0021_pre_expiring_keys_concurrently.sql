-- For the notices about keys that expire. An attempt that was cut off leaves an invalid index behind, so it is dropped first.
DROP INDEX CONCURRENTLY IF EXISTS api_keys_expiring;
CREATE INDEX CONCURRENTLY api_keys_expiring ON api_keys (expires_at, id) WHERE is_active AND expires_at IS NOT NULL;
