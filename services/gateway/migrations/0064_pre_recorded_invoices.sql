-- Invoices and the plans of accounts go to the recovery log, so that a restored database asks for nothing twice, and uses no number again.
-- Invoices have names and addresses: the only texts of people in the log. They are kept as long anyway (docs/reference/retention.md).
SET LOCAL lock_timeout = '1s';

CREATE FUNCTION record_invoice() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    -- The document is never changed: the first line has it.
    PERFORM add_recovery_line('invoice.written', NEW.number, CASE TG_OP WHEN 'INSERT' THEN to_jsonb(NEW) ELSE to_jsonb(NEW) - 'document' END);
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER invoice_recorded AFTER INSERT OR UPDATE ON invoices DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_invoice();

-- A reason for taking an invoice back may be as long as callers may write it.
ALTER TABLE invoices ALTER COLUMN reference TYPE varchar(500);

CREATE FUNCTION record_subscription() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM add_recovery_line(
        'plan.changed', NEW.owner::text, to_jsonb(NEW) || jsonb_build_object('anchor', (SELECT anchor FROM accounts WHERE owner = NEW.owner))
    );
    RETURN NULL;
END
$$;

-- A new row has no plan yet, and what auth was told, or how often an account has changed, is nothing to keep.
CREATE CONSTRAINT TRIGGER subscription_recorded AFTER UPDATE ON subscriptions DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (
    (OLD.plan, OLD.next_plan, OLD.invoice, OLD.provider, OLD.customer, OLD.subscription, OLD.is_past_due, OLD.billed_period)
    IS DISTINCT FROM (NEW.plan, NEW.next_plan, NEW.invoice, NEW.provider, NEW.customer, NEW.subscription, NEW.is_past_due, NEW.billed_period)
) EXECUTE FUNCTION record_subscription();

-- Lets the periods of an account begin when they did before a restore. The period of the restored database ends.
CREATE FUNCTION continue_period(the_owner uuid, the_anchor timestamptz) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF the_anchor IS NULL OR the_anchor = (SELECT anchor FROM accounts WHERE owner = the_owner) THEN
        RETURN;
    END IF;
    -- The first period of an account begins now, whatever its anchor is.
    PERFORM open_account(the_owner, 0, true);
    UPDATE accounts SET anchor = the_anchor, period_end = clock_timestamp() WHERE owner = the_owner;
    PERFORM open_account(the_owner, 0, true);
END
$$;
