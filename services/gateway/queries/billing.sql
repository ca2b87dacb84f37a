-- name: ensure_subscription
-- Add an owner's subscription, without a plan, if there is none.
INSERT INTO subscriptions (owner, provider) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: lock_subscription
-- Lock an owner's subscription.
SELECT * FROM subscriptions WHERE owner = $1 FOR UPDATE;

-- name: find_subscription
-- Find an owner's subscription.
SELECT * FROM subscriptions WHERE owner = $1;

-- name: count_change
-- Count a change by the account, unless it has made $2 on this day in UTC.
UPDATE subscriptions SET changes = CASE WHEN changes_on = today THEN changes + 1 ELSE 1 END, changes_on = today
FROM (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS clock
WHERE owner = $1 AND (changes_on IS DISTINCT FROM today OR changes < $2);

-- name: count_open_orders
-- Count what an account has ordered and not paid: invoices, and orders at a provider that can still be paid.
SELECT (SELECT count(*) FROM invoices WHERE owner = $1 AND paid_at IS NULL AND void_by IS NULL)
    + (SELECT count(*) FROM payment_orders WHERE owner = $1 AND ended_at IS NULL AND created_at > now() - interval '1 day');

-- name: change_subscription
-- Write all that can change of a subscription.
UPDATE subscriptions SET plan = $2, next_plan = $3, invoice = $4, provider = $5, customer = $6, subscription = $7, is_past_due = $8,
    is_applied = $9, billed_period = $10, changed_at = now(), version = version + 1
WHERE owner = $1;

-- name: take_unapplied
-- Take a subscription of which auth doesn't know the plan yet. Nobody else tells it for half a minute, which is longer than auth may take.
UPDATE subscriptions SET taken_until = clock_timestamp() + interval '30 seconds' WHERE owner = (
    SELECT owner FROM subscriptions WHERE NOT is_applied AND taken_until < now() AND NOT is_deferred('plan_change', owner::text)
    ORDER BY changed_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING *;

-- name: take_due_subscription
-- Take a subscription, likewise, whose account has begun a period that is not billed yet, or whose period is over.
UPDATE subscriptions SET taken_until = clock_timestamp() + interval '30 seconds' WHERE owner = (
    SELECT owner FROM subscriptions JOIN accounts USING (owner)
    WHERE plan IS NOT NULL AND is_applied AND taken_until < now()
        AND (period_end <= now() OR period_start > coalesce(billed_period, '-infinity')) AND NOT is_deferred('renewal', owner::text)
    ORDER BY owner LIMIT 1 FOR UPDATE OF subscriptions SKIP LOCKED
)
RETURNING *;

-- name: release_subscription
-- Let others take a subscription, unless they have: it was taken until $2.
UPDATE subscriptions SET taken_until = '-infinity' WHERE owner = $1 AND taken_until = $2;

-- name: begin_period
-- Begin a period of an account now: what is left of the one before ends when the account is opened next. $2: the next ones keep their dates.
UPDATE accounts SET anchor = CASE WHEN $2 THEN anchor ELSE clock_timestamp() END, period_end = clock_timestamp()
WHERE owner = $1 AND anchor IS NOT NULL;

-- name: begin_rest
-- Let the rest of a period be a period of its own, with tokens that were used before: what was owed until now has its own bill.
UPDATE accounts SET period_start = clock_timestamp(), granted_tokens = granted_tokens + $2 WHERE owner = $1;

-- name: lock_period
-- Lock an account, and return its present period.
SELECT period_start, period_end FROM open_account($1, 0, true);

-- name: open_period
-- Open an account, and return the start of its period.
SELECT period_start FROM open_account($1, $2, true);

-- name: take_owed
-- Take what an account owed at the end of a period, without those of $1: the oldest, and of each account in order. The account's next period
-- tells when it ended. Nobody else bills it for two minutes, which is longer than all calls to a provider take.
UPDATE owed SET taken_until = clock_timestamp() + interval '2 minutes' WHERE id = (
    SELECT id FROM owed
    WHERE id <> ALL($1::uuid[]) AND taken_until < now() AND NOT is_deferred('overage', id::text)
        AND NOT EXISTS (SELECT FROM owed AS older WHERE older.owner = owed.owner AND older.at < owed.at)
    ORDER BY at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING id, owner, micro, period_start, at, taken_until, least(at, (SELECT accounts.period_start FROM accounts WHERE accounts.owner = owed.owner)) AS ended_at,
    EXISTS (SELECT FROM database_restores WHERE found_at > owed.period_start) AS is_restored;

-- name: release_owed
-- Let others bill what was not billed, unless they do: it was taken until $2.
UPDATE owed SET taken_until = '-infinity' WHERE id = $1 AND taken_until = $2;

-- name: end_owed
-- End what was billed.
DELETE FROM owed WHERE id = $1;

-- name: measure_owed
-- Return the age of the oldest usage that is not billed yet, in seconds.
SELECT coalesce(extract(epoch FROM now() - min(at)), 0)::float8 FROM owed;

-- name: next_number
-- Count an invoice of a series; the transaction that doesn't commit leaves no gap.
INSERT INTO invoice_numbers AS numbers (series, last) VALUES ($1, 1)
ON CONFLICT (series) DO UPDATE SET last = numbers.last + 1
RETURNING last;

-- name: count_lost
-- Count on after the number $2 of a series, unless it is counted or more than $3 ahead.
INSERT INTO invoice_numbers AS numbers (series, last)
SELECT $1::text, $2 WHERE $2 BETWEEN 1 AND $3::integer + coalesce((SELECT last FROM invoice_numbers WHERE series = $1::text), 0)
ON CONFLICT (series) DO UPDATE SET last = excluded.last WHERE numbers.last < excluded.last;

-- name: void_lost
-- Add a void invoice of nobody, with the document $1, for each number up to the last one of its series that no invoice has. $2: why.
INSERT INTO invoices (number, owner, order_id, document, due_at, reference, void_by)
SELECT number, nobody, derive_id('lost/' || number, nobody), jsonb_set($1::text::jsonb, '{number}', to_jsonb(number)), now(), $2, number
FROM (SELECT series || '-' || lpad(count::text, 6, '0') AS number FROM invoice_numbers, generate_series(1, last) AS count) AS used,
    CAST('00000000-0000-0000-0000-000000000000' AS uuid) AS nobody
WHERE NOT EXISTS (SELECT FROM invoices WHERE invoices.number = used.number);

-- name: find_order
-- Find the invoice of an order.
SELECT *, is_late(invoices) FROM invoices WHERE order_id = $1;

-- name: add_invoice
-- Add an invoice.
INSERT INTO invoices (number, owner, order_id, document, credit_micro, created_at, due_at, paid_at, reference, period_start)
VALUES ($1, $2, $3, $4::text::jsonb, $5, $6, $7, $8, $9, $10)
RETURNING *, is_late(invoices);

-- name: lock_invoice
-- Lock an invoice.
SELECT *, is_late(invoices) FROM invoices WHERE number = $1 FOR UPDATE;

-- name: find_invoice
-- Find an invoice.
SELECT *, is_late(invoices) FROM invoices WHERE number = $1;

-- name: settle_invoice
-- Mark an invoice as paid, or as taken back.
UPDATE invoices SET paid_at = $2, reference = $3, void_by = $4 WHERE number = $1 RETURNING *, is_late(invoices);

-- name: keep_period
-- Keep the start of the period that an invoice has paid.
UPDATE invoices SET period_start = $2 WHERE number = $1;

-- name: keep_ended_plan
-- Keep the plan that ends in the present period of an account because the invoice $2 is not paid: in the invoice of this period's fee, which
-- gives the plan back, unless that is paid.
UPDATE invoices SET ended_plan = $3, ended_until = period_end, ended_tokens = granted_tokens - allowance_tokens
FROM accounts
WHERE accounts.owner = $1 AND number = coalesce((
    SELECT fee.number FROM invoices AS fee
    WHERE fee.owner = $1 AND fee.period_start = accounts.period_start AND fee.paid_at IS NULL AND fee.void_by IS NULL LIMIT 1
), $2);

-- name: list_invoices
-- List invoices, newest first; of all owners if it is null.
SELECT *, is_late(invoices) FROM invoices
WHERE ($1::uuid IS NULL OR owner = $1) AND (NOT $2 OR (paid_at IS NULL AND void_by IS NULL))
    AND ($3::text IS NULL OR (created_at, number) < (SELECT created_at, number FROM invoices WHERE number = $3))
ORDER BY created_at DESC, number DESC LIMIT $4;

-- name: take_late_invoice
-- Lock an open invoice of which the reminder number reminders + 1 is due; $1 has the days of all, counted from the due date. The last one ends
-- a plan, so it leaves three days after the one before. Payments of the lost window are missing after a restore: an administrator has a day.
SELECT *, is_late(invoices) FROM invoices
WHERE paid_at IS NULL AND void_by IS NULL AND due_at <= now() - make_interval(days => ($1::integer[])[reminders + 1])
    AND coalesce(reminded_at <= now() - make_interval(days => CASE WHEN reminders + 1 < cardinality($1) THEN 1 ELSE 3 END), true)
    AND NOT EXISTS (SELECT FROM database_restores WHERE found_at > now() - interval '1 day')
    AND NOT is_deferred('reminder', number)
ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED;

-- name: count_reminder
-- Count a reminder.
UPDATE invoices SET reminders = reminders + 1, reminded_at = now() WHERE number = $1;

-- name: add_event
-- Keep an event; return nothing if it is known.
INSERT INTO webhook_events (provider, event_id, object_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true;

-- name: take_event
-- Take the event that is due first, except those that another gateway takes. Without success it is due again later, at the latest each hour.
UPDATE webhook_events AS events SET tries = tries + 1, next_at = clock_timestamp() + least(10 * 2 ^ least(tries, 10), 3600) * interval '1 second'
WHERE (provider, event_id) = (
    SELECT provider, event_id FROM webhook_events WHERE handled_at IS NULL AND next_at <= now() AND provider = $1 AND NOT is_deferred('payment', object_id)
    ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING object_id, clock_timestamp() AS taken_at;

-- name: end_events
-- End the events of an object that were there when its state was read.
UPDATE webhook_events SET handled_at = now() WHERE provider = $1 AND object_id = $2 AND handled_at IS NULL AND received_at <= $3;

-- name: measure_events
-- Return the age of the oldest event that waits, in seconds.
SELECT coalesce(extract(epoch FROM now() - min(received_at)), 0)::float8 FROM webhook_events WHERE handled_at IS NULL;

-- name: forget_events
-- Delete handled events that no provider sends again.
DELETE FROM webhook_events WHERE handled_at < now() - interval '30 days';

-- name: add_order
-- Add an order at a provider; return nothing if it exists.
INSERT INTO payment_orders (id, owner, provider, plan, amount_minor) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING *;

-- name: lock_order
-- Lock an order.
SELECT * FROM payment_orders WHERE id = $1 FOR UPDATE;

-- name: find_plan_order
-- Find the checkout of a plan that an owner can still pay, or that the provider has not answered yet.
SELECT * FROM payment_orders
WHERE owner = $1 AND provider = $2 AND plan IS NOT NULL AND ended_at IS NULL
    AND created_at > now() - CASE WHEN object_id IS NULL THEN interval '20 minutes' ELSE interval '1 hour' END
ORDER BY created_at DESC LIMIT 1;

-- name: name_order
-- Keep what the provider has answered.
UPDATE payment_orders SET object_id = $2, url = $3 WHERE id = $1;

-- name: find_followed
-- Find whose a checkout or a subscription at a provider is, with the version of what is written of the account.
SELECT owner, order_id, coalesce((SELECT version FROM subscriptions WHERE subscriptions.owner = known.owner), 0) AS version FROM (
    SELECT owner, id AS order_id FROM payment_orders WHERE provider = $1 AND object_id = $2
    UNION ALL SELECT owner, id FROM payment_orders WHERE provider = $1 AND subscription = $2
    UNION ALL SELECT owner, NULL FROM subscriptions WHERE provider = $1 AND subscription = $2
) AS known LIMIT 1;

-- name: are_orders_of
-- Return whether an owner's orders led to all of these payments, or to their subscriptions.
SELECT NOT EXISTS (
    SELECT FROM unnest($3::text[], $4::text[]) AS paid (id, paid_for)
    WHERE NOT EXISTS (
        SELECT FROM payment_orders WHERE owner = $1 AND provider = $2 AND (object_id = paid.id OR subscription = paid.paid_for)
    )
);

-- name: name_subscription
-- Keep the subscription that began with an order.
UPDATE payment_orders SET subscription = $2 WHERE id = $1 AND subscription IS DISTINCT FROM $2;

-- name: restore_order
-- Add an order that the provider has and this database lacks, wholly or only its object. Adopting also changes the open order of the owner.
WITH named AS (
    UPDATE payment_orders SET object_id = $6 WHERE id = $1 AND owner = $2 AND provider = $3 AND object_id IS NULL RETURNING true
), added AS (
    INSERT INTO payment_orders AS orders (id, owner, provider, plan, amount_minor, object_id, is_adopted)
    SELECT $1, $2, $3, $4, $5, $6, $7 WHERE NOT EXISTS (SELECT FROM named)
    ON CONFLICT (provider, object_id) WHERE object_id IS NOT NULL DO UPDATE
    SET plan = excluded.plan, amount_minor = excluded.amount_minor, is_adopted = true
    WHERE excluded.is_adopted AND orders.owner = excluded.owner AND orders.ended_at IS NULL
    RETURNING true
)
SELECT EXISTS (SELECT FROM named) OR EXISTS (SELECT FROM added);

-- name: end_order
-- End an order, with its payment if it was paid.
UPDATE payment_orders SET ended_at = now(), payment = $2 WHERE id = $1;

-- name: reverse_order
-- Keep what refunds and disputes have taken back of an order's amount.
UPDATE payment_orders SET reversed_minor = $2 WHERE id = $1;

-- name: find_moved
-- Find how many credits a transfer gave or took.
SELECT (SELECT amount_micro FROM entries WHERE owner = $2 AND transfer = $1 AND kind = 'top_up' AND account = 'balance')
FROM entry_keys WHERE transfer = $1 AND kind = 'top_up' AND account = 'balance';

-- name: take_order
-- Take an open order of which the provider hasn't told for long, in case a webhook was lost: less often as it grows older, and for a week.
UPDATE payment_orders SET asked_at = now() WHERE id = (
    SELECT id FROM payment_orders
    WHERE ended_at IS NULL AND object_id IS NOT NULL AND provider = $1 AND created_at > now() - interval '7 days'
        AND asked_at < now() - greatest(interval '5 minutes', (asked_at - created_at) / 4) AND NOT is_deferred('payment', object_id)
    ORDER BY asked_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING object_id;

-- name: take_followed
-- Take a subscription of which the provider hasn't told for a day.
UPDATE subscriptions SET changed_at = now() WHERE owner = (
    SELECT owner FROM subscriptions WHERE subscription IS NOT NULL AND provider = $1 AND changed_at < now() - interval '1 day'
        AND NOT is_deferred('payment', subscription)
    ORDER BY changed_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING subscription;

-- name: follow_anchor
-- Let the periods of an account begin when they begin at the provider: now, unless they do already.
UPDATE accounts SET anchor = $2, period_end = clock_timestamp()
WHERE owner = $1 AND abs(extract(epoch FROM anchor - $2)) > 86400 AND abs(extract(epoch FROM period_start - $2)) > 86400;

-- name: pay_period
-- Let an account have the tokens that were paid for a period of the provider.
SELECT pay_period($1, $2, $3, $4);

-- name: list_customers
-- List the accounts with a subscription and the end of their period, by owner.
SELECT subscriptions.*, period_end FROM subscriptions LEFT JOIN accounts USING (owner)
WHERE (plan IS NOT NULL OR next_plan IS NOT NULL) AND ($1::uuid IS NULL OR owner > $1)
ORDER BY owner LIMIT $2;

-- name: sum_revenue
-- Add up what was paid without tax, by month and currency: invoices, and orders at providers, which are in $1. Credit notes of paid invoices
-- take back in their own month, and refunds at providers in that of the order.
SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM') AS month, currency, sum(net_minor)::bigint AS net_minor
FROM (
    SELECT paid_at, document ->> 'currency', (document ->> 'netMinor')::bigint
    FROM invoices WHERE paid_at IS NOT NULL AND document ->> 'purpose' <> 'credit_note'
    UNION ALL SELECT note.created_at, note.document ->> 'currency', (note.document ->> 'netMinor')::bigint
    FROM invoices AS paid JOIN invoices AS note ON note.number = paid.void_by WHERE paid.paid_at IS NOT NULL
    UNION ALL SELECT ended_at, $1, amount_minor - reversed_minor FROM payment_orders WHERE payment IS NOT NULL AND ended_at IS NOT NULL
) AS payments (at, currency, net_minor)
WHERE at >= date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - interval '11 months'
GROUP BY 1, 2 ORDER BY 1, 2;

-- name: add_notice
-- Add what auth should mail to an owner.
INSERT INTO threshold_notices (owner, subject, notice) VALUES ($1, $2, $3::text::jsonb) ON CONFLICT DO NOTHING;

-- name: take_threshold_notice
-- Take the oldest notice, except those that another gateway is at. It stays if the transaction fails.
DELETE FROM threshold_notices WHERE (owner, subject) = (
    SELECT owner, subject FROM threshold_notices
    WHERE NOT is_deferred('notice', owner || '/' || subject) ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING owner, subject, notice::text;
