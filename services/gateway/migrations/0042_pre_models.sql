-- Models as artifacts: names, versions, channels, and uploads of their files.
SET LOCAL lock_timeout = '1s';

CREATE TABLE models (
    name varchar(80) PRIMARY KEY,
    -- The account or organization that it belongs to; null: the mesh.
    organization uuid,
    kind varchar(20) NOT NULL,
    description varchar(2000) NOT NULL DEFAULT '',
    -- The number of the last version: they have no gaps.
    last_version integer NOT NULL DEFAULT 0,
    -- Grows with each change of its versions and channels.
    revision bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by uuid NOT NULL
);

CREATE TABLE model_versions (
    model varchar(80) NOT NULL REFERENCES models (name),
    version integer NOT NULL CHECK (version > 0),
    -- Of the manifest.
    digest varchar(71) NOT NULL,
    manifest_bytes integer NOT NULL,
    size bigint NOT NULL,
    license varchar(100) NOT NULL DEFAULT '',
    source varchar(500) NOT NULL DEFAULT '',
    -- Digests of all that it has in the origin, with the manifest.
    blobs text[] NOT NULL,
    -- What the files say.
    facts jsonb,
    state varchar(10) NOT NULL DEFAULT 'checking' CHECK (state IN ('checking', 'ready', 'refused', 'retired', 'revoked')),
    -- Why it was refused or revoked.
    reason varchar(1000) NOT NULL DEFAULT '',
    -- Its files are deleted.
    is_deleted boolean NOT NULL DEFAULT false,
    -- A gateway checks it until then.
    busy_until timestamptz NOT NULL DEFAULT '-infinity',
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by uuid NOT NULL,
    PRIMARY KEY (model, version),
    UNIQUE (model, digest)
);
CREATE INDEX model_versions_by_blob ON model_versions USING gin (blobs);
CREATE INDEX model_versions_to_check ON model_versions (busy_until) WHERE state = 'checking';

CREATE TABLE model_channels (
    model varchar(80) NOT NULL,
    channel varchar(32) NOT NULL,
    version integer NOT NULL,
    previous_version integer,
    -- It is loaded where the channel is deployed, and then served.
    next_version integer,
    changed_at timestamptz NOT NULL DEFAULT now(),
    changed_by uuid NOT NULL,
    PRIMARY KEY (model, channel),
    FOREIGN KEY (model, version) REFERENCES model_versions (model, version),
    FOREIGN KEY (model, previous_version) REFERENCES model_versions (model, version),
    FOREIGN KEY (model, next_version) REFERENCES model_versions (model, version)
);

CREATE TABLE model_uploads (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    -- Whose upload it is: an account or organization.
    owner uuid NOT NULL,
    digest varchar(71) NOT NULL,
    size bigint NOT NULL,
    -- All pieces but the last have this size.
    piece_bytes integer NOT NULL,
    next_offset bigint NOT NULL DEFAULT 0,
    -- The blob was checked, and has its final name.
    is_stored boolean NOT NULL DEFAULT false,
    -- What was uploaded isn't the blob: the digest that it has.
    actual_digest varchar(71),
    -- A gateway joins its pieces until then.
    busy_until timestamptz NOT NULL DEFAULT '-infinity',
    expires_at timestamptz NOT NULL,
    UNIQUE (owner, digest)
);
CREATE INDEX model_uploads_by_digest ON model_uploads (digest);
CREATE INDEX model_uploads_to_join ON model_uploads (busy_until) WHERE next_offset = size AND NOT is_stored AND actual_digest IS NULL;

-- Versions are never replaced: whoever trusts a digest or a number gets the same bytes forever.
CREATE FUNCTION refuse_version_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR (NEW.model, NEW.version, NEW.digest, NEW.size, NEW.license, NEW.source, NEW.blobs, NEW.created_at, NEW.created_by)
        IS DISTINCT FROM (OLD.model, OLD.version, OLD.digest, OLD.size, OLD.license, OLD.source, OLD.blobs, OLD.created_at, OLD.created_by)
        OR (NEW.facts IS DISTINCT FROM OLD.facts AND OLD.state <> 'checking')
    THEN
        RAISE EXCEPTION 'versions of models are never changed: push another one';
    END IF;
    IF OLD.state = 'revoked' AND NEW.state <> 'revoked' THEN
        RAISE EXCEPTION 'a revoked version stays revoked';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER model_versions_are_immutable BEFORE UPDATE OR DELETE ON model_versions
    FOR EACH ROW EXECUTE FUNCTION refuse_version_change();

ALTER TABLE models ENABLE ROW LEVEL SECURITY;
ALTER TABLE models FORCE ROW LEVEL SECURITY;
-- Everybody sees the mesh's models; only their owner changes others.
CREATE POLICY of_tenant ON models USING (organization IS NULL OR sees(organization)) WITH CHECK (sees(organization));
ALTER TABLE model_versions ENABLE ROW LEVEL SECURITY;
ALTER TABLE model_versions FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON model_versions USING (EXISTS (SELECT FROM models WHERE name = model))
    WITH CHECK (EXISTS (SELECT FROM models WHERE name = model AND sees(organization)));
ALTER TABLE model_channels ENABLE ROW LEVEL SECURITY;
ALTER TABLE model_channels FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON model_channels USING (EXISTS (SELECT FROM models WHERE name = model))
    WITH CHECK (EXISTS (SELECT FROM models WHERE name = model AND sees(organization)));
ALTER TABLE model_uploads ENABLE ROW LEVEL SECURITY;
ALTER TABLE model_uploads FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON model_uploads USING (sees(owner));
