-- name: find_factor
-- A user's second factor, enabled or being set up; a setup expires after an hour.
SELECT sealed_seed, enabled_at, last_step, cardinality(recovery_hashes) AS recovery_codes_left,
    CASE WHEN begun_at > now() - interval '1 hour' THEN begun_seed END AS begun_seed
FROM second_factors
WHERE user_id = $1;

-- name: begin_factor
-- Begin a setup, beside an enabled factor; replaces an earlier setup.
INSERT INTO second_factors (user_id, begun_seed, begun_at)
VALUES ($1, $2, now())
ON CONFLICT (user_id) DO UPDATE SET begun_seed = excluded.begun_seed, begun_at = excluded.begun_at;

-- name: enable_factor
-- Enable the seed and use up the code that proved it; no row if another setup was begun meanwhile.
UPDATE second_factors
SET sealed_seed = begun_seed, enabled_at = now(), last_step = $3, recovery_hashes = $4, begun_seed = NULL, begun_at = NULL
WHERE user_id = $1 AND begun_seed = $2;

-- name: use_factor_step
-- Use up a step; no row if it or a later one was used before.
UPDATE second_factors SET last_step = $2
WHERE user_id = $1 AND last_step < $2 AND enabled_at IS NOT NULL;

-- name: use_recovery_code
-- Use up a recovery code; no row if it is not one of those left.
UPDATE second_factors SET recovery_hashes = array_remove(recovery_hashes, $2)
WHERE user_id = $1 AND $2 = ANY (recovery_hashes) AND enabled_at IS NOT NULL;

-- name: renew_recovery_codes
-- Replace all recovery codes.
UPDATE second_factors SET recovery_hashes = $2
WHERE user_id = $1 AND enabled_at IS NOT NULL;

-- name: remove_factor
-- Remove the second factor.
DELETE FROM second_factors WHERE user_id = $1;

-- name: reseal_factor
-- Store the seed under the newer key, unless it was replaced meanwhile.
UPDATE second_factors SET sealed_seed = $3 WHERE user_id = $1 AND sealed_seed = $2;

-- name: hold_account
-- An open account, with this password if one is given; locked until the end of the transaction.
SELECT id FROM users
WHERE id = $1 AND is_active AND ($2::text IS NULL OR password_hash = $2)
FOR SHARE;

-- name: find_membership
-- The tier and budget of an organization, if the user is a member; its founder's tier and id, while it shares their limits.
SELECT coalesce(founders.subscription_tier, organisations.subscription_tier) AS subscription_tier, founders.id AS founder_id,
    organisations.budget
FROM organisation_members
JOIN organisations ON organisations.id = organisation_members.organisation_id
LEFT JOIN users AS founders ON founders.id = organisations.founder_id AND organisations.shares_limits
WHERE organisation_members.user_id = $1 AND organisation_members.organisation_id = $2;

-- name: tell_of_user
-- Make other services forget what they cached about this user.
WITH told AS MATERIALIZED (SELECT log_change($1)) SELECT count(*) FROM told;

-- name: find_look
-- A user's theme, and the name of the organization that they act for.
SELECT
    (SELECT theme FROM preferences WHERE user_id = $1) AS theme,
    (SELECT name FROM organisations WHERE id = $2) AS team_name;
