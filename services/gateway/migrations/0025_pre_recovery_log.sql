-- The recovery log of the gateway: paid credits, refunds and policies, so that restoring an older database does not undo them. The gateway
-- copies each row to a file outside the database (shared/recovery/). The first part is that of auth's migration 0015.
SET LOCAL lock_timeout = '1s';

CREATE TABLE recovery_log (
    number bigint PRIMARY KEY CHECK (number > 0),
    at timestamptz NOT NULL,
    kind text NOT NULL CHECK (kind ~ '^[a-z_.]+$'),
    -- An id. Hashed together with the other columns, one on each line.
    subject text NOT NULL CHECK (strpos(subject, E'\n') = 0),
    -- A JSON object of ids, digests, amounts and names of the configuration. Text, because its exact bytes are hashed.
    details text NOT NULL,
    previous_hash bytea NOT NULL,
    -- SHA-256 of previous_hash and everything above (shared/recovery/recovery_lines.py).
    hash bytea NOT NULL
);

-- Each time that this database was replaced by an older one.
CREATE TABLE database_restores (
    id uuid PRIMARY KEY,
    found_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Null until the caches are empty.
    handled_at timestamptz,
    -- JSON, as in the audit log.
    details text NOT NULL
);

CREATE FUNCTION refuse_recovery_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the recovery log is append-only: rows of % cannot be changed', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER recovery_log_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON recovery_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_recovery_change();

REVOKE UPDATE, DELETE, TRUNCATE ON recovery_log FROM PUBLIC, CURRENT_USER;

-- Until the end of the transaction nobody else adds a line, so lines commit in the order of their numbers.
CREATE FUNCTION lock_recovery_log() RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('gateway.recovery_log', 0))
$$;

CREATE FUNCTION add_recovery_line(line_kind text, line_subject text, line_details jsonb) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    last recovery_log;
    line recovery_log;
BEGIN
    -- Off while the log itself is replayed.
    IF current_setting('aimesh.recovery_log', true) = 'off' THEN
        RETURN;
    END IF;
    PERFORM lock_recovery_log();
    SELECT * INTO last FROM recovery_log ORDER BY number DESC LIMIT 1;
    line.number := coalesce(last.number, 0) + 1;
    line.at := clock_timestamp();
    line.kind := line_kind;
    line.subject := line_subject;
    line.details := line_details::text;
    line.previous_hash := coalesce(last.hash, decode(repeat('00', 32), 'hex'));
    line.hash := sha256(line.previous_hash || convert_to(concat_ws(
        E'\n', line.number, (extract(epoch FROM line.at) * 1000000)::bigint, line.kind, line.subject, line.details
    ), 'UTF8'));
    INSERT INTO recovery_log SELECT line.*;
    PERFORM pg_notify('gateway_recovery_log', '');
END
$$;

-- --- what is recorded ---
-- The triggers are deferred to the commit, so the lock on the log is short and cannot be part of a deadlock. PostgreSQL evaluates WHEN
-- before it queues anything, so entries of usage cost a comparison.

CREATE FUNCTION record_entry() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM add_recovery_line(
        CASE NEW.kind WHEN 'top_up' THEN 'credits.moved' ELSE 'credits.reverted' END, NEW.transfer::text,
        jsonb_build_object('owner', NEW.owner, 'micro', NEW.amount_micro)
    );
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER entry_recorded AFTER INSERT ON entries DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.kind IN ('top_up', 'reversal') AND NEW.account = 'balance') EXECUTE FUNCTION record_entry();

-- The texts of a policy as a digest: own patterns and allowed texts (services/gateway/recovery/kinds.py).
CREATE FUNCTION policy_texts(body jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT encode(sha256(convert_to(jsonb_build_array(body #> '{guard,patterns}', body #> '{guard,allow}')::text, 'UTF8')), 'hex')
$$;

-- What a policy becomes after a restore. Restored patterns stay, because they restrict; allowed texts stay only if none of the texts changed.
CREATE FUNCTION replayed_policy(recorded jsonb, texts text, restored jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN recorded IS NULL OR restored #> '{guard,patterns}' IS NULL AND restored #> '{guard,allow}' IS NULL THEN recorded
    ELSE recorded || jsonb_build_object('guard', coalesce(recorded -> 'guard', '{}') || jsonb_strip_nulls(jsonb_build_object(
        'patterns', restored #> '{guard,patterns}',
        'allow', CASE WHEN policy_texts(restored) = texts THEN restored #> '{guard,allow}' END
    ))) END
$$;

CREATE FUNCTION record_policy() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM add_recovery_line('organization.policy_tightened', NEW.name, jsonb_build_object(
        'version', NEW.version, 'origin', NEW.origin, 'texts', policy_texts(NEW.body),
        'value', NEW.body #- '{guard,patterns}' #- '{guard,allow}'
    ));
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER policy_recorded AFTER INSERT ON config_versions DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.kind = 'policy') EXECUTE FUNCTION record_policy();
