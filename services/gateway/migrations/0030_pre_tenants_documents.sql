-- Documents that people of a tenant wrote count against the tenant's bounds, and not against those of the mesh.
SET LOCAL lock_timeout = '1s';

-- Null: an administrator or the environment wrote it, or an earlier release.
ALTER TABLE config_versions ADD COLUMN tenant uuid;
CREATE INDEX config_versions_by_author ON config_versions (author, created_at) WHERE tenant IS NOT NULL;

-- As before, with the tenant.
CREATE OR REPLACE FUNCTION record_policy() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM add_recovery_line('organization.policy_tightened', NEW.name, jsonb_build_object(
        'version', NEW.version, 'origin', NEW.origin, 'texts', policy_texts(NEW.body),
        'value', NEW.body #- '{guard,patterns}' #- '{guard,allow}', 'tenant', NEW.tenant
    ));
    RETURN NULL;
END
$$;
