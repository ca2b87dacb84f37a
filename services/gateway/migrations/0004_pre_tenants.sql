-- Whose a request is: an organisation's, or the user's own, whose tenant has the user's id. With it: row-level security, and what people
-- thought of an answer.

ALTER TABLE request_logs ADD COLUMN tenant_id uuid;
UPDATE request_logs SET tenant_id = user_id;
ALTER TABLE request_logs ALTER COLUMN tenant_id SET NOT NULL;
DROP INDEX request_logs_by_user;
CREATE INDEX request_logs_of_tenant ON request_logs (tenant_id, created_at DESC);
-- For what ends rows that are too old.
CREATE INDEX request_logs_by_age ON request_logs (created_at);

ALTER TABLE usage_stats ADD COLUMN tenant_id uuid;
UPDATE usage_stats SET tenant_id = user_id;
ALTER TABLE usage_stats ALTER COLUMN tenant_id SET NOT NULL;
ALTER TABLE usage_stats DROP CONSTRAINT usage_stats_user_id_api_key_id_date_key;
ALTER TABLE usage_stats ADD CONSTRAINT usage_stats_of_day UNIQUE NULLS NOT DISTINCT (tenant_id, user_id, api_key_id, date);

-- A thumb up or down; the prompt and the answer are nowhere.
CREATE TABLE feedback (
    request_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    user_id uuid NOT NULL,
    model varchar(200) NOT NULL,
    rating smallint NOT NULL CHECK (rating IN (-1, 1)),
    at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX feedback_of_model ON feedback (model, at);

-- The second wall. `aimesh.tenant` is `*` in the service's own work, one tenant in what a person asks for, and unset for anybody else.
-- Forced, because the role that runs is the one that owns.
CREATE FUNCTION sees(tenant uuid) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT current_setting('aimesh.tenant', true) IN ('*', tenant::text)
$$;

ALTER TABLE request_logs ENABLE ROW LEVEL SECURITY;
ALTER TABLE request_logs FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON request_logs USING (sees(tenant_id));

ALTER TABLE usage_stats ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_stats FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON usage_stats USING (sees(tenant_id));

ALTER TABLE feedback ENABLE ROW LEVEL SECURITY;
ALTER TABLE feedback FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON feedback USING (sees(tenant_id));
