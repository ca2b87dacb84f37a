-- Who founded an organisation, and whether it still shares its founder's limits: else each founding would multiply what one person may use.
-- What is there already keeps the limits that it has.

ALTER TABLE organisations
    ADD COLUMN founder_id uuid REFERENCES users (id),
    -- Until an administrator gives it a tier.
    ADD COLUMN shares_limits boolean NOT NULL DEFAULT false;

CREATE INDEX organisations_of_founder ON organisations (founder_id) WHERE founder_id IS NOT NULL;

DROP TRIGGER organisations_changed ON organisations;
CREATE TRIGGER organisations_changed AFTER DELETE OR UPDATE OF subscription_tier, shares_limits, founder_id ON organisations
    FOR EACH STATEMENT EXECUTE FUNCTION all_changed();

-- The founder's tier is part of what is cached for every member of what they founded.
CREATE FUNCTION founder_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM organisations WHERE founder_id = OLD.id AND shares_limits) THEN
        PERFORM log_change(NULL);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER founders_changed AFTER UPDATE OF subscription_tier ON users FOR EACH ROW EXECUTE FUNCTION founder_changed();
