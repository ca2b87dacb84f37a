-- Queries about one organization run bound to it. Those about a user in all of theirs cannot, and name the user.

-- name: lock_founder
-- Serialize a user's founding of organizations, so that the count is right.
SELECT id FROM users WHERE id = $1 FOR NO KEY UPDATE;

-- name: add_organisation
-- Add an organization, owned by user $3 and sharing their limits; no row if they have founded $4 already. In rows older than that column,
-- the owner counts as the founder.
WITH made AS (
    INSERT INTO organisations (id, name, founder_id, shares_limits)
    SELECT $1, $2, $3, true
    WHERE (SELECT count(*) FROM organisations WHERE founder_id = $3) + (
        SELECT count(*) FROM organisation_members
        JOIN organisations ON organisations.id = organisation_members.organisation_id
        WHERE organisation_members.user_id = $3 AND organisation_members.role = 'owner' AND organisations.founder_id IS NULL
    ) < $4
    RETURNING id, name, subscription_tier, budget, shares_limits, created_at
), founder AS (
    INSERT INTO organisation_members (organisation_id, user_id, role) SELECT id, $3, 'owner' FROM made
)
SELECT id, name, subscription_tier, budget, shares_limits, created_at, 1::bigint AS members, 'owner' AS role FROM made;

-- name: list_organisations_of
-- The organizations of a user, by name.
SELECT organisations.id, organisations.name, organisations.subscription_tier, organisations.budget, organisations.shares_limits,
    organisations.created_at, mine.role,
    (SELECT count(*) FROM organisation_members AS each WHERE each.organisation_id = organisations.id) AS members
FROM organisation_members AS mine
JOIN organisations ON organisations.id = mine.organisation_id
WHERE mine.user_id = $1
ORDER BY lower(organisations.name), organisations.id
LIMIT 1000;

-- name: list_all_organisations
-- For administrators: the newest organizations, older than organization $4, with $3 in the name or as the id; and whether user $1 is a
-- member.
SELECT organisations.id, organisations.name, organisations.subscription_tier, organisations.budget, organisations.shares_limits,
    organisations.created_at, mine.role,
    (SELECT count(*) FROM organisation_members AS each WHERE each.organisation_id = organisations.id) AS members
FROM organisations
LEFT JOIN organisation_members AS mine ON mine.organisation_id = organisations.id AND mine.user_id = $1
WHERE (strpos(lower(organisations.name), lower($3)) > 0 OR organisations.id::text = lower($3))
    AND ($4::uuid IS NULL OR (organisations.created_at, organisations.id)
        < (SELECT last.created_at, last.id FROM organisations AS last WHERE last.id = $4))
ORDER BY organisations.created_at DESC, organisations.id DESC
LIMIT $2;

-- name: find_organisation
-- An organization, if user $2 is a member, or $3 is true.
SELECT organisations.id, organisations.name, organisations.subscription_tier, organisations.budget, organisations.shares_limits,
    organisations.created_at, mine.role,
    (SELECT count(*) FROM organisation_members AS each WHERE each.organisation_id = organisations.id) AS members
FROM organisations
LEFT JOIN organisation_members AS mine ON mine.organisation_id = organisations.id AND mine.user_id = $2
WHERE organisations.id = $1 AND (mine.user_id IS NOT NULL OR $3::boolean);

-- name: lock_organisation
-- Like ``find_organisation``, and lock the membership, so that the last owner cannot be lost.
SELECT organisations.id, mine.role
FROM organisations
LEFT JOIN organisation_members AS mine ON mine.organisation_id = organisations.id AND mine.user_id = $2
WHERE organisations.id = $1 AND (mine.user_id IS NOT NULL OR $3::boolean)
FOR NO KEY UPDATE OF organisations;

-- name: list_team_members
-- The members of an organization: owners first, then by name.
SELECT users.id, users.username, users.email, organisation_members.role, organisation_members.joined_at
FROM organisation_members
JOIN users ON users.id = organisation_members.user_id
WHERE organisation_members.organisation_id = $1
ORDER BY organisation_members.role DESC, lower(users.username)
LIMIT 1000;

-- name: rename_organisation
-- Rename an organization.
UPDATE organisations SET name = $2 WHERE id = $1;

-- name: set_organisation_tier
-- Set the tier of an organization; from then on it has its own limits and included credits.
UPDATE organisations SET subscription_tier = $2, shares_limits = false WHERE id = $1;

-- name: set_organisation_budget
-- Set an organization's budget, and return the former one.
UPDATE organisations SET budget = $2 FROM (SELECT id, budget FROM organisations WHERE id = $1 FOR NO KEY UPDATE) AS former
WHERE organisations.id = former.id
RETURNING organisations.name, former.budget;

-- name: set_team_role
-- Change a member's role.
UPDATE organisation_members SET role = $3 WHERE organisation_id = $1 AND user_id = $2;

-- name: remove_team_member
-- Remove a member.
DELETE FROM organisation_members WHERE organisation_id = $1 AND user_id = $2;

-- name: has_team_owner
-- Whether an open account still owns it.
SELECT EXISTS (
    SELECT 1 FROM organisation_members
    JOIN users ON users.id = organisation_members.user_id
    WHERE organisation_members.organisation_id = $1 AND organisation_members.role = 'owner' AND users.is_active
);

-- name: revoke_keys_of_team_member
-- Revoke the member's keys of this organization.
UPDATE api_keys SET is_active = false WHERE team_id = $1 AND user_id = $2 AND is_active
RETURNING id;

-- name: is_team_member
-- Whether a user with this address is a member.
SELECT EXISTS (
    SELECT 1 FROM organisation_members
    JOIN users ON users.id = organisation_members.user_id
    WHERE organisation_members.organisation_id = $1 AND lower(users.email) = lower($2)
);

-- name: withdraw_invitations_to
-- Withdraw the open invitations to this address, before a new one.
UPDATE invitations SET withdrawn_at = now()
WHERE organisation_id = $1 AND lower(email) = lower($2) AND accepted_at IS NULL AND withdrawn_at IS NULL;

-- name: add_invitation
-- Add an invitation for 7 days; no row if the organization has sent $7 within a day.
INSERT INTO invitations (id, organisation_id, email, role, token_hash, invited_by, expires_at)
SELECT $1, $2, $3, $4, $5, $6, now() + interval '7 days'
WHERE (SELECT count(*) FROM invitations WHERE organisation_id = $2 AND created_at > now() - interval '1 day') < $7
RETURNING id, email, role, created_at, expires_at, '' AS invited_by;

-- name: list_invitations
-- The open invitations, newest first.
SELECT invitations.id, invitations.email, invitations.role, invitations.created_at, invitations.expires_at, users.username AS invited_by
FROM invitations
JOIN users ON users.id = invitations.invited_by
WHERE invitations.organisation_id = $1 AND invitations.accepted_at IS NULL AND invitations.withdrawn_at IS NULL
    AND invitations.expires_at > now()
ORDER BY invitations.created_at DESC, invitations.id
LIMIT 1000;

-- name: withdraw_invitation
-- Withdraw an invitation; no row if it is not open.
UPDATE invitations SET withdrawn_at = now()
WHERE id = $1 AND organisation_id = $2 AND accepted_at IS NULL AND withdrawn_at IS NULL AND expires_at > now();

-- name: accept_invitation
-- Add the holder of this token and address as a member; only one of several concurrent callers succeeds. No row if the invitation is not
-- theirs or not open. A member keeps their role.
WITH taken AS (
    UPDATE invitations SET accepted_at = now()
    FROM users
    WHERE invitations.token_hash = $1 AND invitations.accepted_at IS NULL AND invitations.withdrawn_at IS NULL
        AND invitations.expires_at > now()
        AND users.id = $2 AND users.is_active AND lower(users.email) = lower(invitations.email)
    RETURNING invitations.organisation_id, invitations.role
)
INSERT INTO organisation_members (organisation_id, user_id, role)
SELECT organisation_id, $2, role FROM taken
ON CONFLICT (organisation_id, user_id) DO UPDATE SET
    role = CASE WHEN EXCLUDED.role = 'owner' THEN 'owner' ELSE organisation_members.role END
RETURNING organisation_id, role;

-- name: find_offer
-- What an open invitation offers user $2; no row if it is not theirs or not open.
SELECT organisations.name, invitations.role, inviters.username AS invited_by, invitations.expires_at
FROM invitations
JOIN organisations ON organisations.id = invitations.organisation_id
JOIN users AS inviters ON inviters.id = invitations.invited_by
JOIN users AS invited ON invited.id = $2
WHERE invitations.token_hash = $1 AND invitations.accepted_at IS NULL AND invitations.withdrawn_at IS NULL
    AND invitations.expires_at > now() AND invited.is_active AND lower(invited.email) = lower(invitations.email);

-- name: find_invitation_by_token
-- Why it could not be accepted; only for its recipient.
SELECT accepted_at, withdrawn_at, expires_at FROM invitations WHERE token_hash = $1;

-- name: find_inviter
-- Who created the invitation with this token, and for which organization.
SELECT invited_by, organisation_id FROM invitations WHERE token_hash = $1;

-- name: is_invited
-- Whether there is an open invitation with this token for this address.
SELECT EXISTS (
    SELECT 1 FROM invitations
    WHERE token_hash = $1 AND lower(email) = lower($2)
        AND accepted_at IS NULL AND withdrawn_at IS NULL AND expires_at > now()
);
