-- name: list_open_rollouts
-- List what gateways need to know for each request.
SELECT id, route, plan::text AS plan, (progress ->> 'step')::integer AS step,
    (progress ->> 'first_token_limit_ms')::integer AS first_token_limit_ms
FROM rollouts WHERE is_open;

-- name: start_rollout
-- Start a rollout; a second open one of a route is a unique violation.
INSERT INTO rollouts (id, route, candidate, baseline, sticky, plan, state, progress, started_at)
VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, 'running', $7::text::jsonb, $8);

-- name: find_first_token_p95
-- Find within how many milliseconds 95 % of a target's last answers of a day began, and the number of these answers.
SELECT count(*) AS answers, percentile_disc(0.95) WITHIN GROUP (ORDER BY first_token_ms) AS p95_ms
FROM (
    SELECT first_token_ms FROM request_logs
    WHERE created_at > now() - interval '24 hours' AND route = $1 AND variant = $2 AND target = $2 AND first_token_ms IS NOT NULL
    ORDER BY created_at DESC
    LIMIT 10000
) AS last;

-- name: list_rollouts
-- List rollouts, newest first.
SELECT id, route, sticky, plan::text AS plan, state, reason, progress::text AS progress, started_at, ended_at
FROM rollouts
WHERE ($1::text IS NULL OR route = $1) AND ($2::uuid IS NULL OR id = $2) AND (is_open OR NOT $3)
ORDER BY started_at DESC, id
LIMIT $4;

-- name: list_recent_rollouts
-- List the states of open rollouts and of those that ended within an hour, newest last.
SELECT route, state FROM rollouts WHERE is_open OR ended_at > now() - interval '1 hour' ORDER BY started_at;

-- name: take_rollout
-- Lock an open rollout of a route.
SELECT id, route, sticky, plan::text AS plan, state, reason, progress::text AS progress, started_at, ended_at, now() AS now
FROM rollouts
WHERE route = $1 AND is_open
FOR UPDATE;

-- name: take_due_rollout
-- Lock the open rollout at which no gateway has looked for $1 seconds, the longest. Another gateway may be looking at the others.
SELECT id, route, sticky, plan::text AS plan, state, reason, progress::text AS progress, started_at, ended_at, now() AS now
FROM rollouts
WHERE is_open AND looked_at < now() - make_interval(secs => $1) AND NOT is_deferred('rollout', id::text)
ORDER BY looked_at
LIMIT 1
FOR UPDATE SKIP LOCKED;

-- name: take_outcomes
-- Take the outcomes of these rollouts, oldest first.
DELETE FROM rollout_outcomes
WHERE id IN (SELECT id FROM rollout_outcomes WHERE rollout = ANY ($1::uuid[]) ORDER BY id LIMIT $2)
RETURNING rollout, is_candidate, are_ended, tenants, users, began_at, failed, first_token_ms, waited_ms, writing_ms, tokens,
    completion_tokens, upstream_micro, ratings;

-- name: add_late_requests
-- Add running requests that are late to the outcomes of their rollouts.
INSERT INTO rollout_outcomes (
    rollout, is_candidate, are_ended, tenants, users, began_at, failed, first_token_ms, waited_ms, writing_ms, tokens,
    completion_tokens, upstream_micro, ratings
)
SELECT rollouts.id, late.is_candidate, false, ARRAY[late.tenant], ARRAY[late.owner], ARRAY[late.began_at],
    ARRAY[NULL::boolean], ARRAY[NULL::integer], ARRAY[late.waited_ms], ARRAY[NULL::integer], ARRAY[0], ARRAY[0], ARRAY[0::bigint],
    ARRAY[NULL::smallint]
FROM unnest($1::uuid[], $2::boolean[], $3::uuid[], $4::uuid[], $5::timestamptz[], $6::integer[])
    AS late (rollout, is_candidate, tenant, owner, began_at, waited_ms)
JOIN rollouts ON rollouts.id = late.rollout AND rollouts.is_open AND rollouts.started_at <= late.began_at;

-- name: save_rollouts
-- Save rollouts that were looked at or changed.
UPDATE rollouts SET state = saved.state, reason = saved.reason, progress = saved.progress::jsonb, ended_at = saved.ended_at, looked_at = now()
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[]) AS saved (id, state, reason, progress, ended_at)
WHERE rollouts.id = saved.id;

-- name: add_rollout_event
-- Record a change of a rollout, and notify all gateways.
WITH added AS (
    INSERT INTO rollout_events (rollout, state, share, reason, author) VALUES ($1, $2, $3, $4, $5) RETURNING rollout
)
SELECT pg_notify('gateway_config', 'rollout') FROM added;

-- name: add_rollout_point
-- Record what is known about a rollout now.
INSERT INTO rollout_points (rollout, at, body) VALUES ($1, $2, $3::text::jsonb) ON CONFLICT DO NOTHING;

-- name: list_rollout_points
-- List at most $2 points of a rollout, spread over its time, oldest first.
SELECT body::text AS body
FROM (
    SELECT at, body, row_number() OVER (ORDER BY at DESC) AS number, count(*) OVER () AS points FROM rollout_points WHERE rollout = $1
) AS numbered
WHERE (number - 1) % (1 + (points - 1) / $2) = 0
ORDER BY at;

-- name: list_rollout_events
-- List the changes of a rollout, oldest first.
SELECT at, state, share, reason, author FROM rollout_events WHERE rollout = $1 ORDER BY at LIMIT 1000;

-- name: forget_outcomes
-- Delete what is left of ended rollouts.
WITH ratings AS (
    DELETE FROM rollout_ratings USING rollouts WHERE rollouts.id = rollout_ratings.rollout AND NOT rollouts.is_open RETURNING 1
)
DELETE FROM rollout_outcomes USING rollouts WHERE rollouts.id = rollout_outcomes.rollout AND NOT rollouts.is_open;

-- name: read_clock
-- Read PostgreSQL's clock, by which rollouts are timed.
SELECT now();
