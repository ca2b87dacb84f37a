-- Accounts that are to be deleted, and when a key ended, so that what says whose it was need not be kept for ever.

ALTER TABLE users
    -- When it shall be deleted; null for one that stays.
    ADD COLUMN erase_at timestamptz,
    -- When it was. The row stays as a pseudonym, so that what it used and paid still adds up.
    ADD COLUMN erased_at timestamptz;

CREATE INDEX users_to_erase ON users (erase_at) WHERE erase_at IS NOT NULL;

ALTER TABLE api_keys ADD COLUMN revoked_at timestamptz;

-- As long as nobody knows better: those that have ended did so now.
UPDATE api_keys SET revoked_at = now() WHERE NOT is_active;

-- A trigger, so that an UPDATE by hand in psql dates it, too.
CREATE FUNCTION date_key_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.revoked_at := CASE WHEN NOT NEW.is_active THEN coalesce(NEW.revoked_at, now()) END;
    RETURN NEW;
END
$$;

CREATE TRIGGER api_keys_revoked_at BEFORE INSERT OR UPDATE OF is_active ON api_keys FOR EACH ROW EXECUTE FUNCTION date_key_end();

CREATE INDEX api_keys_ended ON api_keys (revoked_at) WHERE revoked_at IS NOT NULL;
