-- Signatures of versions by publishers' keys.
SET LOCAL lock_timeout = '1s';

CREATE TABLE model_signatures (
    model varchar(80) NOT NULL,
    version integer NOT NULL,
    -- The fingerprint of the key, as the signature claims it. Workers check it.
    key varchar(64) NOT NULL,
    signature bytea NOT NULL CHECK (length(signature) <= 65536),
    signed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model, version, key),
    FOREIGN KEY (model, version) REFERENCES model_versions (model, version)
);

ALTER TABLE model_signatures ENABLE ROW LEVEL SECURITY;
ALTER TABLE model_signatures FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON model_signatures USING (EXISTS (SELECT FROM models WHERE name = model))
    WITH CHECK (EXISTS (SELECT FROM models WHERE name = model AND sees(organization)));
