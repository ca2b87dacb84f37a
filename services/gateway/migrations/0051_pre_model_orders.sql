-- Which versions of models the mesh has ordered to which machines, so that these may read them.
SET LOCAL lock_timeout = '1s';

CREATE TABLE model_orders (
    node varchar(56) NOT NULL,
    -- Of the version's manifest.
    digest varchar(71) NOT NULL,
    ordered_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (node, digest)
);

-- Whether a machine may read a version: one of the mesh, of the tenants in which its owner may read models (null: of all), or an ordered one.
CREATE FUNCTION may_read_version(machine text, tenants uuid[], owner uuid, version_digest text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT owner IS NULL OR tenants IS NULL OR owner = ANY (tenants)
        OR EXISTS (SELECT FROM model_orders WHERE node = machine AND digest = version_digest)
$$;
