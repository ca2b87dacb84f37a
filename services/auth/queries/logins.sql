-- name: find_factor
-- A person's second factor, in force or only begun; what was begun more than an hour ago is not there any more.
SELECT sealed_seed, enabled_at, last_step, cardinality(recovery_hashes) AS recovery_codes_left,
    CASE WHEN begun_at > now() - interval '1 hour' THEN begun_seed END AS begun_seed
FROM second_factors
WHERE user_id = $1;

-- name: begin_factor
-- Set one up, beside the one that may be in force; what was begun before is replaced.
INSERT INTO second_factors (user_id, begun_seed, begun_at)
VALUES ($1, $2, now())
ON CONFLICT (user_id) DO UPDATE SET begun_seed = excluded.begun_seed, begun_at = excluded.begun_at;

-- name: enable_factor
-- The seed that was begun is in force now, and the code that proved it is spent; nothing if another one was begun meanwhile.
UPDATE second_factors
SET sealed_seed = begun_seed, enabled_at = now(), last_step = $3, recovery_hashes = $4, begun_seed = NULL, begun_at = NULL
WHERE user_id = $1 AND begun_seed = $2;

-- name: use_factor_step
-- Take a code of this step; nothing if one of it or of a later one was taken before.
UPDATE second_factors SET last_step = $2
WHERE user_id = $1 AND last_step < $2 AND enabled_at IS NOT NULL;

-- name: use_recovery_code
-- Take a recovery code; nothing if it is none of those that are left.
UPDATE second_factors SET recovery_hashes = array_remove(recovery_hashes, $2)
WHERE user_id = $1 AND $2 = ANY (recovery_hashes) AND enabled_at IS NOT NULL;

-- name: renew_recovery_codes
-- Ten others in place of those that are left.
UPDATE second_factors SET recovery_hashes = $2
WHERE user_id = $1 AND enabled_at IS NOT NULL;

-- name: remove_factor
-- The password is enough again.
DELETE FROM second_factors WHERE user_id = $1;

-- name: reseal_factor
-- The same seed under the newer key; not if it is another one meanwhile.
UPDATE second_factors SET sealed_seed = $3 WHERE user_id = $1 AND sealed_seed = $2;

-- name: hold_account
-- An account that is open, and with this password where one is given; whoever changes either waits for the end of the transaction.
SELECT id FROM users
WHERE id = $1 AND is_active AND ($2::text IS NULL OR password_hash = $2)
FOR SHARE;

-- name: find_membership
-- The tier of an organisation, if the user belongs to it; its founder's, and who that is, while it shares their limits.
SELECT coalesce(founders.subscription_tier, organisations.subscription_tier) AS subscription_tier, founders.id AS founder_id
FROM organisation_members
JOIN organisations ON organisations.id = organisation_members.organisation_id
LEFT JOIN users AS founders ON founders.id = organisations.founder_id AND organisations.shares_limits
WHERE organisation_members.user_id = $1 AND organisation_members.organisation_id = $2;

-- name: tell_of_user
-- Whoever remembers this user's credentials asks again, as after a change of the user's row.
WITH told AS MATERIALIZED (SELECT log_change($1)) SELECT count(*) FROM told;

-- name: find_look
-- How a user set up the pages, and the name of the organisation that they act for.
SELECT
    (SELECT theme FROM preferences WHERE user_id = $1) AS theme,
    (SELECT name FROM organisations WHERE id = $2) AS team_name;
