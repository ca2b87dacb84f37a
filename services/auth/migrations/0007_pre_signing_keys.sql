-- The keys that sign access tokens: made here, followed by one another, and sealed, so that the database alone signs nothing.

CREATE TABLE signing_keys (
    -- RFC 7638 thumbprint of the public half.
    kid text PRIMARY KEY,
    -- The public half as RFC 8037 writes it, for people; what is used is made from the private half.
    public_x text NOT NULL,
    -- AES-256-GCM under DATA_KEY (services/auth/sealing.py).
    sealed_private bytea NOT NULL,
    -- Goes up when all former keys were forgotten at once, and is part of the issuer that tokens name.
    epoch integer NOT NULL,
    made_at timestamptz NOT NULL,
    -- Published from the moment it was made, so that everybody knows it before it signs.
    signs_from timestamptz NOT NULL,
    -- The next one signs from then on; its own tokens are good for a while longer.
    retired_at timestamptz
);

CREATE FUNCTION signing_keys_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('auth_signing_keys', '');
    RETURN NULL;
END
$$;

CREATE TRIGGER signing_keys_changed AFTER INSERT OR UPDATE OR DELETE ON signing_keys
    FOR EACH STATEMENT EXECUTE FUNCTION signing_keys_changed();
