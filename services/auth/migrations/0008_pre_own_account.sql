-- What people set up for themselves, and passwords that are forgotten.

-- Who comes by a provider has none.
ALTER TABLE users ALTER COLUMN password_hash DROP NOT NULL;

CREATE TABLE preferences (
    user_id uuid PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    -- Null: the mesh's own.
    default_model varchar(200),
    theme varchar(10) NOT NULL DEFAULT 'system' CHECK (theme IN ('light', 'dark', 'system')),
    notify_by_mail boolean NOT NULL DEFAULT true
);

-- One for a user: the newest takes the place of the one before.
CREATE TABLE password_resets (
    user_id uuid PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    -- SHA-256 of the token in the mail, hex; it has 256 random bits.
    token_hash varchar(64) NOT NULL CONSTRAINT password_resets_token_hash_key UNIQUE,
    expires_at timestamptz NOT NULL
);

ALTER TABLE preferences ENABLE ROW LEVEL SECURITY;
ALTER TABLE preferences FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON preferences USING (sees(user_id));

ALTER TABLE password_resets ENABLE ROW LEVEL SECURITY;
ALTER TABLE password_resets FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON password_resets USING (sees(user_id));
