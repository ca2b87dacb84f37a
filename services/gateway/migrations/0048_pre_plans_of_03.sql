-- Gateways of release 0.3 know no plans but their own. A starting one writes the environment's plans over those that it can't read.
SET LOCAL lock_timeout = '1s';

CREATE FUNCTION keep_plan() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    kept record;
BEGIN
    -- A gateway that can read a plan that was edited by hand leaves it alone. Only release 0.3 writes `credits`.
    SELECT body, origin, author, note INTO kept FROM config_current JOIN config_versions USING (kind, name, version)
    WHERE kind = NEW.kind AND name = NEW.name AND (origin <> 'environment' OR NEW.body ? 'credits' AND NOT body ? 'credits');
    IF FOUND THEN
        -- Its statement needs a row.
        NEW.body := kept.body;
        NEW.origin := kept.origin;
        NEW.author := kept.author;
        NEW.note := kept.note;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER plans_are_kept BEFORE INSERT ON config_versions FOR EACH ROW
WHEN (NEW.kind = 'plan' AND NEW.origin = 'environment' AND NEW.author IS NULL) EXECUTE FUNCTION keep_plan();
