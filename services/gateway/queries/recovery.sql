-- Replays: $1 are subjects, $2 details in JSON and $3 times of lines of one kind, in their order. Each may run twice.

-- name: replay_credits_moved
-- Move credits again, unless the restored ledger has the transfer.
WITH line AS (
    SELECT DISTINCT ON (subject) subject::uuid AS transfer, details::jsonb AS details
    FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS given (subject, details, at)
),
done AS MATERIALIZED (
    SELECT top_up(transfer, (details ->> 'owner')::uuid, (details ->> 'micro')::bigint, 'recovery log', 0, false)
    FROM line
    WHERE NOT EXISTS (SELECT FROM entry_keys WHERE entry_keys.transfer = line.transfer AND kind = 'top_up')
)
SELECT count(*) FROM done;

-- name: replay_credits_reverted
-- Refund again what the restored ledger has charged, and export that to the sinks that it had; requests that are still running in it end
-- without a cost. What it does not know has cost nothing there.
WITH line AS (
    SELECT DISTINCT subject::uuid AS request FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS given (subject, details, at)
),
released AS MATERIALIZED (
    SELECT request, settle(request, 0, 0, 'released') AS micro
    FROM line JOIN reservations ON request_id = request
    WHERE state = 'reserved'
),
freed AS MATERIALIZED (
    SELECT spend_targets(array_agg(request), NULL, NULL, NULL, NULL) FROM released WHERE micro IS NOT NULL HAVING count(*) > 0
),
done AS MATERIALIZED (
    SELECT request, revert(request, 'recovery log') AS owner
    FROM line
    WHERE NOT EXISTS (SELECT FROM entry_keys WHERE transfer = request AND kind = 'reversal')
),
exported AS MATERIALIZED (SELECT export_refund(request) FROM done WHERE owner IS NOT NULL AND EXISTS (SELECT FROM usage_sinks))
SELECT (SELECT count(*) FROM freed) + (SELECT count(*) FROM done) + (SELECT count(*) FROM exported);

-- name: replay_policies
-- Write the newest value of each policy as its version, unless the restored database has it.
WITH line AS (
    SELECT DISTINCT ON (subject) subject AS name, details::jsonb AS details, at
    FROM unnest($1::text[], $2::text[], $3::timestamptz[]) WITH ORDINALITY AS given (subject, details, at, number)
    ORDER BY subject, number DESC
),
newer AS MATERIALIZED (
    SELECT
        line.name, line.at, (details ->> 'version')::integer AS version, details ->> 'origin' AS origin,
        replayed_policy(nullif(details -> 'value', 'null'), details ->> 'texts', restored.body) AS body,
        (details ->> 'tenant')::uuid AS tenant
    FROM line
    LEFT JOIN config_current AS current ON current.kind = 'policy' AND current.name = line.name
    LEFT JOIN config_versions AS restored
        ON restored.kind = 'policy' AND restored.name = line.name AND restored.version = current.version
    WHERE (details ->> 'version')::integer > coalesce(current.version, 0)
),
next AS (
    UPDATE config_revision SET revision = revision + 1 WHERE EXISTS (SELECT FROM newer) RETURNING revision
),
written AS (
    INSERT INTO config_versions (kind, name, version, revision, body, origin, note, created_at, tenant)
    SELECT 'policy', name, version, next.revision, body, origin, 'recovery log', at, tenant FROM newer CROSS JOIN next
    RETURNING kind, name, version
)
INSERT INTO config_current (kind, name, version)
SELECT kind, name, version FROM written
ON CONFLICT (kind, name) DO UPDATE SET version = excluded.version;

-- name: replay_invoices
-- Write invoices as they were last, and count on after their numbers. Their first lines have the documents.
WITH line AS (
    SELECT subject AS number, details::jsonb AS details, place
    FROM unnest($1::text[], $2::text[], $3::timestamptz[]) WITH ORDINALITY AS given (subject, details, at, place)
),
newest AS (
    SELECT number, (array_agg(details ORDER BY place DESC))[1] AS details, coalesce(
        (array_agg(details -> 'document') FILTER (WHERE details ? 'document'))[1],
        (SELECT document FROM invoices WHERE invoices.number = line.number)
    ) AS document
    FROM line GROUP BY number
),
counted AS (
    INSERT INTO invoice_numbers AS numbers (series, last)
    SELECT left(number, -7), max(right(number, 6)::integer) FROM newest GROUP BY 1
    ON CONFLICT (series) DO UPDATE SET last = greatest(numbers.last, excluded.last)
)
INSERT INTO invoices
SELECT written.* FROM newest, jsonb_populate_record(NULL::invoices, details || jsonb_build_object('document', document)) AS written
WHERE newest.document IS NOT NULL
ON CONFLICT (number) DO UPDATE SET
    due_at = excluded.due_at, paid_at = excluded.paid_at, reference = excluded.reference, void_by = excluded.void_by,
    reminders = excluded.reminders, reminded_at = excluded.reminded_at, period_start = excluded.period_start,
    ended_plan = excluded.ended_plan, ended_until = excluded.ended_until, ended_tokens = excluded.ended_tokens;

-- name: replay_plans
-- Write the plans of accounts as they were last, and let their periods go on. Auth learns of them, and a provider is asked about them soon.
WITH line AS (
    SELECT DISTINCT ON (subject) subject::uuid AS owner, details::jsonb AS details
    FROM unnest($1::text[], $2::text[], $3::timestamptz[]) WITH ORDINALITY AS given (subject, details, at, number)
    ORDER BY subject, number DESC
),
written AS (
    INSERT INTO subscriptions AS held
        (owner, plan, next_plan, invoice, provider, customer, subscription, is_past_due, billed_period, is_applied, changed_at)
    SELECT
        line.owner, plan, next_plan, invoice, provider, customer, subscription, is_past_due, billed_period, plan IS NULL, '-infinity'
    FROM line, jsonb_populate_record(NULL::subscriptions, details)
    ON CONFLICT (owner) DO UPDATE SET
        plan = excluded.plan, next_plan = excluded.next_plan, invoice = excluded.invoice, provider = excluded.provider,
        customer = excluded.customer, subscription = excluded.subscription, is_past_due = excluded.is_past_due,
        billed_period = excluded.billed_period, changed_at = excluded.changed_at, version = held.version + 1,
        is_applied = excluded.plan IS NULL OR held.is_applied AND held.plan IS NOT DISTINCT FROM excluded.plan
)
SELECT continue_period(owner, (details ->> 'anchor')::timestamptz) FROM line;
