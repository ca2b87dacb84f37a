-- name: ensure_subscription
-- Add an owner's subscription, without a plan, if there is none.
INSERT INTO subscriptions (owner, provider) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: lock_subscription
-- Lock an owner's subscription.
SELECT * FROM subscriptions WHERE owner = $1 FOR UPDATE;

-- name: find_subscription
-- Find an owner's subscription.
SELECT * FROM subscriptions WHERE owner = $1;

-- name: change_subscription
-- Write all that can change of a subscription.
UPDATE subscriptions SET plan = $2, next_plan = $3, invoice = $4, provider = $5, customer = $6, subscription = $7, is_past_due = $8,
    is_applied = $9, billed_period = $10, changed_at = now()
WHERE owner = $1;

-- name: take_unapplied
-- Lock a subscription of which auth doesn't know the plan yet, except those that another gateway is at.
SELECT * FROM subscriptions WHERE NOT is_applied ORDER BY changed_at LIMIT 1 FOR UPDATE SKIP LOCKED;

-- name: take_due_subscription
-- Lock a subscription whose account has begun a period that is not billed yet, or whose period is over.
SELECT subscriptions.* FROM subscriptions JOIN accounts USING (owner)
WHERE plan IS NOT NULL AND is_applied AND (period_end <= now() OR period_start > coalesce(billed_period, '-infinity'))
ORDER BY owner LIMIT 1 FOR UPDATE OF subscriptions SKIP LOCKED;

-- name: begin_period
-- Begin a period of an account now: what is left of the one before ends when the account is opened next.
UPDATE accounts SET anchor = coalesce($2::timestamptz, clock_timestamp()), period_end = clock_timestamp()
WHERE owner = $1 AND anchor IS NOT NULL;

-- name: open_period
-- Open an account, and return the start of its period.
SELECT period_start FROM open_account($1, $2, true);

-- name: take_owed
-- Take what an account owed at the end of a period, oldest first.
DELETE FROM owed WHERE id = (SELECT id FROM owed ORDER BY at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id, owner, micro, period_start;

-- name: next_number
-- Count an invoice of a series; the transaction that doesn't commit leaves no gap.
INSERT INTO invoice_numbers AS numbers (series, last) VALUES ($1, 1)
ON CONFLICT (series) DO UPDATE SET last = numbers.last + 1
RETURNING last;

-- name: find_order
-- Find the invoice of an order.
SELECT * FROM invoices WHERE order_id = $1;

-- name: add_invoice
-- Add an invoice.
INSERT INTO invoices (number, owner, order_id, document, credit_micro, created_at, due_at, paid_at, reference)
VALUES ($1, $2, $3, $4::text::jsonb, $5, $6, $7, $8, $9)
RETURNING *;

-- name: lock_invoice
-- Lock an invoice.
SELECT * FROM invoices WHERE number = $1 FOR UPDATE;

-- name: find_invoice
-- Find an invoice.
SELECT * FROM invoices WHERE number = $1;

-- name: settle_invoice
-- Mark an invoice as paid, or as taken back.
UPDATE invoices SET paid_at = $2, reference = $3, void_by = $4 WHERE number = $1 RETURNING *;

-- name: list_invoices
-- List invoices, newest first; of all owners if it is null.
SELECT * FROM invoices
WHERE ($1::uuid IS NULL OR owner = $1) AND (NOT $2 OR (paid_at IS NULL AND void_by IS NULL))
    AND ($3::text IS NULL OR (created_at, number) < (SELECT created_at, number FROM invoices WHERE number = $3))
ORDER BY created_at DESC, number DESC LIMIT $4;

-- name: take_late_invoice
-- Lock an open invoice of which the reminder number reminders + 1 is due; $1 has the days of all.
SELECT * FROM invoices
WHERE paid_at IS NULL AND void_by IS NULL AND reminders < cardinality($1::integer[])
    AND created_at < now() - make_interval(days => ($1::integer[])[reminders + 1])
ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED;

-- name: count_reminder
-- Count a reminder.
UPDATE invoices SET reminders = reminders + 1 WHERE number = $1;
