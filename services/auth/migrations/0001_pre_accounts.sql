-- Users, API keys, and the log of changes that caches of other services follow.

CREATE TABLE users (
    id uuid PRIMARY KEY,
    username varchar(50) NOT NULL,
    email varchar(100) NOT NULL,
    -- PHC string of argon2id.
    password_hash varchar(255) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    is_active boolean NOT NULL DEFAULT true,
    subscription_tier varchar(50) NOT NULL DEFAULT 'free' CHECK (subscription_tier IN ('free', 'premium')),
    role varchar(20) NOT NULL DEFAULT 'user' CHECK (role IN ('admin', 'developer', 'user'))
);

-- Anna and anna are one person; so are their addresses.
CREATE UNIQUE INDEX users_username_key ON users (lower(username));
CREATE UNIQUE INDEX users_email_key ON users (lower(email));

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id),
    -- HMAC-SHA256 of the key, hex; the key itself is nowhere.
    key_hash varchar(255) NOT NULL CONSTRAINT api_keys_key_hash_key UNIQUE,
    name varchar(100) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    is_active boolean NOT NULL DEFAULT true,
    preview varchar(40) NOT NULL,
    -- Null means: what the user's tier allows.
    requests_per_hour integer CHECK (requests_per_hour > 0)
);

CREATE INDEX api_keys_by_user ON api_keys (user_id, created_at);

-- What a cached answer of auth may depend on has changed: of one user, or (null) of any.
CREATE TABLE changes (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id uuid,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Triggers, so that an UPDATE by hand in psql reaches every gateway as fast as one by this service. The search path is
-- fixed, because whoever types it has another one.
CREATE FUNCTION log_change(changed_user uuid) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    number bigint;
BEGIN
    INSERT INTO changes (user_id) VALUES (changed_user) RETURNING sequence INTO number;
    PERFORM pg_notify('auth_changes', number || ':' || coalesce(changed_user::text, ''));
END
$$;

CREATE FUNCTION user_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM log_change(OLD.id);
    RETURN NULL;
END
$$;

CREATE FUNCTION api_key_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM log_change(OLD.user_id);
    RETURN NULL;
END
$$;

CREATE FUNCTION all_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM log_change(NULL);
    RETURN NULL;
END
$$;

-- A new row changes no answer that could have been cached, and last_used_at is part of none.
CREATE TRIGGER users_changed AFTER DELETE OR UPDATE OF id, username, is_active, subscription_tier, role
    ON users FOR EACH ROW EXECUTE FUNCTION user_changed();
CREATE TRIGGER users_emptied AFTER TRUNCATE ON users FOR EACH STATEMENT EXECUTE FUNCTION all_changed();
CREATE TRIGGER api_keys_changed AFTER DELETE OR UPDATE OF id, user_id, key_hash, name, is_active, requests_per_hour
    ON api_keys FOR EACH ROW EXECUTE FUNCTION api_key_changed();
CREATE TRIGGER api_keys_emptied AFTER TRUNCATE ON api_keys FOR EACH STATEMENT EXECUTE FUNCTION all_changed();
