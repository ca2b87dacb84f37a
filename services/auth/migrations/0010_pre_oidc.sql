-- Logins at an OpenID Connect provider.

CREATE TABLE oidc_identities (
    issuer text NOT NULL,
    -- Together with the issuer the person, for ever; an address may become another's.
    subject varchar(255) NOT NULL,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- As the provider last said it; opens nothing.
    email varchar(100),
    linked_at timestamptz NOT NULL DEFAULT now(),
    last_login_at timestamptz,
    CONSTRAINT oidc_identities_pkey PRIMARY KEY (issuer, subject)
);

CREATE INDEX oidc_identities_by_user ON oidc_identities (user_id);

ALTER TABLE oidc_identities ENABLE ROW LEVEL SECURITY;
ALTER TABLE oidc_identities FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON oidc_identities USING (sees(user_id));
