-- Files: what people upload and what jobs write, in sealed parts.
SET LOCAL lock_timeout = '1s';

CREATE TABLE files (
    -- UUIDv7: it sorts by time.
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    user_id uuid NOT NULL,
    name varchar(255) NOT NULL DEFAULT '',
    purpose varchar(30) NOT NULL DEFAULT '',
    -- What was announced, while it is uploading.
    bytes bigint NOT NULL,
    sha256 bytea,
    state varchar(10) NOT NULL DEFAULT 'uploading' CHECK (state IN ('uploading', 'ready', 'deleting')),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Of one that is uploading: its gateway has died.
    expires_at timestamptz
);
CREATE INDEX files_of_tenant ON files (tenant_id, id);
CREATE INDEX files_to_delete ON files (expires_at) WHERE expires_at IS NOT NULL OR state = 'deleting';

CREATE TABLE file_parts (
    file_id uuid NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    number integer NOT NULL,
    -- Where it begins in the file, and its size, as plain text.
    start bigint NOT NULL,
    bytes integer NOT NULL,
    -- Sealed; null: an object on the store.
    content bytea,
    PRIMARY KEY (file_id, number)
);

-- The object aimesh-store says the same id: another store, or an empty folder, is noticed.
CREATE TABLE file_store (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- The store has its object: from then on, another store without it is not this one.
    is_written boolean NOT NULL DEFAULT false,
    -- When a gateway last looked for objects without a row.
    searched_at timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE files ENABLE ROW LEVEL SECURITY;
ALTER TABLE files FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON files USING (sees(tenant_id));
ALTER TABLE file_parts ENABLE ROW LEVEL SECURITY;
ALTER TABLE file_parts FORCE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON file_parts USING (sees(tenant_id));
