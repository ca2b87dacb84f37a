-- The configuration, as versioned documents.

CREATE TABLE config_versions (
    kind text NOT NULL,
    name text NOT NULL,
    version integer NOT NULL,
    -- The revision of the whole configuration that began with this version.
    revision bigint NOT NULL,
    -- Null removes the document.
    body jsonb,
    origin text NOT NULL CHECK (origin IN ('environment', 'applied', 'rollback')),
    -- The administrator; null for the environment.
    author uuid,
    note text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, name, version)
);
CREATE INDEX config_versions_by_revision ON config_versions (revision);

CREATE TABLE config_current (
    kind text NOT NULL,
    name text NOT NULL,
    version integer NOT NULL,
    PRIMARY KEY (kind, name),
    FOREIGN KEY (kind, name, version) REFERENCES config_versions (kind, name, version)
);

-- One row, which every change locks.
CREATE TABLE config_revision (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    revision bigint NOT NULL
);
INSERT INTO config_revision (revision) VALUES (0);
