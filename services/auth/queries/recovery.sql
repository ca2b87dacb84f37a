-- name: drop_password_resets
-- A reset code that was used after the backup must not work again.
DELETE FROM password_resets;

-- name: raise_list
-- Number and epoch of the revocation list, above every published one.
UPDATE mesh_state SET
    number = greatest(number + 1, $1 + 1, extract(epoch FROM now())::bigint), epoch = greatest(epoch, $2) + 1, epoch_changed_at = now();

-- Replays: $1 are subjects, $2 details in JSON and $3 times of lines of one kind, in their order. Each may run twice.

-- name: replay_key_revoked
-- End keys.
UPDATE api_keys SET is_active = false, revoked_at = coalesce(api_keys.revoked_at, line.at)
FROM unnest($1::text [], $2::text [], $3::timestamptz []) AS line (subject, details, at)
WHERE api_keys.id = line.subject::uuid;

-- name: replay_key_tightened
-- Apply the tighter of both values. A key whose scopes, models or networks were changed ends, because the log does not contain them.
UPDATE api_keys SET
    is_active = api_keys.is_active AND key_bounds(api_keys) = line.bounds,
    expires_at = least(api_keys.expires_at, line.expires_at),
    limits = tightest_limits(api_keys.limits, line.limits)
FROM (
    SELECT
        subject::uuid AS id,
        (array_agg(details::jsonb ->> 'bounds' ORDER BY number DESC))[1] AS bounds,
        min((details::jsonb ->> 'expires_at')::timestamptz) AS expires_at,
        tightest(details::jsonb - 'bounds' - 'expires_at') AS limits
    FROM unnest($1::text [], $2::text [], $3::timestamptz []) WITH ORDINALITY AS given (subject, details, at, number)
    GROUP BY subject
) AS line
WHERE api_keys.id = line.id;

-- name: replay_key_secret_ended
-- One line: the old secret ends as planned, and the key continues with the secret that replaced it.
WITH line AS (
    SELECT
        subject::uuid AS id,
        details::jsonb ->> 'hash' AS key_hash,
        (details::jsonb ->> 'until')::timestamptz AS good_until,
        details::jsonb ->> 'next' AS next_hash
    FROM unnest($1::text [], $2::text [], $3::timestamptz []) AS given (subject, details, at)
),

shortened AS (
    UPDATE former_key_hashes SET good_until = least(former_key_hashes.good_until, line.good_until)
    FROM line WHERE former_key_hashes.key_hash = line.key_hash
),

kept AS (
    INSERT INTO former_key_hashes (key_hash, key_id, good_until)
    SELECT line.key_hash, line.id, line.good_until
    FROM line JOIN api_keys ON api_keys.id = line.id AND api_keys.key_hash = line.key_hash
    WHERE line.next_hash IS NOT NULL AND line.good_until > now()
    ON CONFLICT DO NOTHING
)

UPDATE api_keys SET key_hash = line.next_hash
FROM line
WHERE api_keys.id = line.id AND api_keys.key_hash = line.key_hash AND line.next_hash IS NOT NULL;

-- name: replay_user_disabled
-- Close accounts.
UPDATE users SET is_active = false
FROM unnest($1::text [], $2::text [], $3::timestamptz []) AS line (subject, details, at)
WHERE users.id = line.subject::uuid;

-- name: replay_user_role_lowered
-- Apply the lower of both roles.
UPDATE users SET role = line.role
FROM (
    SELECT DISTINCT ON (subject) subject::uuid AS id, details::jsonb ->> 'role' AS role
    FROM unnest($1::text [], $2::text [], $3::timestamptz []) AS given (subject, details, at)
    ORDER BY subject, role_rank(details::jsonb ->> 'role')
) AS line
WHERE users.id = line.id AND role_rank(line.role) < role_rank(users.role);

-- name: list_erasures_to_replay
-- Those of these users that exist and are not erased.
SELECT DISTINCT users.id
FROM unnest($1::text [], $2::text [], $3::timestamptz []) AS line (subject, details, at)
JOIN users ON users.id = line.subject::uuid AND users.erased_at IS NULL;

-- name: replay_user_credentials_changed
-- Remove what the restored database has again. $4 is the hash of a password that nobody knows: a reset by mail replaces it.
WITH line AS (
    SELECT subject::uuid AS user_id, details::jsonb ->> 'part' AS part, details::jsonb ->> 'link' AS link
    FROM unnest($1::text [], $2::text [], $3::timestamptz []) AS given (subject, details, at)
),

factors AS (
    DELETE FROM second_factors WHERE user_id IN (SELECT user_id FROM line WHERE part = 'factor')
),

codes AS (
    UPDATE second_factors SET recovery_hashes = '{}'
    WHERE user_id IN (SELECT user_id FROM line WHERE part = 'recovery_codes')
        AND user_id NOT IN (SELECT user_id FROM line WHERE part = 'factor')
),

links AS (
    DELETE FROM oidc_identities USING line
    WHERE oidc_identities.user_id = line.user_id AND line.part = 'link' AND link_digest(oidc_identities) = line.link
)

UPDATE users SET password_hash = $4
WHERE password_hash IS NOT NULL AND id IN (SELECT user_id FROM line WHERE part IN ('password', 'factor'));

-- name: replay_member_removed
-- Remove members.
DELETE FROM organisation_members USING unnest($1::text [], $2::text [], $3::timestamptz []) AS line (subject, details, at)
WHERE user_id = line.subject::uuid AND organisation_id = (line.details::jsonb ->> 'organization')::uuid;

-- name: replay_member_role_lowered
-- Make owners members.
UPDATE organisation_members SET role = 'member'
FROM unnest($1::text [], $2::text [], $3::timestamptz []) AS line (subject, details, at)
WHERE user_id = line.subject::uuid AND organisation_id = (line.details::jsonb ->> 'organization')::uuid;

-- name: replay_invitation_ended
-- Withdraw invitations.
WITH line AS (
    SELECT subject::uuid AS id, at FROM unnest($1::text [], $2::text [], $3::timestamptz []) AS given (subject, details, at)
),

of_organizations AS (
    UPDATE invitations SET withdrawn_at = line.at
    FROM line WHERE invitations.id = line.id AND accepted_at IS NULL AND withdrawn_at IS NULL
)

UPDATE colleague_invitations SET withdrawn_at = line.at
FROM line
WHERE colleague_invitations.id = line.id AND accepted_at IS NULL AND withdrawn_at IS NULL;

-- name: replay_node_revoked
-- Revoke nodes; also those that joined after the backup, because their certificates are valid.
INSERT INTO nodes (id, role, state, revoked_at, reason)
SELECT DISTINCT ON (line.subject) line.subject, line.details::jsonb ->> 'role', 'revoked', line.at, 'recovery log'
FROM unnest($1::text [], $2::text [], $3::timestamptz []) AS line (subject, details, at)
ORDER BY line.subject, line.at
ON CONFLICT (id) DO UPDATE SET state = 'revoked', reason = excluded.reason, revoked_at = excluded.revoked_at
WHERE nodes.state <> 'revoked';

-- name: replay_ticket_revoked
-- Revoke tickets.
UPDATE tickets SET revoked_at = coalesce(tickets.revoked_at, line.at)
FROM unnest($1::text [], $2::text [], $3::timestamptz []) AS line (subject, details, at)
WHERE tickets.id = line.subject;

-- name: replay_ticket_used
-- Count uses.
UPDATE tickets SET used = least(tickets.uses, greatest(tickets.used, line.used))
FROM (
    SELECT subject, max((details::jsonb ->> 'used')::integer) AS used
    FROM unnest($1::text [], $2::text [], $3::timestamptz []) AS given (subject, details, at)
    GROUP BY subject
) AS line
WHERE tickets.id = line.subject;
