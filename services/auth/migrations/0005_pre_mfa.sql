-- Second factors. A row is a person's one factor: in force once enabled_at is set, until then only begun.

CREATE TABLE second_factors (
    user_id uuid PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    -- The seed in force and the one that is being set up, each sealed with DATA_KEY for this user (services/auth/sealing.py).
    sealed_seed bytea,
    begun_seed bytea,
    begun_at timestamptz,
    enabled_at timestamptz,
    -- Of the last code that was taken: no code of this step or an earlier one is good again (RFC 6238 §5.2).
    last_step bigint NOT NULL DEFAULT 0,
    -- HMACs of the codes that are left, hex.
    recovery_hashes text [] NOT NULL DEFAULT '{}',
    CHECK ((sealed_seed IS NULL) = (enabled_at IS NULL)),
    CHECK ((begun_seed IS NULL) = (begun_at IS NULL))
);

-- Its owner's, like a key of their own; see 0004.
ALTER TABLE second_factors ENABLE ROW LEVEL SECURITY;
ALTER TABLE second_factors FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON second_factors USING (sees(user_id));
