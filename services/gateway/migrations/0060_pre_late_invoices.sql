-- A late invoice is mentioned once a day at most.
SET LOCAL lock_timeout = '1s';

-- When it was mentioned last.
ALTER TABLE invoices ADD COLUMN reminded_at timestamptz;

-- Only this clock says what is late.
CREATE FUNCTION is_late(invoice invoices) RETURNS boolean LANGUAGE sql STABLE AS $$ SELECT invoice.due_at < now() $$;
