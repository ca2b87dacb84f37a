-- name: add_user
-- A new user; a taken name or address is a unique violation.
INSERT INTO users (id, username, email, password_hash)
VALUES ($1, $2, $3, $4)
RETURNING id, username, email, role, subscription_tier, is_active, created_at;

-- name: add_first_admin
-- The administrator, if there is none yet; of several starters one makes it.
INSERT INTO users (id, username, email, password_hash, role, subscription_tier)
SELECT $1, $2, $3, $4, 'admin', 'pro'
WHERE NOT EXISTS (SELECT 1 FROM users WHERE role = 'admin')
ON CONFLICT DO NOTHING
RETURNING id;

-- name: has_admin
-- Whether anybody administers this mesh.
SELECT EXISTS (SELECT 1 FROM users WHERE role = 'admin');

-- name: find_user_by_id
-- One user.
SELECT id, username, email, role, subscription_tier, is_active, created_at, password_hash
FROM users
WHERE id = $1;

-- name: find_user_by_username
-- One user; the case of letters does not matter.
SELECT id, username, email, role, subscription_tier, is_active, created_at, password_hash
FROM users
WHERE lower(username) = lower($1);

-- name: find_user_by_email
-- One user; the case of letters does not matter.
SELECT id, username, email, role, subscription_tier, is_active, created_at, password_hash
FROM users
WHERE lower(email) = lower($1);

-- name: list_users
-- The newest users, older than user $3, with $2 in the name or the address, or as the id.
SELECT id, username, email, role, subscription_tier, is_active, created_at
FROM users
WHERE (strpos(lower(username), lower($2)) > 0 OR strpos(lower(email), lower($2)) > 0 OR id::text = lower($2))
    AND ($3::uuid IS NULL OR (created_at, id) < (SELECT last.created_at, last.id FROM users AS last WHERE last.id = $3))
ORDER BY created_at DESC, id DESC
LIMIT $1;

-- name: names_of
-- What those of these users are called that there are.
SELECT id, username
FROM users
WHERE id = ANY($1::uuid[]);

-- name: count_new
-- On each day: who registered, and the keys that were made.
SELECT (made.at AT TIME ZONE 'UTC')::date AS day, sum(made.users)::bigint AS registrations, sum(made.keys)::bigint AS keys
FROM (SELECT created_at, 1, 0 FROM users UNION ALL SELECT created_at, 0, 1 FROM api_keys) AS made (at, users, keys)
WHERE made.at >= $1::date::timestamp AT TIME ZONE 'UTC' AND made.at < $2::date::timestamp AT TIME ZONE 'UTC'
GROUP BY 1
ORDER BY 1;

-- name: set_tier
-- What a user has paid for.
UPDATE users SET subscription_tier = $2 WHERE id = $1
RETURNING id, username, email, role, subscription_tier, is_active, created_at;

-- name: set_role
-- What a user may do.
UPDATE users SET role = $2 WHERE id = $1
RETURNING id, username, email, role, subscription_tier, is_active, created_at;

-- name: set_active
-- Close an account, or open it again.
UPDATE users SET is_active = $2 WHERE id = $1
RETURNING id, username, email, role, subscription_tier, is_active, created_at;

-- name: replace_password_hash
-- The same password under newer parameters; not if the password was changed meanwhile.
UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2;

-- name: list_stale_users
-- Open accounts of which nothing was seen for $1 days: no key was used and nothing was done by a login; where nothing ever was, since
-- they were made.
SELECT users.username, users.role, users.created_at, seen.last_seen_at
FROM users
LEFT JOIN LATERAL (
    SELECT greatest(
        (SELECT max(api_keys.last_used_at) FROM api_keys WHERE api_keys.user_id = users.id),
        (SELECT max(audit_log.at) FROM audit_log WHERE audit_log.actor = users.id AND audit_log.result = 'done')
    ) AS last_seen_at
) AS seen ON true
WHERE users.is_active AND coalesce(seen.last_seen_at, users.created_at) < now() - make_interval(days => $1)
ORDER BY coalesce(seen.last_seen_at, users.created_at), users.id
LIMIT $2;
