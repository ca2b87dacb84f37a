-- The audit log: rows in hash chains that nobody changes, their personal parts apart so that these can be erased, and signed anchors.

-- The last row of each chain; whoever adds to it holds this row locked. No row-level security: an act for one tenant may have to be
-- written into the chain of the house.
CREATE TABLE audit_heads (
    -- `house`, or a tenant's id.
    chain text PRIMARY KEY,
    sequence bigint NOT NULL,
    hash bytea NOT NULL
);

CREATE TABLE audit_log (
    chain text NOT NULL,
    sequence bigint NOT NULL CHECK (sequence > 0),
    at timestamptz NOT NULL,
    -- Null for an act of the house.
    tenant_id uuid,
    -- A user's id, by which erasing the user leaves a pseudonym; null where nobody is known. No reference: the log outlives accounts.
    actor uuid,
    action text NOT NULL,
    result text NOT NULL CHECK (result IN ('done', 'refused', 'failed')),
    target text NOT NULL,
    request_id text NOT NULL,
    -- How many equal acts the row stands for.
    times integer NOT NULL CHECK (times > 0),
    -- SHA-256 of salt, address and details; empty where there were none.
    details_digest bytea NOT NULL,
    prev_hash bytea NOT NULL,
    -- SHA-256 of prev_hash and everything above (shared/audit_chain.py).
    hash bytea NOT NULL,
    PRIMARY KEY (chain, sequence)
);

CREATE INDEX audit_log_by_time ON audit_log (at);
CREATE INDEX audit_log_of_actor ON audit_log (actor, at) WHERE actor IS NOT NULL;

-- The personal part. Deleting a row erases it for good: without the salt its digest cannot even be guessed at.
CREATE TABLE audit_details (
    chain text NOT NULL,
    sequence bigint NOT NULL,
    tenant_id uuid,
    actor uuid,
    at timestamptz NOT NULL,
    salt bytea NOT NULL,
    address text NOT NULL,
    details jsonb NOT NULL,
    PRIMARY KEY (chain, sequence)
);

CREATE INDEX audit_details_by_time ON audit_details (at);
CREATE INDEX audit_details_of_actor ON audit_details (actor) WHERE actor IS NOT NULL;

CREATE TABLE audit_anchors (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain text NOT NULL,
    sequence bigint NOT NULL,
    hash bytea NOT NULL,
    -- The whole anchor, in JSON, as it stands in the file.
    anchor text NOT NULL,
    -- Another hash at the same place is another anchor: after a restore from a backup both are true.
    UNIQUE (chain, sequence, hash)
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only: % is no longer anybody''s to change', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER audit_log_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_anchors_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_anchors
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_details_are_not_edited BEFORE UPDATE OR TRUNCATE ON audit_details
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_heads_stay BEFORE DELETE OR TRUNCATE ON audit_heads
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The triggers hold whoever has the right; these take the right away, also from the role that runs the service.
REVOKE UPDATE, DELETE, TRUNCATE ON audit_log, audit_anchors FROM PUBLIC, CURRENT_USER;
REVOKE UPDATE, TRUNCATE ON audit_details FROM PUBLIC, CURRENT_USER;
REVOKE DELETE, TRUNCATE ON audit_heads FROM PUBLIC, CURRENT_USER;

-- Adding is everybody's, whoever they act for; reading and erasing is the tenant's.
ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_log FORCE ROW LEVEL SECURITY;
CREATE POLICY read_of_tenant ON audit_log FOR SELECT USING (sees(tenant_id));
CREATE POLICY added_by_all ON audit_log FOR INSERT WITH CHECK (current_setting('aimesh.tenant', true) IS NOT NULL);

ALTER TABLE audit_details ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_details FORCE ROW LEVEL SECURITY;
CREATE POLICY read_of_tenant ON audit_details FOR SELECT USING (sees(tenant_id));
CREATE POLICY erased_of_tenant ON audit_details FOR DELETE USING (sees(tenant_id));
CREATE POLICY added_by_all ON audit_details FOR INSERT WITH CHECK (current_setting('aimesh.tenant', true) IS NOT NULL);
