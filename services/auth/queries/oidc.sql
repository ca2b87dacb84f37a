-- name: find_oidc_user
-- Whose login at the provider it is, and who has that e-mail address; each null where there is nobody.
SELECT
    (SELECT user_id FROM oidc_identities WHERE issuer = $1 AND subject = $2) AS known,
    (SELECT id FROM users WHERE lower(email) = lower($3)) AS same_email;

-- name: add_oidc_user
-- A new user without a password, who comes by the provider; what is taken is a unique violation.
WITH made AS (
    INSERT INTO users (id, username, email, role) VALUES ($1, $2, $3, $4)
    RETURNING id, email
)
INSERT INTO oidc_identities (issuer, subject, user_id, email, last_login_at)
SELECT $5, $6, made.id, made.email, now() FROM made;

-- name: link_oidc_identity
-- From now on this login at the provider opens the account, too; nothing if it opens one already.
INSERT INTO oidc_identities (issuer, subject, user_id, email) VALUES ($1, $2, $3, $4)
ON CONFLICT (issuer, subject) DO NOTHING;

-- name: note_oidc_login
-- It was used now, and the provider's address for it may be another one.
UPDATE oidc_identities SET last_login_at = now(), email = $3 WHERE issuer = $1 AND subject = $2;

-- name: set_oidc_role
-- The role that the groups at the provider give; but the last administrator who can log in stays one.
UPDATE users SET role = $2
WHERE id = $1 AND role <> $2 AND (
    role <> 'admin' OR EXISTS (SELECT 1 FROM users AS other WHERE other.role = 'admin' AND other.is_active AND other.id <> $1)
);

-- name: list_oidc_identities
-- The logins at providers that open this account, the oldest first.
SELECT issuer, subject, email, linked_at, last_login_at
FROM oidc_identities
WHERE user_id = $1
ORDER BY linked_at, issuer, subject;

-- name: remove_oidc_identity
-- The link, unless nothing else opens the account.
DELETE FROM oidc_identities
WHERE user_id = $1 AND issuer = $2 AND subject = $3 AND (
    EXISTS (SELECT 1 FROM users WHERE id = $1 AND password_hash IS NOT NULL)
    OR EXISTS (
        SELECT 1 FROM oidc_identities AS other
        WHERE other.user_id = $1 AND (other.issuer, other.subject) <> ($2, $3)
    )
);
