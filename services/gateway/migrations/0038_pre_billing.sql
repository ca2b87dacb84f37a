-- Who has which plan until when, and invoices.
SET LOCAL lock_timeout = '1s';

CREATE TABLE subscriptions (
    owner uuid PRIMARY KEY,
    -- Name and version, such as pro@3: a subscription keeps the terms that it began with. Null before the first plan is paid.
    plan varchar(50),
    -- The plan that follows: when the invoice is paid; without one, at the end of the period.
    next_plan varchar(50),
    invoice varchar(30),
    provider varchar(10) NOT NULL CHECK (provider IN ('manual', 'stripe', 'paddle')),
    -- At the provider.
    customer varchar(255),
    subscription varchar(255),
    -- A payment failed or is late.
    is_past_due boolean NOT NULL DEFAULT false,
    -- Auth knows the plan.
    is_applied boolean NOT NULL DEFAULT true,
    -- The start of the newest period whose fee was billed.
    billed_period timestamptz,
    changed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX subscriptions_to_apply ON subscriptions (owner) WHERE NOT is_applied;
CREATE UNIQUE INDEX subscriptions_of_providers ON subscriptions (provider, subscription) WHERE subscription IS NOT NULL;
-- For the account whose period is over.
CREATE INDEX accounts_by_period_end ON accounts (period_end) WHERE period_end IS NOT NULL;

-- The last number of each series: invoices have no gaps.
CREATE TABLE invoice_numbers (
    series varchar(20) PRIMARY KEY,
    last integer NOT NULL
);

CREATE TABLE invoices (
    number varchar(30) PRIMARY KEY,
    owner uuid NOT NULL,
    -- What it is for. The same order has one invoice.
    order_id uuid NOT NULL UNIQUE,
    document jsonb NOT NULL,
    -- Credits that its payment gives.
    credit_micro bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    due_at timestamptz NOT NULL,
    paid_at timestamptz,
    reference varchar(200) NOT NULL DEFAULT '',
    -- The credit note that took it back.
    void_by varchar(30),
    reminders smallint NOT NULL DEFAULT 0
);
CREATE INDEX invoices_of_owner ON invoices (owner, created_at);
CREATE INDEX invoices_open ON invoices (due_at) WHERE paid_at IS NULL AND void_by IS NULL;

CREATE FUNCTION refuse_document_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR (NEW.number, NEW.owner, NEW.order_id, NEW.document, NEW.credit_micro, NEW.created_at)
        IS DISTINCT FROM (OLD.number, OLD.owner, OLD.order_id, OLD.document, OLD.credit_micro, OLD.created_at)
    THEN
        RAISE EXCEPTION 'invoices are never changed: write a credit note';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER invoices_are_immutable BEFORE UPDATE OR DELETE ON invoices FOR EACH ROW EXECUTE FUNCTION refuse_document_change();

ALTER TABLE subscriptions ENABLE ROW LEVEL SECURITY;
ALTER TABLE subscriptions FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON subscriptions USING (sees(owner));
ALTER TABLE invoices ENABLE ROW LEVEL SECURITY;
ALTER TABLE invoices FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON invoices USING (sees(owner));
