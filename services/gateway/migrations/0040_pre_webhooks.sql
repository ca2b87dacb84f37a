-- What customers order at a payment provider, and what the provider tells.
SET LOCAL lock_timeout = '1s';

CREATE TABLE payment_orders (
    -- Calls to the provider carry it, so that they are safe to repeat.
    id uuid PRIMARY KEY,
    owner uuid NOT NULL,
    provider varchar(10) NOT NULL,
    -- Name and version; null for prepaid credits.
    plan varchar(50),
    amount_minor bigint NOT NULL,
    -- At the provider; null until it has answered.
    object_id varchar(255),
    url text,
    created_at timestamptz NOT NULL DEFAULT now(),
    asked_at timestamptz NOT NULL DEFAULT now(),
    -- Paid, or too late to pay.
    ended_at timestamptz,
    payment varchar(255)
);
CREATE INDEX payment_orders_of_owner ON payment_orders (owner);
CREATE INDEX payment_orders_open ON payment_orders (asked_at) WHERE ended_at IS NULL AND object_id IS NOT NULL;
ALTER TABLE payment_orders ENABLE ROW LEVEL SECURITY;
ALTER TABLE payment_orders FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON payment_orders USING (sees(owner));

-- Verified events of providers. Each names an object, whose present state is then read.
CREATE TABLE webhook_events (
    provider varchar(10) NOT NULL,
    event_id varchar(255) NOT NULL,
    object_id varchar(255) NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    handled_at timestamptz,
    tries integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (provider, event_id)
);
CREATE INDEX webhook_events_waiting ON webhook_events (next_at) WHERE handled_at IS NULL;
CREATE INDEX webhook_events_of_object ON webhook_events (provider, object_id) WHERE handled_at IS NULL;
