-- name: list_last_scale_calls
-- Return the newest call of each of these pools, with times in seconds since 1970.
SELECT calls.key, calls.pool, extract(epoch FROM calls.began_at)::float8 AS began_at, calls.current, calls.wanted, calls.reason,
       calls.attempts, extract(epoch FROM calls.tried_at)::float8 AS tried_at, extract(epoch FROM calls.ended_at)::float8 AS ended_at,
       calls.problem, calls.failures
FROM unnest($1::text[]) AS wanted (pool)
CROSS JOIN LATERAL (SELECT * FROM scale_calls WHERE scale_calls.pool = wanted.pool ORDER BY began_at DESC LIMIT 1) AS calls;

-- name: list_scale_calls
-- List the newest calls, of one pool or of all, with times in seconds since 1970.
SELECT key, pool, extract(epoch FROM began_at)::float8 AS began_at, current, wanted, reason, attempts,
       extract(epoch FROM tried_at)::float8 AS tried_at, extract(epoch FROM ended_at)::float8 AS ended_at, problem, failures
FROM scale_calls
WHERE $1::text IS NULL OR pool = $1
ORDER BY scale_calls.began_at DESC
LIMIT $2;

-- name: write_scale_call
-- Write a new call, or the next attempt of one.
INSERT INTO scale_calls (key, pool, began_at, current, wanted, reason, attempts, tried_at, failures)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (key) DO UPDATE
SET attempts = excluded.attempts, tried_at = excluded.tried_at, ended_at = NULL, problem = '', failures = excluded.failures;

-- name: end_scale_call
-- Record how an attempt ended, unless another one has begun.
UPDATE scale_calls SET ended_at = $3, problem = $4, failures = CASE WHEN $4 = '' THEN 0 ELSE failures + 1 END
WHERE key = $1 AND attempts = $2 AND ended_at IS NULL;

-- name: delete_old_scale_calls
-- Delete calls that began before this.
DELETE FROM scale_calls WHERE began_at < $1;
