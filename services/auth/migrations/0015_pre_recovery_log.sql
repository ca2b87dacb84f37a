-- The recovery log: everything that makes the platform stricter, so that restoring an older database does not undo it. auth copies each
-- row to a file outside the database (services/auth/recovery/).

CREATE TABLE recovery_log (
    number bigint PRIMARY KEY CHECK (number > 0),
    at timestamptz NOT NULL,
    kind text NOT NULL CHECK (kind ~ '^[a-z_.]+$'),
    -- An id. Hashed together with the other columns, one on each line.
    subject text NOT NULL CHECK (strpos(subject, E'\n') = 0),
    -- A JSON object of ids, hashes and numbers. Text, because its exact bytes are hashed.
    details text NOT NULL,
    previous_hash bytea NOT NULL,
    -- SHA-256 of previous_hash and everything above (services/auth/recovery/recovery_lines.py).
    hash bytea NOT NULL
);

-- Each time that this database was replaced by an older one, so that one replica handles it and the others can tell.
CREATE TABLE database_restores (
    id uuid PRIMARY KEY,
    found_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Null until sessions have ended, caches are empty, and the revocation list is newer than every published one.
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

-- Until the end of the transaction nobody else adds a line, so lines commit in the order of their numbers. Not the lock of a row that holds
-- the last line: a transaction that ends 50,000 keys would leave as many versions of that row, and read them for each line.
CREATE FUNCTION lock_recovery_log() RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('auth.recovery_log', 0))
$$;

CREATE FUNCTION add_recovery_line(line_kind text, line_subject text, line_details jsonb DEFAULT '{}') RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    last recovery_log;
    line recovery_log;
BEGIN
    -- Off while the log itself is replayed, and for changes that only look like one.
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
    PERFORM pg_notify('auth_recovery_log', '');
END
$$;

-- --- what is recorded ---
-- The triggers are deferred: they run at the commit, after all row locks were taken, so the lock on the log is short and cannot be part
-- of a deadlock. They are triggers, so that every code path and every UPDATE in psql is recorded.

CREATE FUNCTION is_tighter(old_limit anyelement, new_limit anyelement) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT new_limit IS NOT NULL AND (old_limit IS NULL OR new_limit < old_limit)
$$;

-- What a key may be used for, without revealing it.
CREATE FUNCTION key_bounds(api_key api_keys) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT encode(sha256(convert_to(jsonb_build_array(
        api_key.kind, api_key.scopes, api_key.models, api_key.networks
    )::text, 'UTF8')), 'hex')
$$;

CREATE FUNCTION record_key() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
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
        OR is_tighter(OLD.requests_per_hour, NEW.requests_per_hour)
        OR is_tighter(OLD.requests_per_minute, NEW.requests_per_minute)
        OR is_tighter(OLD.tokens_per_minute, NEW.tokens_per_minute)
        OR is_tighter(OLD.concurrency, NEW.concurrency)
        OR is_tighter(OLD.budget_micro, NEW.budget_micro)
    THEN
        PERFORM add_recovery_line('key.tightened', NEW.id::text, jsonb_strip_nulls(jsonb_build_object(
            'bounds', key_bounds(NEW),
            'expires_at', NEW.expires_at,
            'requests_per_hour', NEW.requests_per_hour,
            'requests_per_minute', NEW.requests_per_minute,
            'tokens_per_minute', NEW.tokens_per_minute,
            'concurrency', NEW.concurrency,
            'budget_micro', NEW.budget_micro
        )));
    END IF;
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER api_keys_recorded
    AFTER DELETE OR UPDATE OF
        key_hash, is_active, kind, scopes, models, networks, expires_at,
        requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro
    ON api_keys DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION record_key();

-- A rotated key's former secret was cut off earlier than planned.
CREATE FUNCTION record_former_hash() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM add_recovery_line('key.secret_ended', OLD.key_id::text, jsonb_build_object(
        'hash', OLD.key_hash, 'until', CASE WHEN TG_OP = 'DELETE' THEN now() ELSE NEW.good_until END
    ));
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER former_key_hash_shortened AFTER UPDATE ON former_key_hashes DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.good_until < OLD.good_until) EXECUTE FUNCTION record_former_hash();
CREATE CONSTRAINT TRIGGER former_key_hash_dropped AFTER DELETE ON former_key_hashes DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.good_until > now()) EXECUTE FUNCTION record_former_hash();

CREATE FUNCTION role_rank(role text) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT array_position(ARRAY['user', 'node-owner', 'developer', 'admin'], role)
$$;

CREATE FUNCTION record_user() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM add_recovery_line('user.disabled', OLD.id::text);
        RETURN NULL;
    END IF;
    IF OLD.erased_at IS NULL AND NEW.erased_at IS NOT NULL THEN
        -- Covers everything below.
        PERFORM add_recovery_line('user.erased', OLD.id::text);
        RETURN NULL;
    END IF;
    IF OLD.is_active AND NOT NEW.is_active THEN
        PERFORM add_recovery_line('user.disabled', OLD.id::text);
    END IF;
    IF role_rank(NEW.role) < role_rank(OLD.role) THEN
        PERFORM add_recovery_line('user.role_lowered', OLD.id::text, jsonb_build_object('role', NEW.role));
    END IF;
    -- A first password replaces nothing that could leak.
    IF OLD.password_hash IS NOT NULL AND NEW.password_hash IS DISTINCT FROM OLD.password_hash THEN
        PERFORM add_recovery_line('user.credentials_changed', OLD.id::text, '{"part": "password"}');
    END IF;
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER users_recorded AFTER DELETE OR UPDATE OF is_active, role, password_hash, erased_at
    ON users DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION record_user();

-- The argument is the part of the credentials.
CREATE FUNCTION record_credentials() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM add_recovery_line(
        'user.credentials_changed', (CASE WHEN TG_OP = 'DELETE' THEN OLD.user_id ELSE NEW.user_id END)::text,
        jsonb_build_object('part', TG_ARGV[0])
    );
    RETURN NULL;
END
$$;

-- Also when it is first enabled: without the factor, the password alone would open the account again.
CREATE CONSTRAINT TRIGGER second_factor_changed AFTER UPDATE OF enabled_at ON second_factors DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.enabled_at IS DISTINCT FROM NEW.enabled_at) EXECUTE FUNCTION record_credentials('factor');
CREATE CONSTRAINT TRIGGER second_factor_removed AFTER DELETE ON second_factors DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.enabled_at IS NOT NULL) EXECUTE FUNCTION record_credentials('factor');
CREATE CONSTRAINT TRIGGER recovery_codes_changed AFTER UPDATE OF recovery_hashes ON second_factors DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.enabled_at = NEW.enabled_at AND NOT OLD.recovery_hashes <@ NEW.recovery_hashes)
    EXECUTE FUNCTION record_credentials('recovery_codes');

-- Names the removed link without revealing it.
CREATE FUNCTION link_digest(link oidc_identities) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT encode(sha256(convert_to(jsonb_build_array(link.user_id, link.issuer, link.subject)::text, 'UTF8')), 'hex')
$$;

CREATE FUNCTION record_link() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM add_recovery_line(
        'user.credentials_changed', OLD.user_id::text, jsonb_build_object('part', 'link', 'link', link_digest(OLD))
    );
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER oidc_identity_removed AFTER DELETE ON oidc_identities DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_link();

CREATE FUNCTION record_member() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM add_recovery_line(
        CASE WHEN TG_OP = 'DELETE' THEN 'organization.member_removed' ELSE 'organization.role_lowered' END,
        OLD.user_id::text, jsonb_build_object('organization', OLD.organisation_id)
    );
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER member_removed AFTER DELETE ON organisation_members DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_member();
CREATE CONSTRAINT TRIGGER owner_became_member AFTER UPDATE OF role ON organisation_members DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.role = 'owner' AND NEW.role <> 'owner') EXECUTE FUNCTION record_member();

-- Withdrawn, or used: its code must not work twice.
CREATE FUNCTION record_invitation() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM add_recovery_line('invitation.ended', OLD.id::text);
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER invitation_ended AFTER UPDATE OF accepted_at, withdrawn_at ON invitations DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (coalesce(OLD.accepted_at, OLD.withdrawn_at) IS NULL AND coalesce(NEW.accepted_at, NEW.withdrawn_at) IS NOT NULL)
    EXECUTE FUNCTION record_invitation();
CREATE CONSTRAINT TRIGGER colleague_invitation_ended AFTER UPDATE OF accepted_at, withdrawn_at ON colleague_invitations
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (coalesce(OLD.accepted_at, OLD.withdrawn_at) IS NULL AND coalesce(NEW.accepted_at, NEW.withdrawn_at) IS NOT NULL)
    EXECUTE FUNCTION record_invitation();

-- With its role, because the restored database may not know a node that has a valid certificate.
CREATE FUNCTION record_node() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM add_recovery_line('node.revoked', NEW.id, jsonb_build_object('role', NEW.role));
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER node_revoked AFTER UPDATE OF state ON nodes DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.state = 'revoked' AND OLD.state <> 'revoked') EXECUTE FUNCTION record_node();
CREATE CONSTRAINT TRIGGER node_banned AFTER INSERT ON nodes DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.state = 'revoked') EXECUTE FUNCTION record_node();

CREATE FUNCTION record_ticket() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF OLD.revoked_at IS NOT NULL OR OLD.expires_at <= now() THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' OR NEW.revoked_at IS NOT NULL THEN
        PERFORM add_recovery_line('ticket.revoked', OLD.id);
    ELSIF NEW.used > OLD.used THEN
        PERFORM add_recovery_line('ticket.used', OLD.id, jsonb_build_object('used', NEW.used));
    END IF;
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER ticket_recorded AFTER DELETE OR UPDATE OF used, revoked_at ON tickets DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_ticket();

-- A key of a new epoch ends all earlier tokens.
CREATE FUNCTION record_signing_key() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM signing_keys WHERE epoch = NEW.epoch AND kid <> NEW.kid) THEN
        PERFORM add_recovery_line('signing_keys.rotated_at_once', NEW.epoch::text);
    END IF;
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER signing_epoch_raised AFTER INSERT ON signing_keys DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.epoch > 0) EXECUTE FUNCTION record_signing_key();
