-- Verified email addresses: the tokens of a plan without a fee are for one account per mailbox.

-- The same for all spellings of a mailbox: lower case, without a suffix after +, and for Google without dots.
CREATE FUNCTION normalized_address(email text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN domain IN ('gmail.com', 'googlemail.com') THEN replace(mailbox, '.', '') || '@gmail.com' ELSE mailbox || '@' || domain END
    FROM (
        SELECT coalesce(nullif(split_part(name, '+', 1), ''), name) AS mailbox, domain
        FROM (SELECT split_part(lower(email), '@', 1) AS name, split_part(lower(email), '@', 2) AS domain) AS parts
    ) AS cut
$$;

ALTER TABLE users
    -- When the user showed that they read mail at the present address; null before.
    ADD COLUMN verified_at timestamptz,
    -- The normalized address whose free tokens this account gets, even if it has another address now: otherwise one mailbox could be used
    -- for any number of accounts. Null: it gets none.
    ADD COLUMN verified_address varchar(100) CONSTRAINT users_verified_address_key UNIQUE;

-- Existing users count as verified. Of those with the same mailbox, the oldest gets the tokens.
UPDATE users SET verified_at = created_at, verified_address = CASE WHEN is_first THEN normalized_address(users.email) END
FROM (
    SELECT id, row_number() OVER (PARTITION BY normalized_address(email) ORDER BY created_at, id) = 1 AS is_first FROM users WHERE erased_at IS NULL
) AS counted
WHERE counted.id = users.id;

-- What is cached of the user says whether they get free tokens.
CREATE TRIGGER users_verified AFTER UPDATE OF verified_address ON users FOR EACH ROW
    WHEN (NEW.verified_address IS DISTINCT FROM OLD.verified_address) EXECUTE FUNCTION user_changed();
