-- name: find_own_account
-- A user's preferences, whether they have a password, and when the account will be erased.
SELECT
    users.password_hash IS NOT NULL AS has_password, users.erase_at, users.verified_at,
    preferences.default_model, coalesce(preferences.theme, 'system') AS theme,
    coalesce(preferences.notify_by_mail, true) AS notify_by_mail
FROM users
LEFT JOIN preferences ON preferences.user_id = users.id
WHERE users.id = $1;

-- name: change_profile
-- Change name or address; null leaves it unchanged. Anything taken is a unique violation. Another address is not verified.
UPDATE users SET username = coalesce($2, username), email = coalesce($3, email),
    verified_at = CASE WHEN lower($3) <> lower(email) THEN NULL ELSE verified_at END
WHERE id = $1;

-- name: find_password_hash
-- Null if there is no password.
SELECT password_hash FROM users WHERE id = $1;

-- name: set_password_hash
-- Set a password, unless the account is closed or deleted.
UPDATE users SET password_hash = $2 WHERE id = $1 AND is_active AND erased_at IS NULL;

-- name: set_preferences
-- Set all of them.
INSERT INTO preferences (user_id, default_model, theme, notify_by_mail) VALUES ($1, $2, $3, $4)
ON CONFLICT (user_id) DO UPDATE SET
    default_model = excluded.default_model, theme = excluded.theme, notify_by_mail = excluded.notify_by_mail;

-- name: put_password_reset
-- Replace any earlier token.
INSERT INTO password_resets (user_id, token_hash, expires_at) VALUES ($1, $2, now() + make_interval(secs => $3))
ON CONFLICT (user_id) DO UPDATE SET token_hash = excluded.token_hash, expires_at = excluded.expires_at;

-- name: find_password_reset
-- The user of a valid token.
SELECT user_id FROM password_resets WHERE token_hash = $1 AND expires_at > now();

-- name: use_password_reset
-- The same, and use it up: only one of several concurrent callers gets a row.
DELETE FROM password_resets WHERE token_hash = $1 AND expires_at > now() RETURNING user_id;

-- name: drop_password_reset
-- Invalidate the token.
DELETE FROM password_resets WHERE user_id = $1;
