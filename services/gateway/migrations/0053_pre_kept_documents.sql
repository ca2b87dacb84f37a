-- Versions name the oldest release that can read them, and the environment of a gateway of release 0.3 never writes over a document that
-- was edited by hand, nor over one that it can't read: it takes what it can't read for absent. As 0048 does for plans; `--post` ends both.
SET LOCAL lock_timeout = '1s';

-- The oldest release whose gateways may answer requests while the version is current. Null: release 0.3 wrote it, or the recovery log.
ALTER TABLE config_versions ADD COLUMN needs_release text;

CREATE FUNCTION keep_document() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    kept record;
BEGIN
    SELECT body, origin, author, note, tenant, needs_release INTO kept FROM config_current JOIN config_versions USING (kind, name, version)
    WHERE kind = NEW.kind AND name = NEW.name
        AND (origin <> 'environment' OR NEW.needs_release IS NULL AND coalesce(needs_release, '0.3.0') <> '0.3.0');
    IF FOUND THEN
        -- Its statement needs a row.
        NEW.body := kept.body;
        NEW.origin := kept.origin;
        NEW.author := kept.author;
        NEW.note := kept.note;
        NEW.tenant := kept.tenant;
        NEW.needs_release := kept.needs_release;
    END IF;
    RETURN NEW;
END
$$;

-- Administrators who import the environment are its authors; the recovery log has none, and must be able to restore anything.
CREATE TRIGGER documents_are_kept BEFORE INSERT ON config_versions FOR EACH ROW
WHEN (NEW.origin = 'environment' AND NEW.author IS NULL AND NEW.note <> 'recovery log') EXECUTE FUNCTION keep_document();
