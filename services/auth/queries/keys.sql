-- Queries for users name the tenant and run bound to it: row-level security is the second line of defense.

-- name: add_key
-- Add a key; no row if the user has $13 active ones, or is not a member of the organization.
INSERT INTO api_keys (
    id, user_id, team_id, key_hash, name, preview, kind, scopes, models, networks, expires_at, limits, budget_every, made_by
)
SELECT $1, $2::uuid, $3::uuid, $4, $5, $6, $7, $8, $9, $10, $11, $12, $15, $14
WHERE (SELECT count(*) FROM api_keys WHERE user_id = $2 AND is_active) < $13
    AND ($3 IS NULL OR EXISTS (SELECT 1 FROM organisation_members WHERE organisation_id = $3 AND user_id = $2))
RETURNING id, user_id, team_id, name, preview, kind, scopes, models, networks, is_active, created_at, last_used_at, expires_at, made_by,
    limits, budget_every;

-- name: find_key_of_tenant
-- A key of tenant $2 that user $3 may see: their own, or any of an organization that they own.
SELECT id, user_id, team_id, name, preview, kind, scopes, models, networks, is_active, created_at, last_used_at, expires_at, made_by,
    limits, budget_every
FROM api_keys
WHERE id = $1 AND tenant_id = $2 AND (
    user_id = $3 OR EXISTS (SELECT 1 FROM organisation_members WHERE organisation_id = $2 AND user_id = $3 AND role = 'owner')
);

-- name: find_key_by_id
-- A key of any tenant: for administrators.
SELECT id, user_id, team_id, name, preview, kind, scopes, models, networks, is_active, created_at, last_used_at, expires_at, made_by,
    limits, budget_every
FROM api_keys
WHERE id = $1;

-- name: list_keys_named
-- A user's active keys with this name in tenant $1.
SELECT id, user_id, team_id, name, preview, kind, scopes, models, networks, is_active, created_at, last_used_at, expires_at, made_by,
    limits, budget_every
FROM api_keys
WHERE tenant_id = $1 AND user_id = $2 AND name = $3 AND is_active;

-- name: list_keys_of_tenant
-- The keys of tenant $1 that user $2 may see, newest first, including revoked ones.
SELECT id, user_id, team_id, name, preview, kind, scopes, models, networks, is_active, created_at, last_used_at, expires_at, made_by,
    limits, budget_every
FROM api_keys
WHERE tenant_id = $1 AND (
    user_id = $2 OR EXISTS (SELECT 1 FROM organisation_members WHERE organisation_id = $1 AND user_id = $2 AND role = 'owner')
)
ORDER BY created_at DESC, id
LIMIT 1000;

-- name: list_keys_of_user
-- All keys of a user, including those of organizations, newest first: for administrators.
SELECT id, user_id, team_id, name, preview, kind, scopes, models, networks, is_active, created_at, last_used_at, expires_at, made_by,
    limits, budget_every
FROM api_keys
WHERE user_id = $1
ORDER BY created_at DESC, id
LIMIT 1000;

-- name: revoke_key
-- Revoke a key; no row if it has ended already.
UPDATE api_keys SET is_active = false WHERE id = $1 AND tenant_id = $2 AND is_active
RETURNING id, user_id, team_id, name, preview, kind, scopes, models, networks, is_active, created_at, last_used_at, expires_at, made_by,
    limits, budget_every;

-- name: list_keys_made_by
-- The active keys that key $1 created, that those created, and so on. A key that has ended may have created others.
WITH RECURSIVE made AS (
    SELECT id FROM api_keys WHERE made_by = $1
    UNION
    SELECT api_keys.id FROM api_keys JOIN made ON api_keys.made_by = made.id
)
SELECT id, user_id, team_id, name, preview, kind, scopes, models, networks, is_active, created_at, last_used_at, expires_at, made_by,
    limits, budget_every
FROM api_keys
WHERE id IN (SELECT id FROM made) AND is_active
ORDER BY created_at, id
LIMIT 1000;

-- name: rename_key
-- Rename a key; no row if it has ended.
UPDATE api_keys SET name = $3 WHERE id = $1 AND tenant_id = $2 AND is_active
RETURNING id, user_id, team_id, name, preview, kind, scopes, models, networks, is_active, created_at, last_used_at, expires_at, made_by,
    limits, budget_every;

-- name: end_former_secrets
-- Limit the key's former secrets to the overlap of $2 seconds.
UPDATE former_key_hashes SET good_until = now() + make_interval(secs => $2)
WHERE key_id = $1 AND good_until > now() + make_interval(secs => $2);

-- name: keep_former_secret
-- Keep the current secret for $3 seconds; no row if the key has ended. Locked, so that each of two rotations keeps its own.
INSERT INTO former_key_hashes (key_hash, key_id, good_until)
SELECT key_hash, id, now() + make_interval(secs => $3) FROM api_keys
WHERE id = $1 AND tenant_id = $2 AND is_active AND (expires_at IS NULL OR expires_at > now())
FOR UPDATE;

-- name: replace_secret
-- Replace the key's secret.
UPDATE api_keys SET key_hash = $3, preview = $4 WHERE id = $1 AND tenant_id = $2
RETURNING id, user_id, team_id, name, preview, kind, scopes, models, networks, is_active, created_at, last_used_at, expires_at, made_by,
    limits, budget_every;

-- name: find_owner_of_key
-- The key with this hash, current or rotated, or with this id, with its owner and organization. A key of an organization is valid while its owner is a
-- member.
SELECT api_keys.id AS key_id, api_keys.name AS key_name, api_keys.team_id, api_keys.kind, api_keys.scopes, api_keys.models,
    api_keys.networks, api_keys.expires_at, found.good_until,
    api_keys.limits, api_keys.budget_every,
    CASE WHEN api_keys.team_id IS NULL THEN users.budget ELSE organisations.budget END AS budget,
    api_keys.is_active AND (api_keys.team_id IS NULL OR organisation_members.user_id IS NOT NULL) AS key_is_active,
    users.id, users.username, users.role, users.is_active,
    coalesce(founders.subscription_tier, organisations.subscription_tier, users.subscription_tier) AS subscription_tier,
    founders.id AS founder_id, api_keys.team_id IS NOT NULL OR users.verified_address IS NOT NULL AS has_free_tokens
FROM (
    SELECT id, NULL::timestamptz AS good_until FROM api_keys WHERE key_hash = $1
    UNION ALL
    SELECT key_id, good_until FROM former_key_hashes WHERE key_hash = $1
    UNION ALL
    SELECT id, NULL FROM api_keys WHERE id = $2
) AS found
JOIN api_keys ON api_keys.id = found.id
JOIN users ON users.id = api_keys.user_id
LEFT JOIN organisations ON organisations.id = api_keys.team_id
LEFT JOIN users AS founders ON founders.id = organisations.founder_id AND organisations.shares_limits
LEFT JOIN organisation_members
    ON organisation_members.organisation_id = api_keys.team_id AND organisation_members.user_id = api_keys.user_id
LIMIT 1;

-- name: list_ended_keys
-- Those of the keys $1 that are revoked, expired or unknown, of any tenant.
SELECT given.id
FROM unnest($1::uuid []) AS given (id)
LEFT JOIN api_keys ON api_keys.id = given.id
WHERE api_keys.id IS NULL OR NOT api_keys.is_active OR api_keys.expires_at <= now();

-- name: touch_keys
-- Record a use, at most once a minute per key. Locked rows are skipped: another replica is writing them.
UPDATE api_keys SET last_used_at = now()
WHERE id IN (
    SELECT id FROM api_keys
    WHERE id = ANY ($1::uuid []) AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
    FOR UPDATE SKIP LOCKED
);

-- name: list_stale_keys
-- Active keys to review: unused for $1 days, of a closed account, or without expiry.
SELECT api_keys.id, api_keys.name, api_keys.kind, api_keys.created_at, api_keys.last_used_at, api_keys.expires_at,
    users.username, users.is_active AS owner_is_active,
    coalesce(api_keys.last_used_at, api_keys.created_at) < now() - make_interval(days => $1) AS is_unused
FROM api_keys
JOIN users ON users.id = api_keys.user_id
WHERE api_keys.is_active AND (api_keys.expires_at IS NULL OR api_keys.expires_at > now()) AND (
    coalesce(api_keys.last_used_at, api_keys.created_at) < now() - make_interval(days => $1)
    OR NOT users.is_active
    OR api_keys.expires_at IS NULL
)
ORDER BY api_keys.last_used_at NULLS FIRST, api_keys.created_at, api_keys.id
LIMIT $2;
