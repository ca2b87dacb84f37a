-- name: lock_administrators
-- Who administers the mesh and stays; held until the end of the transaction, so that of the last two not both go.
SELECT id FROM users
WHERE role = 'admin' AND is_active AND erase_at IS NULL
ORDER BY id
FOR UPDATE;

-- name: list_orphans_of
-- The organisations that would be without an owner, though others are in them.
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
-- When it shall be done; who asks again changes nothing.
UPDATE users SET erase_at = now() + make_interval(days => $2)
WHERE id = $1 AND erase_at IS NULL AND erased_at IS NULL
RETURNING erase_at;

-- name: find_erasure
-- When it shall be done; null where nobody asked for it.
SELECT erase_at FROM users WHERE id = $1;

-- name: call_erasure_off
-- The account stays; nothing where it would have, or is gone.
UPDATE users SET erase_at = NULL WHERE id = $1 AND erase_at IS NOT NULL;

-- name: list_due_erasures
-- Whose time has come.
SELECT id FROM users WHERE erase_at <= now() ORDER BY erase_at LIMIT $1;

-- name: take_due_erasure
-- One of them, for this transaction alone; nothing where another replica has it, or it was called off.
SELECT id, email, role FROM users WHERE id = $1 AND erase_at <= now() FOR UPDATE SKIP LOCKED;

-- name: lock_organisations_of
-- Whatever else changes who belongs to them waits until the end of the transaction.
SELECT id FROM organisations
WHERE id IN (SELECT organisation_id FROM organisation_members WHERE user_id = $1)
ORDER BY id
FOR NO KEY UPDATE;

-- name: hand_on_organisations
-- Where others are left without an owner, who has been in for longest becomes one.
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

-- name: close_organisations
-- Those that nobody else is in: the row stays for what it used and paid.
UPDATE organisations SET name = 'erased'
WHERE id IN (SELECT organisation_id FROM organisation_members WHERE user_id = $1)
    AND NOT EXISTS (SELECT 1 FROM organisation_members WHERE organisation_id = organisations.id AND user_id <> $1);

-- name: erase_invitations
-- To this person, and of organisations that nobody else is in.
DELETE FROM invitations
WHERE lower(email) = (SELECT lower(email) FROM users WHERE id = $1)
    OR (
        organisation_id IN (SELECT organisation_id FROM organisation_members WHERE user_id = $1)
        AND NOT EXISTS (SELECT 1 FROM organisation_members WHERE organisation_id = invitations.organisation_id AND user_id <> $1)
    );

-- name: erase_memberships
-- In every organisation.
DELETE FROM organisation_members WHERE user_id = $1;

-- name: erase_former_hashes
-- Of the keys of this person.
DELETE FROM former_key_hashes WHERE key_id IN (SELECT id FROM api_keys WHERE user_id = $1);

-- name: erase_keys
-- They end, and nothing of them is left but the id that what they used is counted under.
UPDATE api_keys SET
    is_active = false, name = 'erased', key_hash = 'erased:' || id, preview = '', last_used_at = NULL,
    scopes = '{}', models = '{}', networks = '{}'
WHERE user_id = $1;

-- name: erase_second_factor
-- Seed and recovery codes.
DELETE FROM second_factors WHERE user_id = $1;

-- name: erase_links
-- Logins at providers.
DELETE FROM oidc_identities WHERE user_id = $1;

-- name: erase_preferences
-- What was set up.
DELETE FROM preferences WHERE user_id = $1;

-- name: erase_resets
-- Mails that would set a password.
DELETE FROM password_resets WHERE user_id = $1;

-- name: erase_tickets
-- Nobody joins in this person's name any more.
UPDATE tickets SET revoked_at = coalesce(revoked_at, now()), labels = '{}' WHERE owner = $1;

-- name: erase_nodes
-- Nobody answers for them any more.
UPDATE nodes SET
    state = 'revoked', name = '', labels = '{}',
    reason = CASE WHEN state = 'revoked' THEN reason ELSE 'its owner was deleted' END
WHERE owner = $1;

-- name: erase_refusals
-- From where somebody failed to log in as this person; who it was nobody has shown, and mostly it was this person.
DELETE FROM audit_details AS details
USING audit_log AS log
WHERE details.actor IS NULL AND log.chain = details.chain AND log.sequence = details.sequence AND log.target = ($1::uuid)::text;

-- name: erase_mentions
-- Where others did something that names this person, such as an invitation.
DELETE FROM audit_details
WHERE EXISTS (
    SELECT 1 FROM users, jsonb_each_text(audit_details.details) AS detail
    WHERE users.id = $1 AND lower(detail.value) IN (lower(users.email), lower(users.username))
);

-- name: erase_user
-- A pseudonym is left, for the ledger; nobody can log in as it.
UPDATE users SET
    username = 'erased-' || $2, email = $2 || '@erased.invalid', password_hash = NULL, is_active = false, role = 'user',
    erase_at = NULL, erased_at = now()
WHERE id = $1;

-- name: export_account
-- What users has of one person.
SELECT row_to_json(found)::text AS written FROM (
    SELECT users.id, username, email, role, subscription_tier AS tier, is_active, created_at, erase_at,
        password_hash IS NOT NULL AS has_password,
        EXISTS (SELECT 1 FROM second_factors WHERE user_id = users.id AND enabled_at IS NOT NULL) AS has_second_factor
    FROM users
    WHERE users.id = $1
) AS found;

-- name: export_preferences
-- What was set up.
SELECT row_to_json(found)::text AS written FROM (
    SELECT default_model, theme, notify_by_mail FROM preferences WHERE user_id = $1
) AS found;

-- name: export_keys
-- Without what stands for their secrets.
SELECT row_to_json(found)::text AS written FROM (
    SELECT id, name, preview, kind, is_active, created_at, last_used_at, expires_at, revoked_at, team_id AS organisation_id,
        scopes, models, networks, requests_per_hour, requests_per_minute, tokens_per_minute, concurrency, budget_micro
    FROM api_keys
    WHERE user_id = $1
    ORDER BY created_at, id
) AS found;

-- name: export_organisations
-- Where this person is a member; not who else is.
SELECT row_to_json(found)::text AS written FROM (
    SELECT organisations.id, organisations.name, organisation_members.role, joined_at
    FROM organisation_members
    JOIN organisations ON organisations.id = organisation_members.organisation_id
    WHERE organisation_members.user_id = $1
    ORDER BY joined_at, organisations.id
) AS found;

-- name: export_invitations
-- To this person's address, and by this person without the addresses of others.
SELECT row_to_json(found)::text AS written FROM (
    SELECT id, organisation_id, role, created_at, expires_at, accepted_at, withdrawn_at, invited_by = $1 AS by_you
    FROM invitations
    WHERE invited_by = $1 OR lower(email) = (SELECT lower(email) FROM users WHERE id = $1)
    ORDER BY created_at, id
) AS found;

-- name: export_links
-- Logins at providers.
SELECT row_to_json(found)::text AS written FROM (
    SELECT issuer, subject, email, linked_at, last_login_at FROM oidc_identities WHERE user_id = $1 ORDER BY linked_at, issuer, subject
) AS found;

-- name: export_nodes
-- Machines that this person answers for.
SELECT row_to_json(found)::text AS written FROM (
    SELECT id, name, role, state, labels, joined_at, renewed_at, revoked_at FROM nodes WHERE owner = $1 ORDER BY joined_at, id
) AS found;

-- name: export_tickets
-- By which machines could join in this person's name.
SELECT row_to_json(found)::text AS written FROM (
    SELECT id, role, labels, uses, used, created_at, expires_at, revoked_at FROM tickets WHERE owner = $1 ORDER BY created_at, id
) AS found;

-- name: forget_resets
-- Mails for a new password that are too old; $2 at most.
DELETE FROM password_resets WHERE user_id IN (
    SELECT user_id FROM password_resets WHERE expires_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: forget_invitations
-- Those that were accepted, withdrawn or let expire before then.
DELETE FROM invitations WHERE id IN (
    SELECT id FROM invitations WHERE least(accepted_at, withdrawn_at, expires_at) < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: forget_former_hashes
-- Of secrets that keys had before.
DELETE FROM former_key_hashes WHERE key_hash IN (
    SELECT key_hash FROM former_key_hashes WHERE good_until < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: forget_ended_keys
-- What says whose they were and what for. The id stays, for what they used; an expired key ends by this for good.
UPDATE api_keys SET
    is_active = false, name = 'ended', key_hash = 'ended:' || id, preview = '', scopes = '{}', models = '{}', networks = '{}'
WHERE id IN (
    SELECT id FROM api_keys
    WHERE least(revoked_at, expires_at) < $1 AND preview <> '' LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: forget_tickets
-- Those that were revoked or expired before then.
DELETE FROM tickets WHERE id IN (
    SELECT id FROM tickets WHERE least(revoked_at, expires_at) < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);
