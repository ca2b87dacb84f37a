-- name: add_sinks
-- Begin to export to these sinks: the first ones get everything, later ones what is settled from now on.
INSERT INTO usage_sinks (name, first_number, sent_number)
SELECT name, start, start
FROM unnest($1::text[]) AS name, LATERAL (
    SELECT CASE WHEN EXISTS (SELECT FROM usage_sinks) THEN coalesce((SELECT max(number) FROM usage_outbox), 0) ELSE 0 END AS start
) AS known
ON CONFLICT DO NOTHING;

-- name: fence_outbox
-- Set a fence, and read how far transactions have ended.
SELECT number, xid, pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS ended_before FROM fence_outbox();

-- name: claim_usage
-- Decide which rows a sink gets next, up to $2, or return those that it may have; no row if there are none. A minute that has
-- ended is left for some seconds more, so that it mostly becomes one event.
WITH sink AS (SELECT * FROM usage_sinks WHERE name = $1 FOR UPDATE),
page AS (
    SELECT number, settled_at FROM usage_outbox
    WHERE number > (SELECT sent_number FROM sink) AND number <= $2
    ORDER BY number LIMIT $3
),
next AS (
    SELECT max(number) AS number, count(*) AS rows FROM page
    WHERE $4 = 'request' OR number < coalesce((SELECT min(number) FROM page WHERE settled_at >= date_trunc('minute', now() - interval '5 seconds')), $2 + 1)
)
UPDATE usage_sinks AS claimed SET
    sending_number = coalesce(sink.sending_number, next.number),
    sending_unit = CASE WHEN sink.sending_number IS NULL THEN $4 ELSE sink.sending_unit END,
    doubtful_since = coalesce(sink.doubtful_since, now())
FROM sink, next
WHERE claimed.name = sink.name AND coalesce(sink.sending_number, next.number) IS NOT NULL
RETURNING claimed.sent_number, claimed.sending_number, claimed.sending_unit, sink.doubtful_since, now() AS claimed_at, next.rows;

-- name: list_usage_by_request
-- List the events of these rows.
SELECT id, owner, settled_at, model, key_id, (NOT is_refund)::integer AS requests,
    CASE WHEN is_refund THEN 0 ELSE prompt_tokens + completion_tokens END AS tokens,
    CASE WHEN is_refund THEN 0 ELSE prompt_tokens END AS prompt_tokens,
    CASE WHEN is_refund THEN 0 ELSE completion_tokens END AS completion_tokens,
    covered_tokens, cost_micro, prompt_tokens + completion_tokens - covered_tokens AS uncovered_tokens,
    CASE WHEN is_batch THEN 'flex' ELSE 'default' END AS service_tier
FROM usage_outbox
WHERE number > $1 AND number <= $2
ORDER BY number;

-- name: list_usage_by_minute
-- List the sums of these rows by account, model, tier of service and minute of settlement. A minute that is cut in two has two events.
SELECT derive_id('minute', (array_agg(id ORDER BY number))[1]) AS id, owner, date_trunc('minute', settled_at) AS settled_at, model,
    NULL::uuid AS key_id, count(*) FILTER (WHERE NOT is_refund) AS requests,
    coalesce(sum(prompt_tokens + completion_tokens) FILTER (WHERE NOT is_refund), 0) AS tokens,
    coalesce(sum(prompt_tokens) FILTER (WHERE NOT is_refund), 0) AS prompt_tokens,
    coalesce(sum(completion_tokens) FILTER (WHERE NOT is_refund), 0) AS completion_tokens,
    sum(covered_tokens) AS covered_tokens, sum(cost_micro)::bigint AS cost_micro,
    sum(prompt_tokens + completion_tokens - covered_tokens) AS uncovered_tokens,
    CASE WHEN is_batch THEN 'flex' ELSE 'default' END AS service_tier
FROM usage_outbox
WHERE number > $1 AND number <= $2
GROUP BY owner, model, is_batch, date_trunc('minute', settled_at)
ORDER BY date_trunc('minute', settled_at), min(number);

-- name: acknowledge_usage
-- Record that a sink has the rows up to $2.
UPDATE usage_sinks SET sent_number = $2, sending_number = NULL, doubtful_since = NULL, sent_at = now(), error = NULL
WHERE name = $1 AND sending_number = $2;

-- name: add_acknowledged
-- Add what a sink has acknowledged to its days.
INSERT INTO usage_sink_days AS known (sink, day, tokens, cost_micro)
SELECT $1, day, sum(tokens), sum(cost_micro) FROM unnest($2::date[], $3::bigint[], $4::bigint[]) AS event (day, tokens, cost_micro) GROUP BY day
ON CONFLICT (sink, day) DO UPDATE SET tokens = known.tokens + excluded.tokens, cost_micro = known.cost_micro + excluded.cost_micro;

-- name: add_acknowledged_accounts
-- Add the rows that a sink acknowledges to the sums of their accounts, by the day of the request: a restored database that settles it again
-- gives it the same one. What was asked after a restore has sums of its own.
WITH sink AS (SELECT * FROM usage_sinks WHERE name = $1 AND sending_number = $2 FOR UPDATE),
restores AS MATERIALIZED (SELECT found_at FROM database_restores UNION SELECT found_at FROM usage_sink_accounts WHERE is_kept AND sink = $1)
INSERT INTO usage_sink_accounts AS known (sink, owner, since, events, tokens, uncovered_tokens, cost_micro)
SELECT name, owner,
    greatest(date_trunc('day', outbox.created_at, 'UTC'), (SELECT max(found_at) FROM restores WHERE found_at <= outbox.created_at)),
    count(*), coalesce(sum(prompt_tokens + completion_tokens) FILTER (WHERE NOT is_refund), 0),
    sum(prompt_tokens + completion_tokens - covered_tokens), sum(cost_micro)
FROM sink JOIN usage_outbox AS outbox ON number > sent_number AND number <= sending_number
GROUP BY 1, 2, 3
ON CONFLICT (sink, owner, since, is_kept) DO UPDATE SET
    events = known.events + excluded.events, tokens = known.tokens + excluded.tokens,
    uncovered_tokens = known.uncovered_tokens + excluded.uncovered_tokens, cost_micro = known.cost_micro + excluded.cost_micro,
    acknowledged_at = excluded.acknowledged_at, changed_by = excluded.changed_by;

-- name: read_sum_changes
-- Read the last transaction that has changed what sinks have acknowledged, and before which one all have ended. A database that was restored
-- from a dump may have rows of another one, with transactions that are still to come.
SELECT coalesce((
    SELECT max(changed_by) FROM usage_sink_accounts WHERE changed_by < pg_snapshot_xmax(pg_current_snapshot())::text::bigint
), 0) AS newest, pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS ended_before;

-- name: list_changed_accounts
-- List some of what sinks have acknowledged by its last change, after the row of $1 to $5.
SELECT sink, owner, since, is_kept, acknowledged_at, events, tokens, uncovered_tokens, cost_micro, changed_by
FROM usage_sink_accounts
WHERE (changed_by, since, sink, owner, is_kept) > ($1, $2, $3, $4, $5)
    AND changed_by < pg_snapshot_xmax(pg_current_snapshot())::text::bigint AND since > now() - interval '40 days'
ORDER BY changed_by, since, sink, owner, is_kept LIMIT $6;

-- name: list_acknowledged_accounts
-- List some of what sinks have acknowledged in 40 days by its day, after the row of $1 to $4.
SELECT sink, owner, since, is_kept, acknowledged_at, events, tokens, uncovered_tokens, cost_micro
FROM usage_sink_accounts
WHERE (since, sink, owner, is_kept) > ($1, $2, $3, $4) AND since > now() - interval '40 days'
ORDER BY since, sink, owner, is_kept LIMIT $5;

-- name: keep_acknowledged
-- Keep what files say ($1, a JSON array) and this database doesn't know, and count it. The sinks may have the next rows, too.
WITH kept AS (
    INSERT INTO usage_sink_accounts AS known
        (sink, owner, since, is_kept, acknowledged_at, events, tokens, uncovered_tokens, cost_micro)
    SELECT DISTINCT ON (sink, owner, since) sink, owner, since, true, "acknowledgedAt", events, tokens, "uncoveredTokens", "costMicro"
    FROM jsonb_to_recordset($1::text::jsonb) AS given (
        sink text, owner uuid, since timestamptz, "acknowledgedAt" timestamptz, events bigint, tokens bigint, "uncoveredTokens" bigint,
        "costMicro" bigint
    )
    WHERE since > now() - interval '40 days' AND NOT EXISTS (
        SELECT FROM usage_sink_accounts AS ours
        WHERE (ours.sink, ours.owner, ours.since) = (given.sink, given.owner, given.since) AND ours.events >= given.events
    )
    -- Earlier lines and files of other gateways are older.
    ORDER BY sink, owner, since, events DESC
    ON CONFLICT (sink, owner, since, is_kept) DO UPDATE SET
        events = excluded.events, tokens = excluded.tokens, uncovered_tokens = excluded.uncovered_tokens, cost_micro = excluded.cost_micro,
        acknowledged_at = excluded.acknowledged_at, found_at = excluded.found_at, changed_by = excluded.changed_by
    -- Another gateway may have kept more at once.
    WHERE known.events < excluded.events
    RETURNING sink
),
doubted AS (
    UPDATE usage_sinks SET doubtful_since = coalesce(doubtful_since, sent_at, created_at)
    WHERE name IN (SELECT sink FROM kept) AND sent_number < (SELECT max(number) FROM usage_outbox)
)
SELECT count(*) FROM kept;

-- name: list_excess
-- List what these sinks have and this database doesn't, the largest amounts first.
SELECT sink, owner, since, kept.acknowledged_at, kept.found_at, kept.events - coalesce(ours.events, 0) AS events,
    kept.tokens - coalesce(ours.tokens, 0) AS tokens, kept.uncovered_tokens - coalesce(ours.uncovered_tokens, 0) AS uncovered_tokens,
    kept.cost_micro - coalesce(ours.cost_micro, 0) AS cost_micro
FROM usage_sink_accounts AS kept
LEFT JOIN (SELECT * FROM usage_sink_accounts WHERE NOT is_kept) AS ours USING (sink, owner, since)
WHERE kept.is_kept AND sink = ANY ($1::text[]) AND since > now() - interval '40 days' AND kept.events > coalesce(ours.events, 0)
ORDER BY sink, cost_micro DESC, tokens DESC;

-- name: delete_acknowledged_accounts
-- Delete sums of 41 days ago, of which no file is read any more.
DELETE FROM usage_sink_accounts WHERE since < now() - interval '41 days';

-- name: record_sink_error
-- Record why a sink didn't take the rows, and since when it may have some of them.
UPDATE usage_sinks SET error = $2, doubtful_since = $3 WHERE name = $1;

-- name: sum_usage_days
-- Sum up what a sink must have since a day, by account and day.
SELECT owner, (settled_at AT TIME ZONE 'UTC')::date AS day,
    coalesce(sum(prompt_tokens + completion_tokens) FILTER (WHERE NOT is_refund), 0)::bigint AS tokens,
    sum(outbox.cost_micro)::bigint AS cost_micro
FROM usage_outbox AS outbox, usage_sinks
WHERE name = $1 AND number > first_number AND number <= sent_number AND settled_at >= $2::date::timestamp AT TIME ZONE 'UTC'
GROUP BY 1, 2;

-- name: list_metered
-- List who of these owners is a customer of Stripe.
SELECT owner, customer FROM subscriptions WHERE provider = 'stripe' AND customer IS NOT NULL AND owner = ANY ($1::uuid[]);

-- name: sum_metered
-- Sum up what a meter at Stripe must have of $2 to $3, by customer. Who may have become one after $2 is left out.
SELECT customer, sum(prompt_tokens + completion_tokens - covered_tokens)::bigint AS tokens
FROM usage_sinks, usage_outbox AS outbox JOIN subscriptions USING (owner)
WHERE name = $1 AND number > first_number AND number <= sent_number AND settled_at >= $2 AND settled_at < $3
    AND provider = 'stripe' AND customer IS NOT NULL AND NOT EXISTS (
        SELECT FROM payment_orders AS placed
        WHERE placed.owner = outbox.owner AND placed.provider = 'stripe' AND object_id IS NOT NULL AND coalesce(ended_at, now()) >= $2
    )
GROUP BY customer;

-- name: list_acknowledged_days
-- List what a sink has acknowledged since a day.
SELECT day, tokens, cost_micro FROM usage_sink_days WHERE sink = $1 AND day >= $2;

-- name: sum_unexported
-- Sum up the ledger's usage and refunds since a day that differ from the outbox. The first hour is left out, in which gateways restart.
SELECT coalesce(sum(abs(booked.micro - coalesce(cost_micro, 0))), 0)::bigint
FROM (
    SELECT CASE kind WHEN 'usage' THEN transfer ELSE derive_id('refund', transfer) END AS id, sum(amount_micro) AS micro
    FROM entries
    WHERE account = 'revenue' AND kind IN ('usage', 'reversal')
        AND at >= greatest($1::date::timestamp AT TIME ZONE 'UTC', (SELECT min(created_at) + interval '1 hour' FROM usage_sinks))
    GROUP BY 1
) AS booked LEFT JOIN usage_outbox USING (id);

-- name: record_comparison
-- Record how much a sink differs.
UPDATE usage_sinks SET compared_at = now(), difference_tokens = $2, difference_micro = $3 WHERE name = $1;

-- name: list_sinks
-- List the state of these sinks.
SELECT name, created_at, sent_at, error, doubtful_since, compared_at, difference_tokens, difference_micro,
    greatest(0, (SELECT max(number) FROM usage_outbox) - sent_number) AS waiting,
    coalesce(extract(epoch FROM now() - waiting_since), 0)::double precision AS lag_seconds
FROM usage_sinks LEFT JOIN LATERAL (
    SELECT settled_at AS waiting_since FROM usage_outbox WHERE number > sent_number ORDER BY number LIMIT 1
) AS waits ON true
WHERE name = ANY ($1::text[])
ORDER BY name;

-- name: delete_exported
-- Delete some of the rows that all of these sinks have had for 40 days, longer than any of them remembers an id.
DELETE FROM usage_outbox WHERE number IN (
    SELECT number FROM usage_outbox
    WHERE settled_at < now() - interval '40 days'
        AND number <= coalesce((SELECT min(sent_number) FROM usage_sinks WHERE name = ANY ($1::text[])), 9223372036854775807)
    ORDER BY settled_at LIMIT $2
);
