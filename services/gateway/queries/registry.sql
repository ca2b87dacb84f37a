-- name: find_model_blobs
-- Return how far each of the blobs $2 is for an owner: what versions of the mesh and of $3 have is there; null: all versions.
SELECT given.digest, coalesce(uploads.next_offset, 0) AS next_offset, uploads.size, uploads.actual_digest,
    coalesce(uploads.is_stored, false) OR EXISTS (
        SELECT FROM model_versions JOIN models ON name = model
        WHERE blobs @> ARRAY[given.digest] AND NOT is_deleted AND state <> 'refused'
            AND ($3::uuid IS NULL OR organization IS NULL OR organization = $3)
    ) AS is_stored
FROM unnest($2::text[]) AS given (digest)
LEFT JOIN model_uploads AS uploads ON uploads.owner = $1 AND uploads.digest = given.digest AND expires_at > now();

-- name: measure_model_storage
-- Return how many uploads an owner has open, and the bytes of all its uploads and versions.
SELECT count(*) FILTER (WHERE NOT is_stored) AS open_uploads, coalesce(sum(size), 0)::bigint + (
    SELECT coalesce(sum(size), 0)::bigint FROM model_versions JOIN models ON name = model
    WHERE organization = $1 AND NOT is_deleted AND state <> 'refused'
) AS stored_bytes
FROM model_uploads WHERE owner = $1 AND expires_at > now();

-- name: begin_upload
-- Begin an upload, or again the one whose pieces were other ones or another blob; return nothing if it goes on.
INSERT INTO model_uploads AS known (owner, digest, size, piece_bytes, expires_at) VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))
ON CONFLICT (owner, digest) DO UPDATE SET size = $3, piece_bytes = $4, next_offset = 0, actual_digest = NULL, expires_at = excluded.expires_at
WHERE NOT known.is_stored AND (known.actual_digest IS NOT NULL OR (known.size, known.piece_bytes) <> ($3, $4))
RETURNING *;

-- name: find_upload
-- Find an upload that has not expired.
SELECT * FROM model_uploads WHERE owner = $1 AND digest = $2 AND expires_at > now();

-- name: advance_upload
-- Count a piece that was stored, unless another call stored it first.
UPDATE model_uploads SET next_offset = $3, expires_at = now() + make_interval(secs => $4) WHERE id = $1 AND next_offset = $2;

-- name: take_upload
-- Take an upload whose pieces are all there for $1 seconds, unless another gateway has it.
UPDATE model_uploads SET busy_until = now() + make_interval(secs => $1)
WHERE id = (
    SELECT id FROM model_uploads
    WHERE next_offset = size AND NOT is_stored AND actual_digest IS NULL AND busy_until < now() AND expires_at > now()
        AND NOT is_deferred('model_upload', id::text)
    ORDER BY busy_until LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING *;

-- name: keep_upload
-- Keep an upload that this gateway joins.
UPDATE model_uploads SET busy_until = now() + make_interval(secs => $2), expires_at = greatest(expires_at, now() + interval '1 hour')
WHERE id = $1;

-- name: end_upload
-- Note that the blob has its final name, or which digest was uploaded instead.
UPDATE model_uploads SET is_stored = $2::text IS NULL, actual_digest = $2, busy_until = '-infinity' WHERE id = $1;

-- name: take_expired_upload
-- Delete an upload that has expired.
DELETE FROM model_uploads
WHERE id = (SELECT id FROM model_uploads WHERE expires_at <= now() AND busy_until < now() AND NOT is_deferred('model_upload', id::text) LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id, digest;

-- name: lock_model_blobs
-- Keep blobs from being deleted until the end of the transaction.
SELECT pg_advisory_xact_lock_shared(hashtextextended('aimesh.gateway.models', 0));

-- name: lock_unused_blobs
-- Keep blobs from being used until the end of the transaction.
SELECT pg_advisory_xact_lock(hashtextextended('aimesh.gateway.models', 0));

-- name: list_unused_blobs
-- List those of the blobs $1 that no version and no upload needs.
SELECT given.digest FROM unnest($1::text[]) AS given (digest)
WHERE NOT EXISTS (SELECT FROM model_uploads WHERE model_uploads.digest = given.digest)
    AND NOT EXISTS (SELECT FROM model_versions WHERE blobs @> ARRAY[given.digest] AND NOT is_deleted AND state <> 'refused');

-- name: ensure_model
-- Add a model, if nobody has one of this name.
INSERT INTO models (name, organization, kind, description, created_by) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING;

-- name: find_model
-- Find a model of the mesh or of $2 that has versions; null: anybody's.
SELECT organization FROM models WHERE name = $1 AND last_version > 0 AND ($2::uuid IS NULL OR organization IS NULL OR organization = $2);

-- name: lock_model
-- Lock a model of the mesh or of $2 until the end of the transaction; null: anybody's.
SELECT * FROM models WHERE name = $1 AND ($2::uuid IS NULL OR organization IS NULL OR organization = $2) FOR UPDATE;

-- name: announce_model
-- Count a change of a model, and notify all gateways when the transaction ends.
UPDATE models SET revision = revision + 1 WHERE name = $1 RETURNING pg_notify('gateway_config', name);

-- name: add_model_version
-- Add the next version of a locked model.
WITH next AS (UPDATE models SET last_version = last_version + 1 WHERE name = $1 RETURNING last_version)
INSERT INTO model_versions (model, version, digest, manifest_bytes, size, license, source, blobs, created_by, channel)
SELECT $1, last_version, $2, $3, $4, $5, $6, $7, $8, $9 FROM next;

-- name: check_version_again
-- Check a version again that was refused, or whose files were deleted.
UPDATE model_versions SET state = 'checking', reason = '', is_deleted = false, channel = $3
WHERE model = $1 AND digest = $2 AND (state = 'refused' OR (is_deleted AND state <> 'revoked'));

-- name: adopt_uploads
-- End the uploads of blobs that a version has from now on.
UPDATE model_uploads SET expires_at = now() WHERE owner = $1 AND digest = ANY($2::text[]);

-- name: list_model_versions
-- List versions of the mesh and of $4, newest first; of one model, and with one number or digest. Null stands for all.
SELECT model_versions.*, organization, kind, description,
    ARRAY(SELECT channel FROM model_channels AS at WHERE at.model = name AND at.version = model_versions.version ORDER BY channel) AS channels,
    ARRAY(SELECT channel FROM model_channels AS at WHERE at.model = name AND at.previous_version = model_versions.version) AS previous_of,
    ARRAY(SELECT channel FROM model_channels AS at WHERE at.model = name AND at.next_version = model_versions.version) AS next_of,
    ARRAY(SELECT key FROM model_signatures AS by WHERE by.model = name AND by.version = model_versions.version ORDER BY signed_at) AS signed_by
FROM model_versions JOIN models ON name = model
WHERE ($1::text IS NULL OR name = $1) AND ($2::integer IS NULL OR version = $2) AND ($3::text IS NULL OR digest = $3)
    AND ($4::uuid IS NULL OR organization IS NULL OR organization = $4)
ORDER BY name, version DESC LIMIT $5;

-- name: take_version
-- Take a version to be checked for $1 seconds, unless another gateway has it.
UPDATE model_versions SET busy_until = now() + make_interval(secs => $1)
WHERE (model, version) = (
    SELECT model, version FROM model_versions WHERE state = 'checking' AND busy_until < now()
        AND NOT is_deferred('model_version', model || '@' || version) ORDER BY busy_until LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING model, version, digest, blobs;

-- name: keep_version
-- Keep a version that this gateway checks.
UPDATE model_versions SET busy_until = now() + make_interval(secs => $3) WHERE model = $1 AND version = $2;

-- name: end_check
-- Note the result of a check.
UPDATE model_versions SET state = $3, reason = $4, facts = $5::text::jsonb, busy_until = '-infinity'
WHERE model = $1 AND version = $2 AND state = 'checking';

-- name: find_first_channel
-- Find the channel that a version is for that has passed its check: the one that its push named, or stable for the first of its model.
SELECT coalesce(channel, CASE WHEN NOT EXISTS (SELECT FROM model_channels AS at WHERE at.model = $1) AND NOT EXISTS (
    SELECT FROM model_versions AS other WHERE other.model = $1 AND other.version <> $2 AND other.state IN ('ready', 'retired', 'revoked')
) THEN 'stable' END) AS channel, created_by
FROM model_versions WHERE model = $1 AND version = $2 AND state = 'ready';

-- name: set_version_state
-- Change the state of a version from one of the states $5.
UPDATE model_versions SET state = $3, reason = $4 WHERE model = $1 AND version = $2 AND state = ANY($5::text[]);

-- name: delete_version
-- Note that the files of a version are deleted.
UPDATE model_versions SET is_deleted = true WHERE model = $1 AND version = $2 RETURNING blobs;

-- name: find_channel
-- Find what a channel serves.
SELECT version, previous_version, next_version FROM model_channels WHERE model = $1 AND channel = $2;

-- name: set_channel
-- Let a channel serve a ready version, if it still serves the version $4; null: there is no such channel, or it is empty.
WITH ready AS (SELECT model, version FROM model_versions WHERE model = $1 AND version = $3 AND state = 'ready' AND NOT is_deleted FOR SHARE)
INSERT INTO model_channels AS known (model, channel, version, changed_by) SELECT model, $2, version, $5 FROM ready
ON CONFLICT (model, channel) DO UPDATE
SET version = excluded.version, previous_version = coalesce(known.version, nullif(known.previous_version, excluded.version)),
    next_version = NULL, changed_at = now(), changed_by = excluded.changed_by
WHERE known.version IS NOT DISTINCT FROM $4;

-- name: set_next_version
-- Let a channel serve a ready version once it is loaded, if it still serves the version $4, and $6 is still the next one.
UPDATE model_channels AS known SET next_version = found.version, changed_at = now(), changed_by = $5
FROM (SELECT version FROM model_versions WHERE model = $1 AND version = $3 AND state = 'ready' AND NOT is_deleted FOR SHARE) AS found
WHERE model = $1 AND channel = $2 AND known.version = $4 AND next_version IS NOT DISTINCT FROM $6;

-- name: drop_next_version
-- Let a channel go on to serve the version $3, if it still does.
UPDATE model_channels SET next_version = NULL WHERE model = $1 AND channel = $2 AND version = $3;

-- name: withdraw_channel
-- Let a channel serve nothing, if it still serves the version $3; a rollback fills it again.
UPDATE model_channels SET version = NULL, previous_version = version, next_version = NULL, changed_at = now(), changed_by = $4
WHERE model = $1 AND channel = $2 AND version = $3;

-- name: drop_revoked
-- Empty the channels that serve a version, and let none serve it next or after a rollback.
UPDATE model_channels
SET version = nullif(version, $2), previous_version = nullif(previous_version, $2), next_version = nullif(next_version, $2), changed_at = now()
WHERE model = $1 AND $2 IN (version, previous_version, next_version);

-- name: serve_next_version
-- Let a channel serve what it was to serve next, if that is still $3.
UPDATE model_channels
SET version = next_version, previous_version = coalesce(version, nullif(previous_version, next_version)), next_version = NULL, changed_at = now()
WHERE model = $1 AND channel = $2 AND next_version = $3;

-- name: list_index
-- List the manifests that the index of the origin names.
SELECT model, version, digest, manifest_bytes FROM model_versions
WHERE state IN ('ready', 'retired') AND NOT is_deleted ORDER BY model, version;

-- name: find_loadable_blob
-- Return whether a version of the mesh or of $2 has this blob that may be loaded; null: of all.
SELECT EXISTS (
    SELECT FROM model_versions JOIN models ON name = model
    WHERE blobs @> ARRAY[$1::text] AND state IN ('ready', 'retired') AND NOT is_deleted
        AND ($2::uuid IS NULL OR organization IS NULL OR organization = $2)
);

-- name: find_version_of_blob
-- Return the digest of a version that has this blob and that workers may load.
SELECT digest FROM model_versions WHERE blobs @> ARRAY[$1::text] AND state IN ('ready', 'retired') AND NOT is_deleted LIMIT 1;

-- name: find_readable_blob
-- Return whether a machine $2 of the tenants $3 may read the blob $1 of a version that workers may load; null if no version has it.
SELECT bool_or(state IN ('ready', 'retired') AND may_read_version($2, $3, organization, digest))
FROM model_versions JOIN models ON name = model
WHERE blobs @> ARRAY[$1::text] AND NOT is_deleted AND state <> 'refused';

-- name: add_signature
-- Add a signature of a version, or replace that of the same key, unless all together would have more than $5 bytes.
INSERT INTO model_signatures (model, version, key, signature)
SELECT $1::text, $2::integer, $3::text, $4::bytea WHERE length($4) + (
    SELECT coalesce(sum(length(signature)), 0) FROM model_signatures WHERE model = $1 AND version = $2 AND key <> $3
) <= $5
ON CONFLICT (model, version, key) DO UPDATE SET signature = excluded.signature, signed_at = now();

-- name: list_signatures
-- List the signatures of versions that a machine $3 of the tenants $4 may read, given by models and numbers, and why they may not be loaded
-- any more.
SELECT model || '@' || version AS name, digest, CASE state WHEN 'revoked' THEN reason END AS revoked,
    ARRAY(
        SELECT signature FROM model_signatures AS by WHERE by.model = known.model AND by.version = known.version ORDER BY signed_at
    ) AS signatures
FROM model_versions AS known JOIN models ON name = model
WHERE (model, version) IN (SELECT * FROM unnest($1::text[], $2::integer[])) AND may_read_version($3, $4, organization, digest);

-- name: write_model_orders
-- Note which versions the mesh orders to which machines, or orders still.
INSERT INTO model_orders AS known (node, digest) SELECT * FROM unnest($1::text[], $2::text[])
ON CONFLICT (node, digest) DO UPDATE SET ordered_at = now() WHERE known.ordered_at < now() - interval '1 day';

-- name: drop_model_orders
-- Forget orders but those of the nodes $1 and versions $2: of the nodes $3, and of versions that aren't among $4. A machine that is away keeps
-- its orders for 30 days.
DELETE FROM model_orders
WHERE digest <> ALL ($4::text[]) OR ordered_at < now() - interval '30 days'
    OR (node = ANY ($3::text[]) AND (node, digest) NOT IN (SELECT * FROM unnest($1::text[], $2::text[])));
