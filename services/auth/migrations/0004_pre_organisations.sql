-- Organisations; what a key may be used for; and row-level security, so that a query that forgets whose rows it wants gets none.

ALTER TABLE users DROP CONSTRAINT users_role_check;
ALTER TABLE users ADD CONSTRAINT users_role_check CHECK (role IN ('admin', 'developer', 'user', 'node-owner'));

CREATE TABLE organisations (
    id uuid PRIMARY KEY,
    name varchar(100) NOT NULL,
    subscription_tier varchar(50) NOT NULL DEFAULT 'free' CHECK (subscription_tier IN ('free', 'pro', 'enterprise')),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE organisation_members (
    organisation_id uuid NOT NULL REFERENCES organisations (id) ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users (id),
    role varchar(10) NOT NULL CHECK (role IN ('owner', 'member')),
    joined_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organisation_id, user_id)
);

CREATE INDEX organisations_of_member ON organisation_members (user_id);

CREATE TABLE invitations (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL REFERENCES organisations (id) ON DELETE CASCADE,
    email varchar(100) NOT NULL,
    role varchar(10) NOT NULL CHECK (role IN ('owner', 'member')),
    -- SHA-256 of the token in the mail, hex; it has 256 random bits.
    token_hash varchar(64) NOT NULL CONSTRAINT invitations_token_hash_key UNIQUE,
    invited_by uuid NOT NULL REFERENCES users (id),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    accepted_at timestamptz,
    withdrawn_at timestamptz
);

CREATE INDEX invitations_of_organisation ON invitations (organisation_id, created_at);

ALTER TABLE api_keys
    -- The organisation whose key it is; null for the user's own.
    ADD COLUMN team_id uuid REFERENCES organisations (id),
    -- Who is charged, limited and shown.
    ADD COLUMN tenant_id uuid NOT NULL GENERATED ALWAYS AS (coalesce(team_id, user_id)) STORED,
    ADD COLUMN kind varchar(10) NOT NULL DEFAULT 'live' CHECK (kind IN ('live', 'test', 'adm')),
    -- Each empty: all that its kind may have of its owner's, every model, from everywhere.
    ADD COLUMN scopes text [] NOT NULL DEFAULT '{}',
    ADD COLUMN models text [] NOT NULL DEFAULT '{}',
    ADD COLUMN networks text [] NOT NULL DEFAULT '{}',
    -- Null for never.
    ADD COLUMN expires_at timestamptz;

-- Keys of administrators had all their rights until now.
UPDATE api_keys SET kind = 'adm' FROM users WHERE users.id = api_keys.user_id AND users.role = 'admin';

CREATE INDEX api_keys_of_tenant ON api_keys (tenant_id, created_at);

-- The secret that a key had before it was rotated goes on for a while.
CREATE TABLE former_key_hashes (
    key_hash varchar(255) PRIMARY KEY,
    key_id uuid NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    good_until timestamptz NOT NULL
);

CREATE INDEX former_hashes_of_key ON former_key_hashes (key_id);

DROP TRIGGER api_keys_changed ON api_keys;
CREATE TRIGGER api_keys_changed
    AFTER DELETE OR UPDATE OF
        id, user_id, team_id, key_hash, name, is_active, kind, scopes, models, networks, expires_at,
        requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro
    ON api_keys FOR EACH ROW EXECUTE FUNCTION api_key_changed();

CREATE FUNCTION former_hash_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM log_change(user_id) FROM api_keys WHERE id = OLD.key_id;
    RETURN NULL;
END
$$;

CREATE TRIGGER former_key_hashes_changed AFTER DELETE OR UPDATE ON former_key_hashes FOR EACH ROW EXECUTE FUNCTION former_hash_changed();

CREATE FUNCTION member_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM log_change(OLD.user_id);
    RETURN NULL;
END
$$;

CREATE TRIGGER organisation_members_changed AFTER DELETE OR UPDATE ON organisation_members FOR EACH ROW EXECUTE FUNCTION member_changed();
-- The tier is part of what is cached for every member.
CREATE TRIGGER organisations_changed AFTER DELETE OR UPDATE OF subscription_tier ON organisations
    FOR EACH STATEMENT EXECUTE FUNCTION all_changed();

-- The second wall. `aimesh.tenant` is `*` in the service's own work, one tenant in what a person asks for, and unset for anybody else.
-- Forced, because the role that runs is the one that owns.
CREATE FUNCTION sees(tenant uuid) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT current_setting('aimesh.tenant', true) IN ('*', tenant::text)
$$;

ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE api_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON api_keys USING (sees(tenant_id));

ALTER TABLE organisations ENABLE ROW LEVEL SECURITY;
ALTER TABLE organisations FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON organisations USING (sees(id));

ALTER TABLE organisation_members ENABLE ROW LEVEL SECURITY;
ALTER TABLE organisation_members FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON organisation_members USING (sees(organisation_id));

ALTER TABLE invitations ENABLE ROW LEVEL SECURITY;
ALTER TABLE invitations FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON invitations USING (sees(organisation_id));
