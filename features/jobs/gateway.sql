-- name: create_job
-- Insert a job; nothing if the tenant has one with this idempotency key.
INSERT INTO jobs (
    id, tenant_id, user_id, key_id, kind, is_live, endpoint, model, price_id, state, seed, input_file, metadata, idempotency_key, expires_at, delete_at,
    output_file, error_file
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'validating', $10, $11, $12, $13, now() + make_interval(secs => $14), now() + make_interval(secs => $14::float8 + $15),
    $16, $17)
ON CONFLICT (tenant_id, idempotency_key) DO NOTHING
RETURNING id;

-- name: find_job
-- Find one job, unless it is forgotten.
SELECT * FROM jobs WHERE id = $1 AND delete_at > now();

-- name: find_repeated_job
-- Find a tenant's job by its idempotency key.
SELECT * FROM jobs WHERE tenant_id = $1 AND idempotency_key = $2;

-- name: list_jobs
-- List a tenant's jobs, the newest first. Their ids sort by time.
SELECT * FROM jobs
WHERE tenant_id = $1 AND ($2::text IS NULL OR kind = $2) AND ($3::uuid IS NULL OR id < $3) AND ($5::text IS NULL OR endpoint = $5) AND delete_at > now()
ORDER BY id DESC LIMIT $4;

-- name: erase_jobs
-- Delete some jobs of a tenant. Attempts that run write nothing any more; what they hold ends with their leases.
WITH over AS MATERIALIZED (SELECT id FROM jobs WHERE tenant_id = $1 ORDER BY id LIMIT $2 FOR UPDATE),
lines AS (DELETE FROM job_lines WHERE job_id IN (SELECT id FROM over))
DELETE FROM jobs WHERE id IN (SELECT id FROM over);

-- name: lock_job
-- Lock the account of a job's owner, and the job.
WITH account AS MATERIALIZED (SELECT FROM accounts WHERE owner = (SELECT tenant_id FROM jobs WHERE id = $1) FOR UPDATE)
SELECT jobs.* FROM jobs WHERE id = $1 AND (SELECT count(*) FROM account) >= 0 FOR UPDATE;

-- name: lock_jobs_of_requests
-- Lock the accounts of the owners of running lines, and the jobs.
WITH running AS MATERIALIZED (SELECT DISTINCT job_id FROM job_lines WHERE request_id = ANY ($1::uuid[]) AND state = 'running'),
found AS MATERIALIZED (SELECT id, tenant_id FROM jobs WHERE id IN (SELECT job_id FROM running)),
account AS MATERIALIZED (SELECT FROM accounts WHERE owner IN (SELECT tenant_id FROM found) ORDER BY owner FOR UPDATE)
SELECT jobs.id FROM jobs WHERE id IN (SELECT id FROM found) AND (SELECT count(*) FROM account) >= 0 ORDER BY id FOR UPDATE;

-- name: take_job
-- Take a job in a state, for a while: of one of the tenants that have some, whoever has how many, the one that has waited longest.
UPDATE jobs SET runner = $2, lease_until = now() + make_interval(secs => $3)
WHERE id = (
    SELECT id FROM jobs WHERE ended_at IS NULL AND state = $1 AND lease_until < now() AND waits_until <= now() AND NOT is_deferred('job', id::text)
    ORDER BY uuid_hash_extended(tenant_id, (SELECT (random() * 1e9)::bigint)), lease_until, id LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING *;

-- name: keep_job
-- Keep a taken job, while it is in the state in which it was taken.
UPDATE jobs SET lease_until = now() + make_interval(secs => $4) WHERE id = $1 AND runner = $2 AND state = $3;

-- name: add_lines
-- Add lines to a job that is being validated; those of an interrupted validation stay.
WITH job AS (SELECT id FROM jobs WHERE id = $1 AND state = 'validating' FOR SHARE)
INSERT INTO job_lines (job_id, line, custom_id, start, size, prefix)
SELECT job.id, lines.* FROM job, unnest($2::integer[], $3::text[], $4::bigint[], $5::integer[], $6::bytea[]) AS lines
ON CONFLICT DO NOTHING;

-- name: count_waiting_lines
-- Count the lines of the owner of job $1 that have no result.
SELECT coalesce(sum(total - done - failed), 0)::bigint FROM jobs
WHERE tenant_id = (SELECT tenant_id FROM jobs WHERE id = $1) AND state = 'in_progress' AND ended_at IS NULL;

-- name: begin_job
-- All lines are well-formed.
UPDATE jobs SET state = 'in_progress', in_progress_at = now(), total = $2, model = $3, price_id = $4, lease_until = '-infinity', waiting = NULL
WHERE id = $1 AND state = 'validating';

-- name: refuse_job
-- A line is malformed: drop all lines.
WITH dropped AS (DELETE FROM job_lines WHERE job_id = $1 AND EXISTS (SELECT FROM jobs WHERE id = $1 AND state = 'validating'))
UPDATE jobs SET state = 'failed', ended_at = now(), delete_at = least(delete_at, now() + (delete_at - expires_at)), errors = $2, waiting = NULL
WHERE id = $1 AND state = 'validating' RETURNING *;

-- name: claim_lines
-- Claim lines of one job.
SELECT * FROM claim_lines($1, $2, $3, $4, $5, $6) ORDER BY line;

-- name: extend_line_leases
-- Extend the leases of running lines; the others are lost. A locked line is being ended; waiting for it could deadlock.
WITH mine AS (
    SELECT job_id, line FROM job_lines WHERE request_id = ANY ($1::uuid[]) AND runner = $2 AND state = 'running' FOR UPDATE SKIP LOCKED
)
UPDATE job_lines SET lease_until = now() + make_interval(secs => $3)
FROM mine WHERE job_lines.job_id = mine.job_id AND job_lines.line = mine.line
RETURNING request_id;

-- name: end_lines
-- Write the results of those lines that these requests still run.
WITH ended AS (
    UPDATE job_lines SET
        state = CASE WHEN given.error_code IS NULL THEN 'done' ELSE 'failed' END, result = given.result, status_code = given.status_code,
        error_code = given.error_code, runner = NULL, lease_until = NULL
    FROM unnest($1::uuid[], $2::bytea[], $3::smallint[], $4::text[], $5::integer[], $6::integer[], $7::integer[], $8::bigint[])
        AS given (id, result, status_code, error_code, input_tokens, cached_tokens, output_tokens, cost_micro)
    WHERE request_id = given.id AND request_id = ANY ($1::uuid[]) AND state = 'running'
    RETURNING job_id, request_id, state, input_tokens, cached_tokens, output_tokens, cost_micro
),
counted AS (
    UPDATE jobs SET
        done = jobs.done + sums.done, failed = jobs.failed + sums.failed, input_tokens = jobs.input_tokens + sums.input_tokens,
        waiting = NULL, cached_tokens = jobs.cached_tokens + sums.cached_tokens, output_tokens = jobs.output_tokens + sums.output_tokens,
        cost_micro = jobs.cost_micro + sums.cost_micro
    FROM (
        SELECT job_id, count(*) FILTER (WHERE state = 'done') AS done, count(*) FILTER (WHERE state = 'failed') AS failed,
            sum(input_tokens) AS input_tokens, sum(cached_tokens) AS cached_tokens, sum(output_tokens) AS output_tokens, sum(cost_micro) AS cost_micro
        FROM ended GROUP BY job_id
    ) AS sums
    WHERE jobs.id = sums.job_id
)
SELECT request_id FROM ended;

-- name: requeue_lines
-- Let lines that these requests still run be tried again, and end the attempts.
WITH queued AS (
    UPDATE job_lines SET state = 'queued', not_before = now() + make_interval(secs => given.seconds), runner = NULL, lease_until = NULL,
        attempt = attempt - given.uncounted::integer, lost_leases = lost_leases + (lease_until < now())::integer
    FROM unnest($1::uuid[], $2::double precision[], $3::boolean[]) AS given (id, seconds, uncounted)
    WHERE request_id = given.id AND request_id = ANY ($1::uuid[]) AND state = 'running'
    RETURNING request_id
)
SELECT drop_attempts(array_agg(request_id)) FROM queued HAVING count(*) > 0;

-- name: list_lost_attempts
-- List attempts whose gateways have lost their lines for so long.
SELECT request_id FROM job_lines WHERE state = 'running' AND lease_until < now() - make_interval(secs => $1) LIMIT $2;

-- name: list_waiting_models
-- List the models of jobs that may run now: live ones, and those that wait for idle machines. Of too many, each time others.
SELECT model, is_live
FROM (SELECT DISTINCT model, is_live FROM jobs WHERE state = 'in_progress' AND waits_until <= now() AND expires_at > now()) AS waiting
ORDER BY random() LIMIT $1;

-- name: list_stopped_jobs
-- List those of these jobs whose lines may not go on.
SELECT given.id, state FROM unnest($1::uuid[]) AS given (id) LEFT JOIN jobs USING (id)
WHERE state IS DISTINCT FROM 'in_progress' OR expires_at <= now();

-- name: say_waiting
-- Say why the jobs of a model don't move, some at a time.
UPDATE jobs SET waiting = $2
WHERE id IN (
    SELECT id FROM jobs WHERE state = 'in_progress' AND model = $1 AND waits_until <= now() AND waiting IS DISTINCT FROM $2
    LIMIT 1000 FOR UPDATE SKIP LOCKED
);

-- name: hold_job
-- Say why a job doesn't move, and until when; with 0 seconds, only why.
UPDATE jobs SET waiting = $2, waits_until = CASE WHEN $3 > 0 THEN now() + make_interval(secs => $3) ELSE waits_until END, lease_until = '-infinity'
WHERE id = $1 AND ended_at IS NULL;

-- name: cancel_job
-- Cancel a job: no other line begins. Lines that run end with their runners, or their leases.
WITH cancelled AS (
    UPDATE jobs SET state = 'cancelling', cancelling_at = now(), waiting = $2, lease_until = '-infinity'
    WHERE id = $1 AND state IN ('validating', 'in_progress') RETURNING id
)
UPDATE job_lines SET state = 'cancelled' FROM cancelled WHERE job_id = cancelled.id AND job_lines.state = 'queued';

-- name: stop_lines
-- Cancel the lines that these requests still run.
WITH stopped AS (
    UPDATE job_lines SET state = 'cancelled', runner = NULL, lease_until = NULL WHERE request_id = ANY ($1::uuid[]) AND state = 'running'
    RETURNING request_id
)
SELECT drop_attempts(array_agg(request_id)) FROM stopped HAVING count(*) > 0;

-- name: list_movable_jobs
-- List jobs that time or their lines have brought to an end; or only the job $2, if it is one of them.
SELECT id FROM jobs WHERE state IN ('validating', 'in_progress') AND expires_at <= now() AND ($2::uuid IS NULL OR id = $2)
UNION
SELECT id FROM jobs WHERE state = 'in_progress' AND done + failed = total AND ($2::uuid IS NULL OR id = $2)
UNION
SELECT id FROM jobs
WHERE state = 'cancelling' AND ended_at IS NULL AND ($2::uuid IS NULL OR id = $2)
    AND NOT EXISTS (SELECT FROM job_lines WHERE job_id = id AND job_lines.state = 'running' AND job_lines.lease_until >= now())
LIMIT $1;

-- name: finalize_job
-- Begin to finalize a locked job that is at its end.
WITH moved AS (
    UPDATE jobs SET state = 'finalizing', finalizing_at = now(), lease_until = '-infinity',
        outcome = CASE
            WHEN state = 'cancelling' THEN 'cancelled' WHEN state <> 'in_progress' OR done + failed < total THEN 'expired'
            WHEN kind <> 'batch' AND failed = total THEN 'failed' ELSE 'completed'
        END
    WHERE id = $1
    RETURNING id, outcome, model, total - done - failed AS unfinished
),
former AS MATERIALIZED (
    SELECT line, request_id, job_lines.state FROM job_lines JOIN moved ON job_id = moved.id WHERE job_lines.state IN ('queued', 'running')
),
stopped AS (
    UPDATE job_lines SET state = CASE outcome WHEN 'cancelled' THEN 'cancelled' ELSE 'expired' END, runner = NULL, lease_until = NULL
    FROM moved WHERE job_id = moved.id AND job_lines.state IN ('queued', 'running')
)
SELECT model, outcome, unfinished, drop_attempts(ARRAY(SELECT request_id FROM former WHERE request_id IS NOT NULL)) FROM moved;

-- name: list_results
-- List the lines of a job after $2, in input order: at most $3, and none after $4 bytes of results. $5: those that are done, or the others.
SELECT line, custom_id, state, result, status_code, error_code, request_id
FROM (
    SELECT *, sum(coalesce(length(result), 0)) OVER (ORDER BY line) - coalesce(length(result), 0) AS before
    FROM (
        SELECT * FROM job_lines WHERE job_id = $1 AND line > $2 AND ($5::boolean IS NULL OR (state = 'done') = $5) ORDER BY line LIMIT $3
    ) AS following
) AS following
WHERE before < $4 ORDER BY line;

-- name: end_job
-- The files of a job are complete: end it, and drop the lines of a batch.
WITH ended AS (
    UPDATE jobs SET state = outcome, ended_at = now(), delete_at = least(delete_at, now() + (delete_at - expires_at)),
        waiting = CASE outcome WHEN 'cancelled' THEN waiting END
    WHERE id = $1 AND state = 'finalizing' RETURNING *
),
dropped AS (DELETE FROM job_lines USING ended WHERE job_id = ended.id AND kind = 'batch')
SELECT * FROM ended;

-- name: give_up_job_input
-- Let go of the input that a job had for itself.
UPDATE files SET state = 'deleting' WHERE id = $1 AND purpose = 'job_input' AND state <> 'deleting';

-- name: forget_job
-- Show a job to nobody any more, and delete it once it has ended.
UPDATE jobs SET delete_at = now(), idempotency_key = NULL WHERE id = $1;

-- name: delete_jobs
-- Delete jobs whose time is over, or only the job $2.
WITH over AS MATERIALIZED (
    SELECT id FROM jobs WHERE ended_at IS NOT NULL AND delete_at <= now() AND ($2::uuid IS NULL OR id = $2)
    ORDER BY delete_at LIMIT $1 FOR UPDATE SKIP LOCKED
),
lines AS (DELETE FROM job_lines WHERE job_id IN (SELECT id FROM over))
DELETE FROM jobs WHERE id IN (SELECT id FROM over) RETURNING id;

-- name: count_open_jobs
-- Count jobs that have not ended.
SELECT kind, state, count(*)::integer AS jobs FROM jobs WHERE ended_at IS NULL GROUP BY kind, state;

-- name: measure_job_models
-- Measure the jobs in progress of each model, of the $1 models that have waited longest. Lines whose leases are lost wait, too. Reads open
-- jobs and running lines only, however many lines there are. Jobs of a model must all end in time, so each needs those that expire before.
WITH parts AS (
    SELECT id, model, total - done - failed AS lines, 0 AS running, in_progress_at, waits_until, expires_at FROM jobs
    WHERE state = 'in_progress' AND ended_at IS NULL
    UNION ALL
    -- No join: its cost would be the product of both.
    SELECT job_id, NULL, 0, 1, NULL, NULL, NULL FROM job_lines WHERE state = 'running' AND lease_until >= now()
),
merged AS (
    SELECT id, max(model) AS model, sum(lines) AS lines, sum(running) AS running, max(in_progress_at) AS began_at, max(waits_until) AS waits_until,
        max(expires_at) AS expires_at
    FROM parts GROUP BY id
),
open AS (
    SELECT model, lines, running, waits_until <= now() AS is_free, extract(epoch FROM now() - greatest(began_at, waits_until)) AS age,
        began_at < now() - interval '30 minutes' AS is_judged,
        sum(lines) FILTER (WHERE waits_until <= now()) OVER (PARTITION BY model ORDER BY expires_at, id)
            / greatest(1, extract(epoch FROM expires_at - now())) AS needed
    FROM merged WHERE model IS NOT NULL
)
SELECT model, sum(lines - running)::bigint AS queued, sum(running)::bigint AS running,
    coalesce(max(age) FILTER (WHERE is_free AND lines > running), 0)::float8 AS oldest_seconds,
    coalesce(max(needed) FILTER (WHERE is_free AND is_judged), 0)::float8 AS needed_per_second
FROM open GROUP BY model ORDER BY oldest_seconds DESC, model LIMIT $1;
