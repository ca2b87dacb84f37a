-- name: lock_administrators
-- The remaining administrators; locked, so that the last two cannot both leave.
SELECT id FROM users
WHERE role = 'admin' AND is_active AND erase_at IS NULL
ORDER BY id
FOR UPDATE;

-- name: list_orphans_of
-- Organizations that would lose their only owner but have other members.
SELECT organisations.name
FROM organisation_members AS own
JOIN organisations ON organisations.id = own.organisation_id
WHERE own.user_id = $1 AND own.role = 'owner'
    AND NOT EXISTS (
        SELECT 1 FROM organisation_members AS other
        WHERE other.organisation_id = own.organisation_id AND other.user_id <> $1 AND other.role = 'owner'
    )
    AND EXISTS (
        SELECT 1 FROM organisation_members AS other
        WHERE other.organisation_id = own.organisation_id AND other.user_id <> $1
    )
ORDER BY organisations.name
LIMIT 10;

-- name: plan_erasure
-- Plan an erasure; a repeated request changes nothing.
UPDATE users SET erase_at = now() + make_interval(days => $2)
WHERE id = $1 AND erase_at IS NULL AND erased_at IS NULL
RETURNING erase_at;

-- name: find_erasure
-- When the erasure is due; null if it was not requested.
SELECT erase_at FROM users WHERE id = $1;

-- name: call_erasure_off
-- Cancel an erasure; no row if there is none.
UPDATE users SET erase_at = NULL WHERE id = $1 AND erase_at IS NOT NULL;

-- name: list_due_erasures
-- Accounts that are due.
SELECT id FROM users WHERE erase_at <= now() AND NOT is_deferred('erasure', id::text) ORDER BY erase_at LIMIT $1;

-- name: take_due_erasure
-- Lock one of them; no row if another replica has it, or it was canceled.
SELECT id, email, role FROM users WHERE id = $1 AND erase_at <= now() FOR UPDATE SKIP LOCKED;

-- name: lock_organisations_of
-- Lock the membership of the user's organizations.
SELECT id FROM organisations
WHERE id IN (SELECT organisation_id FROM organisation_members WHERE user_id = $1)
ORDER BY id
FOR NO KEY UPDATE;

-- name: hand_on_organisations
-- Where no owner would be left, the longest-standing member becomes one.
UPDATE organisation_members SET role = 'owner'
WHERE (organisation_id, user_id) IN (
    SELECT DISTINCT ON (heir.organisation_id) heir.organisation_id, heir.user_id
    FROM organisation_members AS heir
    JOIN organisation_members AS own ON own.organisation_id = heir.organisation_id AND own.user_id = $1
    WHERE heir.user_id <> $1 AND NOT EXISTS (
        SELECT 1 FROM organisation_members AS other
        WHERE other.organisation_id = heir.organisation_id AND other.user_id <> $1 AND other.role = 'owner'
    )
    ORDER BY heir.organisation_id, heir.joined_at, heir.user_id
);

-- name: list_sole_organisations
-- Organizations without other members.
SELECT organisation_id AS id FROM organisation_members AS own
WHERE user_id = $1 AND NOT EXISTS (SELECT FROM organisation_members WHERE organisation_id = own.organisation_id AND user_id <> $1);

-- name: close_organisations
-- Organizations without other members: the row stays for what it used and paid.
UPDATE organisations SET name = 'erased'
WHERE id IN (SELECT organisation_id FROM organisation_members WHERE user_id = $1)
    AND NOT EXISTS (SELECT 1 FROM organisation_members WHERE organisation_id = organisations.id AND user_id <> $1);

-- name: erase_invitations
-- Invitations to this user, and of organizations without other members.
DELETE FROM invitations
WHERE lower(email) = (SELECT lower(email) FROM users WHERE id = $1)
    OR (
        organisation_id IN (SELECT organisation_id FROM organisation_members WHERE user_id = $1)
        AND NOT EXISTS (SELECT 1 FROM organisation_members WHERE organisation_id = invitations.organisation_id AND user_id <> $1)
    );

-- name: erase_colleague_invitations
-- Invitations to the mesh, sent to this user.
DELETE FROM colleague_invitations WHERE lower(email) = (SELECT lower(email) FROM users WHERE id = $1);

-- name: erase_memberships
-- Leave every organization.
DELETE FROM organisation_members WHERE user_id = $1;

-- name: erase_former_hashes
-- Delete the former secrets of the user's keys.
DELETE FROM former_key_hashes WHERE key_id IN (SELECT id FROM api_keys WHERE user_id = $1);

-- name: erase_keys
-- End the keys and keep only their ids, which usage refers to.
UPDATE api_keys SET
    is_active = false, name = 'erased', key_hash = 'erased:' || id, preview = '', last_used_at = NULL,
    scopes = '{}', models = '{}', networks = '{}'
WHERE user_id = $1;

-- name: erase_second_factor
-- Delete seed and recovery codes.
DELETE FROM second_factors WHERE user_id = $1;

-- name: erase_links
-- Delete the links to providers.
DELETE FROM oidc_identities WHERE user_id = $1;

-- name: erase_preferences
-- Delete the preferences.
DELETE FROM preferences WHERE user_id = $1;

-- name: erase_resets
-- Delete password resets.
DELETE FROM password_resets WHERE user_id = $1;

-- name: erase_tickets
-- Revoke the user's tickets.
UPDATE tickets SET revoked_at = coalesce(revoked_at, now()), labels = '{}' WHERE owner = $1;

-- name: erase_nodes
-- Remove the owner from their nodes.
UPDATE nodes SET
    state = 'revoked', name = '', labels = '{}',
    reason = CASE WHEN state = 'revoked' THEN reason ELSE 'its owner was deleted' END
WHERE owner = $1;

-- name: erase_refusals
-- Addresses of failed logins to this account, which mostly come from its user.
DELETE FROM audit_details AS details
USING audit_log AS log
WHERE details.actor IS NULL AND log.chain = details.chain AND log.sequence = details.sequence AND log.target = ($1::uuid)::text;

-- name: erase_mentions
-- Details of others' acts that name this user, such as an invitation.
DELETE FROM audit_details
WHERE EXISTS (
    SELECT 1 FROM users, jsonb_each_text(audit_details.details) AS detail
    WHERE users.id = $1 AND lower(detail.value) IN (lower(users.email), lower(users.username))
);

-- name: erase_user
-- Keep a pseudonym for the ledger; nobody can log in as it.
UPDATE users SET
    username = 'erased-' || $2, email = $2 || '@erased.invalid', password_hash = NULL, is_active = false, role = 'user',
    verified_at = NULL, verified_address = NULL, erase_at = NULL, erased_at = now()
WHERE id = $1;

-- name: export_account
-- The user's row.
SELECT row_to_json(found)::text AS written FROM (
    SELECT users.id, username, email, role, subscription_tier AS tier, budget, is_active, created_at, erase_at, verified_at, verified_address,
        password_hash IS NOT NULL AS has_password,
        EXISTS (SELECT 1 FROM second_factors WHERE user_id = users.id AND enabled_at IS NOT NULL) AS has_second_factor
    FROM users
    WHERE users.id = $1
) AS found;

-- name: export_preferences
-- The preferences.
SELECT row_to_json(found)::text AS written FROM (
    SELECT default_model, theme, notify_by_mail, setup_dismissed FROM preferences WHERE user_id = $1
) AS found;

-- name: export_keys
-- Without hashes of their secrets.
SELECT (to_jsonb(found) - 'limits' || found.limits)::text AS written FROM (
    SELECT id, name, preview, kind, is_active, created_at, last_used_at, expires_at, revoked_at, team_id AS organisation_id,
        scopes, models, networks, limits, budget_every
    FROM api_keys
    WHERE user_id = $1
    ORDER BY created_at, id
) AS found;

-- name: export_organisations
-- The user's own membership, without other members.
SELECT row_to_json(found)::text AS written FROM (
    SELECT organisations.id, organisations.name, organisation_members.role, joined_at
    FROM organisation_members
    JOIN organisations ON organisations.id = organisation_members.organisation_id
    WHERE organisation_members.user_id = $1
    ORDER BY joined_at, organisations.id
) AS found;

-- name: export_invitations
-- Invitations to this user's address, and by this user without the addresses of others.
SELECT row_to_json(found)::text AS written FROM (
    SELECT id, organisation_id, role, created_at, expires_at, accepted_at, withdrawn_at, invited_by = $1 AS by_you
    FROM (
        SELECT id, organisation_id, role, created_at, expires_at, accepted_at, withdrawn_at, invited_by, email FROM invitations
        UNION ALL
        SELECT id, organisation_id, role, created_at, expires_at, accepted_at, withdrawn_at, invited_by, email FROM colleague_invitations
    ) AS sent
    WHERE invited_by = $1 OR lower(email) = (SELECT lower(email) FROM users WHERE id = $1)
    ORDER BY created_at, id
) AS found;

-- name: export_links
-- The links to providers.
SELECT row_to_json(found)::text AS written FROM (
    SELECT issuer, subject, email, linked_at, last_login_at FROM oidc_identities WHERE user_id = $1 ORDER BY linked_at, issuer, subject
) AS found;

-- name: export_notices
-- Emails about sign-ins and keys.
SELECT row_to_json(found)::text AS written FROM (
    SELECT kind, subject, details, created_at, sent_at FROM notices WHERE user_id = $1 ORDER BY created_at, kind, subject
) AS found;

-- name: export_nodes
-- The user's nodes.
SELECT row_to_json(found)::text AS written FROM (
    SELECT id, name, role, state, labels, joined_at, renewed_at, revoked_at FROM nodes WHERE owner = $1 ORDER BY joined_at, id
) AS found;

-- name: export_tickets
-- The user's tickets.
SELECT row_to_json(found)::text AS written FROM (
    SELECT id, role, labels, uses, used, created_at, expires_at, revoked_at FROM tickets WHERE owner = $1 ORDER BY created_at, id
) AS found;

-- name: forget_resets
-- Expired password resets; $2 at most.
DELETE FROM password_resets WHERE user_id IN (
    SELECT user_id FROM password_resets WHERE expires_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: forget_invitations
-- Invitations that were accepted, withdrawn or expired before this time.
DELETE FROM invitations WHERE id IN (
    SELECT id FROM invitations WHERE least(accepted_at, withdrawn_at, expires_at) < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: forget_colleague_invitations
-- The same of invitations to the mesh.
DELETE FROM colleague_invitations WHERE id IN (
    SELECT id FROM colleague_invitations WHERE least(accepted_at, withdrawn_at, expires_at) < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: forget_former_hashes
-- Former secrets of keys.
DELETE FROM former_key_hashes WHERE key_hash IN (
    SELECT key_hash FROM former_key_hashes WHERE good_until < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: forget_ended_keys
-- Remove owner and purpose. The id stays, because usage refers to it; an expired key cannot be renewed after this.
UPDATE api_keys SET
    is_active = false, name = 'ended', key_hash = 'ended:' || id, preview = '', scopes = '{}', models = '{}', networks = '{}'
WHERE id IN (
    SELECT id FROM api_keys
    WHERE least(revoked_at, expires_at) < $1 AND preview <> '' LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: forget_tickets
-- Tickets that were revoked or expired before this time.
DELETE FROM tickets WHERE id IN (
    SELECT id FROM tickets WHERE least(revoked_at, expires_at) < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);
