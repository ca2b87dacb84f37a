-- name: find_oidc_user
-- The account linked to this identity, and the account with this email address; each may be null.
SELECT
    (SELECT user_id FROM oidc_identities WHERE issuer = $1 AND subject = $2) AS known,
    (SELECT id FROM users WHERE lower(email) = lower($3)) AS same_email;

-- name: add_oidc_user
-- Add a user without a password, with their identity. Anything taken is a unique violation.
WITH made AS (
    INSERT INTO users (id, username, email, role, subscription_tier) VALUES ($1, $2, $3, $4, $5)
    RETURNING id, email
)
INSERT INTO oidc_identities (issuer, subject, user_id, email, last_login_at)
SELECT $6, $7, made.id, made.email, now() FROM made;

-- name: link_oidc_identity
-- Link an identity, unless it is linked already.
INSERT INTO oidc_identities (issuer, subject, user_id, email) VALUES ($1, $2, $3, $4)
ON CONFLICT (issuer, subject) DO NOTHING;

-- name: note_oidc_login
-- Record a login, and the email address that the provider has now.
UPDATE oidc_identities SET last_login_at = now(), email = $3 WHERE issuer = $1 AND subject = $2;

-- name: set_oidc_role
-- Set the role from the provider's groups. The last active administrator keeps theirs.
UPDATE users SET role = $2
WHERE id = $1 AND role <> $2 AND (
    role <> 'admin' OR EXISTS (SELECT 1 FROM users AS other WHERE other.role = 'admin' AND other.is_active AND other.id <> $1)
);

-- name: list_oidc_identities
-- The identities of an account, oldest first.
SELECT issuer, subject, email, linked_at
FROM oidc_identities
WHERE user_id = $1
ORDER BY linked_at, issuer, subject;

-- name: remove_oidc_identity
-- Remove a link, unless it is the only way into the account.
DELETE FROM oidc_identities
WHERE user_id = $1 AND issuer = $2 AND subject = $3 AND (
    EXISTS (SELECT 1 FROM users WHERE id = $1 AND password_hash IS NOT NULL)
    OR EXISTS (
        SELECT 1 FROM oidc_identities AS other
        WHERE other.user_id = $1 AND (other.issuer, other.subject) <> ($2, $3)
    )
);
