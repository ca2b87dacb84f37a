-- A key's limits as one document, by kind and with the budget, so that a new kind needs no column. A version before this one reads and
-- writes the columns; a trigger keeps both forms in step until 0024 drops the columns.

ALTER TABLE api_keys
    ADD COLUMN limits jsonb NOT NULL DEFAULT '{}'
    CONSTRAINT api_keys_limits_check CHECK (
        jsonb_typeof(limits) = 'object' AND NOT jsonb_path_exists(limits, '$.* ? (@.type() != "number" || @ < 1)')
    );

CREATE FUNCTION key_limits_in_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (TG_OP = 'INSERT' AND NEW.limits = '{}') OR (TG_OP = 'UPDATE' AND NEW.limits = OLD.limits) THEN
        NEW.limits := NEW.limits
            - ARRAY['requests_per_hour', 'requests_per_minute', 'tokens_per_minute', 'concurrency', 'budget_micro']
            || jsonb_strip_nulls(jsonb_build_object(
                'requests_per_hour', NEW.requests_per_hour,
                'requests_per_minute', NEW.requests_per_minute,
                'tokens_per_minute', NEW.tokens_per_minute,
                'concurrency', NEW.concurrency,
                'budget_micro', NEW.budget_micro
            ));
    END IF;
    NEW.requests_per_hour := NEW.limits ->> 'requests_per_hour';
    NEW.requests_per_minute := NEW.limits ->> 'requests_per_minute';
    NEW.tokens_per_minute := NEW.limits ->> 'tokens_per_minute';
    NEW.concurrency := NEW.limits ->> 'concurrency';
    NEW.budget_micro := NEW.limits ->> 'budget_micro';
    RETURN NEW;
END
$$;

CREATE TRIGGER api_keys_in_step
    BEFORE INSERT OR UPDATE OF limits, requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro
    ON api_keys FOR EACH ROW EXECUTE FUNCTION key_limits_in_step();

-- The trigger fills the documents. Nothing changes, so nothing is recorded: the triggers below don't know the column yet.
UPDATE api_keys SET limits = limits WHERE coalesce(
    requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro
) IS NOT NULL;

-- The least of each limit of both.
CREATE FUNCTION tightest_limits(one jsonb, other jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(jsonb_object_agg(kind, least_number), '{}') FROM (
        SELECT both_limits.key AS kind, min(both_limits.value::bigint) AS least_number
        FROM (SELECT key, value FROM jsonb_each(one) UNION ALL SELECT key, value FROM jsonb_each(other)) AS both_limits
        GROUP BY both_limits.key
    ) AS least_of_each
$$;
CREATE AGGREGATE tightest(jsonb) (SFUNC = tightest_limits, STYPE = jsonb, INITCOND = '{}');

CREATE OR REPLACE FUNCTION record_key() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    is_over boolean := NOT OLD.is_active OR coalesce(OLD.expires_at <= now(), false);
BEGIN
    IF is_over THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' OR NOT NEW.is_active THEN
        PERFORM add_recovery_line('key.revoked', OLD.id::text);
        RETURN NULL;
    END IF;
    IF NEW.key_hash <> OLD.key_hash THEN
        PERFORM add_recovery_line('key.secret_ended', OLD.id::text, jsonb_build_object(
            'hash', OLD.key_hash,
            'until', coalesce((SELECT good_until FROM former_key_hashes WHERE key_hash = OLD.key_hash), now()),
            'next', NEW.key_hash
        ));
    END IF;
    IF key_bounds(NEW) <> key_bounds(OLD)
        OR is_tighter(OLD.expires_at, NEW.expires_at)
        OR tightest_limits(OLD.limits, NEW.limits) <> OLD.limits
    THEN
        PERFORM add_recovery_line('key.tightened', NEW.id::text, NEW.limits || jsonb_strip_nulls(jsonb_build_object(
            'bounds', key_bounds(NEW), 'expires_at', NEW.expires_at
        )));
    END IF;
    RETURN NULL;
END
$$;

DROP TRIGGER api_keys_changed ON api_keys;
CREATE TRIGGER api_keys_changed
    AFTER DELETE OR UPDATE OF
        id, user_id, team_id, key_hash, name, is_active, kind, scopes, models, networks, expires_at, limits,
        requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro
    ON api_keys FOR EACH ROW EXECUTE FUNCTION api_key_changed();
DROP TRIGGER api_keys_recorded ON api_keys;
CREATE CONSTRAINT TRIGGER api_keys_recorded
    AFTER DELETE OR UPDATE OF
        key_hash, is_active, kind, scopes, models, networks, expires_at, limits,
        requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro
    ON api_keys DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION record_key();
