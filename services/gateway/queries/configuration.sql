-- name: lock_config
-- Lock the configuration until the end of the transaction, and return its revision.
SELECT revision FROM config_revision FOR UPDATE;

-- name: list_config_changes
-- List the current documents that have changed since a revision, oldest change first. Release 0.5 drops the - 'credits': see 0048 and 0049.
SELECT kind, name, version, revision, (body - 'credits')::text AS body, origin, tenant, needs_release
FROM config_current
JOIN config_versions USING (kind, name, version)
WHERE revision > $1
ORDER BY revision, kind, name;

-- name: list_policies_at
-- List policies as they were at a revision, without those that did not exist yet. The version is null where it is deleted by now.
SELECT oldest.name, then_current.version, then_current.body::text AS body
FROM (
    SELECT name, min(version) AS version FROM config_versions WHERE kind = 'policy' AND name = ANY($1::text[]) GROUP BY name
) AS oldest
LEFT JOIN LATERAL (
    SELECT version, body FROM config_versions
    WHERE kind = 'policy' AND name = oldest.name AND revision <= $2
    ORDER BY version DESC LIMIT 1
) AS then_current ON true
WHERE then_current.version IS NOT NULL OR oldest.version > 1;

-- name: list_plan_versions
-- List all versions of plans.
SELECT name, version, (body - 'credits')::text AS body, needs_release FROM config_versions WHERE kind = 'plan' AND body IS NOT NULL;

-- name: write_config
-- Write new versions as the next revision, make them current, and notify all gateways; return the versions in the order of the arguments.
WITH next AS (
    UPDATE config_revision SET revision = revision + 1 RETURNING revision
),
written AS (
    INSERT INTO config_versions (kind, name, version, revision, body, origin, author, note, tenant, needs_release)
    SELECT given.kind, given.name, coalesce(current.version, 0) + 1, next.revision, given.body::jsonb, $4, $5, $6, $7, given.needs_release
    FROM unnest($1::text[], $2::text[], $3::text[], $8::text[]) AS given (kind, name, body, needs_release)
    CROSS JOIN next
    LEFT JOIN config_current AS current ON current.kind = given.kind AND current.name = given.name
    RETURNING kind, name, version, revision
),
pointed AS (
    INSERT INTO config_current (kind, name, version)
    SELECT kind, name, version FROM written
    ON CONFLICT (kind, name) DO UPDATE SET version = excluded.version
)
SELECT written.version, written.revision, pg_notify('gateway_config', written.revision::text)
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS given (kind, name, position)
JOIN written USING (kind, name)
ORDER BY position;

-- name: trim_config
-- Delete the oldest versions of these documents beyond the newest $3 of each.
DELETE FROM config_versions AS old
USING unnest($1::text[], $2::text[]) AS given (kind, name), config_current AS current
WHERE old.kind = given.kind AND old.name = given.name AND current.kind = given.kind AND current.name = given.name
  AND old.version <= current.version - $3;

-- name: read_config_wait
-- Return how long user $1 must wait until one of the newest $2 changes of tenants' documents is a minute old; null if there are fewer.
SELECT CASE WHEN count(*) >= $2 THEN greatest(extract(epoch FROM min(created_at) + interval '1 minute' - now()), 0)::float8 END
FROM (
    SELECT created_at FROM config_versions
    WHERE author = $1 AND tenant IS NOT NULL AND created_at > now() - interval '1 minute'
    ORDER BY created_at DESC
    LIMIT $2
) AS newest;

-- name: list_key_policies
-- List the ids of the keys that have or had policies.
SELECT substr(name, 5) AS key FROM config_current WHERE kind = 'policy' AND name LIKE 'key:%';

-- name: delete_removed_policies
-- Delete these policies and their history if they were removed more than a day ago: by then, every gateway knows.
WITH removed AS (
    DELETE FROM config_current AS current
    USING config_versions AS newest
    WHERE current.kind = 'policy' AND current.name = ANY($1::text[])
      AND newest.kind = current.kind AND newest.name = current.name AND newest.version = current.version
      AND newest.body IS NULL AND newest.created_at < now() - interval '1 day'
    RETURNING current.name
)
DELETE FROM config_versions USING removed WHERE config_versions.kind = 'policy' AND config_versions.name = removed.name;

-- name: list_config_versions
-- List versions, newest first; of all documents if the kind or name is null, and all versions if the version is.
SELECT
    kind, name, listed.version, listed.revision, (body - 'credits')::text AS body, origin, author, note, created_at, needs_release,
    current.version IS NOT NULL AS is_current
FROM config_versions AS listed
LEFT JOIN config_current AS current USING (kind, name, version)
WHERE ($1::text IS NULL OR kind = $1) AND ($2::text IS NULL OR name = $2) AND ($3::integer IS NULL OR listed.version = $3)
  AND (NOT $4 OR (current.version IS NOT NULL AND body IS NOT NULL))
ORDER BY listed.revision DESC, kind, name
LIMIT $5;

-- name: read_models_revision
-- Return a number that changes with each change of a version or channel of a model.
SELECT coalesce(sum(revision), 0)::bigint FROM models;

-- name: list_model_names
-- List what requests may write behind the @ of a model's name, and the version that it means; of a channel also those before and after it.
SELECT name, organization, channel AS word, version, previous_version, next_version, FALSE AS is_revoked
FROM models JOIN model_channels ON model = name
UNION ALL
SELECT name, organization, digest, version, NULL, NULL, state = 'revoked' FROM models JOIN model_versions ON model = name
WHERE (state IN ('ready', 'retired') AND NOT is_deleted) OR state = 'revoked';
