-- Invitations to the mesh itself. Not in the table invitations: there, replicas of the last release expect an organization in every row.

CREATE TABLE colleague_invitations (
    id uuid PRIMARY KEY,
    email varchar(100) NOT NULL,
    role varchar(20) NOT NULL CHECK (role IN ('admin', 'developer', 'user', 'node-owner')),
    -- Null for none.
    organisation_id uuid REFERENCES organisations (id) ON DELETE SET NULL,
    -- SHA-256 of the token in the mail, hex; it has 256 random bits.
    token_hash varchar(64) NOT NULL CONSTRAINT colleague_invitations_token_hash_key UNIQUE,
    invited_by uuid NOT NULL REFERENCES users (id),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    accepted_at timestamptz,
    withdrawn_at timestamptz
);

CREATE INDEX colleague_invitations_by_time ON colleague_invitations (created_at);
