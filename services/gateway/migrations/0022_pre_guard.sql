-- How often guardrails found something, without any of the text.
SET LOCAL lock_timeout = '1s';

CREATE TABLE guard_counts (
    day date NOT NULL,
    tenant_id uuid NOT NULL,
    -- Null for requests with an access token.
    api_key_id uuid,
    kind text NOT NULL,
    action text NOT NULL,
    place text NOT NULL CHECK (place IN ('prompt', 'answer')),
    matches bigint NOT NULL,
    requests bigint NOT NULL,
    UNIQUE NULLS NOT DISTINCT (day, tenant_id, api_key_id, kind, action, place)
);
ALTER TABLE guard_counts ENABLE ROW LEVEL SECURITY;
ALTER TABLE guard_counts FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON guard_counts USING (sees(tenant_id));
