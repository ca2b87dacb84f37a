-- Servers of tenants that get events, and the events on their way.
SET LOCAL lock_timeout = '1s';

CREATE TABLE webhook_endpoints (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    name varchar(100) NOT NULL,
    url varchar(2000) NOT NULL,
    event_types text[] NOT NULL,
    -- Sealed, as all secrets; the former one signs until then, too.
    secret bytea NOT NULL,
    former_secret bytea,
    former_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Of the first failure since a success.
    fails_since timestamptz,
    disabled_at timestamptz,
    disabled_why varchar(300)
);
CREATE INDEX webhook_endpoints_of_tenant ON webhook_endpoints (tenant_id, id);

CREATE TABLE webhook_deliveries (
    -- The id of the event.
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    endpoint_id uuid NOT NULL REFERENCES webhook_endpoints ON DELETE CASCADE,
    body text NOT NULL,
    -- It is sent once.
    is_test boolean NOT NULL,
    attempt integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    next_at timestamptz NOT NULL DEFAULT now(),
    -- A gateway sends it until then.
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    attempted_at timestamptz,
    last_status integer,
    last_error varchar(300),
    ended_at timestamptz
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, next_at) WHERE ended_at IS NULL;
CREATE INDEX webhook_deliveries_next ON webhook_deliveries (next_at) WHERE ended_at IS NULL;
CREATE INDEX webhook_deliveries_sending ON webhook_deliveries (endpoint_id, lease_until) WHERE ended_at IS NULL;
CREATE INDEX webhook_deliveries_attempted ON webhook_deliveries (endpoint_id, attempted_at);
CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL;

ALTER TABLE webhook_endpoints ENABLE ROW LEVEL SECURITY;
ALTER TABLE webhook_endpoints FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON webhook_endpoints USING (sees(tenant_id));
ALTER TABLE webhook_deliveries ENABLE ROW LEVEL SECURITY;
ALTER TABLE webhook_deliveries FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON webhook_deliveries USING (sees(tenant_id));
