-- name: has_account
-- Whether a user has this address.
SELECT EXISTS (SELECT 1 FROM users WHERE lower(email) = lower($1));

-- name: find_organisations_named
-- The organizations with this name, ignoring case, or this id; two at most.
SELECT id FROM organisations WHERE lower(name) = lower($1) OR id::text = lower($1) LIMIT 2;

-- name: lock_colleague_invitations
-- Make concurrent invitations wait, so that an address has one open invitation and the limit holds.
SELECT pg_advisory_xact_lock(hashtext('colleague_invitations'));

-- name: replace_colleague_invitations
-- Withdraw the open invitations to this address, before a new one.
UPDATE colleague_invitations SET withdrawn_at = now() WHERE lower(email) = lower($1) AND accepted_at IS NULL AND withdrawn_at IS NULL;

-- name: add_colleague_invitation
-- Add an invitation for $7 days; no row if the inviter has sent $8 within a day.
INSERT INTO colleague_invitations (id, email, role, organisation_id, token_hash, invited_by, expires_at)
SELECT $1, $2, $3, $4, $5, $6, now() + make_interval(days => $7)
WHERE (SELECT count(*) FROM colleague_invitations WHERE invited_by = $6 AND created_at > now() - interval '1 day') < $8;

-- name: list_colleague_invitations
-- The open invitations, newest first; with $1 only the one with this token. One is open while its inviter is an administrator.
SELECT invitation.id, invitation.email, invitation.role, invitation.created_at, invitation.expires_at,
    inviter.username AS invited_by, coalesce(organisations.name, '') AS organisation_name
FROM colleague_invitations AS invitation
JOIN users AS inviter ON inviter.id = invitation.invited_by AND inviter.is_active AND inviter.role = 'admin'
LEFT JOIN organisations ON organisations.id = invitation.organisation_id
WHERE invitation.accepted_at IS NULL AND invitation.withdrawn_at IS NULL AND invitation.expires_at > now()
    AND ($1::text IS NULL OR invitation.token_hash = $1)
ORDER BY invitation.created_at DESC, invitation.id
LIMIT 1000;

-- name: withdraw_colleague_invitation
-- Withdraw an invitation; no row if it is not open.
UPDATE colleague_invitations SET withdrawn_at = now()
WHERE id = $1 AND accepted_at IS NULL AND withdrawn_at IS NULL AND expires_at > now();

-- name: accept_colleague_invitation
-- Use the token up for user $2, who must have the invited address; only one of several concurrent callers succeeds.
UPDATE colleague_invitations AS invitation SET accepted_at = now()
FROM users AS inviter, users AS invited
WHERE invitation.token_hash = $1 AND invitation.accepted_at IS NULL AND invitation.withdrawn_at IS NULL AND invitation.expires_at > now()
    AND inviter.id = invitation.invited_by AND inviter.is_active AND inviter.role = 'admin'
    AND invited.id = $2 AND invited.is_active AND lower(invited.email) = lower(invitation.email)
RETURNING invitation.id, invitation.role, invitation.organisation_id, invited.role AS role_before;

-- name: join_invited
-- Add a member, unless they are one.
INSERT INTO organisation_members (organisation_id, user_id, role) VALUES ($1, $2, 'member') ON CONFLICT DO NOTHING;

-- name: find_colleague_invitation
-- Why it could not be accepted. One whose inviter is no administrator any more counts as withdrawn.
SELECT invitation.accepted_at, invitation.expires_at,
    CASE WHEN inviter.is_active AND inviter.role = 'admin' THEN invitation.withdrawn_at ELSE now() END AS withdrawn_at
FROM colleague_invitations AS invitation
JOIN users AS inviter ON inviter.id = invitation.invited_by
WHERE invitation.token_hash = $1;
