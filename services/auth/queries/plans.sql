-- name: describe_account
-- Who an account belongs to: a user, or an organization, with the address of its first owner.
SELECT username AS name, email, subscription_tier AS plan, false AS shares_limits, verified_address IS NOT NULL AS has_free_tokens
FROM users WHERE id = $1
UNION ALL
SELECT organisations.name, (
    SELECT users.email FROM organisation_members JOIN users ON users.id = organisation_members.user_id
    WHERE organisation_members.organisation_id = organisations.id AND organisation_members.role = 'owner'
    ORDER BY organisation_members.joined_at LIMIT 1
), organisations.subscription_tier, organisations.shares_limits, true
FROM organisations WHERE organisations.id = $1;

-- name: apply_plan
-- Set the plan of a user or an organization; return the one before.
WITH before AS (
    SELECT subscription_tier, true AS is_user FROM users WHERE id = $1
    UNION ALL
    SELECT subscription_tier, false FROM organisations WHERE id = $1
),
of_user AS (UPDATE users SET subscription_tier = $2 WHERE id = $1 AND subscription_tier <> $2),
of_organization AS (
    UPDATE organisations SET subscription_tier = $2, shares_limits = false WHERE id = $1 AND (subscription_tier <> $2 OR shares_limits)
)
SELECT subscription_tier AS before, is_user FROM before;
