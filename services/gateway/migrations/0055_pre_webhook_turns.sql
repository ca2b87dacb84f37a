-- Tenants take turns with the places of webhooks, and an endpoint that timed out gets one.
SET LOCAL lock_timeout = '1s';

-- Its latest attempt got no answer in time.
ALTER TABLE webhook_endpoints ADD COLUMN timed_out boolean NOT NULL DEFAULT false;
CREATE INDEX webhook_deliveries_turns ON webhook_deliveries (tenant_id, next_at) WHERE ended_at IS NULL;
