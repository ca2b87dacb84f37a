-- name: write_requests
-- Write ended requests: settle their reservations, log them, and add what was delivered to the day's usage. Existing rows stay as they are.
WITH settled AS MATERIALIZED (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::integer[],
        $7::integer[], $8::integer[], $9::text[], $10::text[], $11::timestamptz[], $12::bigint[], $13::text[], $14::boolean[], $15::uuid[],
        $16::text[], $17::text[], $18::boolean[], $19::bigint[], $20::text[], $21::integer[], $22::text[], $23::text[],
        $24::text[], $25::smallint[], $26::bigint[], $27::bigint[], $28::integer[], $29::boolean[], $30::boolean[],
        $31::boolean[], $32::text[], $33::text[], $34::bigint[], $35::text[], $36::uuid[], $42::boolean[], settle_batch($1, $12, $34, $13)
    ) AS row (
        id, user_id, api_key_id, prompt_hash, model_used, response_time_ms,
        prompt_tokens, completion_tokens, status, error_code, created_at, cost_micro, state, cached, tenant_id,
        worker_owner, worker_labels, begins_conversation, saved_micro, route, route_version, variant, target,
        provider, attempts, upstream_micro, avoided_micro, first_token_ms, variant_failed, is_compared,
        is_counted_late, error_field, ignored_fields, covered_tokens, plan, job_id, is_batch, settled_micro
    )
    -- Always write in this order, so that gateways can't deadlock on rows of the same requests.
    ORDER BY tenant_id, id
),
fresh AS (
    INSERT INTO request_logs (
        id, tenant_id, user_id, api_key_id, prompt_hash, model_used, response_time_ms,
        tokens_used, prompt_tokens, completion_tokens, status, error_code, created_at, cost_micro, cached,
        worker_owner, worker_labels, begins_conversation, saved_micro, route, route_version, variant, target,
        provider, attempts, upstream_micro, avoided_micro, first_token_ms, error_field, ignored_fields, plan, job_id
    )
    SELECT id, tenant_id, user_id, api_key_id, prompt_hash, model_used, response_time_ms,
           prompt_tokens + completion_tokens, prompt_tokens, completion_tokens, status, error_code, created_at,
           coalesce(settled_micro, 0), cached, worker_owner, worker_labels::jsonb, begins_conversation, saved_micro,
           route, route_version, variant, target, provider, attempts, upstream_micro, avoided_micro, first_token_ms,
           error_field, ignored_fields, plan, job_id
    FROM settled
    -- Another gateway has taken this request over and writes its row, or has already written it.
    WHERE settled_micro IS NOT NULL OR NOT was_taken_over(id)
    ON CONFLICT (id) DO NOTHING
    RETURNING id, tenant_id, user_id, api_key_id, model_used, prompt_tokens, completion_tokens, tokens_used, status, created_at, cost_micro
),
exported AS (
    INSERT INTO usage_outbox (id, owner, key_id, model, prompt_tokens, completion_tokens, covered_tokens, cost_micro, created_at, is_batch)
    SELECT id, fresh.tenant_id, fresh.api_key_id, fresh.model_used, fresh.prompt_tokens, fresh.completion_tokens, covered_tokens,
        fresh.cost_micro, fresh.created_at, settled.is_batch
    FROM fresh JOIN settled USING (id)
    WHERE $41 AND (tokens_used > 0 OR fresh.cost_micro > 0)
    RETURNING true
),
counted AS (
    INSERT INTO usage_stats (tenant_id, user_id, api_key_id, date, request_count, tokens_used, cost_micro)
    SELECT tenant_id, user_id, api_key_id, (created_at AT TIME ZONE 'UTC')::date, count(*), sum(tokens_used), sum(cost_micro)
    FROM fresh
    WHERE status = 'success' OR tokens_used > 0
    GROUP BY 1, 2, 3, 4
    -- Also in a fixed order.
    ORDER BY 1, 2, 3, 4
    ON CONFLICT (tenant_id, user_id, api_key_id, date) DO UPDATE SET
        request_count = usage_stats.request_count + excluded.request_count,
        tokens_used = usage_stats.tokens_used + excluded.tokens_used,
        cost_micro = usage_stats.cost_micro + excluded.cost_micro
    RETURNING true
),
judged AS (
    -- If another target served the request, its time and cost say nothing about the target that was drawn.
    INSERT INTO rollout_outcomes (
        rollout, is_candidate, are_ended, tenants, users, began_at, failed, first_token_ms, waited_ms, writing_ms, tokens, completion_tokens,
        upstream_micro, ratings
    )
    SELECT rollouts.id, settled.variant = rollouts.candidate, true,
        array_agg(settled.tenant_id), array_agg(settled.user_id), array_agg(settled.created_at), array_agg(settled.variant_failed),
        array_agg(CASE WHEN settled.target = settled.variant AND NOT settled.is_counted_late THEN settled.first_token_ms END),
        array_agg(CASE WHEN settled.target = settled.variant AND NOT settled.is_counted_late AND settled.first_token_ms IS NULL
            AND settled.status <> 'success' THEN settled.response_time_ms END),
        array_agg(CASE WHEN settled.target = settled.variant AND settled.status = 'success' THEN settled.response_time_ms - settled.first_token_ms END),
        array_agg(CASE WHEN settled.target = settled.variant THEN fresh.tokens_used ELSE 0 END),
        array_agg(CASE WHEN settled.target = settled.variant THEN settled.completion_tokens ELSE 0 END),
        array_agg(settled.upstream_micro), array_agg(NULL::smallint)
    FROM fresh
    JOIN settled USING (id)
    JOIN rollouts ON rollouts.route = settled.route AND settled.variant IN (rollouts.candidate, rollouts.baseline)
    WHERE settled.is_compared AND NOT settled.cached AND rollouts.is_open AND settled.created_at >= rollouts.started_at
    GROUP BY 1, 2
    RETURNING true
),
paid AS MATERIALIZED (
    SELECT spend_targets(
        ARRAY(SELECT id FROM settled WHERE settled_micro IS NOT NULL), array_agg((fresh.created_at AT TIME ZONE 'UTC')::date),
        array_agg(spent.route), array_agg(spent.target), array_agg(spent.micro)
    )
    FROM unnest($37::uuid[], $38::text[], $39::text[], $40::bigint[]) AS spent (id, route, target, micro) JOIN fresh USING (id)
    -- After everything else, because it locks the spending of all targets.
    HAVING (SELECT count(*) FROM counted) + (SELECT count(*) FROM judged) + (SELECT count(*) FROM exported) >= 0
)
SELECT fresh.id FROM paid LEFT JOIN fresh ON true;

-- name: find_unknown_requests
-- Find requests that have neither a reservation nor a row.
SELECT id
FROM unnest($1::uuid[]) AS given (id)
WHERE NOT EXISTS (SELECT FROM reservations WHERE request_id = given.id)
  AND NOT EXISTS (SELECT FROM request_logs WHERE request_logs.id = given.id)
  AND NOT was_taken_over(given.id);

-- name: count_guard_matches
-- Add what guardrails found in requests to their days. Always lock in the same order, so that gateways can't deadlock.
INSERT INTO guard_counts (day, tenant_id, api_key_id, kind, action, place, matches, requests)
SELECT (created_at AT TIME ZONE 'UTC')::date, tenant_id, api_key_id, kind, action, place, sum(matches), count(*)
FROM unnest($1::timestamptz[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::integer[])
    AS row (created_at, tenant_id, api_key_id, kind, action, place, matches)
GROUP BY 1, 2, 3, 4, 5, 6
ORDER BY 1, 2, 3, 4, 5, 6
ON CONFLICT (day, tenant_id, api_key_id, kind, action, place) DO UPDATE SET
    matches = guard_counts.matches + excluded.matches,
    requests = guard_counts.requests + excluded.requests
RETURNING kind;

-- name: list_spending
-- List what targets have cost upstream today.
SELECT route, target, spent_micro, reserved_micro FROM target_spending WHERE day = (now() AT TIME ZONE 'UTC')::date;

-- name: list_usage_days
-- List one tenant's usage of each day in the last year, newest first.
-- replica
SELECT date, api_key_id, sum(request_count)::bigint AS request_count, sum(tokens_used)::bigint AS tokens_used, sum(cost_micro)::bigint AS cost_micro
FROM usage_stats
WHERE tenant_id = $1 AND date > (now() AT TIME ZONE 'UTC')::date - 365
GROUP BY date, api_key_id
ORDER BY date DESC, api_key_id NULLS LAST;

-- name: sum_usage
-- Sum up one tenant's usage.
-- replica
SELECT coalesce(sum(request_count), 0)::bigint AS request_count, coalesce(sum(tokens_used), 0)::bigint AS tokens_used,
       coalesce(sum(cost_micro), 0)::bigint AS cost_micro
FROM usage_stats
WHERE tenant_id = $1;

-- name: reserve
-- Reserve the maximum cost of requests, and hold it at targets with a ceiling; granted_tokens is NULL if the credits are too low.
WITH reserved AS MATERIALIZED (
    SELECT * FROM reserve_batch(
        $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22
    )
),
holds AS (
    -- Of all reservations at once, because it locks the spending of all targets after all accounts.
    SELECT array_agg(request_id ORDER BY number) AS requests, array_agg(is_repeated ORDER BY number) AS are_repeated,
        array_agg(route ORDER BY number) AS routes, array_agg(target ORDER BY number) AS targets,
        array_agg(micro ORDER BY number) AS micros, array_agg(ceiling ORDER BY number) AS ceilings
    FROM unnest($23::uuid[], $24::text[], $25::text[], $26::bigint[], $27::bigint[]) WITH ORDINALITY
        AS hold (request_id, route, target, micro, ceiling, number)
    JOIN reserved USING (request_id)
    WHERE granted_tokens IS NOT NULL
),
over_ceiling AS MATERIALIZED (
    SELECT over_request AS request_id, array_agg(over_target) AS targets
    FROM holds, LATERAL hold_targets(requests, are_repeated, routes, targets, micros, ceilings)
    GROUP BY over_request
)
SELECT reserved.*, coalesce(over_ceiling.targets, '{}') AS over_ceiling FROM reserved LEFT JOIN over_ceiling USING (request_id);

-- name: extend_holds
-- Raise what running requests hold, as far as their plans and credits cover it; granted_tokens is NULL if a request is not open.
WITH wanted AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::integer[], $4::integer[], $5::integer[], $6::bigint[], $7::bigint[], $8::integer[],
        $9::bigint[], $10::bigint[], $11::boolean[], $12::bigint[], $13::bigint[], $14::text[], $15::bigint[], $16::bigint[]
    ) AS row (
        request_id, owner, max_tokens, least_more, answers, input, output, weight,
        included_tokens, overage_micro, has_plan, key_budget, owner_budget, target, target_micro, target_ceiling
    )
    -- As in reserve.
    ORDER BY owner, request_id
),
extended AS MATERIALIZED (
    SELECT request_id, target, target_micro, target_ceiling, held.granted_tokens, held.held_tokens
    FROM wanted, LATERAL extend_hold(
        request_id, max_tokens, least_more, answers, input, output, weight, included_tokens, overage_micro, has_plan, key_budget, owner_budget
    ) AS held
),
holds AS (
    SELECT array_agg(request_id) AS requests, array_agg(target) AS targets, array_agg(target_micro) AS micros,
        array_agg(target_ceiling) AS ceilings
    FROM extended WHERE granted_tokens IS NOT NULL AND target IS NOT NULL
),
over_ceiling AS MATERIALIZED (
    SELECT over_request FROM holds, LATERAL extend_targets(requests, targets, micros, ceilings)
)
SELECT request_id, granted_tokens, held_tokens, over_request IS NOT NULL AS is_over_ceiling
FROM extended LEFT JOIN over_ceiling ON over_request = request_id;

-- name: extend_leases
-- Extend the leases of running requests. A locked row is being settled; waiting for it could deadlock.
UPDATE reservations SET lease_until = now() + make_interval(secs => $2)
WHERE request_id IN (
    SELECT request_id FROM reservations
    WHERE request_id = ANY ($1::uuid[]) AND state = 'reserved'
    FOR UPDATE SKIP LOCKED
);

-- name: record_claims
-- Record which workers run these requests, and at which price. Skip locked rows, as above.
WITH claims AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::text[], $3::integer[], $4::text[], $5::bigint[], $6::text[], $7::integer[], $8::text[], $9::text[],
        $10::text[], $11::boolean[]
    ) AS row (request_id, worker, delivered_before, model, price_id, route, route_version, variant, target, provider, is_batch)
),
free AS (
    SELECT request_id FROM reservations
    WHERE request_id = ANY ($1::uuid[]) AND state = 'reserved'
    FOR UPDATE SKIP LOCKED
)
UPDATE reservations AS held
SET workers = held.workers || claims.worker::varchar, delivered_before = claims.delivered_before, claimed_at = now(),
    model = claims.model, price_id = claims.price_id,
    route = claims.route, route_version = claims.route_version, variant = claims.variant, target = claims.target,
    provider = claims.provider, is_batch = claims.is_batch
FROM claims JOIN free USING (request_id)
WHERE held.request_id = claims.request_id
RETURNING held.request_id;

-- name: list_overdue
-- List open reservations whose lease has expired for longer than a grace period, oldest first.
SELECT request_id, owner, key_id, model, price_id, prompt_tokens, completion_tokens, held_tokens, gateway, created_at, lease_until,
    workers, delivered_before, claimed_at, route, route_version, variant, target, provider, is_batch
FROM reservations
WHERE state = 'reserved' AND lease_until < now() - make_interval(secs => $1) AND job_id IS NULL
    AND NOT is_deferred('orphan', request_id::text)
ORDER BY lease_until
LIMIT $2;

-- name: mark_reservations
-- Say which reservations are of jobs.
UPDATE reservations SET job_id = given.job_id
FROM unnest($1::uuid[], $2::uuid[]) AS given (request_id, job_id)
WHERE reservations.request_id = given.request_id AND reservations.job_id IS NULL;

-- name: drop_lost_attempts
-- End reservations of jobs that no running line has, without pay: attempts of gateways that were too late.
SELECT drop_attempts(ARRAY(
    SELECT request_id FROM reservations
    WHERE state = 'reserved' AND lease_until < now() - make_interval(secs => $1) AND job_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM job_lines WHERE job_lines.request_id = reservations.request_id AND job_lines.state = 'running')
    ORDER BY lease_until
    LIMIT $2
));

-- name: read_account
-- Read an account after granting this period's tokens; lock it briefly.
WITH opened AS MATERIALIZED (SELECT * FROM open_account($1, $2, $3))
SELECT allowance_tokens, granted_tokens, paid_tokens, held_tokens, period_end, balance_micro, reserved_micro,
    -- As ``reserve`` begins another budget or period.
    CASE WHEN $4::text IS NOT NULL AND (every, since) IS DISTINCT FROM ($4, budget_since($4)) THEN 0 ELSE spent_micro END AS spent_micro
FROM opened;

-- name: read_key_spending
-- Read what a key has spent and reserved.
SELECT CASE WHEN since < budget_since(every) THEN 0 ELSE spent_micro END AS spent_micro, reserved_micro FROM key_spending WHERE key_id = $1;

-- name: is_same_transfer
-- Return whether a transfer of credits has this owner and amount; null if there is no such transfer.
SELECT EXISTS (SELECT FROM entries WHERE owner = $2 AND transfer = $1 AND kind = 'top_up' AND account = 'balance' AND amount_micro = $3)
FROM entry_keys WHERE transfer = $1 AND kind = 'top_up' AND account = 'balance';

-- name: top_up
-- Add or withdraw a user's credits; repeating a transfer is a unique violation.
WITH done AS MATERIALIZED (SELECT top_up($1, $2, $3, $4, $5, $6)) SELECT count(*) FROM done;

-- name: revert
-- Refund a request, and export that if $3; return its owner, or NULL if it cost nothing.
WITH done AS MATERIALIZED (SELECT revert($1, $2) AS owner)
SELECT owner, CASE WHEN $3 AND owner IS NOT NULL THEN export_refund($1) END FROM done;

-- name: list_prices
-- List the current prices.
SELECT DISTINCT ON (model) id, model, input_micro_per_million, output_micro_per_million, request_micro, compute_second_micro,
    allowance_weight, since, batch_percent
FROM prices
WHERE since <= now()
ORDER BY model, since DESC, id DESC;

-- name: list_price_history
-- List all prices ever set, newest first.
SELECT id, model, input_micro_per_million, output_micro_per_million, request_micro, compute_second_micro,
    allowance_weight, since, batch_percent
FROM prices
ORDER BY since DESC, id DESC
LIMIT 1000;

-- name: find_price
-- Find a price by its number.
SELECT id, model, input_micro_per_million, output_micro_per_million, request_micro, compute_second_micro,
    allowance_weight, since, batch_percent
FROM prices
WHERE id = $1;

-- name: add_price
-- Set a price as of now.
INSERT INTO prices (
    model, input_micro_per_million, output_micro_per_million, request_micro, compute_second_micro, allowance_weight, batch_percent
)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- name: ensure_default_price
-- Insert the default price from the settings if there is none.
INSERT INTO prices (model, input_micro_per_million, output_micro_per_million, request_micro, compute_second_micro, since)
SELECT NULL, $1, $2, 0, 0, 'epoch'
WHERE NOT EXISTS (SELECT FROM prices WHERE model IS NULL);

-- name: verify_ledger
-- Verify the sums in one snapshot: entries and payments since $2, and checkpoints for the time before it; NULL: all entries.
WITH recent_entries AS MATERIALIZED (
    SELECT transfer, kind, account, owner, amount_micro, amount_tokens FROM entries WHERE at >= coalesce($2::timestamptz, '-infinity')
),
per_account AS (
    SELECT owner, sum(included)::bigint AS included, sum(balance)::bigint AS balance, sum(allowance)::bigint AS allowance
    FROM (
        SELECT owner, included_micro, balance_micro, allowance_tokens FROM ledger_balances WHERE $2::timestamptz IS NOT NULL
        UNION ALL
        SELECT owner, sum(amount_micro) FILTER (WHERE account = 'included'), sum(amount_micro) FILTER (WHERE account = 'balance'),
            sum(amount_tokens) FILTER (WHERE account = 'allowance')
        FROM recent_entries GROUP BY owner
    ) AS parts (owner, included, balance, allowance)
    GROUP BY owner
),
held AS (
    SELECT owner, sum(reserved_micro) AS micro, sum(held_tokens) AS tokens FROM reservations WHERE state = 'reserved' GROUP BY owner
),
held_by_key AS (SELECT key_id, sum(reserved_micro) AS micro FROM reservations WHERE state = 'reserved' GROUP BY key_id),
spent AS (
    SELECT transfer, coalesce(sum(amount_micro) FILTER (WHERE account = 'revenue'), 0) AS micro,
        coalesce(sum(amount_tokens) FILTER (WHERE account = 'served'), 0) AS tokens
    FROM recent_entries WHERE kind = 'usage' GROUP BY transfer
),
held_by_target AS (
    SELECT day, target_holds.route, held.target, sum(micro) AS micro
    FROM target_holds JOIN reservations USING (request_id), unnest(targets, micros) AS held (target, micro)
    WHERE state = 'reserved'
    GROUP BY 1, 2, 3
),
paid AS (
    SELECT request_id, settled_micro, covered_tokens FROM reservations
    WHERE (settled_micro > 0 OR covered_tokens > 0) AND ended_at >= coalesce($2::timestamptz, '-infinity')
)
SELECT
    (SELECT coalesce(sum(abs(coalesce(a.included_micro, 0) - coalesce(e.included, 0)) + abs(coalesce(a.balance_micro, 0) - coalesce(e.balance, 0))), 0)
     FROM accounts AS a FULL JOIN per_account AS e USING (owner))::bigint AS drift_micro,
    (SELECT coalesce(sum(abs(coalesce(a.allowance_tokens, 0) - coalesce(e.allowance, 0))), 0)
     FROM accounts AS a FULL JOIN per_account AS e USING (owner))::bigint AS drift_tokens,
    (SELECT coalesce(sum(amount_micro), 0) FROM recent_entries)::bigint AS sum_micro,
    (SELECT coalesce(sum(amount_tokens), 0) FROM recent_entries)::bigint AS sum_tokens,
    (SELECT coalesce(sum(abs(coalesce(a.held_tokens, 0) - coalesce(h.tokens, 0))), 0) FROM accounts AS a FULL JOIN held AS h USING (owner))::bigint
        AS held_drift_tokens,
    (SELECT coalesce(sum(abs(coalesce(a.reserved_micro, 0) - coalesce(h.micro, 0))), 0) FROM accounts AS a FULL JOIN held AS h USING (owner))::bigint
        AS account_reserved_drift_micro,
    (SELECT coalesce(sum(abs(k.reserved_micro - coalesce(h.micro, 0))), 0) FROM key_spending AS k LEFT JOIN held_by_key AS h USING (key_id))::bigint
        AS key_reserved_drift_micro,
    (SELECT coalesce(sum(abs(coalesce(t.reserved_micro, 0) - coalesce(h.micro, 0))), 0)
     FROM target_spending AS t FULL JOIN held_by_target AS h USING (day, route, target))::bigint AS target_reserved_drift_micro,
    -- Only with all entries, because it reads the requests of days that are not summed up.
    CASE WHEN $2::timestamptz IS NULL THEN abs(
        (SELECT coalesce(sum(spent_micro), 0) FROM target_spending)
        - (SELECT coalesce(sum(used.upstream_micro), 0) FROM usage_between((SELECT min(day) FROM target_spending), (now() AT TIME ZONE 'UTC')::date) AS used)
    ) ELSE 0 END::bigint AS upstream_drift_micro,
    (SELECT count(*) FROM paid AS r FULL JOIN spent AS s ON s.transfer = r.request_id
     WHERE (coalesce(r.settled_micro, 0), coalesce(r.covered_tokens, 0)) <> (coalesce(s.micro, 0), coalesce(s.tokens, 0))) AS wrong_settles,
    (SELECT count(*) FROM reservations WHERE state = 'reserved' AND lease_until < now() - make_interval(secs => $1)) AS overdue,
    (SELECT count(*) FROM accounts) AS accounts,
    (SELECT count(*) FROM recent_entries) AS entries,
    (SELECT count(*) FROM reservations WHERE state = 'reserved') AS open_reservations,
    (SELECT max(day) FROM ledger_checkpoints) AS last_day,
    (SELECT coalesce(sha256(string_agg(convert_to(concat_ws('|', owner, included_micro, balance_micro, 't' || nullif(allowance_tokens, 0)), 'UTF8'), '\x0a' ORDER BY owner)), '')
     FROM ledger_balances) AS balances_hash;

-- name: allow_long_statements
-- Allow statements in this transaction to read whole days.
SELECT set_config('statement_timeout', '1800s', true);

-- name: lock_checkpoints
-- Try to become the one gateway that closes a day, until the end of the transaction.
SELECT pg_try_advisory_xact_lock(hashtextextended('aimesh.gateway.checkpoints', 0));

-- name: next_checkpoint_day
-- Find the first day without a checkpoint, if no transaction of that day can still be running.
SELECT day FROM (
    SELECT coalesce((SELECT max(day) + 1 FROM ledger_checkpoints), (SELECT (min(at) AT TIME ZONE 'UTC')::date FROM entries)) AS day
) AS next
WHERE (day + 1)::timestamp AT TIME ZONE 'UTC' < now() - interval '10 minutes';

-- name: sum_ledger_day
-- Sum up a day's entries, and hash all of them in pieces of 10,000.
WITH of_day AS MATERIALIZED (
    SELECT id, transfer, kind, account, owner, amount_micro, amount_tokens, period, note, at FROM entries
    WHERE at >= $1::date::timestamp AT TIME ZONE 'UTC' AND at < ($1::date + 1)::timestamp AT TIME ZONE 'UTC'
),
pieces AS (
    SELECT id / 10000 AS piece, sha256(string_agg(convert_to(concat_ws(
        '|', id, transfer, kind, account, owner, amount_micro, 't' || amount_tokens, (extract(epoch FROM at) * 1000000)::bigint,
        'p' || (extract(epoch FROM period) * 1000000)::bigint,
        CASE WHEN note <> '' THEN encode(sha256(convert_to(note, 'UTF8')), 'hex') END
    ), 'UTF8'), '\x0a' ORDER BY id)) AS hash
    FROM of_day GROUP BY 1
)
SELECT count(*) AS entries,
    coalesce(sum(amount_micro) FILTER (WHERE account = 'included'), 0)::bigint AS included_micro,
    coalesce(sum(amount_micro) FILTER (WHERE account = 'balance'), 0)::bigint AS balance_micro,
    coalesce(sum(amount_micro) FILTER (WHERE account = 'revenue'), 0)::bigint AS revenue_micro,
    coalesce(sum(amount_micro) FILTER (WHERE account = 'grants'), 0)::bigint AS grants_micro,
    coalesce(sum(amount_micro) FILTER (WHERE account = 'payments'), 0)::bigint AS payments_micro,
    (SELECT sha256(coalesce(string_agg(hash, '' ORDER BY piece), '')) FROM pieces) AS entries_hash
FROM of_day;

-- name: add_to_balances
-- Add a day's entries to the balances of their owners.
INSERT INTO ledger_balances AS kept (owner, included_micro, balance_micro, allowance_tokens)
SELECT owner, coalesce(sum(amount_micro) FILTER (WHERE account = 'included'), 0), coalesce(sum(amount_micro) FILTER (WHERE account = 'balance'), 0),
    coalesce(sum(amount_tokens) FILTER (WHERE account = 'allowance'), 0)
FROM entries
WHERE at >= $1::date::timestamp AT TIME ZONE 'UTC' AND at < ($1::date + 1)::timestamp AT TIME ZONE 'UTC'
GROUP BY owner
ON CONFLICT (owner) DO UPDATE SET
    included_micro = kept.included_micro + excluded.included_micro, balance_micro = kept.balance_micro + excluded.balance_micro,
    allowance_tokens = kept.allowance_tokens + excluded.allowance_tokens;

-- name: hash_balances
-- Hash the balances as in verify_ledger.
SELECT coalesce(
    sha256(string_agg(convert_to(concat_ws('|', owner, included_micro, balance_micro, 't' || nullif(allowance_tokens, 0)), 'UTF8'), '\x0a' ORDER BY owner)), ''
) FROM ledger_balances;

-- name: add_checkpoint
-- Store a closed day.
INSERT INTO ledger_checkpoints (
    day, entries, included_micro, balance_micro, revenue_micro, grants_micro, payments_micro, entries_hash, balances_hash, hash, anchor
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: list_checkpoints
-- List all closed days, oldest first.
SELECT day, entries, included_micro, balance_micro, revenue_micro, grants_micro, payments_micro, entries_hash, balances_hash, hash, anchor
FROM ledger_checkpoints ORDER BY day;

-- name: claim_key
-- Claim a request: the caller that gets a row runs it. The key must be new or expired, or its gateway must have lost its lease ($8: or is
-- known to be dead). Only one of several concurrent claims succeeds. Return the model that served the earlier request, too.
INSERT INTO idempotency_keys AS held (owner, key, fingerprint, request_id, seed, state, gateway, lease_until, expires_at, config_revision)
VALUES ($1, $2, $3, $4, $5, 'running', $6, now() + make_interval(secs => $7), now() + interval '24 hours', $9)
ON CONFLICT (owner, key) DO UPDATE SET
    fingerprint = excluded.fingerprint,
    request_id = excluded.request_id,
    seed = CASE WHEN held.expires_at <= now() THEN excluded.seed ELSE held.seed END,
    config_revision = CASE
        WHEN held.expires_at <= now() THEN excluded.config_revision ELSE coalesce(held.config_revision, excluded.config_revision)
    END,
    attempt = CASE WHEN held.expires_at <= now() THEN 1 ELSE held.attempt + 1 END,
    state = 'running',
    answer = NULL,
    gateway = excluded.gateway,
    lease_until = excluded.lease_until,
    created_at = CASE WHEN held.expires_at <= now() THEN now() ELSE held.created_at END,
    expires_at = CASE WHEN held.expires_at <= now() THEN excluded.expires_at ELSE held.expires_at END
WHERE (held.expires_at <= now() AND (held.state <> 'running' OR held.lease_until <= now()))
    OR (
        held.state = 'running' AND held.fingerprint = excluded.fingerprint
        AND (held.lease_until <= now() OR held.request_id = $8)
    )
RETURNING seed, attempt, config_revision, (
    -- The statement's snapshot still has the earlier request.
    SELECT model FROM reservations
    WHERE request_id = (SELECT request_id FROM idempotency_keys WHERE owner = $1 AND key = $2) AND cardinality(workers) > 0
) AS model;

-- name: find_key
-- Read the state of a key.
SELECT fingerprint, request_id, state, answer, gateway
FROM idempotency_keys
WHERE owner = $1 AND key = $2;

-- name: extend_key_leases
-- Extend the leases of requests; return those that are still ours, and whether their caller canceled them.
UPDATE idempotency_keys
SET lease_until = now() + make_interval(secs => $2)
WHERE request_id = ANY($1::uuid[]) AND state = 'running'
RETURNING request_id, withdrawn_request IS NOT DISTINCT FROM request_id AS is_withdrawn;

-- name: withdraw_keys
-- Mark the requests that run under a key, or under the keys made from it ($3), as canceled, and notify all gateways.
WITH withdrawn AS (
    UPDATE idempotency_keys
    SET withdrawn_request = request_id
    WHERE owner = $1 AND (key = $2 OR starts_with(key, $3)) AND state = 'running'
    RETURNING request_id
)
SELECT pg_notify('gateway_withdrawals', request_id::text) FROM withdrawn;

-- name: end_key
-- Store the answer of a request, unless another gateway has taken it over.
UPDATE idempotency_keys
SET state = $2, answer = $3, lease_until = now()
WHERE request_id = $1 AND state = 'running';

-- name: free_key
-- Free the key of a request that delivered nothing, so that it can run again.
DELETE FROM idempotency_keys
WHERE request_id = $1 AND state = 'running';

-- name: abandon_key
-- Release a request that its gateway can't finish, so that the next call takes it over.
UPDATE idempotency_keys
SET lease_until = now()
WHERE request_id = $1 AND state = 'running';

-- name: sweep_keys
-- Delete a batch of expired keys, without waiting for other gateways.
DELETE FROM idempotency_keys
WHERE (owner, key) IN (
    SELECT owner, key
    FROM idempotency_keys
    WHERE expires_at <= now() AND (state <> 'running' OR lease_until <= now())
    ORDER BY expires_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
);

-- name: sum_time
-- Sum up one tenant's requests, or all for NULL, in time buckets; refused requests count only as refused.
-- replica
SELECT date_trunc($4, created_at AT TIME ZONE 'UTC') AS at,
    count(*) FILTER (WHERE NOT is_refused) AS requests, count(*) FILTER (WHERE is_refused) AS refused,
    count(*) FILTER (WHERE status IN ('error', 'timeout')) AS errors,
    coalesce(sum(prompt_tokens) FILTER (WHERE NOT is_refused), 0)::bigint AS prompt_tokens,
    coalesce(sum(completion_tokens) FILTER (WHERE NOT is_refused), 0)::bigint AS completion_tokens,
    coalesce(sum(cost_micro) FILTER (WHERE NOT is_refused), 0)::bigint AS cost_micro, count(*) FILTER (WHERE cached AND NOT is_refused) AS cached,
    percentile_disc(0.5) WITHIN GROUP (ORDER BY response_time_ms) FILTER (WHERE status = 'success') AS p50_ms,
    percentile_disc(0.95) WITHIN GROUP (ORDER BY response_time_ms) FILTER (WHERE status = 'success') AS p95_ms
FROM request_logs, LATERAL (SELECT status IN ('limited', 'rejected')) AS refusal (is_refused)
WHERE ($1::uuid IS NULL OR tenant_id = $1) AND created_at >= $2 AND created_at < $3
GROUP BY 1
ORDER BY 1;

-- name: sum_groups
-- Sum up the same period in total, by model and by key.
-- replica
SELECT grouping(model_used) = 0 AS is_model, grouping(api_key_id) = 0 AS is_key, model_used, api_key_id,
    count(*) FILTER (WHERE NOT is_refused) AS requests, count(*) FILTER (WHERE is_refused) AS refused,
    count(*) FILTER (WHERE status IN ('error', 'timeout')) AS errors,
    coalesce(sum(prompt_tokens) FILTER (WHERE NOT is_refused), 0)::bigint AS prompt_tokens,
    coalesce(sum(completion_tokens) FILTER (WHERE NOT is_refused), 0)::bigint AS completion_tokens,
    coalesce(sum(cost_micro) FILTER (WHERE NOT is_refused), 0)::bigint AS cost_micro, count(*) FILTER (WHERE cached AND NOT is_refused) AS cached,
    percentile_disc(0.5) WITHIN GROUP (ORDER BY response_time_ms) FILTER (WHERE status = 'success') AS p50_ms,
    percentile_disc(0.95) WITHIN GROUP (ORDER BY response_time_ms) FILTER (WHERE status = 'success') AS p95_ms
FROM request_logs, LATERAL (SELECT status IN ('limited', 'rejected')) AS refusal (is_refused)
WHERE ($1::uuid IS NULL OR tenant_id = $1) AND created_at >= $2 AND created_at < $3
GROUP BY GROUPING SETS ((), (model_used), (api_key_id))
ORDER BY requests DESC
LIMIT 1000;

-- name: sum_feedback
-- Count ratings by model.
-- replica
SELECT model, count(*) FILTER (WHERE rating > 0) AS up, count(*) FILTER (WHERE rating < 0) AS down
FROM feedback
WHERE ($1::uuid IS NULL OR tenant_id = $1) AND at >= $2 AND at < $3
GROUP BY model;

-- name: plan_each_time
-- Plan the statements of this transaction for their actual values, so that older partitions are pruned.
SELECT set_config('plan_cache_mode', 'force_custom_plan', true);

-- name: plan_pages
-- Read pages in index order in this transaction. PostgreSQL overestimates how selective row-level security is, and would otherwise read and
-- sort all rows of a filter.
-- replica
SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_bitmapscan', 'off', true),
    set_config('enable_sort', 'off', true);

-- name: list_requests
-- List a tenant's requests, newest first.
-- replica
SELECT log.id, log.created_at, log.user_id, log.api_key_id, log.model_used, log.status, log.error_code, log.error_field, log.ignored_fields,
    log.prompt_tokens, log.completion_tokens, log.response_time_ms, log.cost_micro, log.cached, feedback.rating
FROM request_logs AS log
LEFT JOIN feedback ON feedback.request_id = log.id
WHERE log.tenant_id = $1 AND log.created_at < coalesce($2::timestamptz, 'infinity'::timestamptz) AND ($3::text IS NULL OR log.status = $3)
    AND ($4::text IS NULL OR log.model_used = $4) AND ($5::uuid IS NULL OR log.api_key_id = $5)
ORDER BY log.created_at DESC, log.id
LIMIT $6;

-- name: export_requests
-- List a tenant's requests after the last one read, oldest first.
-- replica
SELECT log.id, log.created_at, log.user_id, log.api_key_id, log.model_used, log.status, log.error_code, log.error_field, log.ignored_fields,
    log.prompt_tokens, log.completion_tokens, log.response_time_ms, log.cost_micro, log.cached, feedback.rating
FROM request_logs AS log
LEFT JOIN feedback ON feedback.request_id = log.id
WHERE log.tenant_id = $1 AND (log.created_at, log.id) > ($2, $3::uuid)
ORDER BY log.created_at, log.id
LIMIT $4;

-- name: rate_request
-- Rate a request that this user made for this tenant, if it delivered something.
WITH rated AS (
    SELECT id, tenant_id, user_id, model_used FROM request_logs
    WHERE id = $1 AND tenant_id = $2 AND user_id = $3 AND model_used IS NOT NULL AND (status = 'success' OR completion_tokens > 0)
)
INSERT INTO feedback (request_id, tenant_id, user_id, model, rating)
SELECT id, tenant_id, user_id, model_used, $4 FROM rated
ON CONFLICT (request_id) DO UPDATE SET rating = excluded.rating, at = now();

-- name: judge_rating
-- Add the first rating of a request to the outcomes of its rollout. Later ones don't count, so that no tenant decides alone.
WITH counted AS (
    INSERT INTO rollout_ratings (request_id, rollout)
    SELECT log.id, rollouts.id
    FROM request_logs AS log
    JOIN rollouts ON rollouts.route = log.route AND log.variant IN (rollouts.candidate, rollouts.baseline)
    WHERE log.id = $1 AND log.tenant_id = $2 AND log.user_id = $3 AND (log.status = 'success' OR log.completion_tokens > 0)
        AND rollouts.is_open AND log.created_at >= rollouts.started_at
    ON CONFLICT DO NOTHING
    RETURNING request_id, rollout
)
INSERT INTO rollout_outcomes (
    rollout, is_candidate, are_ended, tenants, users, began_at, failed, first_token_ms, waited_ms, writing_ms, tokens, completion_tokens,
    upstream_micro, ratings
)
SELECT rollouts.id, log.variant = rollouts.candidate, false, ARRAY[log.tenant_id], ARRAY[log.user_id], ARRAY[log.created_at],
    ARRAY[NULL::boolean], ARRAY[NULL::integer], ARRAY[NULL::integer], ARRAY[NULL::integer], ARRAY[0], ARRAY[0], ARRAY[0::bigint],
    ARRAY[$4::smallint]
FROM counted
JOIN request_logs AS log ON log.id = counted.request_id
JOIN rollouts ON rollouts.id = counted.rollout;

-- name: unrate_request
-- Remove a rating.
DELETE FROM feedback WHERE request_id = $1 AND tenant_id = $2 AND user_id = $3;

-- name: add_partition
-- Add one missing partition for the next days; return its name, or NULL if none is missing.
WITH added AS MATERIALIZED (SELECT add_partition(make_interval(days => $1)) AS name) SELECT name FROM added;

-- name: drop_partition
-- Drop one partition of the request log that is older than so many days; return its name, or NULL if there is none.
WITH dropped AS MATERIALIZED (SELECT drop_partition($1) AS name) SELECT name FROM dropped;

-- name: measure_partitions_ahead
-- Measure for how many seconds every growing table has partitions.
SELECT extract(epoch FROM min(until) - now())::double precision
FROM (SELECT max(until) AS until FROM partitions GROUP BY parent) AS ends;

-- name: end_old_requests
-- Delete old rows of the request log in partitions that can't be dropped; return their number.
WITH ended AS MATERIALIZED (SELECT end_old_requests($1, $2) AS rows) SELECT rows FROM ended;

-- name: end_old_feedback
-- Delete old ratings, except of days that may be summed up again.
DELETE FROM feedback
WHERE request_id IN (
    SELECT request_id FROM feedback
    WHERE at < now() - make_interval(days => $1) AND NOT EXISTS (
        SELECT FROM request_logs AS log JOIN usage_rolls AS roll ON roll.day = (log.created_at AT TIME ZONE 'UTC')::date
        WHERE log.id = feedback.request_id AND NOT roll.is_final
    )
    LIMIT $2
);

-- name: open_days
-- Add every day since the last known one, so that it is summed up when it is over.
INSERT INTO usage_rolls (day)
SELECT day::date FROM generate_series(
    coalesce((SELECT max(day) FROM usage_rolls), (now() AT TIME ZONE 'UTC')::date)::timestamp, (now() AT TIME ZONE 'UTC')::date::timestamp, '1 day'
) AS day
ON CONFLICT DO NOTHING;

-- name: take_roll_piece
-- Take the oldest ten minutes to sum up. Pieces are short, because late rows and their settlements wait for the lock. A piece must be over for
-- five minutes, because earlier rows may still be on their way.
SELECT roll.day, begun.since, piece.until, piece.until = (roll.day + 1)::timestamp AT TIME ZONE 'UTC' AS is_last
FROM usage_rolls AS roll, LATERAL (SELECT summed_until(roll)) AS begun (since), LATERAL (SELECT begun.since + interval '10 minutes') AS piece (until)
WHERE roll.is_stale AND NOT roll.is_final AND piece.until < now() - interval '5 minutes'
ORDER BY roll.day
LIMIT 1
FOR UPDATE OF roll SKIP LOCKED;

-- name: roll_piece
-- Sum up a piece of time.
INSERT INTO usage_days SELECT * FROM usage_of_time($1, $2);

-- name: end_piece
-- Record until when the day is summed up; after its last piece, the day is complete.
UPDATE usage_rolls SET rolled_until = $2, is_stale = NOT $3, rolled_at = CASE WHEN $3 THEN now() END WHERE day = $1;

-- name: join_pieces
-- Merge the pieces of a day.
WITH joined AS MATERIALIZED (SELECT join_pieces($1)) SELECT count(*) FROM joined;

-- name: compare_cost
-- Return the cost of this or the last UTC day, the higher one, as a multiple of the mean of the seven days before it. 0 if the first of
-- these had no cost, because then nothing is usual yet.
WITH this AS (SELECT (now() AT TIME ZONE 'UTC')::date AS day),
days AS (
    SELECT used.day, sum(used.cost_micro) AS cost FROM this, LATERAL usage_between(this.day - 8, this.day) AS used GROUP BY used.day
)
SELECT coalesce(max(late.cost / usual.mean), 0)::float8
FROM days AS late JOIN this ON late.day >= this.day - 1
CROSS JOIN LATERAL (
    SELECT sum(cost) / 7 AS mean, sum(cost) FILTER (WHERE day = late.day - 7) AS first FROM days WHERE day BETWEEN late.day - 7 AND late.day - 1
) AS usual
WHERE usual.first > 0;

-- name: sum_upstream
-- Sum up what providers have cost in this UTC month.
SELECT coalesce(sum(used.upstream_micro), 0)::bigint
FROM (SELECT (now() AT TIME ZONE 'UTC')::date AS day) AS this,
    LATERAL usage_between(date_trunc('month', this.day::timestamp)::date, this.day) AS used;

-- name: close_days
-- Freeze days whose rows will soon be deleted from the request log.
UPDATE usage_rolls SET is_final = true
WHERE NOT is_stale AND NOT is_final AND day::timestamp AT TIME ZONE 'UTC' < now() - make_interval(days => $1);

-- name: report_days
-- Report on a period, in total and by one dimension. The value of tokens is that at the last price of their day.
-- replica
WITH named AS (
    SELECT used.*, CASE $3
        WHEN 'day' THEN day::text
        WHEN 'user' THEN user_id::text
        WHEN 'model' THEN model
        WHEN 'owner' THEN worker_owner
        WHEN 'route' THEN route
        WHEN 'target' THEN route || '/' || target
        WHEN 'organization' THEN tenant_id::text
        WHEN 'key' THEN api_key_id::text
        WHEN 'plan' THEN plan
        WHEN 'label' THEN CASE WHEN $4::text IS NULL THEN nullif(worker_labels, '{}')::text ELSE worker_labels ->> $4 END
    END AS name
    FROM usage_between($1::date, $2::date - 1) AS used
),
priced AS MATERIALIZED (
    SELECT used.day, used.model, price.input_micro_per_million AS input, price.output_micro_per_million AS output
    FROM (SELECT DISTINCT day, model FROM named) AS used, LATERAL (
        SELECT * FROM prices WHERE coalesce(prices.model = used.model, prices.model IS NULL) AND since < (used.day + 1)::timestamp AT TIME ZONE 'UTC'
        ORDER BY prices.model IS NULL, since DESC, id DESC LIMIT 1
    ) AS price
)
SELECT grouping(name) = 1 AS is_total, name,
    sum(succeeded)::bigint AS succeeded, sum(failed)::bigint AS failed, sum(timed_out)::bigint AS timed_out,
    sum(cancelled)::bigint AS cancelled, sum(limited)::bigint AS limited,
    sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens, sum(cost_micro)::bigint AS cost_micro,
    ceil(sum(prompt_tokens * coalesce(input, 0)::numeric + completion_tokens * coalesce(output, 0)::numeric) / 1000000)::bigint AS token_value_micro,
    sum(response_ms)::bigint AS response_ms, sum(made_tokens)::bigint AS made_tokens, sum(made_ms)::bigint AS made_ms,
    sum(cached)::bigint AS cached, sum(saved_micro)::bigint AS saved_micro, sum(conversations)::bigint AS conversations,
    sum(thumbs_up)::bigint AS thumbs_up, sum(thumbs_down)::bigint AS thumbs_down,
    sum(upstream_micro)::bigint AS upstream_micro, sum(avoided_micro)::bigint AS avoided_micro,
    coalesce(sum(succeeded) FILTER (WHERE provider IS NOT NULL), 0)::bigint AS external,
    count(DISTINCT user_id) FILTER (WHERE succeeded + failed + timed_out + cancelled > 0) AS users
FROM named LEFT JOIN priced ON priced.day = named.day AND priced.model IS NOT DISTINCT FROM named.model
GROUP BY GROUPING SETS ((), (name))
ORDER BY is_total DESC, CASE WHEN $3 = 'day' THEN name END, cost_micro DESC, succeeded DESC, name
LIMIT $5;

-- name: count_repeated
-- Count answered requests whose conversation the same payer had asked the same model before, in this period and as far as the log goes back.
-- replica
SELECT coalesce(sum(greatest(asked - 1, cached)), 0)::bigint
FROM (
    SELECT count(*) AS asked, count(*) FILTER (WHERE cached) AS cached
    FROM request_logs
    WHERE created_at >= $1::date::timestamp AT TIME ZONE 'UTC' AND created_at < $2::date::timestamp AT TIME ZONE 'UTC'
        AND status = 'success' AND prompt_hash IS NOT NULL
    GROUP BY tenant_id, model_used, prompt_hash
) AS questions;

-- name: sum_refunds
-- Sum up a period's refunds.
-- replica
SELECT coalesce(-sum(amount_micro), 0)::bigint
FROM entries
WHERE kind = 'reversal' AND account = 'revenue'
    AND at >= $1::date::timestamp AT TIME ZONE 'UTC' AND at < $2::date::timestamp AT TIME ZONE 'UTC';

-- name: count_active_users
-- Count users with requests that were not refused: in the last hour and 24 hours, and on the last 7 and 30 UTC days.
-- replica
WITH recent AS (
    SELECT user_id, created_at FROM request_logs WHERE created_at > now() - interval '24 hours' AND status NOT IN ('limited', 'rejected')
),
this AS (SELECT (now() AT TIME ZONE 'UTC')::date AS day),
days AS (
    SELECT DISTINCT used.day, used.user_id
    FROM this, LATERAL usage_between(this.day - 29, this.day) AS used
    WHERE used.succeeded + used.failed + used.timed_out + used.cancelled > 0
)
SELECT
    (SELECT count(DISTINCT user_id) FROM recent WHERE created_at > now() - interval '1 hour') AS hour,
    (SELECT count(DISTINCT user_id) FROM recent) AS day,
    (SELECT count(DISTINCT user_id) FROM days, this WHERE days.day > this.day - 7) AS week,
    (SELECT count(DISTINCT user_id) FROM days) AS month;

-- name: strike_worker
-- Add a strike. The last of $2 strikes within $3 starts a quarantine of $4 seconds, and resets the strikes.
INSERT INTO worker_strikes AS known (node, struck_at) VALUES ($1, ARRAY[now()])
ON CONFLICT (node) DO UPDATE SET (struck_at, quarantined_until) = (
    SELECT
        CASE
            WHEN known.quarantined_until > now() THEN known.struck_at
            WHEN count(at) + 1 >= $2 THEN '{}'
            ELSE coalesce(array_agg(at ORDER BY at) FILTER (WHERE at IS NOT NULL), '{}') || now()
        END,
        CASE
            WHEN known.quarantined_until > now() THEN known.quarantined_until
            WHEN count(at) + 1 >= $2 THEN now() + make_interval(secs => $4)
        END
    FROM (SELECT at FROM unnest(known.struck_at) AS at WHERE at > now() - make_interval(secs => $3)) AS recent
);

-- name: list_quarantined
-- List quarantined workers, and their remaining seconds.
SELECT node, extract(epoch FROM quarantined_until - now())::double precision AS seconds FROM worker_strikes WHERE quarantined_until > now();

-- name: find_struck
-- Find workers with strikes or in quarantine by the start of their id.
SELECT node FROM worker_strikes WHERE starts_with(node, $1) AND (quarantined_until > now() OR cardinality(struck_at) > 0) ORDER BY node LIMIT 10;

-- name: pardon_worker
-- Delete a worker's strikes and quarantine.
DELETE FROM worker_strikes WHERE node = $1;
