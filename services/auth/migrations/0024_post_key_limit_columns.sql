-- A key's limits are one document (0023), so nothing reads their columns.
DROP TRIGGER api_keys_in_step ON api_keys;
DROP FUNCTION key_limits_in_step();
DROP TRIGGER api_keys_changed ON api_keys;
CREATE TRIGGER api_keys_changed
    AFTER DELETE OR UPDATE OF
        id, user_id, team_id, key_hash, name, is_active, kind, scopes, models, networks, expires_at, limits
    ON api_keys FOR EACH ROW EXECUTE FUNCTION api_key_changed();
DROP TRIGGER api_keys_recorded ON api_keys;
CREATE CONSTRAINT TRIGGER api_keys_recorded
    AFTER DELETE OR UPDATE OF key_hash, is_active, kind, scopes, models, networks, expires_at, limits
    ON api_keys DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION record_key();
ALTER TABLE api_keys
    DROP COLUMN requests_per_hour,
    DROP COLUMN requests_per_minute,
    DROP COLUMN tokens_per_minute,
    DROP COLUMN concurrency,
    DROP COLUMN budget_micro;
