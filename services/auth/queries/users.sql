-- name: add_user
-- Add a user; anything taken is a unique violation.
INSERT INTO users (id, username, email, password_hash, subscription_tier)
VALUES ($1, $2, $3, $4, $5)
RETURNING id, username, email, role, subscription_tier, budget, is_active, created_at, verified_address IS NOT NULL AS has_free_tokens;

-- name: add_first_admin
-- Add the administrator, unless there is one; concurrent replicas add one.
INSERT INTO users (id, username, email, password_hash, role, subscription_tier)
SELECT $1, $2, $3, $4, 'admin', 'enterprise'
WHERE NOT EXISTS (SELECT 1 FROM users WHERE role = 'admin')
ON CONFLICT DO NOTHING
RETURNING id;

-- name: has_admin
-- Whether there is an administrator.
SELECT EXISTS (SELECT 1 FROM users WHERE role = 'admin');

-- name: find_user_by_id
-- Find by id.
SELECT id, username, email, role, subscription_tier, budget, is_active, created_at, verified_address IS NOT NULL AS has_free_tokens,
    password_hash
FROM users
WHERE id = $1;

-- name: find_user_by_username
-- Not case-sensitive.
SELECT id, username, email, role, subscription_tier, budget, is_active, created_at, verified_address IS NOT NULL AS has_free_tokens,
    password_hash
FROM users
WHERE lower(username) = lower($1);

-- name: find_user_by_email
-- Not case-sensitive.
SELECT id, username, email, role, subscription_tier, budget, is_active, created_at, verified_address IS NOT NULL AS has_free_tokens,
    password_hash
FROM users
WHERE lower(email) = lower($1);

-- name: find_person
-- Find who has verified this address. With an organization $2, only a member.
SELECT id, username, email, role, subscription_tier, budget, is_active, created_at, verified_address IS NOT NULL AS has_free_tokens
FROM users
WHERE lower(email) = lower($1) AND verified_at IS NOT NULL
    AND ($2::uuid IS NULL OR EXISTS (SELECT 1 FROM organisation_members WHERE organisation_id = $2 AND user_id = users.id));

-- name: list_users
-- The newest users, older than user $3, with $2 in the name or the address, or as the id.
SELECT id, username, email, role, subscription_tier, budget, is_active, created_at, verified_address IS NOT NULL AS has_free_tokens
FROM users
WHERE (strpos(lower(username), lower($2)) > 0 OR strpos(lower(email), lower($2)) > 0 OR id::text = lower($2))
    AND ($3::uuid IS NULL OR (created_at, id) < (SELECT last.created_at, last.id FROM users AS last WHERE last.id = $3))
ORDER BY created_at DESC, id DESC
LIMIT $1;

-- name: names_of
-- The names of those users, organizations and keys that exist; a key's after its owner's.
SELECT id, username
FROM users
WHERE id = ANY($1::uuid[])
UNION ALL
SELECT id, name
FROM organisations
WHERE id = ANY($1::uuid[])
UNION ALL
SELECT api_keys.id, users.username || '/' || api_keys.name
FROM api_keys JOIN users ON users.id = api_keys.user_id
WHERE api_keys.id = ANY($1::uuid[]);

-- name: count_new
-- New users and keys per day.
SELECT (made.at AT TIME ZONE 'UTC')::date AS day, sum(made.users)::bigint AS registrations, sum(made.keys)::bigint AS keys
FROM (SELECT created_at, 1, 0 FROM users UNION ALL SELECT created_at, 0, 1 FROM api_keys) AS made (at, users, keys)
WHERE made.at >= $1::date::timestamp AT TIME ZONE 'UTC' AND made.at < $2::date::timestamp AT TIME ZONE 'UTC'
GROUP BY 1
ORDER BY 1;

-- name: set_tier
-- Set a user's tier.
UPDATE users SET subscription_tier = $2 WHERE id = $1
RETURNING id, username, email, role, subscription_tier, budget, is_active, created_at, verified_address IS NOT NULL AS has_free_tokens;

-- name: set_user_budget
-- Set a user's budget, and return the former one.
UPDATE users SET budget = $2 FROM (SELECT id, budget FROM users WHERE id = $1 FOR NO KEY UPDATE) AS former WHERE users.id = former.id
RETURNING users.username AS name, former.budget;

-- name: set_first_tier
-- Set the tier of a user who has that of public registration; another one is an administrator's choice.
UPDATE users SET subscription_tier = $2 WHERE id = $1 AND subscription_tier = 'free' AND $2 <> 'free';

-- name: set_role
-- Set a user's role.
UPDATE users SET role = $2 WHERE id = $1
RETURNING id, username, email, role, subscription_tier, budget, is_active, created_at, verified_address IS NOT NULL AS has_free_tokens;

-- name: set_active
-- Open or close an account.
UPDATE users SET is_active = $2 WHERE id = $1
RETURNING id, username, email, role, subscription_tier, budget, is_active, created_at, verified_address IS NOT NULL AS has_free_tokens;

-- name: lock_verified_addresses
-- Make concurrent verifications wait, so that one account gets the free tokens of an address.
SELECT pg_advisory_xact_lock(hashtext('verified_addresses'));

-- name: verify_address
-- Note that the user's address, if it is $2, is theirs. The account keeps the first address whose free tokens it gets.
UPDATE users SET verified_at = now(), verified_address = coalesce(verified_address, (
    SELECT normalized_address(users.email)
    WHERE NOT EXISTS (SELECT FROM users AS other WHERE other.verified_address = normalized_address(users.email))
))
WHERE id = $1 AND lower(email) = lower($2) AND verified_at IS NULL;

-- name: replace_password_hash
-- Store the same password with newer parameters, unless it was changed meanwhile. Not for the recovery log: the password stays.
UPDATE users SET password_hash = $3
WHERE id = $1 AND password_hash = $2 AND set_config('aimesh.recovery_log', 'off', true) = 'off';

-- name: list_stale_users
-- Open accounts without any sign of use for $1 days: no key was used and nothing was done by a login. Unused accounts count from their
-- creation.
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
