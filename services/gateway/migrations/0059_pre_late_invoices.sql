-- A late invoice is mentioned once a day at most, and its payment gives back what has ended.
SET LOCAL lock_timeout = '1s';

ALTER TABLE invoices
    -- When it was mentioned last.
    ADD COLUMN reminded_at timestamptz,
    -- The start of the period that a fee is for; null for an order that is not paid yet.
    ADD COLUMN period_start timestamptz,
    -- The plan that its payment gives back, until the end of the period in which it ended, and how many tokens of it were used.
    ADD COLUMN ended_plan varchar(50),
    ADD COLUMN ended_until timestamptz,
    ADD COLUMN ended_tokens bigint;

-- Only this clock says what is late.
CREATE FUNCTION is_late(invoice invoices) RETURNS boolean LANGUAGE sql STABLE AS $$ SELECT invoice.due_at < now() $$;
